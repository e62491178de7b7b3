"""`mmfast prepare folder`: documents as the layout says, sources, copies, resuming, reports that add up."""

import dataclasses
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mmfast.cli import run_verb
from mmfast.cli.prepare import app
from mmfast.data import IndexedDataset, IndexedDatasetBuilder
from mmfast.errors import MmfastError, UsageError, VocabularyMismatchError
from mmfast.prepare.job import run_job
from mmfast.prepare.options import JobOptions
from mmfast.prepare.protocol import Document, Skip
from mmfast.recipes.folder.documents import FolderPreparation
from mmfast.recipes.folder.options import FolderPrepareOptions
from mmfast.registry import get_recipe
from mmfast.tokenizers import load_image_tokenizer, load_text_tokenizer, train_text_tokenizer
from mmfast.tokenizers.fsq import FsqConfig, FsqImageTokenizer
from mmfast.tokenizers.images import open_image
from mmfast.vocab import Vocabulary

NUM_IMAGES = 10
CAPTION = "a square number {}"
Lines = list[Any]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, captions in every form, and both tokenizers."""
    root = tmp_path_factory.mktemp("raw")
    images = root / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    lines: Lines = []
    for i in range(NUM_IMAGES):
        Image.fromarray(rng.integers(0, 256, (9, 12), dtype=np.uint8)).save(images / f"{i}.png")
        lines.append({"image": f"{i}.png", "caption": CAPTION.format(i), "label": i})
    write_jsonl(root / "captions.jsonl", lines)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = FsqConfig(
            channels=1,
            image_height=8,
            image_width=8,
            fsq_levels=(4, 3),
            stem_patch=2,
            widths=(8, 8),
            num_blocks=1,
        )
        FsqImageTokenizer(shape).save(root / "image-tokenizer")
    texts = [line["caption"] for line in lines]
    train_text_tokenizer(texts, vocab_size=280).save(root / "tokenizer.json")
    return root


def write_jsonl(path: Path, lines: Lines) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def options_for(raw: Path, **changes: Any) -> FolderPrepareOptions:
    settings = {
        "image_tokenizer": raw / "image-tokenizer",
        "text_tokenizer": raw / "tokenizer.json",
        "images": raw / "images",
        "captions": raw / "captions.jsonl",
        "encode_batch": 4,
        **changes,
    }
    return FolderPrepareOptions(**settings)


def prepare(raw: Path, output: Path, *, job: dict[str, Any] | None = None, **changes: Any) -> Any:
    preparation = FolderPreparation(options_for(raw, **changes))
    return run_job("folder", preparation, JobOptions(output=output, **(job or {})))


def captions_in(prefix: Path) -> list[str]:
    """The captions that the documents of a dataset begin with."""
    dataset = IndexedDataset(prefix)
    text = load_text_tokenizer(prefix.parent)
    documents = [dataset.document(k) for k in range(dataset.num_documents)]
    return [text.decode(segments[0].ids[1:-1]) for segments in documents]


def test_a_document_is_caption_image_and_end(raw: Path, tmp_path: Path) -> None:
    report = prepare(raw, tmp_path / "data" / "train")
    dataset = IndexedDataset(tmp_path / "data" / "train")
    vocabulary = Vocabulary.load(tmp_path / "data")
    tokenizer = load_image_tokenizer(raw / "image-tokenizer")
    assert dataset.num_documents == report["documents"] == NUM_IMAGES
    for k in range(NUM_IMAGES):
        before, image, after = dataset.document(k)
        assert [segment.mode for segment in (before, image, after)] == [0, 1, 0]
        assert before.ids[0] == vocabulary["eos"]
        assert before.ids[-1] == vocabulary["break"]
        assert after.ids.tolist() == [vocabulary["eos"]]
        pixels = tokenizer.preprocess(open_image(raw / "images" / f"{k}.png"), 8)
        codes = tokenizer.encode(pixels[None])[0].flatten()
        assert vocabulary.codes_from_ids("image", image.ids).tolist() == codes.tolist()
    assert captions_in(tmp_path / "data" / "train") == [
        CAPTION.format(i) for i in range(NUM_IMAGES)
    ]


def test_the_folder_describes_itself(raw: Path, tmp_path: Path) -> None:
    report = prepare(raw, tmp_path / "train", num_sentinels=2)
    vocabulary = Vocabulary.load(tmp_path)
    assert list(vocabulary.special) == ["eos", "pad", "break", "eoss", "mask_0", "mask_1"]
    assert vocabulary.range("image").size == 12
    text = load_text_tokenizer(tmp_path / "tokenizer.json")
    assert vocabulary.text_fingerprint == text.fingerprint
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    tokenizer = load_image_tokenizer(recipe["image_tokenizer"]["path"])
    assert recipe == {
        "format_version": 1,
        "recipe": "folder",
        "layout": "documents",
        "grid": [2, 2],
        "image_size": 8,
        "resize": "center-crop",
        "image_tokenizer": {
            "path": str(raw / "image-tokenizer"),
            "fingerprint": tokenizer.fingerprint,
        },
    }
    assert json.loads((tmp_path / "train.prepare.json").read_text()) == report
    assert report["status"] == "complete"
    assert report["plan"]["resize"] == "center-crop"
    assert report["tokens"] == sum(len(ids) for ids in IndexedDataset(tmp_path / "train"))
    assert not (tmp_path / "train.shards").exists()


def test_single_layout_has_the_same_ids_in_one_sequence(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "a" / "train")
    prepare(raw, tmp_path / "b" / "train", layout="single")
    documents, single = (
        IndexedDataset(tmp_path / "a" / "train"),
        IndexedDataset(tmp_path / "b" / "train"),
    )
    assert not single.multimodal
    assert len(single) == single.num_documents == NUM_IMAGES
    for k in range(NUM_IMAGES):
        joined = np.concatenate([segment.ids for segment in documents.document(k)])
        assert np.array_equal(single[k], joined)


def same_bytes(left: Path, right: Path) -> bool:
    names = (left.name + suffix for suffix in (".bin", ".idx"))
    return all((left.parent / n).read_bytes() == (right.parent / n).read_bytes() for n in names)


def test_every_source_gives_the_same_documents(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "reference" / "train")
    lines = [json.loads(line) for line in (raw / "captions.jsonl").read_text().splitlines()]
    images = [(raw / "images" / line["image"]).read_bytes() for line in lines]

    array = tmp_path / "captions.json"
    array.write_text(json.dumps(lines))
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps({line["image"]: [line["caption"]] for line in lines}))
    beside = tmp_path / "beside"
    beside.mkdir()
    for i, (line, content) in enumerate(zip(lines, images, strict=True)):
        (beside / f"{i}.png").write_bytes(content)
        if i % 2:
            (beside / f"{i}.txt").write_text(line["caption"] + "\n\n")
        else:
            (beside / f"{i}.json").write_text(json.dumps(line))
    tars = tmp_path / "tars"
    tars.mkdir()
    for shard in range(2):
        with tarfile.open(tars / f"{shard:03}.tar", "w") as archive:
            for i in range(shard * 5, shard * 5 + 5):
                caption = (
                    lines[i]["caption"] if i % 2 else json.dumps({"caption": lines[i]["caption"]})
                )
                add_member(archive, f"part/{i}.{'txt' if i % 2 else 'json'}", caption.encode())
                add_member(archive, f"part/{i}.png", images[i])
    sources: dict[str, dict[str, Any]] = {
        "array": {"captions": array},
        "mapping": {"captions": mapping},
        "beside": {"images": beside, "captions": None},
        "tars": {"images": None, "captions": None, "tars": tars},
    }
    for name, changes in sources.items():
        prepare(raw, tmp_path / name / "train", **changes)
        assert same_bytes(tmp_path / name / "train", tmp_path / "reference" / "train"), name


def test_parquet_holds_paths_or_images(raw: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="parquet input needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet input needs pyarrow")
    prepare(raw, tmp_path / "reference" / "train")
    lines = [json.loads(line) for line in (raw / "captions.jsonl").read_text().splitlines()]
    table = pa.Table.from_pylist([{k: line[k] for k in ("image", "caption")} for line in lines])
    parquet.write_table(table, tmp_path / "paths.parquet", row_group_size=3)
    embedded = [
        {
            "image": {"bytes": (raw / "images" / line["image"]).read_bytes()},
            "caption": line["caption"],
        }
        for line in lines
    ]
    parquet.write_table(pa.Table.from_pylist(embedded), tmp_path / "embedded.parquet")
    for name in ("paths", "embedded"):
        prepare(raw, tmp_path / name / "train", captions=tmp_path / f"{name}.parquet")
        assert same_bytes(tmp_path / name / "train", tmp_path / "reference" / "train"), name


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def test_of_several_captions_each_or_one_makes_a_document(raw: Path, tmp_path: Path) -> None:
    both = [["first", "second"]] * NUM_IMAGES
    lines = [{"image": f"{i}.png", "caption": caption} for i, caption in enumerate(both)]
    captions = write_jsonl(tmp_path / "captions.jsonl", lines)
    prepare(raw, tmp_path / "all" / "train", captions=captions)
    assert captions_in(tmp_path / "all" / "train") == ["first", "second"] * NUM_IMAGES
    settings = {"captions": captions, "caption_choice": "random", "copies": 4}
    prepare(raw, tmp_path / "random" / "train", **settings)
    chosen = captions_in(tmp_path / "random" / "train")
    assert len(chosen) == 4 * NUM_IMAGES
    assert 10 < chosen.count("first") < 30
    prepare(raw, tmp_path / "other" / "train", **settings, seed=1)
    assert captions_in(tmp_path / "other" / "train") != chosen


def test_copies_are_the_image_itself_and_views_of_it(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "plain" / "train")
    prepare(raw, tmp_path / "copies" / "train", copies=5, augment="affine")
    plain, copies = (
        IndexedDataset(tmp_path / "plain" / "train"),
        IndexedDataset(tmp_path / "copies" / "train"),
    )
    assert copies.num_documents == 5 * NUM_IMAGES
    num_changed = 0
    for k in range(NUM_IMAGES):
        original = plain.document(k)[1].ids.tolist()
        views = [copies.document(5 * k + c)[1].ids.tolist() for c in range(5)]
        assert views[0] == original
        num_changed += sum(view != original for view in views[1:])
    assert num_changed > NUM_IMAGES


def test_shard_size_and_reruns_do_not_change_a_byte(raw: Path, tmp_path: Path) -> None:
    settings = {"copies": 2, "augment": "affine", "encode_batch": 1}
    prepare(raw, tmp_path / "one" / "train", **settings)
    for shard_records in (1, 3, 10):
        prefix = tmp_path / str(shard_records) / "train"
        report = prepare(raw, prefix, job={"shard_records": shard_records}, **settings)
        assert report["shards"] == -(-NUM_IMAGES // shard_records)
        assert same_bytes(prefix, tmp_path / "one" / "train")


class DiesAt(FolderPreparation):
    """Stops as a killed process would, when it comes to one record."""

    record: int | None = None
    seen: list[range]

    def documents(self, records: range, skip: Skip) -> Iterator[Document]:
        self.seen.append(records)
        for document in super().documents(records, skip):
            if self.record in records:
                raise KeyboardInterrupt
            yield document


def test_a_killed_job_goes_on_where_it_stopped(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "unbroken" / "train", job={"shard_records": 3})
    job = JobOptions(output=tmp_path / "train", shard_records=3)
    preparation = DiesAt(options_for(raw))
    preparation.seen, preparation.record = [], 7
    with pytest.raises(KeyboardInterrupt):
        run_job("folder", preparation, job)
    assert not (tmp_path / "train.idx").exists()
    preparation.seen, preparation.record = [], None
    run_job("folder", preparation, job)
    assert preparation.seen == [range(6, 9), range(9, 10)]
    assert same_bytes(tmp_path / "train", tmp_path / "unbroken" / "train")
    preparation.seen = []
    run_job("folder", preparation, job)
    assert preparation.seen == []


def test_a_job_killed_before_its_report_is_finished_by_a_rerun(raw: Path, tmp_path: Path) -> None:
    job = JobOptions(output=tmp_path / "train", shard_records=3)
    preparation = DiesAt(options_for(raw))
    preparation.seen, preparation.record = [], 9
    with pytest.raises(KeyboardInterrupt):
        run_job("folder", preparation, job)
    # The dataset of the same plan is already published, as after a crash between the two renames.
    prepare(raw, tmp_path / "done" / "train", job={"shard_records": 3})
    for suffix in (".bin", ".idx"):
        (tmp_path / f"train{suffix}").write_bytes(
            (tmp_path / "done" / f"train{suffix}").read_bytes()
        )
    preparation.record = None
    assert run_job("folder", preparation, job)["status"] == "complete"


def test_another_plan_is_refused_unless_it_may_replace(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "train")
    with pytest.raises(UsageError, match="--overwrite"):
        prepare(raw, tmp_path / "train", seed=1, copies=2, augment="affine")
    replaced = prepare(
        raw, tmp_path / "train", seed=1, copies=2, augment="affine", job={"overwrite": True}
    )
    assert IndexedDataset(tmp_path / "train").num_documents == replaced["documents"] == 20


def test_overwrite_starts_over_even_with_the_same_plan(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(raw, tmp_path / "train")
    preparation = DiesAt(options_for(raw))
    preparation.seen = []
    run_job("folder", preparation, JobOptions(output=tmp_path / "train"))
    assert preparation.seen == []
    assert "--overwrite" in capsys.readouterr().err
    job = JobOptions(output=tmp_path / "train", shard_records=5, overwrite=True)
    preparation.record = 5
    with pytest.raises(KeyboardInterrupt):
        run_job("folder", preparation, job)
    preparation.record, preparation.seen = None, []
    run_job("folder", preparation, job)
    assert preparation.seen == [range(5), range(5, 10)]


@pytest.mark.parametrize("kind", ["captions", "image", "beside", "tar"])
def test_a_dataset_whose_files_have_changed_is_no_longer_up_to_date(
    raw: Path, tmp_path: Path, kind: str
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    for i in range(2):
        Image.fromarray(pixels[i]).save(images / f"{i}.bmp")
        (images / f"{i}.txt").write_text("one")
    lines: Lines = [{"image": f"{i}.bmp", "caption": "one"} for i in range(2)]
    captions = write_jsonl(tmp_path / "captions.jsonl", lines)
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as archive:
        for path in sorted(images.iterdir()):
            add_member(archive, path.name, path.read_bytes())
    source: dict[str, Any] = {"images": images, "captions": captions}
    if kind == "beside":
        source = {"images": images, "captions": None}
    elif kind == "tar":
        source = {"images": None, "captions": None, "tars": tar}
    prefix = tmp_path / "data" / "train"
    prepare(raw, prefix, **source)
    before = prefix.with_suffix(".bin").read_bytes()
    # Sizes stay as they were; a coarse clock of the file system must not hide the change.
    changed = {"captions": captions, "image": images / "1.bmp", "beside": images / "1.txt"}
    path = changed.get(kind, tar)
    old = path.read_bytes()
    path.write_bytes(old.replace(b"one", b"two") if b"one" in old else old[:-64] + bytes(64))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))
    with pytest.raises(UsageError, match="--overwrite"):
        prepare(raw, prefix, **source)
    prepare(raw, prefix, **source, job={"overwrite": True})
    assert prefix.with_suffix(".bin").read_bytes() != before


def test_old_ids_never_stand_beside_a_new_vocabulary(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(raw, tmp_path / "train")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(IndexedDatasetBuilder, "add_index", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(raw, tmp_path / "train", copies=2, augment="affine", job={"overwrite": True})
        assert IndexedDataset(tmp_path / "train").num_documents == NUM_IMAGES
        with pytest.raises(KeyboardInterrupt):
            prepare(raw, tmp_path / "train", num_sentinels=5, job={"overwrite": True})
    assert "mask_4" in Vocabulary.load(tmp_path)
    with pytest.raises(OSError, match=r"train\.idx"):
        IndexedDataset(tmp_path / "train")


def test_threads_are_the_jobs_and_only_while_it_runs(raw: Path, tmp_path: Path) -> None:
    class Counts(FolderPreparation):
        def documents(self, records: range, skip: Skip) -> Iterator[Document]:
            seen.append(torch.get_num_threads())
            yield from super().documents(records, skip)

    seen: list[int] = []
    before = torch.get_num_threads()
    preparation = Counts(options_for(raw))
    assert torch.get_num_threads() == before
    job = JobOptions(output=tmp_path / "train", threads=before + 1)
    assert run_job("folder", preparation, job)["threads"] == before + 1
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_datasets_of_one_folder_must_agree(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "train")
    prepare(raw, tmp_path / "validation", seed=1)
    with pytest.raises(VocabularyMismatchError, match="mask_4"):
        prepare(raw, tmp_path / "more", num_sentinels=5)
    with pytest.raises(UsageError, match="layout is 'single' against 'documents'"):
        prepare(raw, tmp_path / "more", layout="single")
    with pytest.raises(UsageError, match=r"grid is \[4, 4\] against \[2, 2\]"):
        prepare(raw, tmp_path / "more", image_size=16)
    assert not (tmp_path / "more.idx").exists()


def test_a_folder_of_one_dataset_may_change_with_it(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "train")
    prepare(raw, tmp_path / "train", num_sentinels=5, job={"overwrite": True})
    assert "mask_4" in Vocabulary.load(tmp_path)
    prepare(raw, tmp_path / "other", num_sentinels=5)
    with pytest.raises(VocabularyMismatchError):
        prepare(raw, tmp_path / "train", job={"overwrite": True})


def test_bad_records_are_counted_and_the_report_adds_up(raw: Path, tmp_path: Path) -> None:
    lines: Lines = [{"image": f"{i}.png", "caption": CAPTION.format(i)} for i in range(NUM_IMAGES)]
    lines[2] = {"image": "absent.png", "caption": "x"}
    lines[5] = {"image": "absent.png", "caption": "x"}
    lines[7] = {"image": "7.png"}
    captions = write_jsonl(tmp_path / "captions.jsonl", lines)
    limits = {"max_bad_fraction": 0.3, "num_examples": 1, "shard_records": 3}
    report = prepare(raw, tmp_path / "train", captions=captions, job=limits)
    assert report["skipped"] == {"image_missing": 2, "caption_missing": 1}
    assert report["used"] + report["num_skipped"] == report["records"] == NUM_IMAGES
    assert [len(texts) for texts in report["examples"].values()] == [1, 1]
    assert "record 2" in report["examples"]["image_missing"][0]
    assert captions_in(tmp_path / "train") == [CAPTION.format(i) for i in (0, 1, 3, 4, 6, 8, 9)]


def test_the_command_bears_a_broken_line_and_reports_it(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (raw / "captions.jsonl").read_text().splitlines()
    lines[3] = '{"image": "3.png", "caption": '
    captions = tmp_path / "captions.jsonl"
    captions.write_text("\n".join(lines) + "\n")
    arguments = ["folder", "--images", raw / "images", "--captions", captions]
    arguments += ["--image-tokenizer", raw / "image-tokenizer", "--max-bad-fraction", "0.1"]
    arguments += [
        "--text-tokenizer",
        raw / "tokenizer.json",
        "--output",
        tmp_path / "data" / "train",
    ]
    with pytest.raises(SystemExit) as ended:
        run_verb("prepare", [str(argument) for argument in arguments])
    assert ended.value.code == 0
    assert "skipped 1: record_broken" in capsys.readouterr().out
    report = json.loads((tmp_path / "data" / "train.prepare.json").read_text())
    assert (report["skipped"], report["documents"]) == ({"record_broken": 1}, NUM_IMAGES - 1)
    assert "captions.jsonl:4" in report["examples"]["record_broken"][0]


def test_too_many_bad_records_fail_with_a_report_and_keep_the_shards(
    raw: Path, tmp_path: Path
) -> None:
    lines: Lines = [{"image": f"{i}.png", "caption": "x"} for i in range(8, 12)]
    captions = write_jsonl(tmp_path / "captions.jsonl", lines)
    with pytest.raises(MmfastError, match=r"2 of 4 records are bad \(image_missing 2\)"):
        prepare(raw, tmp_path / "train", captions=captions)
    report = json.loads((tmp_path / "train.prepare.json").read_text())
    assert (report["status"], report["num_skipped"]) == ("failed", 2)
    assert not (tmp_path / "train.idx").exists()
    assert (tmp_path / "train.shards").exists()
    report = prepare(raw, tmp_path / "train", captions=captions, job={"max_bad_fraction": 0.5})
    assert report["documents"] == 2


def test_an_input_of_bad_records_only_fails(raw: Path, tmp_path: Path) -> None:
    captions = write_jsonl(tmp_path / "captions.jsonl", [{"image": "absent.png", "caption": "x"}])
    with pytest.raises(MmfastError, match="no record can be used: 1 of 1") as caught:
        prepare(raw, tmp_path / "train", captions=captions, job={"max_bad_fraction": 1.0})
    assert "--max-bad-fraction" not in str(caught.value)
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(UsageError, match="no records"):
        prepare(raw, tmp_path / "train", captions=empty)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "either --images or --tars"),
        ({"tars": Path("x.tar")}, "either --images or --tars"),
        ({"copies": 0}, "--copies must be 1 or more"),
        ({"encode_batch": 0}, "--encode-batch must be 1 or more"),
        ({"image_size": 0}, "--image-size must be 1 or more"),
        ({"augment": "affine"}, "--copies 2 or more"),
        ({"copies": 2}, "would repeat the same documents"),
        ({"image_size": 10}, "not a multiple"),
        ({"captions": Path("absent.jsonl")}, "no caption file"),
        ({"captions": Path("captions.pkl")}, "no caption file"),
        ({"image_tokenizer": Path("absent")}, "holds no image tokenizer"),
        ({"text_tokenizer": Path("absent")}, "no text tokenizer"),
        ({"images": Path("absent")}, "not a folder"),
    ],
)
def test_options_that_cannot_work_are_refused(
    raw: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(MmfastError, match=message):
        FolderPreparation(options_for(raw, **changes))


def test_the_recipe_is_found_by_name(raw: Path) -> None:
    recipe = get_recipe("folder")
    assert recipe.prepare_options is FolderPrepareOptions
    preparation = recipe.open_preparation(options_for(raw))
    assert preparation.num_records == NUM_IMAGES
    assert all(field.metadata.get("help") for field in dataclasses.fields(FolderPrepareOptions))


def test_the_command_line_takes_flags_over_a_file(raw: Path, tmp_path: Path) -> None:
    config = tmp_path / "folder.yaml"
    config.write_text(
        f"images: {raw / 'images'}\ncaptions: {raw / 'captions.jsonl'}\nseed: 5\n"
        f"image_tokenizer: {raw / 'image-tokenizer'}\ntext_tokenizer: {raw / 'tokenizer.json'}\n"
    )
    output = tmp_path / "data: a" / "train"
    arguments = ["folder", "--config", str(config), "--output", str(output), "--seed", "7"]
    dry = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert json.loads(dry.stdout)["plan"]["options"]["seed"] == 7
    assert not output.parent.exists()
    done = CliRunner().invoke(app, [*arguments, "--copies", "3", "--augment", "affine"])
    assert done.exit_code == 0
    assert "30 documents" in done.stdout
    assert IndexedDataset(output).num_documents == 30


def test_hostile_images_are_counted_by_reason(raw: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    colour.save(images / "fine.png")
    colour.convert("CMYK").save(images / "cmyk.jpg")
    colour.quantize(16).save(images / "palette.png", transparency=0)
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(images / "deep.png")
    colour.save(images / "moving.gif", save_all=True, append_images=[colour.rotate(90)])
    colour.save(images / "cut.jpg")
    colour.save(images / "cut.png")
    for name in ("cut.jpg", "cut.png"):
        content = (images / name).read_bytes()
        (images / name).write_bytes(content[: len(content) // 2])
    Image.new("RGB", (1, 1)).save(images / "dot.png")
    Image.new("L", (300, 300)).save(images / "large.png")
    (images / "text.png").write_text("not a picture")
    names = sorted(path.name for path in images.iterdir())
    lines = [{"image": name, "caption": name} for name in [*names, "../images/fine.png"]]
    report = prepare(
        raw,
        tmp_path / "data" / "train",
        images=images,
        captions=write_jsonl(tmp_path / "captions.jsonl", lines),
        max_image_pixels=10_000,
        job={"max_bad_fraction": 0.9},
    )
    assert report["skipped"] == {
        "image_corrupt": 2,
        "image_too_small": 1,
        "image_too_many_pixels": 1,
        "image_format": 1,
        "image_path": 1,
    }
    kept = ["cmyk.jpg", "deep.png", "fine.png", "moving.gif", "palette.png"]
    assert captions_in(tmp_path / "data" / "train") == kept
    assert report["used"] + report["num_skipped"] == len(lines)


def test_missing_flags_are_named(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="--image-tokenizer, --output, --text-tokenizer must be given"
    ):
        CliRunner().invoke(app, ["folder", "--images", str(raw)], catch_exceptions=False)
    with pytest.raises(UsageError, match="FOLDER/NAME"):
        JobOptions(output=tmp_path)
