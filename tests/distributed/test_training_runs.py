"""Whole training runs in processes of their own: world sizes, kills, signals, resumes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
STEPS = 20
SAVE_EVERY = 6


def overrides(output):
    return [f"output={output}", f"train.steps={STEPS}", f"train.checkpoint_every={SAVE_EVERY}"]


@pytest.fixture(scope="module")
def unbroken(launch, tmp_path_factory):
    """A function that gives the folder of an undisturbed run, made once for each world size."""
    folder, done = tmp_path_factory.mktemp("unbroken"), set()

    def run_folder(world_size):
        output = folder / f"world{world_size}"
        if world_size not in done:
            codes, logged = launch(world_size=world_size, overrides=overrides(output))
            assert codes == [0] * world_size, logged
            done.add(world_size)
        return output

    return run_folder


def test_two_processes_learn_what_one_learns(unbroken, read_losses):
    one, two = read_losses(unbroken(1)), read_losses(unbroken(2))
    assert list(one) == list(two) == list(range(1, STEPS + 1))
    # fp32 sums in another order; after 20 steps the difference has grown to this at most.
    assert max(abs(one[step][0] - two[step][0]) for step in one) <= 1e-5
    assert one[STEPS][0] < one[1][0] - 0.05, "nothing was learnt, so the comparison says nothing"


def test_a_run_leaves_a_summary(unbroken):
    summary = json.loads((unbroken(2) / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert summary["world_size"] == 2
    assert summary["last_loss"] <= summary["first_loss"]


def test_sigterm_saves_and_exits_with_zero(unbroken, launch, read_losses, tmp_path):
    arguments = overrides(tmp_path / "run")
    die = {"rank": 1, "at": "sigterm", "call": 3}
    codes, logged = launch(world_size=2, overrides=arguments, die=die)
    assert codes == [0, 0], logged
    # The signal came within step 3, so the ranks agreed on it in step 4.
    assert "stopped by SIGTERM after step 4" in logged
    codes, logged = launch(world_size=2, overrides=arguments)
    assert codes == [0, 0], logged
    assert "step-4 at step 4" in logged
    assert read_losses(tmp_path / "run") == read_losses(unbroken(2))


def test_torchrun_passes_sigterm_on_and_the_state_is_saved(dataset, tiny_model, tmp_path):
    module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [*tiny_model, f"data.prefix={dataset}", f"output={tmp_path / 'run'}"]
    with subprocess.Popen(
        [sys.executable, *module, "-m", "mmfast.train", "tiny", *arguments, "train.steps=1000000"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as torchrun:
        logged = []
        for line in torchrun.stderr:
            logged.append(line)
            if "step 3/1000000" in line:
                torchrun.send_signal(signal.SIGTERM)
    stopped = [line for line in logged if "stopped by SIGTERM after step" in line]
    assert stopped, "".join(logged)[-2000:]
    step = int(stopped[0].split("after step ")[1].split(";")[0])
    assert (tmp_path / "run" / "checkpoints" / f"step-{step}" / "state.json").is_file()
    assert torchrun.returncode == 1, "torchrun's own code, as the guide says"


def test_a_kill_while_saving_leaves_the_older_checkpoint_whole(
    unbroken, launch, read_losses, tmp_path
):
    arguments, checkpoints = overrides(tmp_path / "run"), tmp_path / "run" / "checkpoints"
    codes, logged = launch(
        world_size=2, overrides=arguments, die={"rank": 0, "at": "save", "call": 2}
    )
    assert codes[0] == -9, logged
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-12.tmp", "step-6"]
    codes, logged = launch(world_size=2, overrides=arguments)
    assert codes == [0, 0], logged
    assert "step-6 at step 6" in logged
    assert read_losses(tmp_path / "run") == read_losses(unbroken(2))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-18", "step-20"]


def test_a_checkpoint_of_two_processes_is_continued_by_one(unbroken, launch, read_losses, tmp_path):
    codes, logged = launch(
        world_size=1,
        overrides=overrides(tmp_path / "run"),
        resume=str(unbroken(2) / "checkpoints" / "step-18"),
    )
    assert codes == [0], logged
    expected, continued = read_losses(unbroken(2)), read_losses(tmp_path / "run")
    assert list(continued) == [19, 20]
    assert max(abs(continued[s][0] - expected[s][0]) for s in continued) <= 1e-5


def test_a_checkpoint_of_one_process_is_continued_by_two_with_the_same_data(
    unbroken, launch, tmp_path
):
    """Between 1 and 2 processes the order of the data is the same to the token, either way."""

    def progress(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        keys = ("tokens", "documents", "padding_fraction")
        return {line["step"]: [line[key] for key in keys] for line in lines}

    codes, logged = launch(
        world_size=2,
        overrides=overrides(tmp_path / "run"),
        resume=str(unbroken(1) / "checkpoints" / "step-18"),
    )
    assert codes == [0, 0], logged
    continued, expected = progress(tmp_path / "run"), progress(unbroken(1))
    assert continued == {step: expected[step] for step in (19, 20)}
    states = [
        json.loads((run / "checkpoints" / "step-20" / "state.json").read_text())["loader"]
        for run in (tmp_path / "run", unbroken(1), unbroken(2))
    ]
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_loss_and_gradients_are_those_of_the_whole_weighted_batch(launch, world_size):
    script = str(Path(__file__).with_name("normalisation_script.py"))
    codes, logged = launch(world_size=world_size, script=script)
    assert codes == [0] * world_size, logged


def test_packed_rows_have_the_loss_and_gradients_of_the_documents_alone(launch):
    script = str(Path(__file__).with_name("packing_script.py"))
    codes, logged = launch(world_size=2, script=script)
    assert codes == [0, 0], logged
