"""Whole training runs in processes of their own: world sizes, kills, signals, resumes."""

import json
import random
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
STEPS = 20


def overrides(output, *extra):
    return [f"output={output}", f"train.steps={STEPS}", *extra]


@pytest.fixture(scope="module")
def unbroken(launch, tmp_path_factory):
    """The reference runs, in one and in two processes."""
    folder = tmp_path_factory.mktemp("unbroken")
    codes, stderr = launch(
        *[
            {
                "name": f"world{world}",
                "world_size": world,
                "overrides": overrides(folder / f"world{world}", "train.checkpoint_every=6"),
            }
            for world in (1, 2)
        ]
    )
    assert codes == {"world1": [0], "world2": [0, 0]}, stderr
    return folder


def test_two_processes_learn_what_one_learns(unbroken, read_losses):
    one, two = read_losses(unbroken / "world1"), read_losses(unbroken / "world2")
    assert list(one) == list(two) == list(range(1, STEPS + 1))
    # fp32 sums in another order; after 20 steps the difference has grown to this at most.
    assert max(abs(one[step][0] - two[step][0]) for step in one) <= 1e-5
    assert one[STEPS][0] < one[1][0] - 0.05, "nothing was learnt, so the comparison says nothing"


def test_a_run_leaves_a_summary(unbroken):
    summary = json.loads((unbroken / "world2" / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert summary["world_size"] == 2
    assert summary["last_loss"] <= summary["first_loss"]


def test_a_killed_run_goes_on_bitwise_as_if_it_had_not_been(
    unbroken, launch, read_losses, tmp_path
):
    generator = random.Random(20)
    kill_steps = [generator.randint(7, 12), generator.randint(13, 18), generator.randint(2, 5)]
    scenarios = []
    for number, step in enumerate(kill_steps):
        arguments = overrides(tmp_path / str(number), "train.checkpoint_every=6")
        die = {"rank": number % 2, "at": "step", "call": step}
        scenarios += [
            {"name": f"kill{number}", "world_size": 2, "overrides": arguments, "die": die},
            {"name": f"resume{number}", "world_size": 2, "overrides": arguments},
        ]
    codes, stderr = launch(*scenarios)
    expected = read_losses(unbroken / "world2")
    for number, step in enumerate(kill_steps):
        assert codes[f"kill{number}"][number % 2] == -9, stderr
        assert codes[f"resume{number}"] == [0, 0], stderr
        assert read_losses(tmp_path / str(number)) == expected, f"killed at step {step}"


def test_sigterm_saves_and_exits_with_zero(unbroken, launch, read_losses, tmp_path):
    arguments = overrides(tmp_path / "run")
    codes, stderr = launch(
        {
            "name": "stop",
            "world_size": 2,
            "overrides": arguments,
            "die": {"rank": 1, "at": "sigterm", "call": 4},
        },
        {"name": "resume", "world_size": 2, "overrides": arguments},
    )
    assert codes == {"stop": [0, 0], "resume": [0, 0]}, stderr
    # The signal came within step 4, so the ranks agreed on it in step 5.
    assert "stopped by SIGTERM after step 5" in stderr
    assert "resuming" in stderr
    assert read_losses(tmp_path / "run") == read_losses(unbroken / "world2")


def test_a_kill_while_saving_leaves_the_older_checkpoint_whole(
    unbroken, launch, read_losses, tmp_path
):
    arguments = overrides(tmp_path / "run", "train.checkpoint_every=6")
    die = {"rank": 0, "at": "save", "call": 2}
    codes, stderr = launch({"name": "kill", "world_size": 2, "overrides": arguments, "die": die})
    assert codes["kill"][0] == -9, stderr
    found = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == ["step-12.tmp", "step-6"]
    codes, stderr = launch({"name": "resume", "world_size": 2, "overrides": arguments})
    assert codes["resume"] == [0, 0], stderr
    assert "step-6 at step 6" in stderr
    assert read_losses(tmp_path / "run") == read_losses(unbroken / "world2")
    found = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == ["step-18", "step-20"]


def test_a_checkpoint_of_two_processes_is_continued_by_one(unbroken, launch, read_losses, tmp_path):
    codes, stderr = launch(
        {
            "name": "one",
            "world_size": 1,
            "overrides": overrides(tmp_path / "run"),
            "resume": str(unbroken / "world2" / "checkpoints" / "step-18"),
        }
    )
    assert codes == {"one": [0]}, stderr
    expected = read_losses(unbroken / "world2")
    continued = read_losses(tmp_path / "run")
    assert list(continued) == [19, 20]
    assert max(abs(continued[s][0] - expected[s][0]) for s in continued) <= 1e-5


def test_loss_and_gradients_are_those_of_the_whole_weighted_batch(launch):
    script = str(Path(__file__).with_name("normalisation_script.py"))
    codes, stderr = launch(
        *[{"name": f"world{world}", "world_size": world, "script": script} for world in (1, 2)]
    )
    assert codes == {"world1": [0], "world2": [0, 0]}, stderr
