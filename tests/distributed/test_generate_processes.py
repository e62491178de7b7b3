"""Generation with one and two processes gives the same files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.distributed
@pytest.mark.slow
def test_the_number_of_processes_does_not_change_the_images(
    model_folder: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"digit {i}"}) + "\n" for i in range(7)))
    written = []
    for num_processes in (1, 2):
        output = tmp_path / f"by-{num_processes}"
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        command = [sys.executable, "-m"]
        command += (
            [*launcher, "-m", "mmfast.generate"] if num_processes > 1 else ["mmfast.generate"]
        )
        command += ["images", "--model", str(model_folder), "--prompts", str(prompts)]
        command += ["--output", str(output), "--batch-rows", "4", "--device", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("7 items") == 1, done.stdout
        assert json.loads((output / "generate.json").read_text())["world_size"] == num_processes
        names = ["manifest.jsonl", *(f"{i:05}.png" for i in range(7))]
        written.append([(output / name).read_bytes() for name in names])
    assert written[0] == written[1]
