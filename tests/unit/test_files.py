"""Small files: whole or not at all, and errors that name the line."""

import os
from pathlib import Path

import pytest

from mmfast.errors import CorruptDataError
from mmfast.files import read_json_lines, read_json_object, write_json, write_json_lines, write_text


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "new/folder/a.json", {"text": "naïve"})
    assert read_json_object(tmp_path / "new/folder/a.json") == {"text": "naïve"}
    write_json_lines(tmp_path / "a.jsonl", [{"n": 1}, {"n": 2}])
    assert list(read_json_lines(tmp_path / "a.jsonl")) == [(1, {"n": 1}), (2, {"n": 2})]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b'{"a": 1}\n{"a": \n', ":2 is not JSON"),
        (b"[1]\n", ":1 holds a JSON list"),
        (b"\xff\n", ":1"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, where: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match=where):
        list(read_json_lines(path))
