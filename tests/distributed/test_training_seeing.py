"""Figures, tasks, profiles and loggers of whole runs, and failures from outside."""

import errno
import json
import os
import resource
import shutil
import sys
from contextlib import contextmanager

import pytest
import torch
from tests.unit.test_train_seeing import FakePackage
from torch._dynamo.utils import counters

from mmfast.cli import run_verb
from mmfast.errors import CheckpointError, TrainingError
from mmfast.train import checkpoint, load_train_config, train, trainer
from mmfast.train.failures import explained

pytestmark = pytest.mark.distributed


@pytest.fixture
def arguments(tiny_model, dataset, tmp_path):
    return [*tiny_model, f"data.prefix={dataset}", f"output={tmp_path / 'run'}", "train.steps=2"]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_reports_its_rates_tasks_and_profile(
    arguments, dataset, tmp_path, monkeypatch, capsys
):
    package = FakePackage("wandb")
    monkeypatch.setitem(sys.modules, "wandb", package)
    tasks = (
        "data.validation_tasks=[{name: draw}, {name: caption, objective: {kind: cm3, cm3: "
        "{whole_segment_prob: 1.0, whole_segment_modality: text}}}]"
    )
    extra = ["train.peak_tflops=0.001", "train.loggers=[wandb]", "train.profile_step=1"]
    validation = [f"data.validation_prefix={dataset}", tasks, "train.validation_batches=2"]
    train(load_train_config("tiny", [*arguments, *extra, *validation]))
    steps = [line for line in lines_of(tmp_path / "run") if "split" not in line]
    for line in steps:
        assert line["tokens_per_sec_per_process"] == line["tokens_per_sec"] > 0
        assert 0 < line["mfu_causal"] <= line["mfu"]
        assert line["mfu"] == pytest.approx(line["tflops_per_process"] / 0.001, rel=0.1, abs=0.1)
        assert line["peak_tflops"] == 0.001
        assert line["memory_gib"] > 0
        assert 0 <= line["data_wait_fraction"] < 1
    held_out = {line["split"]: line for line in lines_of(tmp_path / "run") if "split" in line}
    assert list(held_out) == ["validation", "validation draw", "validation caption"]
    assert held_out["validation"]["loss"] == held_out["validation draw"]["loss"]
    assert held_out["validation caption"]["loss"] != held_out["validation"]["loss"]
    assert {"loss_text", "loss_image"} <= set(held_out["validation caption"])
    printed = capsys.readouterr().err
    assert "of 0.001 TFLOP/s" in printed
    assert "validation caption loss" in printed
    logged = [call for call in package.calls if call[0] == "log"]
    assert [call[1] for call in logged[:2]] == [1, 2]
    assert "validation/caption/loss" in logged[-1][2]
    assert package.calls[-1] == ("finish",)
    profile = tmp_path / "run" / "profile"
    assert json.loads((profile / "rank-0.trace.json").read_text())["traceEvents"]
    assert "aten::" in (profile / "rank-0.txt").read_text()


def test_compiled_blocks_learn_what_plain_ones_do(arguments, tmp_path):
    losses, num_graphs = {}, {}
    for compiled in (False, True):
        output = tmp_path / f"compiled-{compiled}"
        extra = ["train.steps=8", "model.num_layers=1", f"parallel.compile={compiled}"]
        counters["stats"].clear()
        train(load_train_config("tiny", [*arguments, *extra, f"output={output}"]))
        losses[compiled] = [line["loss"] for line in lines_of(output)]
        num_graphs[compiled] = counters["stats"]["unique_graphs"]
    assert num_graphs == {False: 0, True: 1}, "one graph for all steps, whatever the documents"
    assert losses[False][-1] < losses[False][0]
    # fp32 sums in another order.
    assert losses[True] == pytest.approx(losses[False], rel=0, abs=1e-5)


def test_checkpoints_at_multiples_are_kept_for_good(arguments, tmp_path):
    keep = ["train.steps=7", "train.checkpoint_every=1", "train.keep_every=3"]
    train(load_train_config("tiny", [*arguments, *keep]))
    found = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in found] == ["step-3", "step-6", "step-7"]


def test_training_goes_on_while_a_checkpoint_is_written(arguments, tmp_path, monkeypatch):
    """What is saved is the state at its step, though later steps have changed the weights since."""
    extra = ["train.steps=6", "train.checkpoint_every=3", "train.keep_latest=9"]
    train(load_train_config("tiny", [*arguments, *extra, "train.background_checkpoints=false"]))
    shutil.move(tmp_path / "run", tmp_path / "waited")
    written = checkpoint.CheckpointWriter.is_written
    monkeypatch.setattr(checkpoint.CheckpointWriter, "is_written", property(lambda _self: False))
    train(load_train_config("tiny", [*arguments, *extra]))
    monkeypatch.setattr(checkpoint.CheckpointWriter, "is_written", written)
    for step in (3, 6):
        shards = []
        for run in ("waited", "run"):
            folder = tmp_path / run / "checkpoints" / f"step-{step}"
            shards.append((folder / "__0_0.distcp").read_bytes())
        assert shards[0] == shards[1], f"step {step}"


@pytest.fixture
def small_files(monkeypatch):
    """Files longer than so many bytes are refused by the kernel itself, as on a full disk."""

    @contextmanager
    def limit(num_bytes):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python would keep compiled modules that the limit has cut short, and fail on them ever after.
        with monkeypatch.context() as patched:
            patched.setattr(sys, "dont_write_bytecode", True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


def test_a_full_disk_leaves_the_older_checkpoint_and_says_what_to_do(
    arguments, tmp_path, capsys, small_files
):
    first = [*arguments, "train.checkpoint_every=1"]
    train(load_train_config("tiny", first))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-2")
    with small_files(64 * 1024), pytest.raises(SystemExit) as ending:
        run_verb("train", ["tiny", *first])
    assert ending.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: cannot write the checkpoint {tmp_path}/run/checkpoints/step-2")
    assert "File too large" in error
    assert "the newest whole checkpoint" in error
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-1"]
    train(load_train_config("tiny", first))
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_full_disk_leaves_the_older_export_and_says_what_to_do(
    arguments, tmp_path, capsys, small_files
):
    train(load_train_config("tiny", arguments))
    weights = tmp_path / "run" / "model" / "model.safetensors"
    before = weights.read_bytes()
    with small_files(16 * 1024), pytest.raises(SystemExit) as ending:
        run_verb("train", ["tiny", *arguments])  # what is left to do is the export
    assert ending.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: cannot write the exported model {tmp_path}/run/model: ")
    assert "File too large" in error
    assert "Free some space" in error
    assert weights.read_bytes() == before
    assert not (tmp_path / "run" / "model.tmp").exists()


def test_a_step_whose_gradients_are_not_finite_is_counted(arguments, tmp_path, monkeypatch):
    norms, measure = [], trainer.gradient_norm

    def overflowing_once(parameters):
        norms.append(measure(parameters))
        return norms[-1] * (float("inf") if len(norms) == 2 else 1)

    monkeypatch.setattr(trainer, "gradient_norm", overflowing_once)
    summary = train(load_train_config("tiny", [*arguments, "train.steps=3"]))
    assert summary["skipped_steps"] == 1
    monkeypatch.undo()
    summary = train(load_train_config("tiny", [*arguments, "train.steps=4"]))
    assert summary["skipped_steps"] == 1, "the count is part of what a resumed run goes on with"


def test_no_space_left_is_named(arguments, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(CheckpointError, match="the disk is full; free some space"):
        train(load_train_config("tiny", arguments))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_too_large_a_batch_says_what_to_lower(arguments, tmp_path):
    config = load_train_config("tiny", [*arguments, "train.micro_batch_bins=2"])
    (tmp_path / "step-7").mkdir()
    with pytest.raises(TrainingError) as raised, explained(config, tmp_path):
        torch.empty(1 << 60)  # the allocator's own error
    text = str(raised.value)
    assert "ran out of memory with micro-batches of 2 rows of 64 tokens" in text
    assert "lower train.micro_batch_bins, or set parallel.activation_checkpointing=full" in text
    assert f"goes on from {tmp_path / 'step-7'}" in text
    with pytest.raises(RuntimeError, match="shape"), explained(config, tmp_path):
        torch.empty(2, 3) @ torch.empty(2, 3)


def test_a_full_disk_under_the_figures_is_an_error_that_says_so(arguments, tmp_path):
    config = load_train_config("tiny", arguments)
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(TrainingError) as raised, explained(config, tmp_path):
        os.write(full, b"a step's figures")
    os.close(full)
    assert f"the disk that holds {config.output} is full: make room there" in str(raised.value)
    with pytest.raises(OSError, match="Bad file descriptor"), explained(config, tmp_path):
        os.write(full, b"more")


def test_a_process_that_dies_ends_the_other_with_a_word(launch, tmp_path):
    arguments = [f"output={tmp_path / 'run'}", "train.steps=9", "train.checkpoint_every=2"]
    die = {"rank": 1, "at": "step", "call": 6, "others": "live"}
    codes, logged = launch(world_size=2, overrides=arguments, die=die, command=True)
    assert codes == [1, -9], logged
    (error,) = [line for line in logged.splitlines() if line.startswith("error: ")]
    assert "process 0 lost touch with another of the 2" in error
    assert "The same command goes on from" in error
    assert "/checkpoints/step-" in error


def test_a_missing_shard_is_named(arguments, tmp_path, capsys):
    train(load_train_config("tiny", arguments))
    shard = tmp_path / "run" / "checkpoints" / "step-2" / "__0_0.distcp"
    shard.unlink()
    with pytest.raises(SystemExit) as ending:
        run_verb("train", ["tiny", *arguments, "train.steps=3"])
    assert ending.value.code == 3
    error = capsys.readouterr().err
    assert "__0_0.distcp" in error
    assert "Remove it to resume from the one before" in error
