"""Values that no verb can use end with one line and the right exit code, never with a traceback."""

import contextlib
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast.cli import run_verb

SMALL = ["tokenizer.fsq_levels=[4,3]", "tokenizer.widths=[8,8]", "batch_size=8", "warmup_steps=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def outcome(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit code and stderr of `mmfast` with these arguments; any other exception is a traceback."""
    with pytest.raises(SystemExit) as ended:
        run_verb(arguments[0], arguments[1:])
    return ended.value.code, capsys.readouterr().err


DRAW = "generate images --model {model} --output {output} --prompt two"
CAPTION = "generate captions --model {model} --output {output}/c.jsonl --images {images}"
TRAIN = "tokenizer train-image --images {images} --output {output} --preset tiny --image-size 8"
RECONSTRUCT = (
    "tokenizer reconstruct --tokenizer {model}/image_tokenizer --images {images} --output {output}"
)
PREPARE = (
    "prepare folder --images {images} --captions {images}/c.jsonl --output {output}/train "
    "--image-tokenizer {model}/image_tokenizer --text-tokenizer {model}/tokenizer.json"
)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{DRAW} --guidance-scale nan", "guidance_scale is nan"),
        (f"{DRAW} --guidance-scale inf", "guidance_scale is inf"),
        (f"{DRAW} --guidance-scale 1e300 --dry-run", "guidance_scale does not fit"),
        (f"{DRAW} --temperature nan", "Error"),
        (f"{DRAW} --top-k 99999999999999999", "top_k is 1e+17"),
        (f"{DRAW} --seed 99999999999999999999", "seed 99999999999999999999 must lie in"),
        (f"{DRAW} --device tpu", "--device is 'tpu'; it must be auto, cpu or cuda"),
        (f"{DRAW} --device cuda", "no CUDA device"),
        (f"{CAPTION} --top-p nan", "Error"),
        (f"{CAPTION} --device cuda", "no CUDA device"),
        (f"{RECONSTRUCT} --image-size 30", "--image-size 30 is not a multiple"),
        (f"{RECONSTRUCT} --image-size 0 --dry-run", "--image-size 0 is not a multiple"),
        (f"{RECONSTRUCT} --device cuda", "no CUDA device"),
        (f"{TRAIN} --device cuda", "no CUDA device"),
        (f"{TRAIN} --device tpu --dry-run", "must be auto, cpu or cuda"),
        (f"{TRAIN} learning_rate=.nan", "learning_rate must be above 0 and finite"),
        (f"{PREPARE} --device cuda", "no CUDA device"),
        (f"{PREPARE} --threads 0", "--threads must be 1 or more"),
        (
            "tokenizer train-text --captions absent.txt --output {output}",
            "there is no caption file",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_a_usage_error(
    command: str,
    message: str,
    images: Path,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "output"
    (images / "c.jsonl").write_text('{"image": "0.png", "caption": "x"}\n')
    filled = command.format(model=model_folder, images=images, output=output)
    code, stderr = outcome(filled.split(), capsys)
    assert code == 2, stderr
    assert message in stderr
    assert "Traceback" not in stderr
    assert not output.exists()


def test_diverged_training_ends_with_advice_and_saves_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tokenizer"
    command = f"{TRAIN} --steps 200 --device cpu".format(images=images, output=output).split()
    code, stderr = outcome([*command, *SMALL, "learning_rate=1e9"], capsys)
    assert code == 1, stderr
    assert "training diverged" in stderr
    assert "Lower learning_rate" in stderr
    assert "Traceback" not in stderr
    assert not output.exists()


@pytest.mark.parametrize("command", [DRAW, CAPTION])
def test_ranks_wait_for_each_other_as_long_as_the_work_takes(
    command: str,
    images: Path,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timeouts: list[timedelta] = []

    def no_group(*, timeout: timedelta) -> object:
        timeouts.append(timeout)
        return contextlib.nullcontext()

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("mmfast.distributed.process_group", no_group)
    filled = f"{command} --dry-run --device cpu"
    arguments = filled.format(model=model_folder, images=images, output=tmp_path / "o").split()
    assert outcome(arguments, capsys)[0] == 0
    assert timeouts[0] >= timedelta(days=1)
