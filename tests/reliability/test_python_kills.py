"""A Python process that is killed at any time loses nothing that its builder acknowledged."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.reliability import producer
from tests.reliability.figures import is_long, report, scaled
from tests.reliability.producer import (
    Document,
    documents_of,
    flush_points,
    generation_of,
    kind,
    produce,
    published,
    resume,
)

SEED = 5
NUM_PRODUCERS = 2
# What a producer is let to come to, and how long it lives after that at most.
OCCASIONS = (("ready", 0.06), ("publishing", 0.002))


class Killed:
    """A producer's folder, and what was promised there."""

    def __init__(self, folder: Path) -> None:
        self.prefix = folder / "a"
        self.published = 0
        self.acknowledged = 0
        self.is_publishing = False

    def run(self, awaited: str, life_secs: float) -> None:
        """Starts a producer, kills it so long after the word awaited, takes in what it said."""
        command = [sys.executable, producer.__file__, self.prefix]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = ""
            while awaited not in told:
                line = process.stdout.readline()
                assert line, "the producer met an error"
                told += line
            time.sleep(life_secs)
            process.kill()
            told += process.stdout.read()
        assert process.returncode == -signal.SIGKILL, "the producer met an error"
        for line in told.splitlines(keepends=True):
            if line.endswith("\n") and line != "ready\n":
                word, generation, count = line.split()
                self.hear(word, int(generation), int(count))

    def hear(self, word: str, generation: int, count: int) -> None:
        # A generation may have been put in place without a word before the last kill.
        assert generation - self.published in ((1, 2) if word == "begun" else (1,))
        self.is_publishing = word == "publishing"
        if word == "published":
            self.published, self.acknowledged = generation, 0
        elif word in ("begun", "acknowledged"):
            assert generation > self.published + 1 or count >= self.acknowledged
            self.published, self.acknowledged = generation - 1, count

    def check(self) -> None:
        """Compares what is there with what was promised, in a copy."""
        with tempfile.TemporaryDirectory(dir=memory()) as folder:
            shutil.copytree(self.prefix.parent, folder, dirs_exist_ok=True)
            prefix = Path(folder) / "a"
            found = published(prefix)
            generation = generation_of(found)
            assert generation - self.published in (0, 1)
            require_equal(found, documents_of(generation) if generation else [])
            if kind(generation + 1) != "journaled":
                return
            is_next = generation == self.published
            acknowledged = self.acknowledged if is_next else 0
            expected = documents_of(generation + 1)
            builder = resume(prefix)
            count = builder.written.num_documents
            # The word of the last flush may not have got out, and publishing begins with one.
            further = [point for point in flush_points(generation + 1) if point > acknowledged]
            is_all = is_next and self.is_publishing and count == len(expected)
            assert count == acknowledged or count in further[:1] or is_all
            builder.finalize()
            require_equal(published(prefix), expected[:count])


def require_equal(found: list[Document], expected: list[Document]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        assert (one.lengths, one.modes) == (other.lengths, other.modes)


def memory() -> str | None:
    """A folder in memory if there is one: a kill loses nothing that was written, synced or not."""
    return "/dev/shm" if Path("/dev/shm").is_dir() and os.access("/dev/shm", os.W_OK) else None


def kill_often(number: int, num_kills: int) -> None:
    lives = random.Random(f"{SEED}/{number}")
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        killed = Killed(Path(folder))
        for _ in range(num_kills):
            awaited, longest_life_secs = lives.choice(OCCASIONS)
            killed.run(awaited, lives.uniform(0, longest_life_secs))
            killed.check()
        # One that is left alone goes on, and tidies up.
        for _ in range(5):
            produce(killed.prefix, lambda *_: None)
        names = {path.stem for path in Path(folder).iterdir()}
        suffixes = {path.suffix for path in Path(folder).iterdir()}
        assert names == {"a", "part"}
        assert suffixes == {".bin", ".idx", ".mmf"}


@pytest.mark.timeout(1200 if is_long() else 300)
def test_a_python_process_killed_at_any_time_loses_nothing_that_it_acknowledged() -> None:
    num_kills = scaled(6, 300)
    with ThreadPoolExecutor(NUM_PRODUCERS) as pool:
        shares = [num_kills // NUM_PRODUCERS] * NUM_PRODUCERS
        list(pool.map(kill_often, range(NUM_PRODUCERS), shares))
    report(
        count=num_kills,
        unit="kills",
        seed=SEED,
        result="0 acknowledged documents lost, 0 phantom, 0 unreadable",
    )
