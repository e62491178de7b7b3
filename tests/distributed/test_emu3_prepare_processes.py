"""`mmfast prepare coyo` by one, two and three processes, and after a kill: the same bytes."""

import json
import signal
from pathlib import Path

import pytest
from PIL import Image
from tests.emu3.tiny_models import bundled_photos, tiny_vqvae, write_tiktoken

from mmfast.tokenizers import open_image
from mmfast.tokenizers.emu3 import Emu3ImageTokenizer

SCRIPT = """
import os
import signal
import sys
from mmfast.cli import run_verb
from mmfast.recipes.emu3.documents import CoyoPreparation

arguments, fatal_record = {arguments!r}, {fatal_record!r}
opened = CoyoPreparation._views

def views(self, record):
    if record == fatal_record:
        os.kill(os.getpid(), signal.SIGKILL)
    return opened(self, record)

CoyoPreparation._views = views
sys.stdout = sys.stderr  # the launcher's own stdout carries its answers
run_verb("prepare", arguments)
"""


@pytest.mark.distributed
def test_processes_and_kills_change_no_byte_of_a_coyo_job(tmp_path: Path, launch) -> None:
    write_tiktoken(tmp_path / "text")
    Emu3ImageTokenizer(tiny_vqvae(codebook_size=512)).save(tmp_path / "vision")
    (tmp_path / "images").mkdir()
    photo = open_image(bundled_photos()["coffee.png"])
    for number in range(8):
        box = (40 * number, 0, 40 * number + (64, 96, 48)[number % 3], 64)
        photo.crop(box).save(tmp_path / f"images/{number}.jpg")
        (tmp_path / f"images/{number}.txt").write_text(f"number {number}")
    Image.new("RGB", (9, 90)).save(tmp_path / "images/5.jpg")

    def run(folder: str, *, world_size: int, fatal_record: int = -1) -> list[int]:
        arguments = [
            "coyo", "--input_image_dir", tmp_path / "images", "--input_captions_dir", tmp_path / "images",
            "--vision_tokenizer", tmp_path / "vision", "--text_tokenizer", tmp_path / "text",
            "--min_pixels", 2048, "--max_pixels", 4096, "--shard_records", 2, "--max_bad_fraction", 0.2,
            "--output_prefix", tmp_path / folder / "train", "--device", "cpu", "--encode_batch", 2,
        ]  # fmt: skip
        script = tmp_path / f"{folder}-{fatal_record}.py"
        script.write_text(
            SCRIPT.format(arguments=[str(a) for a in arguments], fatal_record=fatal_record)
        )
        codes, logged = launch(world_size=world_size, script=str(script))
        assert fatal_record >= 0 or codes == [0] * world_size, logged
        return codes

    for world_size in (1, 2, 3):
        run(f"by-{world_size}", world_size=world_size)
    report = json.loads((tmp_path / "by-3/train.prepare.json").read_text())
    assert (report["processes"], report["documents"]) == (3, 7)
    assert report["skipped"] == {"image_aspect": 1}
    assert -signal.SIGKILL in run("killed", world_size=2, fatal_record=6)
    assert not (tmp_path / "killed/train.idx").exists()
    assert sorted(p.name for p in (tmp_path / "killed/train.shards").glob("0*.json"))
    run("killed", world_size=2)
    names = ("train.bin", "train.idx", "vocabulary.json", "tokenizer.json", "recipe.json")
    written = {
        folder: [(tmp_path / folder / name).read_bytes() for name in names]
        for folder in ("by-1", "by-2", "by-3", "killed")
    }
    assert all(each == written["by-1"] for each in written.values())
