"""Reads manifests: JSON lines, each with an image (or caption) and the label it ought to show.

The same form as `captions.jsonl` of a raw image folder and `manifest.jsonl` of `mmfast generate`:
`{"image": "relative/path.png", "label": "seven", …}`. Paths are relative to the manifest's folder and
may not leave it. Images that went through a tokenizer name the real one in `original`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmfast.errors import BadRecordError, UsageError
from mmfast.files import read_json_lines
from mmfast.tokenizers.images import image_path_under, open_image

FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a manifest.

    Attributes:
        where: `file:line`, for messages.
        folder: the manifest's folder, under which `image` lies.
        image: path of the image as the manifest has it.
        label: what the image ought to show.
        caption: the `caption` field when it is a text, else empty.
        original: the `original` field when it is a text, else None.
    """

    where: str
    folder: Path
    image: str
    label: str
    caption: str
    original: str | None


def read_records(manifest: Path, *, label_field: str = "label") -> list[Record]:
    """All lines of a manifest, in their order.

    Raises:
        UsageError: no such file, no records, or a record without `image` or the label field.
        CorruptDataError: a line that is not a JSON object.
    """
    if not manifest.is_file():
        raise UsageError(f"there is no manifest {manifest}")
    records = []
    for line_number, fields in read_json_lines(manifest):
        where = f"{manifest}:{line_number}"
        caption, original = fields.get("caption"), fields.get("original")
        records.append(
            Record(
                where=where,
                folder=manifest.parent,
                image=_text_field(fields, "image", where),
                label=_text_field(fields, label_field, where),
                caption=caption if isinstance(caption, str) else "",
                original=original if isinstance(original, str) else None,
            )
        )
    if not records:
        raise UsageError(f"{manifest} holds no records")
    return records


def _text_field(fields: dict[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise UsageError(
        f"{where}: field {name!r} should be a text or a number, found {value!r}; "
        f"the record has {', '.join(sorted(fields)) or 'no fields'}"
    )


def grey_pixels(record: Record, size: int) -> FloatArray:
    """The record's image in grey at `size` x `size`: float32 `[size, size]` in [0, 1].

    Raises:
        UsageError: the image is missing, corrupt, too large or outside the manifest's folder.
    """
    try:
        image = open_image(image_path_under(record.folder.resolve(), record.image))
    except BadRecordError as error:
        raise UsageError(f"{record.where}: {error}") from error
    grey = image.convert("L").resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(grey, dtype=np.float32) / np.float32(255)


def stacked_pixels(records: Sequence[Record], size: int) -> FloatArray:
    """`grey_pixels` of all records: float32 `[N, size, size]`."""
    return np.stack([grey_pixels(record, size) for record in records])
