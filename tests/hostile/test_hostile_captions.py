"""Caption files and archives as they should not be: every fault is a counted reason or a clear error."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mmfast.errors import BadRecordError, CorruptDataError, MmfastError, UsageError
from mmfast.prepare.annotations import open_annotations
from mmfast.prepare.sources import Source, captions_from_file, captions_of, open_source


def source_of(**settings: object) -> Source:
    return open_source(**settings)


def reason_of(source: Source, record: int) -> str:
    with pytest.raises(BadRecordError) as caught:
        source.sample(record)
    assert str(caught.value)
    return caught.value.reason


def test_each_broken_line_is_one_bad_record_and_the_rest_stays_readable(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path.parent / "secret.png").write_bytes(b"")
    good = b'{"image": "a.png", "caption": "fine"}'
    lines = [
        (good, ""),
        (b'{"image": "a.png", "caption": ', "record_broken"),
        (b'["a.png", "x"]', "record_broken"),
        (b"\xff\xfe\x00", "record_broken"),
        (b"[" * 100_000, "record_broken"),
        (b'{"caption": "x"}', "image_missing"),
        (b'{"image": null, "caption": "x"}', "image_missing"),
        (b'{"image": 5, "caption": "x"}', "record_broken"),
        (b'{"image": "b.png", "caption": "x"}', "image_missing"),
        (b'{"image": "../secret.png", "caption": "x"}', "image_path"),
        (b'{"image": "/etc/passwd", "caption": "x"}', "image_path"),
        (b'{"image": "a.png"}', "caption_missing"),
        (b'{"image": "a.png", "caption": "  "}', "caption_missing"),
        (b'{"image": "a.png", "caption": []}', "caption_missing"),
        (b'{"image": "a.png", "caption": 7}', "caption_type"),
        (b'{"image": "a.png", "caption": ["x", 7]}', "caption_type"),
        (good, ""),
    ]
    path = tmp_path / "captions.jsonl"
    path.write_bytes(b"\n\n".join(line for line, _ in lines))
    source = source_of(images=tmp_path, captions=path)
    assert len(source) == len(lines)
    for record, (_, reason) in enumerate(lines):
        if reason:
            assert reason_of(source, record) == reason, record
        else:
            assert source.sample(record).captions == ["fine"]


def test_a_line_number_leads_to_the_fault(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('\n{"image": 1}\n\n{broken\n')
    records = open_annotations(path, image_field="image", caption_field="caption")
    with pytest.raises(BadRecordError, match=r"captions\.jsonl:4 is not JSON"):
        records[1]


def test_an_endless_line_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmfast.prepare.annotations.MAX_LINE_BYTES", 1000)
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"caption": "x" * 2000}) + "\n")
    records = open_annotations(path, image_field="image", caption_field="caption")
    with pytest.raises(BadRecordError) as caught:
        records[0]
    assert caught.value.reason == "record_too_long"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"),
        ("a.json", b"5"),
        ("a.json", b"[" * 100_000),
        ("a.json", b"\xff\xff"),
        ("a.parquet", b"PAR1 but not really PAR1"),
        ("a.parquet", b""),
    ],
)
def test_a_file_that_is_damaged_as_a_whole_is_a_clear_error(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptDataError, match=name.replace(".", r"\.")):
        open_annotations(tmp_path / name, image_field="image", caption_field="caption")


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "captions.pkl"
    path.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(UsageError, match="pickles can run code"):
        open_annotations(path, image_field="image", caption_field="caption")


def test_files_beside_images_have_their_own_faults(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.txt"
    root.mkdir()
    outside.write_text("secret")
    for name in "abcdef":
        Image.new("L", (8, 8)).save(root / f"{name}.png")
    (root / "b.txt").write_bytes(b"\xff\xfe caption")
    (root / "c.json").write_text("{")
    (root / "d.txt").symlink_to(outside)
    (root / "e.txt").write_text("\n\n")
    (root / "f.txt").write_text("\ufeffone\n two \n")
    source = source_of(images=root)
    reasons = [reason_of(source, record) for record in range(5)]
    assert reasons == [
        "caption_missing",
        "caption_not_unicode",
        "record_broken",
        "image_path",
        "caption_missing",
    ]
    assert source.sample(5).captions == ["one", "two"]


def tar_with(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def test_archive_members_are_read_in_place_whatever_their_names(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("L", (8, 8)).save(image, "PNG")
    png = image.getvalue()
    path = tar_with(
        tmp_path / "a.tar",
        {
            "../../evil.png": png,
            "../../evil.txt": b"one",
            "/abs.png": png,
            "/abs.json": b'{"caption": "two"}',
            "lonely.png": png,
            "words.txt": b"three",
            ".hidden": b"",
        },
    )
    source = source_of(tars=path)
    assert len(source) == 4
    assert [source.sample(i).captions for i in range(2)] == [["one"], ["two"]]
    assert reason_of(source, 2) == "caption_missing"
    assert reason_of(source, 3) == "image_missing"
    assert {p.name for p in tmp_path.iterdir()} == {"a.tar"}


def test_an_archive_that_ends_too_early_gives_its_whole_records(tmp_path: Path) -> None:
    members = {f"{i}.{kind}": b"x" * 600 for i in range(4) for kind in ("png", "txt")}
    path = tar_with(tmp_path / "a.tar", members)
    content = path.read_bytes()
    # A member takes a header of 512 bytes and its content rounded up to 1,024.
    path.write_bytes(content[: 1536 * 5 + 700])
    source = source_of(tars=tmp_path)
    assert len(source) == 4
    assert [source.sample(record).captions for record in range(2)] == [["x" * 600]] * 2
    assert [reason_of(source, record) for record in (2, 3)] == ["tar_broken", "tar_broken"]
    path.write_bytes(b"no archive at all" * 100)
    assert reason_of(source_of(tars=tmp_path), 0) == "tar_broken"
    with pytest.raises(UsageError, match=r"no \.tar file"):
        source_of(tars=tmp_path / "absent")


def test_captions_are_text_or_lists_of_text() -> None:
    assert captions_of(" a ") == ["a"]
    assert captions_of(["a", "", " b"]) == ["a", "b"]
    assert captions_from_file(b'"a"', ".json", "caption") == ["a"]
    assert captions_from_file(b'["a", "b"]', ".json", "caption") == ["a", "b"]
    for bad in (None, "", [], 5, {"a": 1}, [None]):
        with pytest.raises(MmfastError, match="caption"):
            captions_of(bad)
