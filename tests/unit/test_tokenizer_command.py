"""`mmfast tokenizer`: what each command writes, prints and refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from mmfast.cli.tokenizer import app
from mmfast.errors import ConfigError, MmfastError, UsageError
from mmfast.tokenizers import load_image_tokenizer, load_text_tokenizer

SMALLEST = [
    "tokenizer.fsq_levels=[4,3,3]",
    "tokenizer.widths=[16,16]",
    "batch_size=16",
    "warmup_steps=5",
]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 bright squares on black, a caption file that names all but the last, and two broken lines."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(40):
        pixels = np.zeros((8, 8), dtype=np.uint8)
        top, left = rng.integers(0, 5, size=2)
        pixels[top : top + 3, left : left + 3] = rng.integers(120, 256)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        lines.append(json.dumps({"image": f"{i:02}.png", "caption": f"square {i}", "label": i}))
    lines[3] = "{broken"
    lines[5] = json.dumps({"image": "../outside.png", "caption": "x"})
    (folder / "captions.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    size = ("--image-size", 8, "--steps", 60, "--seed", 3)
    done = run(
        "train-image", "--images", images, "--output", folder, "--preset", "tiny", *size, *SMALLEST
    )
    return folder, done


def test_training_saves_a_tokenizer_and_its_figures(trained: tuple[Path, Result]) -> None:
    folder, done = trained
    assert done.exit_code == 0
    tokenizer = load_image_tokenizer(folder)
    assert tokenizer.image_size == (8, 8)
    assert tokenizer.fingerprint in done.stdout
    report = json.loads((folder / "training.json").read_text())
    assert (report["steps"], report["config"]["seed"]) == (60, 3)
    assert report["config"]["tokenizer"]["channels"] == tokenizer.channels == 1
    assert f"PSNR {report['psnr_db']:.2f} dB on 2 held-out images" in done.stdout
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "training.json",
    ]


def test_a_dry_run_shows_the_plan_and_writes_nothing(images: Path, tmp_path: Path) -> None:
    done = run(
        "train-image",
        "--images",
        images,
        "--output",
        tmp_path / "t",
        "--preset",
        "base",
        "--dry-run",
    )
    assert "256x256 pixels -> 32x32 = 1024 ids of 8192 codes" in done.stdout
    assert not (tmp_path / "t").exists()


def test_an_unusable_tokenizer_is_not_saved(tmp_path: Path) -> None:
    for i in range(6):
        Image.new("L", (8, 8), 77).save(tmp_path / f"{i}.png")
    output = tmp_path / "tokenizer"
    with pytest.raises(MmfastError, match="cannot be used and was not saved"):
        run("train-image", "--images", tmp_path, "--output", output, "--preset", "tiny", "--steps", 3,
            "--image-size", 8, *SMALLEST)  # fmt: skip
    assert [p.name for p in output.iterdir()] == ["training.json"]


def test_unknown_settings_name_the_nearest(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        run("train-image", "--images", images, "--output", tmp_path, "learning_rat=1")
    with pytest.raises(ConfigError, match="tiny"):
        run("train-image", "--images", images, "--output", tmp_path, "--preset", "tny")
    with pytest.raises(ConfigError, match="multiple of the downsampling factor"):
        run("train-image", "--images", images, "--output", tmp_path, "--image-size", 30)


def test_reconstructions_carry_the_fields_of_their_captions(
    images: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    captions = images / "captions.jsonl"
    done = run("reconstruct", "--tokenizer", trained[0], "--images", images, "--captions", captions,
               "--output", tmp_path, "--batch-size", 7)  # fmt: skip
    assert done.exit_code == 0
    manifest = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["label"] for line in manifest] == [i for i in range(39) if i not in (3, 5)]
    assert manifest[0]["image"] == "00000.png"
    assert Path(manifest[0]["original"]).name == "00.png"
    for line in manifest:
        with Image.open(tmp_path / line["image"]) as image:
            assert (image.size, image.mode) == ((8, 8), "L")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["num_images"] == 37
    assert metrics["skipped"] == {"record_broken": 1, "image_path": 1}
    assert "2 records skipped (record_broken 1, image_path 1)" in done.stdout
    assert 10 < metrics["psnr_db_worst"] <= metrics["psnr_db"] < 99
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 8 * 64


def test_reconstruction_of_a_folder_takes_every_image(
    images: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    run("reconstruct", "--tokenizer", trained[0], "--images", images, "--output", tmp_path,
        "--image-size", 16)  # fmt: skip
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 40
    with Image.open(tmp_path / "00000.png") as image:
        assert image.size == (16, 16)


def test_text_is_learned_from_caption_files_and_plain_lines(images: Path, tmp_path: Path) -> None:
    done = run("train-text", "--captions", images / "captions.jsonl", "--output", tmp_path / "a.json",
               "--vocab-size", 270)  # fmt: skip
    assert "over 38 texts, 1 records skipped (record_broken 1)" in done.stdout
    tokenizer = load_text_tokenizer(tmp_path / "a.json")
    assert tokenizer.decode(tokenizer.encode("square 7")) == "square 7"
    lines = [{"caption": "fine"}, {"caption": 7}, {"caption": ["good", "bad \ud800"]}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run(
        "train-text", "--captions", tmp_path / "mixed.jsonl", "--output", tmp_path / "m.json"
    )
    assert "over 2 texts, 2 records skipped" in done.stdout
    assert "caption_missing 1, caption_not_unicode 1" in done.stdout
    (tmp_path / "lines.txt").write_text("one line\n\nanother line\n")
    done = run("train-text", "--captions", tmp_path / "lines.txt", "--output", tmp_path / "b.json")
    assert "over 2 texts" in done.stdout
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UsageError, match="holds no text"):
        run("train-text", "--captions", tmp_path / "empty.txt", "--output", tmp_path / "c.json")


def test_info_prints_both_kinds(trained: tuple[Path, Result], images: Path, tmp_path: Path) -> None:
    facts = json.loads(run("info", trained[0]).stdout)
    assert facts["kind"] == "fsq"
    assert facts["training"]["usable"] is True
    run("train-text", "--captions", images / "captions.jsonl", "--output", tmp_path / "a.json")
    assert json.loads(run("info", tmp_path / "a.json").stdout)["kind"] == "text"
