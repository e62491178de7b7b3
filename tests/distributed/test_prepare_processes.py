"""Preparation with one, two and three processes writes the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast.tokenizers import train_text_tokenizer
from mmfast.tokenizers.fsq import FsqConfig, FsqImageTokenizer


@pytest.mark.distributed
def test_the_number_of_processes_does_not_change_a_byte(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i in range(11):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(images / f"{i}.png")
        lines.append({"image": f"{i}.png", "caption": [f"number {i}", f"{i}"]})
    lines[4] = {"image": "absent.png", "caption": "x"}
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = FsqConfig(image_height=8, image_width=8, widths=(8, 8), num_blocks=1)
        FsqImageTokenizer(shape).save(tmp_path / "image-tokenizer")
    train_text_tokenizer(["number"], vocab_size=260).save(tmp_path / "tokenizer.json")

    written = []
    for num_processes in (1, 2, 3):
        output = tmp_path / f"by-{num_processes}"
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        command = [sys.executable, "-m"]
        command += [*launcher, "-m", "mmfast.prepare"] if num_processes > 1 else ["mmfast.prepare"]
        command += [
            "folder",
            "--images",
            str(images),
            "--captions",
            str(tmp_path / "captions.jsonl"),
        ]
        command += ["--image-tokenizer", str(tmp_path / "image-tokenizer")]
        command += ["--text-tokenizer", str(tmp_path / "tokenizer.json")]
        command += ["--copies", "2", "--augment", "affine", "--caption-choice", "random"]
        command += ["--max-bad-fraction", "0.2", "--shard-records", "2", "--encode-batch", "4"]
        command += ["--output", str(output / "train")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("20 documents") == 1, done.stdout
        report = json.loads((output / "train.prepare.json").read_text())
        assert report["processes"] == num_processes
        assert report["skipped"] == {"image_missing": 1}
        names = ("train.bin", "train.idx", "vocabulary.json", "tokenizer.json", "recipe.json")
        written.append([(output / name).read_bytes() for name in names])
    assert written[0] == written[1] == written[2]
