"""A run whose processes are killed again and again, between saves and within, learns as an unbroken one.

Each life of a run begins from the newest whole checkpoint that the lives before have left. What is
compared in the end is every step's loss and gradient norm, bit for bit.
"""

import random

import pytest
from tests.reliability.figures import report, scaled

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(3_000)]
SEED = 7
SAVE_EVERY = 2
# Steps of a life that is killed in its third save at the latest.
LONGEST_LIFE = 3 * SAVE_EVERY + 1


def arguments(output, num_kills):
    return [
        f"output={output}",
        f"train.steps={num_kills * LONGEST_LIFE + 3}",
        f"train.checkpoint_every={SAVE_EVERY}",
        "train.log_every=1000",
        "model.num_layers=1",
    ]


def lives(launch, overrides, num_kills, draw):
    """Lets a run be killed so often, as `draw` says, then finish; returns how many kills struck."""
    struck = 0
    for _ in range(num_kills):
        codes, logged = launch(world_size=2, overrides=overrides, die=draw())
        assert -9 in codes or codes == [0, 0], logged
        struck += -9 in codes
    codes, logged = launch(world_size=2, overrides=overrides)
    assert codes == [0, 0], logged
    return struck


@pytest.mark.parametrize("within", ["steps", "saves"])
def test_killed_again_and_again_a_run_goes_on_bitwise(launch, read_losses, tmp_path, within):
    num_kills = scaled(3, 20 if within == "steps" else 50)
    generator = random.Random(f"{SEED}/{within}")

    def draw():
        rank = generator.randrange(2)
        if within == "steps":
            return {"rank": rank, "at": "step", "call": generator.randint(3, LONGEST_LIFE - 1)}
        # From the copy of the weights to the removal of old checkpoints a save takes some 50 ms.
        wait_secs = generator.uniform(0, 0.08)
        return {"rank": rank, "at": "saving", "call": generator.randint(2, 3), "wait": wait_secs}

    overrides = arguments(tmp_path / "broken", num_kills)
    struck = lives(launch, overrides, num_kills, draw)
    assert struck >= 0.8 * num_kills, "most kills came too late, so little was tried"
    codes, logged = launch(world_size=2, overrides=arguments(tmp_path / "whole", num_kills))
    assert codes == [0, 0], logged
    assert read_losses(tmp_path / "broken") == read_losses(tmp_path / "whole")
    report(
        count=struck,
        unit="kills, in steps and in saves",
        seed=SEED,
        result="losses and gradient norms of every step, bit for bit",
    )
