"""Small files of text and JSON: written whole or not at all, read with errors that name the line.

A file appears under its name only when it is complete and on disk (temporary file beside it, fsync,
rename, fsync of the folder), so that a reader never meets half of one, whatever was killed.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmfast.errors import CorruptDataError

TEMPORARY_SUFFIX = ".tmp"


def write_text(path: Path, text: str) -> None:
    """Publishes `text` as UTF-8 at `path`; its folder is created if needed."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, document: Any) -> None:
    """Publishes `document` as indented JSON."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Publishes one JSON object a line."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def write_bytes(path: Path, content: bytes) -> None:
    """Publishes `content` at `path`; what was there stays until the new file is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CorruptDataError: not UTF-8, not JSON, or no object.
        OSError: the file cannot be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CorruptDataError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CorruptDataError(f"{path} holds a JSON {type(document).__name__}, not an object")
    return document


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1 and the objects of a JSON-lines file; blank lines are passed over.

    Raises:
        CorruptDataError: naming the file and line that is not a JSON object.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                raise CorruptDataError(f"{path}:{number} is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise CorruptDataError(
                    f"{path}:{number} holds a JSON {type(record).__name__}, not an object"
                )
            yield number, record
