"""What every benchmark shares: the corpus, and a result line with bytes or items per second.

Each benchmark is a pytest-benchmark case in a group with its named peers, so that both are measured in
one run; a peer that is not installed is skipped with its reason. Judge by ratios: machines are noisy.
"""

import importlib.metadata
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

NUM_DOCUMENTS = 100_000
MEAN_TOKENS, SIGMA, MAX_TOKENS = 1_100, 0.6, 16_384


@pytest.fixture(scope="session")
def corpus() -> tuple[np.ndarray, np.ndarray]:
    """100,000 documents of lognormal length (mean 1,100): int32 ids back to back, and their lengths."""
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, NUM_DOCUMENTS)
    lengths = np.clip(lengths.astype(np.int32), 8, MAX_TOKENS)
    return generator.integers(0, 65_000, lengths.sum(), dtype=np.int32), lengths


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
def rate(benchmark):
    """`rate(amount, unit)` notes how much one round handles, for the table's last columns."""

    def note(amount: float, unit: str) -> None:
        benchmark.extra_info["amount_per_round"] = amount
        benchmark.extra_info["unit"] = unit

    return note


def pytest_benchmark_update_machine_info(machine_info) -> None:
    machine_info["cpu_count"] = os.cpu_count()
    for name in ("node", "release"):
        machine_info[name] = ""
    machine_info["peers"] = {
        name: importlib.metadata.version(name)
        for name in ("numpy", "torch", "transformers", "megatron-core")
        if _is_installed(name)
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
