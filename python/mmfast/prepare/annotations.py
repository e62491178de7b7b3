"""Annotation files as indexed records: `.jsonl`, `.json` and parquet behind one small face.

`len` is known at once and `records[i]` reads one record, so that any process can take any range. A
record that cannot be read raises `BadRecordError` and the others stay readable. Nothing here loads a
pickle.

    .jsonl    one JSON object a line; blank lines are not records
    .json     a list of objects, or one object from image name to caption or captions
    .parquet  one row a record (needs the `parquet` extra)
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmfast.errors import BadRecordError, CorruptDataError, UsageError

MAX_LINE_BYTES = 16 * 1024 * 1024
Record = dict[str, Any]


class Annotations(Protocol):
    """Records in file order.

    Attributes:
        fingerprint: hexadecimal digest of the file's content.
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record:
        """One record; `BadRecordError` (reasons `record_broken`, `record_too_long`) if it is damaged."""


def open_annotations(path: Path, *, image_field: str, caption_field: str) -> Annotations:
    """Opens an annotation file by its suffix.

    The field names are only needed for the `.json` form that maps names to captions.

    Raises:
        UsageError: no such file, or a suffix that is none of the above.
        CorruptDataError: a `.json` or parquet file that is damaged as a whole.
    """
    if not path.is_file():
        raise UsageError(f"there is no caption file {path}")
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return JsonLines(path)
    if suffix == ".json":
        return JsonArray(path, image_field=image_field, caption_field=caption_field)
    if suffix == ".parquet":
        return Parquet(path)
    raise UsageError(
        f"{path}: captions must be .jsonl, .json or .parquet, not {suffix or 'a file without suffix'}"
        + (
            "; pickles can run code when they are loaded, convert them first"
            if suffix in (".pkl", ".pickle")
            else ""
        )
    )


class Joined:
    """Several files as one, in the order given."""

    def __init__(self, parts: Sequence[Annotations]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([0, *map(len, self._parts)])
        prints = "".join(part.fingerprint for part in self._parts)
        self.fingerprint = hashlib.sha256(prints.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Record:
        """The `index`-th record of all."""
        part = int(np.searchsorted(self._ends, index, side="right")) - 1
        return self._parts[part][index - int(self._ends[part])]


class JsonLines:
    """A file of JSON lines, indexed by byte offset: 8 bytes of memory a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        digest = hashlib.sha256()
        starts, numbers = [], []
        position = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if line.strip():
                    starts.append(position)
                    numbers.append(number)
                position += len(line)
        self._starts = np.array(starts, dtype=np.int64)
        self._numbers = np.array(numbers, dtype=np.int64)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int, /) -> Record:
        """The object on the `index`-th line that is not blank."""
        where = f"{self.path}:{self._numbers[index]}"
        with self.path.open("rb") as file:
            file.seek(int(self._starts[index]))
            line = file.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise BadRecordError("record_too_long", f"{where} is over {MAX_LINE_BYTES:,} bytes")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRecordError("record_broken", f"{where} is not JSON: {error}") from error
        return _object(record, where)


class JsonArray:
    """One JSON document, held in memory."""

    def __init__(self, path: Path, *, image_field: str, caption_field: str) -> None:
        self.path = path
        content = path.read_bytes()
        self.fingerprint = hashlib.sha256(content).hexdigest()
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise CorruptDataError(f"{path} is not JSON: {error}") from error
        if isinstance(document, dict):
            document = [{image_field: k, caption_field: v} for k, v in document.items()]
        if not isinstance(document, list):
            raise CorruptDataError(
                f"{path} must hold a list of records, or an object from image name to captions; "
                f"found {type(document).__name__}"
            )
        self._records: list[Any] = document

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Record:
        """The `index`-th element."""
        return _object(self._records[index], f"{self.path}[{index}]")


class Parquet:
    """A parquet file, read one row group at a time."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError as error:
            raise UsageError(
                f"reading {path} needs pyarrow: pip install 'mmfast[parquet]'"
            ) from error
        self.path = path
        self._errors: tuple[type[Exception], ...] = (pa.ArrowException, OSError)
        try:
            self._file = parquet.ParquetFile(path)
        except self._errors as error:
            raise CorruptDataError(f"{path} is not a parquet file: {error}") from error
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = np.cumsum([0, *sizes])
        self._group: tuple[int, list[Record]] = (-1, [])
        with path.open("rb") as file:
            self.fingerprint = hashlib.file_digest(file, "sha256").hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Record:
        """The `index`-th row."""
        group = int(np.searchsorted(self._ends, index, side="right")) - 1
        if self._group[0] != group:
            try:
                self._group = (group, self._file.read_row_group(group).to_pylist())
            except self._errors as error:
                raise BadRecordError(
                    "record_broken", f"{self.path}: row group {group} does not decode: {error}"
                ) from error
        return self._group[1][index - int(self._ends[group])]


def _object(record: Any, where: str) -> Record:
    if not isinstance(record, dict):
        raise BadRecordError(
            "record_broken", f"{where} must be a JSON object, found {type(record).__name__}"
        )
    return record
