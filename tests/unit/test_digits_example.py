"""The export of the digits example: same seed, same bytes; nothing of the test in the training."""

import hashlib
import importlib.util
import json
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from mmfast.train.config import load_train_config

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "digits" / "export_digits.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_same_seed_writes_the_same_bytes_even_over_another_seeds_export(
    script: ModuleType, tmp_path: Path
) -> None:
    script.export_digits(tmp_path / "a", seed=3)
    script.export_digits(tmp_path / "b", seed=4)
    assert digest(tmp_path / "a") != digest(tmp_path / "b")
    script.export_digits(tmp_path / "b", seed=3)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_splits_are_whole_and_share_no_scan(script: ModuleType, tmp_path: Path) -> None:
    script.export_digits(tmp_path, seed=0)
    names = {
        split: [r["image"] for r in records(tmp_path / split / "captions.jsonl")]
        for split in ("train", "heldout")
    }
    assert (len(names["train"]), len(names["heldout"])) == (1500, 297)
    assert len({*names["train"], *names["heldout"]}) == 1797
    for split, files in names.items():
        assert sorted(files) == sorted(p.name for p in (tmp_path / split).glob("*.png"))
    with Image.open(tmp_path / "train" / names["train"][0]) as image:
        assert (image.mode, image.size) == ("L", (8, 8))
        assert image.getextrema()[1] > 200


def test_every_label_is_prompted_equally_and_every_caption_follows_a_template(
    script: ModuleType, tmp_path: Path
) -> None:
    script.export_digits(tmp_path, seed=0)
    templates = (tmp_path / "templates.txt").read_text().splitlines()
    prompts = records(tmp_path / "prompts.jsonl")
    assert [sum(p["label"] == label for p in prompts) for label in script.LABELS] == [20] * 10
    assert {p["prompt"] for p in prompts} == {
        t.format(label=label) for t in templates for label in script.LABELS
    }
    for record in records(tmp_path / "heldout" / "captions.jsonl"):
        assert record["caption"] == [t.format(label=record["label"]) for t in templates]


def test_the_driver_does_not_touch_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = subprocess.run(
        ["bash", str(SCRIPT.with_name("run.sh"))],
        env={**os.environ, "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "is not empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_training_configuration_has_only_known_keys() -> None:
    config = load_train_config(str(SCRIPT.with_name("train.yaml")), [])
    assert config.objective.kind == "cm3"
    assert config.data.bin_tokens <= config.model.context_length
