"""`mmfast data`: what each command prints, and the exit code it ends with."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmfast.cli import main
from mmfast.data import IndexedDataset, IndexedDatasetBuilder
from mmfast.data.rendering import Renderer
from mmfast.vocab import Vocabulary

ROLES = ("eos", "pad", "break", "mask_0")
GRID = (2, 4)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs `mmfast …`; gives its exit code, stdout and stderr."""
    monkeypatch.setenv("MMFAST_NO_PROGRESS", "1")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output, log = capsys.readouterr()
        return int(ended.value.code or 0), output, log

    return run


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A folder as a preparation leaves it: three documents, vocabulary, tokenizer and recipe."""
    from mmfast.tokenizers import train_text_tokenizer

    text = train_text_tokenizer(["a handwritten seven", "a picture of a two"], vocab_size=300)
    text.save(tmp_path / "tokenizer.json")
    vocabulary = Vocabulary.build(text.size, roles=ROLES, codes=[("image", 240)])
    vocabulary.save(tmp_path)
    recipe = {"format_version": 1, "recipe": "folder", "layout": "documents", "grid": GRID}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    eos, break_ = vocabulary["eos"], vocabulary["break"]
    with IndexedDatasetBuilder(tmp_path / "train", multimodal=True) as builder:
        for i, caption in enumerate(("a handwritten seven", "a two")):
            builder.add_item([eos, *text.encode(caption), break_])
            builder.add_item(vocabulary.ids_from_codes("image", range(i, i + 8)), mode=1)
            builder.add_item([eos])
            builder.end_document()
        builder.end_document()
    return tmp_path / "train"


def test_info_names_counts_vocabulary_and_recipe(run, prefix: Path) -> None:
    code, output, _ = run("data", "info", prefix)
    assert code == 0
    facts = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert facts["documents"] == "3"
    assert facts["sequences"] == "6"
    assert facts["dtype"] == "int32"
    assert facts["multimodal"] == "True"
    assert facts["fingerprint"] == IndexedDataset(prefix).fingerprint
    vocabulary = Vocabulary.load(prefix.parent)
    assert vocabulary.fingerprint in facts["vocabulary"]
    code, output, _ = run("data", "info", prefix, "--json")
    assert json.loads(output)["recipe grid"] == list(GRID)


def test_show_renders_text_roles_and_image_codes(run, prefix: Path) -> None:
    code, output, _ = run("data", "show", prefix, 0)
    assert code == 0
    lines = output.splitlines()
    assert lines[0].startswith("document 0: 3 sequences")
    assert lines[1].endswith('<eos> "a handwritten seven" <break>')
    assert lines[2].endswith("<image 2 x 4> 0 1 2 3 4 5 6 7")
    assert lines[3].endswith("1 ids  <eos>")
    _, output, _ = run("data", "show", prefix, 1, "--max-codes", 3)
    assert "<image 2 x 4> 1 2 3 …" in output
    _, output, _ = run("data", "show", prefix, 2)
    assert output == "document 2: 0 sequences, 0 ids\n"
    code, _, log = run("data", "show", prefix, 3)
    assert code == 2
    assert "there is no document 3" in log


def test_ids_are_shown_as_numbers_without_a_vocabulary() -> None:
    assert Renderer(max_codes=3).ids([5, 6, 7, 8]) == "5 6 7 …"
    vocabulary = Vocabulary.build(
        10, roles=("eos",), codes=[("image", 4), ("depth", 4)], multiple_of=32
    )
    assert Renderer(vocabulary=vocabulary).ids([10, 10, 3, 4, 11, 12, 15, 30, -1]) == (
        "<eos><eos> 3 4 <image 2> 0 1 <depth 1> 0 <unused 30 -1>"
    )


def test_show_decodes_images_with_the_recipes_tokenizer(run, prefix: Path) -> None:
    code, _, log = run("data", "show", prefix, 0, "--images", prefix.parent / "pictures")
    assert code == 2
    assert "to name a grid and an image tokenizer" in log

    from mmfast.tokenizers.fsq import FsqConfig, FsqImageTokenizer

    config = FsqConfig(
        channels=1,
        image_height=16,
        image_width=16,
        fsq_levels=(8, 6, 5),
        stem_patch=1,
        widths=(8, 8, 8),
        num_blocks=1,
        norm_groups=4,
    )
    tokenizer = FsqImageTokenizer(config)
    tokenizer.save(prefix.parent / "image_tokenizer")
    recipe = json.loads((prefix.parent / "recipe.json").read_text())
    recipe["image_tokenizer"] = {
        "path": "image_tokenizer",
        "fingerprint": tokenizer.fingerprint,
    }
    (prefix.parent / "recipe.json").write_text(json.dumps(recipe))
    code, output, log = run("data", "show", prefix, 0, "--images", prefix.parent / "pictures")
    assert code == 0, log
    path = Path(output.splitlines()[-1])
    with Image.open(path) as image:
        assert image.size == (GRID[1] * config.downsample, GRID[0] * config.downsample)


def test_verify_accepts_sound_data_and_ends_with_3_on_any_damage(run, prefix: Path) -> None:
    code, output, _ = run("data", "verify", prefix)
    assert code == 0
    assert "sound; 3 documents, 6 sequences" in output
    assert "all inside the vocabulary" in output

    whole = prefix.with_suffix(".bin").read_bytes()
    prefix.with_suffix(".bin").write_bytes(whole[:-2])
    code, output, log = run("data", "verify", prefix)
    assert (code, output) == (3, "")
    assert "cut short" in log

    prefix.with_suffix(".bin").write_bytes(b"\xff\xff\xff\x0f" + whole[4:])
    for level in ([], ["--level", "full"], ["--level", "lazy"]):
        code, output, log = run("data", "verify", prefix, *level)
        assert (code, output) == (3, "")
        assert "1 of 1 blocks are damaged" in log
        assert f"block 0 (bytes 0..{len(whole)})" in log
        assert "documents 0 to 1" in log
    for level in ("none", "index"):
        code, _, log = run("data", "verify", prefix, "--level", level)
        assert code == 3
        assert "position 0 of sequence 0 (document 0)" in log

    prefix.with_suffix(".bin").write_bytes(whole)
    idx = prefix.with_suffix(".idx").read_bytes()
    prefix.with_suffix(".idx").write_bytes(b"X" + idx[1:])
    code, _, log = run("data", "verify", prefix)
    assert code == 3
    assert "magic" in log


def test_verify_without_sidecar_says_that_there_are_no_checksums(run, prefix: Path) -> None:
    prefix.with_suffix(".mmf").unlink()
    code, output, log = run("data", "verify", prefix)
    assert code == 0
    assert "sound" in output
    assert "no checksums to compare" in log
    code, _, log = run("data", "verify", prefix, "--level", "full")
    assert code == 2
    assert "no checksums to compare" in log


def test_verify_refuses_a_vocabulary_that_the_data_was_not_written_with(run, prefix: Path) -> None:
    with IndexedDatasetBuilder(prefix, vocabulary_fingerprint="0123") as builder:
        builder.add_document([1], [1])
    code, _, log = run("data", "verify", prefix)
    assert code == 1
    assert "was written with the vocabulary 0123" in log


def test_verify_uses_the_vocabulary_it_is_given(run, prefix: Path, tmp_path: Path) -> None:
    small = Vocabulary.build(10, roles=("eos",)).save(tmp_path / "small")
    code, _, log = run("data", "verify", prefix, "--vocabulary", small)
    assert code == 3
    assert "is outside 0..64" in log


def test_broken_side_files_are_corrupt_data(run, prefix: Path) -> None:
    for content in ("{", "[]", '{"grid": "4x4"}', '{"grid": [0, 4]}'):
        (prefix.parent / "recipe.json").write_text(content)
        code, _, log = run("data", "show", prefix)
        assert code == 3, content
        assert "recipe.json" in log


def test_merge_joins_in_order_and_a_dry_run_writes_nothing(run, prefix: Path) -> None:
    output_prefix = prefix.with_name("both")
    code, output, log = run("data", "merge", output_prefix, prefix, prefix, "--dry-run")
    assert code == 0
    assert "would write" in output
    assert not output_prefix.with_suffix(".idx").exists()
    code, output, log = run("data", "merge", output_prefix, prefix, prefix)
    assert code == 0
    assert "6 documents, 12 sequences" in output
    assert IndexedDataset(output_prefix).num_documents == 6
    with IndexedDatasetBuilder(prefix.with_name("wide"), dtype="int64") as builder:
        builder.add_document([1], [1])
    code, _, log = run("data", "merge", output_prefix, prefix, prefix.with_name("wide"))
    assert code == 2
    assert "int64, which cannot be appended to int32" in log
    assert IndexedDataset(output_prefix).num_documents == 6


def test_stats_counts_modalities_and_lengths(run, prefix: Path) -> None:
    code, output, _ = run("data", "stats", prefix)
    assert code == 0
    assert "text" in output
    assert "image" in output
    _, output, _ = run("data", "stats", prefix, "--json")
    figures = json.loads(output)
    dataset = IndexedDataset(prefix)
    assert figures["num_documents"] == 3
    assert [share["num_tokens"] for share in figures["shares"]] == [dataset.num_tokens - 16, 16]
    lengths = [sum(len(segment.ids) for segment in d) for d in dataset.documents()]
    assert figures["quantiles"]["max"] == max(lengths)
    assert figures["quantiles"]["min"] == 0
    for bin_ in figures["histogram"]:
        inside = [bin_["low"] <= length <= bin_["high"] for length in lengths]
        assert sum(inside) == bin_["num_documents"]


def test_an_empty_dataset_goes_through_every_command(run, tmp_path: Path) -> None:
    with IndexedDatasetBuilder(tmp_path / "a"):
        pass
    for command in ("info", "verify", "stats"):
        code, output, log = run("data", command, tmp_path / "a")
        assert code == 0, log
        assert output


@pytest.mark.parametrize("command", ["info", "show", "verify", "stats"])
def test_a_missing_dataset_is_a_usage_error(run, tmp_path: Path, command: str) -> None:
    code, _, log = run("data", command, tmp_path / "a")
    assert code == 2
    assert "a.idx is missing" in log
    code, _, log = run("data", command, tmp_path / "a.bin")
    assert code == 2
    assert "without .bin or .idx" in log


def test_pack_counts_rows_fill_and_overlong_documents(run, tmp_path: Path) -> None:
    with IndexedDatasetBuilder(tmp_path / "text") as builder:
        for length in (6, 4, 3, 7, 12):
            builder.add_document(range(length), [length])
    code, output, _ = run("data", "pack", tmp_path / "text", "--capacity", 10, "--dry-run")
    assert code == 0
    assert "5 documents in 3 rows of 10 ids: 100.000% full" in output
    assert "1 over-long documents (truncate), 2 ids" in output
    arguments = ("--capacity", 10, "--dry-run", "--json", "--overlong", "drop")
    code, output, _ = run("data", "pack", tmp_path / "text", *arguments)
    assert code == 0
    figures = json.loads(output)
    assert (figures["num_bins"], figures["num_lost_tokens"], figures["fill"]) == (2, 12, 1.0)
    arguments = ("--capacity", 10, "--dry-run", "--packing", "concat")
    code, output, _ = run("data", "pack", tmp_path / "text", *arguments)
    assert code == 0
    assert "5 documents in 4 rows of 10 ids: 80.000% full" in output
    assert "0 over-long documents" in output


def test_pack_refuses_to_cut_images_and_to_do_more_than_count(run, prefix: Path) -> None:
    code, _, log = run("data", "pack", prefix, "--capacity", 4, "--dry-run")
    assert code == 2
    assert "document 0 has" in log
    assert "image" in log
    code, _, log = run("data", "pack", prefix, "--packing", "concat", "--dry-run")
    assert code == 2
    assert "choose 'best_fit' or 'none'" in log
    code, _, log = run("data", "pack", prefix, "--capacity", 4)
    assert code == 2
    assert "--dry-run" in log
    code, _, log = run("data", "pack", prefix.with_name("none"), "--dry-run")
    assert code == 2
    assert "there is no dataset" in log
