"""Training batches of 32 rows of 4,096 ids, beside a plain gather (the floor) and `GPTDataset`.

The floor reads rows that lie in one array already and gives labels of the same ids, shifted; it knows
no documents. megatron-core gives ids, labels, loss mask and positions of each sample, then stacks them.
Ours packs whole documents and gives positions and weights per document besides.
"""

import logging
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from mmfast.data import IndexedDataset, Loader, MegatronOrder, Source
from mmfast.objectives import NextToken
from mmfast.vocab import Vocabulary

ROWS, LENGTH = 32, 4_096
BATCHES_PER_ROUND = 20


@pytest.fixture(scope="module")
def order(dataset_prefix: Path) -> MegatronOrder:
    return MegatronOrder(dataset_prefix, sequence_length=LENGTH, seed=1)


@pytest.mark.benchmark(group="32 x 4,096 int64 batches")
def test_batches_mmfast(benchmark, dataset_prefix, rate) -> None:
    """With the prefetching of the loader off, so that all work is inside the measured time."""
    vocabulary = Vocabulary.build(65_000, roles=("eos", "pad"))
    loader = Loader(
        sources=[Source(dataset_prefix)],
        objective=NextToken(),
        vocabulary=vocabulary,
        bin_tokens=LENGTH,
        global_batch_bins=ROWS,
        overlong="truncate",
        prefetch_batches=0,
    )
    batches = iter(loader)
    rate(BATCHES_PER_ROUND, "batches")
    benchmark.pedantic(
        lambda: [next(batches) for _ in range(BATCHES_PER_ROUND)], rounds=30, warmup_rounds=1
    )


@pytest.mark.benchmark(group="32 x 4,096 int64 batches")
def test_batches_numpy_gather(benchmark, dataset_prefix, rate) -> None:
    ids = IndexedDataset(dataset_prefix).tokens
    rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    generator = np.random.default_rng(0)
    rate(BATCHES_PER_ROUND, "batches")

    def gather() -> None:
        for _ in range(BATCHES_PER_ROUND):
            chosen = rows[generator.integers(0, len(rows), ROWS)].astype(np.int64)
            labels = np.empty_like(chosen)
            labels[:, :-1] = chosen[:, 1:]
            labels[:, -1] = -100

    benchmark.pedantic(gather, rounds=15, warmup_rounds=2)


@pytest.mark.benchmark(group="32 x 4,096 int64 batches")
def test_batches_megatron_order(benchmark, order, rate) -> None:
    """`MegatronOrder`: megatron-core's samples, stacked."""
    rate(BATCHES_PER_ROUND, "batches")
    generator = np.random.default_rng(0)

    def batches() -> None:
        for _ in range(BATCHES_PER_ROUND):
            samples = [order[int(i)] for i in generator.integers(0, len(order), ROWS)]
            for part in zip(*samples, strict=True):
                torch.from_numpy(np.stack(part))

    benchmark.pedantic(batches, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="32 x 4,096 int64 batches")
def test_batches_megatron(benchmark, dataset_prefix, rate) -> None:
    peer = pytest.importorskip(
        "megatron.core.datasets.gpt_dataset", reason="megatron-core is not installed"
    )
    from megatron.core.datasets.indexed_dataset import IndexedDataset as PeerIndexedDataset
    from megatron.core.datasets.utils import Split

    logging.disable(logging.WARNING)  # it warns that the indices are not cached
    low_level = PeerIndexedDataset(str(dataset_prefix))
    config = peer.GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        split="1,0,0",
        tokenizer=types.SimpleNamespace(
            eod=-2, pad=-1, vocab_size=65_000, unique_identifiers={"class": "none"}
        ),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    indices = np.arange(len(low_level), dtype=np.int32)
    dataset = peer.GPTDataset(low_level, None, indices, None, Split.train, config)
    logging.disable(logging.NOTSET)
    generator = np.random.default_rng(0)
    rate(BATCHES_PER_ROUND, "batches")

    def batches() -> None:
        for _ in range(BATCHES_PER_ROUND):
            chosen = generator.integers(0, len(dataset), ROWS).tolist()
            torch.utils.data.default_collate([dataset[i] for i in chosen])

    benchmark.pedantic(batches, rounds=5, warmup_rounds=1)
