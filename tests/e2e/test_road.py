"""The whole road in small: scans to tokens to a dataset to a model to pictures, captions and a report.

One tiny run is made once and looked at from every side. It is far too short to draw well; that is what
`make demo` is for. Here every step must do its real work on real scans and hand over what the next needs.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmfast
from mmfast.cli import main
from mmfast.data import IndexedDataset
from mmfast.vocab import Vocabulary

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_TRAIN, NUM_HELD_OUT = 160, 300
NUM_STEPS = 40

# One worker makes the run and looks at it.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("road")]


def mmfast_command(*arguments: object) -> None:
    """Runs a verb in this process; it must end well."""
    with pytest.raises(SystemExit) as ending:
        main([str(a) for a in arguments])
    assert ending.value.code in (0, None), arguments


def two_processes(module: str, *arguments: object) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MMFAST_NO_PROGRESS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*command, "-m", module, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def read_jsonl(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def first_records(source: Path, target: Path, *, count: int) -> None:
    """A smaller folder with the first images of each label's turn."""
    target.mkdir(parents=True)
    records = read_jsonl(source / "captions.jsonl")[:count]
    for record in records:
        shutil.copy(source / str(record["image"]), target)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (target / "captions.jsonl").write_text(lines, encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("road")
    export = runpy.run_path(str(REPOSITORY / "examples/digits/export_digits.py"))["export_digits"]
    export(out / "all", seed=0, prompts_per_label=2)
    first_records(out / "all/train", out / "raw/train", count=NUM_TRAIN)
    shutil.copytree(out / "all/heldout", out / "raw/heldout")

    train, held_out = out / "raw/train", out / "raw/heldout"
    image_tokenizer, text_tokenizer = out / "tokenizers/image", out / "tokenizers/text.json"
    mmfast_command(
        "tokenizer", "train-image", "--images", train, "--preset", "tiny", "--output", image_tokenizer, "steps=60"
    )  # fmt: skip
    mmfast_command(
        "tokenizer", "train-text", "--captions", train / "captions.jsonl", "--vocab-size", 300, "--output", text_tokenizer
    )  # fmt: skip
    tokenizers = ("--image-tokenizer", image_tokenizer, "--text-tokenizer", text_tokenizer)
    two_processes(
        "mmfast.prepare", "folder", "--images", train, "--captions", train / "captions.jsonl",
        *tokenizers, "--caption-choice", "random", "--copies", 3, "--augment", "affine", "--output", out / "data/train",
    )  # fmt: skip
    mmfast_command(
        "prepare", "folder", "--images", held_out, "--captions", held_out / "captions.jsonl",
        *tokenizers, "--output", out / "data/heldout",
    )  # fmt: skip
    two_processes(
        "mmfast.train", REPOSITORY / "examples/digits/train.yaml", f"output={out / 'train'}",
        f"data.prefix={out / 'data/train'}", f"data.validation_prefix={out / 'data/heldout'}",
        f"train.steps={NUM_STEPS}", "train.validation_batches=2",
        "train.sample_every=25", f"train.sample_prompts={out / 'all/prompts.jsonl'}",
    )  # fmt: skip
    model = out / "train/model"
    for name, scale in (("guided", 3), ("unguided", 1)):
        mmfast_command(
            "generate", "images", "--model", model, "--prompts", out / "all/prompts.jsonl",
            "--guidance-scale", scale, "--output", out / "generated" / name,
        )  # fmt: skip
    mmfast_command(
        "generate", "captions", "--model", model, "--images", held_out / "captions.jsonl",
        "--max-ids", 16, "--output", out / "captions/captions.jsonl",
    )  # fmt: skip
    mmfast_command(
        "tokenizer", "reconstruct", "--tokenizer", image_tokenizer, "--images", held_out,
        "--captions", held_out / "captions.jsonl", "--output", out / "reconstructions",
    )  # fmt: skip
    mmfast_command(
        "evaluate", "--train-captions", out / "all/train/captions.jsonl", "--test-captions", held_out / "captions.jsonl",
        "--reconstructions", out / "reconstructions/manifest.jsonl",
        "--images", f"guided={out / 'generated/guided/manifest.jsonl'}",
        "--images", f"unguided={out / 'generated/unguided/manifest.jsonl'}",
        "--captions", out / "captions/captions.jsonl", "--templates", out / "all/templates.txt",
        "--output", out / "evaluation.json",
    )  # fmt: skip
    mmfast_command(
        "report", out, "--output", out / "report.html", "--summary", out / "summary.json"
    )
    return out


def test_dataset_holds_every_copy_with_captions_and_images_apart(run: Path) -> None:
    dataset = IndexedDataset(run / "data/train")
    vocabulary = Vocabulary.load(run / "data")
    assert dataset.num_documents == NUM_TRAIN * 3
    caption, image, end = dataset.document(0)
    assert (caption.mode, image.mode, end.mode) == (0, 1, 0)
    assert caption.ids[0] == vocabulary["eos"]
    assert caption.ids[-1] == vocabulary["break"]
    assert vocabulary.codes_from_ids("image", image.ids).shape == (16,)
    assert end.ids.tolist() == [vocabulary["eos"]]


def test_a_run_draws_while_it_trains_and_leaves_a_card(run: Path) -> None:
    samples = run / "train/samples/step-25"
    records = read_jsonl(samples / "manifest.jsonl")
    assert len(records) == 20
    assert all((samples / str(record["image"])).is_file() for record in records)
    assert not (samples / "model").exists()
    assert "train/samples/step-25" in (run / "report.html").read_text(encoding="utf-8")
    card = (run / "train/model/README.md").read_text(encoding="utf-8")
    assert f"| steps | {NUM_STEPS} |" in card
    assert "LlamaForCausalLM" in card
    assert "![pictures drawn in training](grid.png)" in card
    assert "bin_tokens: 128" in card
    curves = (run / "train/model/loss.svg").read_text(encoding="utf-8")
    assert curves.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "validation" in curves
    with Image.open(run / "train/model/grid.png") as grid:
        assert grid.width > 100


def test_training_learns_and_accounts_for_its_steps(run: Path) -> None:
    lines = [m for m in read_jsonl(run / "train/metrics.jsonl") if "split" not in m]
    losses = [float(str(m["loss"])) for m in lines]
    assert len(lines) == NUM_STEPS
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    assert all(
        {"loss_text", "loss_image", "grad_norm", "lr", "data_wait_fraction"} <= set(m)
        for m in lines
    )


def test_exported_model_is_a_plain_transformers_folder(run: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = run / "train/model"
    ours = mmfast.load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    ids = torch.randint(
        0, ours.vocabulary.size, (2, 12), generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        difference = (
            ours.network(input_ids=ids, use_cache=False).logits - theirs(input_ids=ids).logits
        )
    assert difference.abs().max() < 1e-4
    assert ours.vocabulary == Vocabulary.load(run / "data")


def test_every_prompt_has_an_image_of_the_tokenizer_s_size(run: Path) -> None:
    for name in ("guided", "unguided"):
        folder = run / "generated" / name
        manifest = read_jsonl(folder / "manifest.jsonl")
        assert len(manifest) == 20
        assert {record["label"] for record in manifest} == {
            "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
        }  # fmt: skip
        for record in manifest:
            with Image.open(folder / str(record["image"])) as image:
                assert image.size == (16, 16)


def test_every_held_out_scan_has_a_caption(run: Path) -> None:
    captions = read_jsonl(run / "captions/captions.jsonl")
    assert len(captions) == len(read_jsonl(run / "raw/heldout/captions.jsonl"))
    assert all(isinstance(record["caption"], str) for record in captions)


def test_summary_and_report_are_complete(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) >= {
        "classifier_accuracy_real", "reconstruction_accuracy", "image_accuracy", "image_accuracy_unguided",
        "caption_accuracy", "num_generated", "num_held_out", "first_loss", "last_loss", "train_tokens",
        "train_seconds", "world_size", "seed",
    }  # fmt: skip
    assert summary["classifier_accuracy_real"] >= 0.96
    assert summary["num_generated"] == 20
    assert summary["world_size"] == 2
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 20
    assert "http://" not in page.replace("http://www.w3.org", "")
    with Image.open(run / "grid.png") as grid:
        assert grid.width > 100


def test_the_same_request_draws_the_same_image_again(run: Path) -> None:
    model = mmfast.load(run / "train/model")
    first, second = (
        model.draw(["a handwritten seven"], guidance_scale=3.0, seed=5)[0] for _ in range(2)
    )
    other = model.draw(["a handwritten seven"], guidance_scale=3.0, seed=6)[0]
    assert np.array_equal(np.asarray(first), np.asarray(second))
    assert not np.array_equal(np.asarray(first), np.asarray(other))


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("code", python_blocks(REPOSITORY / "README.md"))
def test_readme_examples_run(
    code: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/demo").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "print" not in code or capsys.readouterr().out


def shell_commands(path: Path) -> list[list[str]]:
    """The commands of the first indented-by-nothing block that names a folder of one's own."""
    block = next(
        b
        for b in re.findall(r"```\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        if "photos/" in b
    )
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def test_readme_commands_run_on_a_folder_of_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word but for the number of steps and processes."""
    from skimage import data

    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    photograph = data.astronaut()
    records = []
    for i in range(12):
        name = f"part-{i}.jpg"
        Image.fromarray(photograph[32 * i : 32 * i + 96, 64:192]).save(f"photos/{name}")
        records.append({"image": name, "caption": f"part {i} of a photograph of an astronaut"})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    Path("photos/captions.jsonl").write_text(lines, encoding="utf-8")
    shorter = {
        "train-image": ["--steps", "60", "batch_size=4", "warmup_steps=5"],
        "mmfast.train": ["train.steps=2"],
    }
    for command in shell_commands(REPOSITORY / "README.md"):
        more = [word for name, words in shorter.items() if name in command for word in words]
        if command[0] == "torchrun":
            two_processes(*command[command.index("-m") + 1 :], *more)
        else:
            mmfast_command(*command[1:], *more)
    with Image.open("pictures/00000.png") as picture:
        assert picture.size == (64, 64)
