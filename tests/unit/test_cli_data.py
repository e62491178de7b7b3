"""`mmfast data`: what each command prints, and the exit code it ends with."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmfast.cli import main
from mmfast.cli.data_show import half_blocks
from mmfast.data import IndexedDataset, IndexedDatasetBuilder
from mmfast.data.rendering import Renderer
from mmfast.errors import ForeignFormatWarning
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
    size = (GRID[1] * config.downsample, GRID[0] * config.downsample)
    with Image.open(path) as image:
        assert image.size == size
    assert "▀" not in output
    code, output, _ = run("data", "show", prefix, "0:2", "--preview")
    assert code == 0
    # Two images, each two pixels in a character.
    assert output.count("▀") == 2 * size[0] * size[1] // 2


def test_a_preview_has_the_colours_of_both_halves() -> None:
    image = Image.new("RGB", (2, 3), (1, 2, 3))
    image.putpixel((1, 1), (9, 8, 7))
    first, second = half_blocks(image, 64).splitlines()
    assert first.startswith("\x1b[38;2;1;2;3m\x1b[48;2;1;2;3m▀")
    assert first.endswith("\x1b[0m")
    assert "▀" in second
    assert half_blocks(Image.new("L", (200, 100)), 50).count("▀") == 50 * 25 // 2 + 25


@pytest.mark.parametrize(
    ("named", "shown"), [("1", [1]), ("0:2", [0, 1]), ("1:", [1, 2]), (":1", [0]), ("2:99", [2])]
)
def test_show_takes_a_document_or_a_range(run, prefix: Path, named: str, shown: list[int]) -> None:
    code, output, _ = run("data", "show", prefix, named)
    assert code == 0
    found = [line.split(":")[0] for line in output.splitlines() if line.startswith("document")]
    assert found == [f"document {k}" for k in shown]


@pytest.mark.parametrize("named", ["3", "3:5", "2:1", "a", "1:b", "-1"])
def test_show_refuses_documents_that_are_not_there(run, prefix: Path, named: str) -> None:
    code, _, log = run("data", "show", prefix, "--", named)
    assert code == 2
    assert "document" in log


def test_several_datasets_are_looked_at_as_one(run, prefix: Path) -> None:
    for suffix in (".bin", ".idx", ".mmf"):
        copy = prefix.with_name("train-2").with_suffix(suffix)
        copy.write_bytes(prefix.with_suffix(suffix).read_bytes())
    several = (prefix, prefix.with_name("train-2"))
    code, output, log = run("data", "info", *several, "--json")
    assert code == 0, log
    facts = json.loads(output)
    assert (facts["datasets"], facts["documents"], facts["sequences"]) == (2, 6, 12)
    assert facts["access"].startswith("mmap")
    code, output, log = run("data", "verify", prefix.with_name("train*"))
    assert code == 0, log
    assert "2 datasets" in output
    assert "sound; 6 documents" in output
    assert "GB/s, ids" in log
    code, output, _ = run("data", "stats", *several, "--json")
    assert json.loads(output)["num_documents"] == 6
    code, output, _ = run("data", "show", prefix.with_name("train*"), 4)
    assert output.startswith("document 4: 3 sequences")
    code, _, log = run("data", "info", prefix, prefix.with_name("missing"))
    assert code == 2
    assert "missing.idx is missing" in log
    damaged = bytearray(several[1].with_suffix(".bin").read_bytes())
    damaged[0] ^= 1
    several[1].with_suffix(".bin").write_bytes(damaged)
    code, _, log = run("data", "verify", *several)
    assert code == 3
    assert "train-2.bin: 1 of 1 blocks" in log


def test_a_dataset_as_nemo_merged_it_is_readable_and_said_to_be_foreign(run, prefix: Path) -> None:
    with IndexedDatasetBuilder(prefix.with_name("nemo")) as builder:
        builder.add_documents([1, 2, 3, 4, 5, 6], [2, 1, 3])
    foreign = prefix.with_name("nemo")
    idx = bytearray(foreign.with_suffix(".idx").read_bytes())
    idx[26] = 2  # document indices: 0 and 1 only
    foreign.with_suffix(".idx").write_bytes(idx[: -2 * 8])
    foreign.with_suffix(".mmf").unlink()
    with pytest.warns(ForeignFormatWarning, match="2 sequences lie past the last document"):
        dataset = IndexedDataset(foreign)
    assert [s.ids.tolist() for d in dataset.documents() for s in d] == [[1, 2], [3], [4, 5, 6]]
    assert dataset.num_documents == 3
    assert len(dataset.findings) == 1
    code, output, log = run("data", "info", foreign)
    assert code == 0
    assert "merge_file_" in output
    assert "note: " in log
    code, output, _ = run("data", "verify", foreign)
    assert code == 0
    assert "sound, though not as megatron-core writes it" in output
    code, _, log = run("data", "verify", foreign, "--strict")
    assert code == 3
    assert "mmfast data merge" in log
    code, _, _ = run("data", "merge", foreign, foreign)
    assert code == 0
    assert IndexedDataset(foreign).findings == []
    code, _, _ = run("data", "verify", foreign, "--strict")
    assert code == 0


@pytest.mark.parametrize(("size", "differs"), [(65_499, 0), (65_500, 1), (65_536, 1), (65_537, 0)])
def test_info_tells_both_megatron_rules_where_they_disagree(
    run, tmp_path: Path, size: int, differs: int
) -> None:
    Vocabulary.build(size - 1, roles=("eos",), multiple_of=1).save(tmp_path)
    with IndexedDatasetBuilder(tmp_path / "a") as builder:
        builder.add_document([1], [1])
    code, output, _ = run("data", "info", tmp_path / "a")
    assert code == 0
    assert output.count("megatron dtype") == differs
    if differs:
        assert "writes int32" in output
        assert "reads uint16" in output


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
