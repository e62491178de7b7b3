"""Training on eight photographs in Emu3's forms: two processes learn what one learns."""

from pathlib import Path

import pytest
from examples.emu3.tiny_checkpoints import write_example

from mmfast.cli import main


@pytest.mark.distributed
def test_row_12_two_processes_have_the_losses_of_one(launch, read_losses, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_example(raw)
    arguments = [
        "prepare", "emu3", "--images", raw / "photos", "--image-tokenizer", raw / "Emu3-VisionTokenizer",
        "--text-tokenizer", raw / "Emu3-Gen", "--image-size", 64, "--device", "cpu", "--output", tmp_path / "data/train",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ending:
        main([str(argument) for argument in arguments])
    assert ending.value.code in (0, None)
    losses = []
    for world_size in (1, 2):
        output = tmp_path / f"world{world_size}"
        overrides = [
            f"data.prefix={tmp_path / 'data/train'}", f"output={output}", "train.steps=12",
            "model.context_length=256", "data.bin_tokens=256", "optimizer.learning_rate=5e-3",
            "objective.kind=next_token",
        ]  # fmt: skip
        codes, logged = launch(world_size=world_size, overrides=overrides)
        assert codes == [0] * world_size, logged
        losses.append([loss for _, (loss, _) in sorted(read_losses(output).items())])
    one, two = losses
    assert len(one) == len(two) == 12
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) <= 1e-4
    assert one[-1] < one[0] - 1, "nothing was learnt, so the comparison says nothing"
