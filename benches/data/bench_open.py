"""Opening a large dataset, and many small ones.

megatron-core checks of an index that the last document ends with the last sequence. Ours checks sizes at
`none`, and at `index`, the default, every entry and the hash of the file. 200 shards are one dataset for
ours, whose documents have numbers throughout; for megatron-core they are 200 objects in a list.
"""

from pathlib import Path

import numpy as np
import pytest

from mmfast.data import IndexedDataset, IndexedDatasetBuilder

NUM_INDEXED = 5_000_000
LARGE = pytest.mark.benchmark(group="open, 5 M documents")
MANY = pytest.mark.benchmark(group="open, 200 shards of 10,000 documents")
LEVELS = pytest.mark.parametrize("level", ["none", "index"])


@pytest.fixture(scope="module")
def large_prefix(tmp_path_factory) -> Path:
    """5,000,000 documents of one id each: the index is all there is to open."""
    prefix = tmp_path_factory.mktemp("large") / "large"
    with IndexedDatasetBuilder(prefix, dtype="int32") as builder:
        builder.add_documents(
            np.arange(NUM_INDEXED, dtype=np.int32), np.ones(NUM_INDEXED, np.int32)
        )
    return prefix


@LARGE
@LEVELS
def test_open_mmfast(measure, large_prefix, level) -> None:
    measure(
        f'mmfast verify="{level}"',
        lambda: IndexedDataset(large_prefix, verify=level),
        1,
        "datasets",
        rounds=15,
        warmup_rounds=2,
    )


@LARGE
def test_open_megatron(measure, large_prefix) -> None:
    peer = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    measure(
        "megatron-core",
        lambda: peer.IndexedDataset(str(large_prefix)),
        1,
        "datasets",
        rounds=15,
        warmup_rounds=2,
    )


@MANY
@LEVELS
def test_open_many_mmfast(measure, shards, level) -> None:
    measure(
        f'mmfast verify="{level}", as one',
        lambda: IndexedDataset(shards, verify=level),
        len(shards),
        "shards",
        rounds=9,
    )


@MANY
def test_open_many_megatron(measure, shards) -> None:
    peer = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    measure(
        "megatron-core, one by one",
        lambda: [peer.IndexedDataset(str(prefix)) for prefix in shards],
        len(shards),
        "shards",
        rounds=9,
    )
