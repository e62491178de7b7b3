"""Where images and captions come from: caption files, files side by side, WebDataset shards.

A source knows the number of its records at once and opens any one of them, so that every process can
take its share. What is wrong with one record is a `BadRecordError`; reasons, besides those of
`mmfast.tokenizers.images`:

    record_broken record_too_long caption_missing caption_type caption_not_unicode tar_broken pickle_refused
"""

import dataclasses
import hashlib
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mmfast.errors import BadRecordError, UsageError
from mmfast.prepare.annotations import Annotations, Joined, open_annotations
from mmfast.prepare.restricted_pickle import read_restricted_pickle
from mmfast.tokenizers.images import IMAGE_SUFFIXES, image_path_under, list_images

MAX_TEXT_BYTES = 16 * 1024 * 1024
MAX_IMAGE_BYTES = 256 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image, by path or encoded, and at least one caption."""

    image: Path | bytes
    captions: list[str]


class Source(Protocol):
    """Records of images with captions, in a fixed order.

    Attributes:
        fingerprint: digest of what lists the records, and of the size and time of change of every
            file that they name. It opens no image, and still differs when one was replaced.
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def sample(self, record: int) -> Sample:
        """One record, its image not yet decoded; `BadRecordError` if it cannot be used."""


def open_source(
    *,
    images: Path | None = None,
    captions: Path | Sequence[Path] | None = None,
    tars: Path | None = None,
    image_field: str = "image",
    caption_field: str = "caption",
    pickles: bool = False,
) -> Source:
    """The source that the arguments describe.

    Args:
        images: folder under which all images lie; without it, `tars`.
        captions: a caption file or several; or a folder with a file for each image, under the same name with another
            suffix; None for such files beside the images.
        tars: WebDataset shards in place of `images`.
        image_field: field of a caption file that holds the image's path, or its bytes in parquet.
        caption_field: field that holds the caption or captions; `a.b` looks into `a` where no field is
            called so itself.
        pickles: whether captions may also be `.pkl`, read by `read_restricted_pickle`.

    Raises:
        UsageError: a folder or file is missing or of an unknown kind.
    """
    if tars is not None:
        return TarShards(tars, caption_field=caption_field)
    if images is None:
        raise UsageError("give either --images or --tars")
    if not images.is_dir():
        raise UsageError(f"{images} is not a folder of images")
    if captions is None or (isinstance(captions, Path) and captions.is_dir()):
        return FilesSideBySide(
            images, captions=captions, caption_field=caption_field, pickles=pickles
        )
    fields = {"image_field": image_field, "caption_field": caption_field}
    records: Annotations
    if isinstance(captions, Path):
        records = open_annotations(captions, **fields)
    else:
        records = Joined([open_annotations(path, **fields) for path in captions])
    return CaptionFile(images, records, image_field, caption_field)


class CaptionFile:
    """A record names its image by a path under the root, or (in parquet) holds its bytes."""

    def __init__(
        self, root: Path, records: Annotations, image_field: str, caption_field: str
    ) -> None:
        self._root = root.resolve()
        self._records = records
        self._image_field, self._caption_field = image_field, caption_field
        digest = hashlib.sha256(records.fingerprint.encode())
        for record in range(len(records)):
            digest.update(self._stamp(record).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def sample(self, record: int) -> Sample:
        """See `Source`."""
        fields = self._records[record]
        image = fields.get(self._image_field)
        # The form in which Hugging Face datasets store images in parquet.
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if image is None:
            raise BadRecordError("image_missing", f"field {self._image_field!r} is missing")
        if isinstance(image, str):
            image = image_path_under(self._root, image)
        elif not isinstance(image, bytes):
            raise BadRecordError(
                "record_broken",
                f"field {self._image_field!r} must be a path, found {type(image).__name__}",
            )
        return Sample(image, captions_of(_field(fields, self._caption_field)))

    def _stamp(self, record: int) -> str:
        """The stamp of a record's image; empty where the caption file itself says all there is."""
        try:
            image = self._records[record].get(self._image_field)
        except BadRecordError:
            return "\n"
        if isinstance(image, dict):
            image = None if image.get("bytes") else image.get("path")
        return _stamp(self._root / image) if isinstance(image, str) else "\n"


class FilesSideBySide:
    """`a/b.png` with its captions in `a/b.txt` (one a line) or `a/b.json` (text, list, or object).

    Captions may lie under a folder of their own, with the same names, and may be plain pickles where the
    caller allows it.
    """

    def __init__(
        self,
        root: Path,
        *,
        captions: Path | None = None,
        caption_field: str,
        pickles: bool = False,
    ) -> None:
        self._root = root.resolve()
        self._captions_root = self._root if captions is None else captions.resolve()
        self._caption_field = caption_field
        self._suffixes = (".txt", ".json", *((".pkl", ".pickle") if pickles else ()))
        self._names = [str(path.relative_to(root)) for path in list_images(root)]
        digest = hashlib.sha256()
        for name in self._names:
            text = self._caption_name(name)
            digest.update(f"{name}\0{_stamp(root / name)}".encode())
            digest.update(b"\n" if text is None else _stamp(self._captions_root / text).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def sample(self, record: int) -> Sample:
        """See `Source`."""
        image = image_path_under(self._root, self._names[record])
        name = self._caption_name(self._names[record])
        if name is None:
            where = (
                "beside it" if self._captions_root == self._root else f"in {self._captions_root}"
            )
            raise BadRecordError(
                "caption_missing",
                f"{self._names[record]} has no {' or '.join(self._suffixes)} {where}",
            )
        path = image_path_under(self._captions_root, name)
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise BadRecordError("record_too_long", f"{path} is over {MAX_TEXT_BYTES:,} bytes")
        content = path.read_bytes()
        try:
            return Sample(image, captions_from_file(content, path.suffix, self._caption_field))
        except BadRecordError as error:
            raise BadRecordError(error.reason, f"{path}: {error}") from error

    def _caption_name(self, image: str) -> str | None:
        candidates = (str(Path(image).with_suffix(suffix)) for suffix in self._suffixes)
        return next((name for name in candidates if (self._captions_root / name).is_file()), None)


@dataclasses.dataclass(frozen=True)
class _Member:
    offset: int
    size: int


class TarShards:
    """WebDataset shards: neighbouring members that share a name up to the first dot are one record.

    Nothing is unpacked: members are read in place, so their names are never paths. Links and special
    files inside an archive are ignored. An archive that ends too early gives its whole records; what is
    cut off, and the damage itself, are bad records `tar_broken`.
    """

    def __init__(self, path: Path, *, caption_field: str) -> None:
        self._caption_field = caption_field
        self._paths = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
        if not self._paths or not all(p.is_file() for p in self._paths):
            raise UsageError(f"{path} is no .tar file, nor a folder that holds any")
        self._records: list[tuple[int, str, dict[str, _Member]]] = []
        digest = hashlib.sha256()
        for number, shard in enumerate(self._paths):
            digest.update(f"{shard.name}\0{_stamp(shard)}".encode())
            for name, members in _tar_records(shard):
                self._records.append((number, name, members))
                digest.update(f"{name}\0{sorted(members.items())}\n".encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def sample(self, record: int) -> Sample:
        """See `Source`."""
        number, name, members = self._records[record]
        where = f"{self._paths[number]}:{name}"
        if not members:
            raise BadRecordError("tar_broken", f"{self._paths[number]} is damaged: {name}")
        image = next((m for suffix, m in members.items() if suffix in IMAGE_SUFFIXES), None)
        if image is None:
            raise BadRecordError("image_missing", f"{where} has no image among {sorted(members)}")
        for suffix in (".txt", ".json"):
            if suffix in members:
                content = self._read(number, members[suffix], MAX_TEXT_BYTES, "record_too_long")
                captions = captions_from_file(content, suffix, self._caption_field)
                break
        else:
            raise BadRecordError("caption_missing", f"{where} has no .txt or .json")
        return Sample(self._read(number, image, MAX_IMAGE_BYTES, "image_too_many_bytes"), captions)

    def _read(self, number: int, member: _Member, limit: int, reason: str) -> bytes:
        if member.size > limit:
            raise BadRecordError(
                reason, f"a member of {self._paths[number]} is over {limit:,} bytes"
            )
        with self._paths[number].open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
        if len(content) < member.size:
            raise BadRecordError("tar_broken", f"{self._paths[number]} ends within a member")
        return content


def _stamp(path: Path) -> str:
    """Size and time of change of a file, which a changed content changes."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return "none\n"
    return f"{status.st_size} {status.st_mtime_ns}\n"


def _tar_records(path: Path) -> list[tuple[str, dict[str, _Member]]]:
    """Records of one archive in order; a last one without members stands for damage, named by its cause."""
    records: list[tuple[str, dict[str, _Member]]] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if not info.isreg():
                    continue
                folder, slash, file_name = info.name.rpartition("/")
                stem, dot, suffix = file_name.partition(".")
                if not stem or not dot:
                    continue
                key = folder + slash + stem
                if not records or records[-1][0] != key:
                    records.append((key, {}))
                records[-1][1][f".{suffix.lower()}"] = _Member(info.offset_data, info.size)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if not records and path.suffix != ".tar":
            raise UsageError(f"{path} is not an uncompressed tar archive: {error}") from error
        records.append((str(error) or type(error).__name__, {}))
    return records


def captions_from_file(content: bytes, suffix: str, caption_field: str) -> list[str]:
    """Captions in the content of a `.txt` (one a line), `.json` or `.pkl` (text, list, or object with the field)."""
    if suffix in (".pkl", ".pickle"):
        document = read_restricted_pickle(content)
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRecordError("caption_not_unicode", f"caption is not UTF-8: {error}") from error
        if suffix == ".txt":
            return captions_of(text.splitlines())
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadRecordError("record_broken", f"caption is not JSON: {error}") from error
    return captions_of(_field(document, caption_field) if isinstance(document, dict) else document)


def _field(fields: dict[Any, Any], name: str) -> Any:
    """A field by name, else by a path like `captions.llava`; None where there is none."""
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def captions_of(value: Any) -> list[str]:
    """The captions in a text or list of texts, stripped, empty ones left out; at least one."""
    if value is None:
        raise BadRecordError("caption_missing", "there is no caption")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRecordError(
            "caption_type",
            f"captions must be text or a list of texts, found {type(value).__name__}"
            + (" of other values" if isinstance(value, list) else ""),
        )
    captions = [text.strip() for text in texts if text.strip()]
    if not captions:
        raise BadRecordError("caption_missing", "the caption is empty")
    return captions
