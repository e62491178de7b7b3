"""Generation with one and two processes gives the same files, and the same refusal."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def generate(num_processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command = [sys.executable, "-m"]
    command += [*launcher, "-m", "mmfast.generate"] if num_processes > 1 else ["mmfast.generate"]
    command += [*map(str, arguments), "--batch-rows", "4", "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


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
        arguments = ("images", "--model", model_folder, "--prompts", prompts, "--output", output)
        done = generate(num_processes, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("7 items") == 1, done.stdout
        assert json.loads((output / "generate.json").read_text())["world_size"] == num_processes
        names = ["manifest.jsonl", *(f"{i:05}.png" for i in range(7))]
        written.append([(output / name).read_bytes() for name in names])
    assert written[0] == written[1]


@pytest.mark.distributed
@pytest.mark.slow
def test_the_number_of_processes_does_not_change_the_captions(
    model_folder: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    # More than one batch of the image tokenizer, so that both ranks encode.
    for i in range(70):
        pixels = rng.integers(0, 256, (9, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i:02}.png")
    for bad in ("03", "66"):
        (images / f"{bad}.png").write_bytes(b"not an image")
    written = []
    for num_processes in (1, 2):
        output = tmp_path / f"by-{num_processes}.jsonl"
        arguments = ("captions", "--model", model_folder, "--images", images, "--output", output)
        done = generate(num_processes, *arguments, "--max-ids", "4", "--temperature", "1")
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / f"by-{num_processes}.generate.json").read_text())
        assert report["skipped"] == {"image_format": 2}
        assert "66.png" in done.stderr
        written.append(output.read_bytes())
    assert written[0] == written[1]
    assert written[0].count(b"\n") == 68


@pytest.mark.distributed
@pytest.mark.slow
def test_every_rank_refuses_a_request_by_its_number_in_the_input(
    model_folder: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    texts = ["two", "two", "x" * 60, "two"]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    output = tmp_path / "drawn"
    done = generate(2, "images", "--model", model_folder, "--prompts", prompts, "--output", output)
    assert done.returncode != 0
    # The launcher may end the second rank before it has written its line.
    assert "request 2 does not fit" in done.stderr
    assert not output.exists()
