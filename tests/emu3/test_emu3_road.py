"""The example's road: photographs to documents to a model that draws and describes what it learnt by heart."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from examples.emu3.tiny_checkpoints import CAPTIONS, PHOTOS, write_example
from PIL import Image

import mmfast
from mmfast.cli import main
from mmfast.data import IndexedDataset
from mmfast.generate import SamplingSettings
from mmfast.recipes.emu3.vocabulary import codes_from_image_ids
from mmfast.vocab import Vocabulary

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("emu3-road")]


def commands(out: Path) -> list[list[str]]:
    """The `mmfast` commands of the example's script."""
    script = (REPOSITORY / "examples/emu3/run.sh").read_text()
    return [
        shlex.split(line.replace("$out", str(out)))
        for line in script.splitlines()
        if re.match("mmfast ", line)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("emu3")
    write_example(out / "raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        for command in commands(out):
            with pytest.raises(SystemExit) as ending:
                main(command[1:])
            assert ending.value.code in (0, None), command
    return out


def test_every_step_of_the_script_leaves_its_result(run: Path) -> None:
    for name, num_documents in (("coyo", 8), ("pokemon", 8), ("data", 16)):
        assert IndexedDataset(run / name / "train").num_documents == num_documents
    pictures = sorted((run / "pictures").glob("*.png"))
    assert len(pictures) == 8
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size == (64, 64)


def test_the_loss_on_images_falls_to_a_tenth(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "train/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss_image"] for line in lines if line.get("split") != "validation"]
    assert len(losses) == 160
    assert np.mean(losses[-10:]) < 0.1 * losses[0]


def test_greedy_drawing_gives_back_the_grid_that_was_learnt(run: Path) -> None:
    model = mmfast.load(run / "train/model", device="cpu")
    dataset, vocabulary = IndexedDataset(run / "data/train"), Vocabulary.load(run / "data")
    greedy = {"image": SamplingSettings(temperature=0.0)}
    requests = [
        model.drawing_request(caption, sampling=greedy, guidance_scale=1.0) for caption in CAPTIONS
    ]
    results = model.generate(requests, num_rows=8)
    drawn = dict(zip(CAPTIONS, (r.ids for r in results), strict=True))
    num_same = 0
    for number, stem in enumerate(sorted(Path(name).stem for name in PHOTOS)):
        caption = (run / f"raw/photos/{stem}.txt").read_text().strip()
        learnt = codes_from_image_ids(dataset.document(2 * number)[1].ids, vocabulary)
        found = codes_from_image_ids(drawn[caption], vocabulary, grid=(8, 8))
        num_same += np.array_equal(found, learnt)
    assert num_same >= 6


def test_the_captions_that_were_learnt_come_back(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "captions.jsonl").read_text().splitlines()]
    right = [
        line["caption"]
        == (run / "raw/photos" / line["image"]).with_suffix(".txt").read_text().strip()
        for line in lines
    ]
    assert len(right) == 8
    assert sum(right) >= 6


def test_a_model_without_empty_captions_draws_unguided(run: Path) -> None:
    model = mmfast.load(run / "train/model", device="cpu")
    assert model.parts.recipe.drawing_guidance == 1.0
    assert len(model.drawing_request("a cat").streams) == 1
