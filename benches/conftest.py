"""What every benchmark shares: the corpus, and the way a case is measured and noted.

A case is a contender in a group: ours and its named peers do the same work on the same data in one run.
Wall and CPU time are both kept, since machines are noisy; judge by ratios. A peer that is not installed
is skipped with its reason. `table.py` prints the results, `targets.py` says what is promised of them.
"""

import importlib.metadata
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

NUM_DOCUMENTS = 100_000
MEAN_TOKENS, SIGMA, MAX_TOKENS = 1_100, 0.6, 16_384
PEERS = (
    "numpy",
    "torch",
    "transformers",
    "megatron-core",
    "trl",
    "datasets",
    "pyarrow",
    "mosaicml-streaming",
    "litdata",
)


@pytest.fixture(scope="session")
def corpus() -> tuple[np.ndarray, np.ndarray]:
    """100,000 documents of lognormal length (mean 1,100): int32 ids back to back, and their lengths."""
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, NUM_DOCUMENTS)
    lengths = np.clip(lengths.astype(np.int32), 8, MAX_TOKENS)
    return generator.integers(0, 65_000, lengths.sum(), dtype=np.int32), lengths


@pytest.fixture(scope="session")
def documents(corpus: tuple) -> list[np.ndarray]:
    """The corpus as an array a document."""
    ids, lengths = corpus
    return np.split(ids, np.cumsum(lengths)[:-1])


@pytest.fixture(scope="session")
def dataset_prefix(corpus: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as an indexed dataset, one sequence a document."""
    from mmfast.data import IndexedDatasetBuilder

    ids, lengths = corpus
    prefix = tmp_path_factory.mktemp("corpus") / "corpus"
    with IndexedDatasetBuilder(prefix, dtype="int32") as builder:
        builder.add_documents(ids, lengths)
    return prefix


@pytest.fixture
def measure(benchmark) -> Callable[..., Any]:
    """`measure(contender, function, amount, unit)` times one case of the test's group.

    `amount` is what a round handles, in `unit` ("B" for bytes), so that contenders that were given
    different amounts still compare by their rates. `setup` runs before each round, outside its time.
    Further keyword arguments are kept as facts of the case.
    """

    def run(
        contender: str,
        function: Callable[[], Any],
        amount: float,
        unit: str,
        *,
        setup: Callable[[], None] = lambda: None,
        beside: Callable[[], Any] | None = None,
        rounds: int = 5,
        warmup_rounds: int = 1,
        **facts: float | str,
    ) -> Any:
        cpu_seconds: list[float] = []

        def timed() -> Any:
            start = time.process_time()
            result = function()
            cpu_seconds.append(time.process_time() - start)
            return result

        beside_seconds: list[float] = []

        def before_round() -> None:
            setup()
            if beside is not None:
                # each is warm when its time begins
                beside()
                start = time.perf_counter()
                beside()
                beside_seconds.append(time.perf_counter() - start)
                function()

        result = benchmark.pedantic(
            timed, setup=before_round, rounds=rounds, warmup_rounds=warmup_rounds
        )
        if beside is not None:
            facts["beside_seconds"] = median(beside_seconds[warmup_rounds:])
        benchmark.extra_info |= {
            "contender": contender,
            "amount_per_round": amount,
            "unit": unit,
            "cpu_seconds": median(cpu_seconds[warmup_rounds:]),
            **facts,
        }
        return result

    return run


def pytest_benchmark_update_machine_info(machine_info) -> None:
    machine_info["cpu_count"] = os.cpu_count()
    machine_info["load_at_end"] = round(os.getloadavg()[1], 1)
    for name in ("node", "release"):
        machine_info[name] = ""
    machine_info["peers"] = {
        name: importlib.metadata.version(name) for name in PEERS if _is_installed(name)
    }
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    machine_info["commit"] = commit.stdout.strip()


def pytest_benchmark_update_commit_info(commit_info) -> None:
    for name in ("project", "branch"):
        commit_info.pop(name, None)


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
