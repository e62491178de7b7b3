"""A tiny dataset, and a way to run training scenarios in processes of their own."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mmfast.data import IndexedDatasetBuilder
from mmfast.vocab import Vocabulary

LAUNCHER = Path(__file__).with_name("launcher.py")
VOCABULARY = Vocabulary.build(
    20, roles=["eos", "pad", "break", "eoss", "mask_0", "mask_1"], codes=[("image", 16)]
)
TINY_MODEL = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.num_kv_heads=2",
    "model.context_length=64",
    "data.bin_tokens=64",
    "data.window_documents=64",
    "train.global_batch_bins=4",
    "train.log_every=1",
    "schedule.warmup_steps=3",
]


@pytest.fixture(scope="session")
def tiny_model():
    """Arguments for a model and batches that train in milliseconds a step."""
    return TINY_MODEL


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """200 documents `[eos] caption [break] image(4 ids) [eos]` whose image follows the caption."""
    folder = tmp_path_factory.mktemp("data")
    generator = random.Random(0)
    eos, break_id = VOCABULARY["eos"], VOCABULARY["break"]
    base = VOCABULARY.range("image").base
    with IndexedDatasetBuilder(str(folder / "train"), multimodal=True) as builder:
        for _ in range(200):
            caption = [generator.randrange(20) for _ in range(generator.randint(1, 9))]
            image = [base + (caption[0] + i) % 16 for i in range(4)]
            text = [eos, *caption, break_id]
            builder.add_document([*text, *image, eos], [len(text), 4, 1], modes=[0, 1, 0])
    VOCABULARY.save(folder)
    return folder / "train"


@pytest.fixture(scope="session")
def launch(tmp_path_factory, dataset):
    """A function that runs one scenario and returns its ranks' exit codes and what they logged."""
    log_path = tmp_path_factory.mktemp("launcher") / "stderr"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            [sys.executable, str(LAUNCHER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as launcher,
    ):

        def run(*, world_size, overrides=(), **settings):
            arguments = [*TINY_MODEL, f"data.prefix={dataset}", *overrides]
            scenario = {"world_size": world_size, "overrides": arguments, **settings}
            already_logged = log_path.stat().st_size
            launcher.stdin.write(json.dumps(scenario) + "\n")
            launcher.stdin.flush()
            answer = launcher.stdout.readline()
            logged = log_path.read_bytes()[already_logged:].decode()
            assert answer, f"the launcher ended: {logged}"
            return json.loads(answer), logged

        yield run
        launcher.stdin.close()


@pytest.fixture(scope="session")
def read_losses():
    """Training losses of a run folder by step, refusing a step that stands there twice."""

    def read(folder):
        losses = {}
        for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert record["step"] not in losses, "a step was written twice"
            losses[record["step"]] = (record["loss"], record["grad_norm"])
        return losses

    return read
