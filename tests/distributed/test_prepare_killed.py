"""A preparation that is killed outright goes on where it stopped and ends with the same bytes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast.prepare.job import run_job
from mmfast.prepare.options import JobOptions
from mmfast.recipes.folder.documents import FolderPreparation
from mmfast.recipes.folder.options import FolderPrepareOptions
from mmfast.tokenizers import train_text_tokenizer
from mmfast.tokenizers.fsq import FsqConfig, FsqImageTokenizer

# Opens the recipe as the command does; told a record, it kills itself when it comes to that one.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from mmfast.prepare.job import run_job
from mmfast.prepare.options import JobOptions
from mmfast.recipes.folder.documents import FolderPreparation
from mmfast.recipes.folder.options import FolderPrepareOptions

raw, output, fatal_record = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

class Dies(FolderPreparation):
    def documents(self, records, skip):
        for record, document in zip(records, super().documents(records, skip), strict=True):
            if record == fatal_record:
                os.kill(os.getpid(), signal.SIGKILL)
            yield document

options = FolderPrepareOptions(
    images=raw / "images", captions=raw / "captions.jsonl", encode_batch=1,
    image_tokenizer=raw / "image-tokenizer", text_tokenizer=raw / "tokenizer.json",
)
report = run_job("folder", Dies(options), JobOptions(output=output, shard_records=3))
print(report["documents"])
"""


@pytest.mark.distributed
def test_a_kill_within_a_shard_loses_only_that_shard(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i in range(8):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": f"number {i}"}) + "\n")
    (tmp_path / "captions.jsonl").write_text("".join(lines))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = FsqConfig(image_height=8, image_width=8, widths=(8, 8), num_blocks=1)
        FsqImageTokenizer(shape).save(tmp_path / "image-tokenizer")
    train_text_tokenizer(["number"], vocab_size=260).save(tmp_path / "tokenizer.json")

    def run(fatal_record: int) -> subprocess.CompletedProcess[str]:
        arguments = [tmp_path, tmp_path / "broken" / "train", fatal_record]
        command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)

    killed = run(4)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    names = {path.name for path in (tmp_path / "broken" / "train.shards").glob("*.json")}
    assert names == {"plan.json", "00000.json"}
    assert not (tmp_path / "broken" / "train.idx").exists()
    finished = run(-1)
    assert finished.stdout == "8\n", finished.stderr

    options = FolderPrepareOptions(
        images=tmp_path / "images",
        captions=tmp_path / "captions.jsonl",
        image_tokenizer=tmp_path / "image-tokenizer",
        text_tokenizer=tmp_path / "tokenizer.json",
        encode_batch=1,
    )
    unbroken = JobOptions(output=tmp_path / "unbroken" / "train", shard_records=3)
    run_job("folder", FolderPreparation(options), unbroken)
    for name in ("train.bin", "train.idx"):
        broken, whole = (tmp_path / folder / name for folder in ("broken", "unbroken"))
        assert broken.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "broken" / "train.shards").exists()
