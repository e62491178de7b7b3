"""Training batches of 32 rows of 4,096 ids in int64, in shuffled order, one thread.

What each contender delivers:

- mmfast `Loader`: whole documents packed into rows; ids, labels, weights, positions, document and
  modality ids, `cu_seqlens`. Prefetching is off, so that all work is inside the measured time.
- mmfast `MegatronOrder`: `GPTDataset`'s samples: ids, labels, loss mask; into the memory of the batch
  before, as the `Loader` does, or into new memory, as all others do.
- megatron-core: `GPTDataset` with torch's collate: ids, labels, loss mask, positions.
- the others: ids alone, of rows that were cut before: no documents, labels or positions. They come as
  int32 from MosaicML and LitData and are widened; Hugging Face widens by itself.
- `numpy gather` copies such rows and makes labels of the same ids: the floor.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mmfast.data import Loader, MegatronOrder, Source
from mmfast.objectives import NextToken
from mmfast.vocab import Vocabulary

ROWS, LENGTH = 32, 4_096
BATCHES_PER_ROUND = 20
# A window has about 17,500 rows; so each round of the Loader plans one.
BATCHES_PER_WINDOW = 550
pytestmark = pytest.mark.benchmark(group="32 x 4,096 int64 batches")


@pytest.fixture
def choose() -> Callable[[int], np.ndarray]:
    """`choose(num_rows)`: the numbers of 32 random rows."""
    generator = np.random.default_rng(0)
    return lambda num_rows: generator.integers(0, num_rows, ROWS)


@pytest.fixture
def measure_batches(measure):
    """`measure_batches(contender, next_batch)` times 20 batches a round."""

    def run(
        contender: str, next_batch, *, num_batches: int = BATCHES_PER_ROUND, rounds: int = 9
    ) -> None:
        def round_of_batches() -> None:
            for _ in range(num_batches):
                next_batch()

        measure(contender, round_of_batches, num_batches, "batches", rounds=rounds)

    return run


def test_batches_mmfast(measure_batches, dataset_prefix) -> None:
    loader = Loader(
        sources=[Source(dataset_prefix)],
        objective=NextToken(),
        vocabulary=Vocabulary.build(65_000, roles=("eos", "pad")),
        bin_tokens=LENGTH,
        global_batch_bins=ROWS,
        overlong="truncate",
        prefetch_batches=0,
    )
    batches = iter(loader)
    measure_batches("mmfast Loader, packed", lambda: next(batches), num_batches=BATCHES_PER_WINDOW)


def test_batches_numpy(measure_batches, rows, choose) -> None:
    def gather() -> None:
        chosen = rows[choose(len(rows))].astype(np.int64)
        labels = np.empty_like(chosen)
        labels[:, :-1] = chosen[:, 1:]
        labels[:, -1] = -100

    measure_batches("numpy gather", gather, rounds=15)


@pytest.mark.parametrize("is_reused", [True, False], ids=["reused", "new"])
def test_batches_megatron_order(measure_batches, dataset_prefix, choose, is_reused) -> None:
    order = MegatronOrder(dataset_prefix, sequence_length=LENGTH, seed=1)
    memory = order.batch(choose(len(order))) if is_reused else None

    def batch() -> None:
        for array in order.batch(choose(len(order)), out=memory):
            torch.from_numpy(array)

    words = "memory reused" if is_reused else "new memory"
    measure_batches(f"mmfast MegatronOrder batch, {words}", batch)


def test_batches_megatron(measure_batches, gpt_dataset, megatron_dataset, tmp_path, choose) -> None:
    dataset = gpt_dataset(megatron_dataset, tmp_path)

    def batch() -> None:
        torch.utils.data.default_collate([dataset[i] for i in choose(len(dataset)).tolist()])

    measure_batches("megatron-core GPTDataset + collate", batch)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_batches_datasets(measure_batches, arrow_rows, choose, kind) -> None:
    dataset = arrow_rows.with_format(kind)
    batch = dataset[choose(len(dataset))]["ids"]
    assert batch.shape == (ROWS, LENGTH)

    def next_batch() -> None:
        batch = dataset[choose(len(dataset))]["ids"]
        if kind == "numpy":
            torch.from_numpy(batch.astype(np.int64, copy=False))

    measure_batches(f"datasets ds[indices], {kind}", next_batch)


def test_batches_mosaicml(measure_batches, mosaicml_rows, choose) -> None:
    """`ds[i]`, which is faster than its loader."""
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed")
    dataset = streaming.StreamingDataset(local=str(mosaicml_rows), batch_size=ROWS)

    def batch() -> None:
        chosen = [np.frombuffer(dataset[int(i)]["ids"], np.int32) for i in choose(len(dataset))]
        torch.from_numpy(np.stack(chosen).astype(np.int64))

    measure_batches("mosaicml-streaming ds[i]", batch)


def test_batches_litdata(measure_batches, litdata_tokens) -> None:
    """`TokensLoader` in its own loader, shuffled within and across chunks."""
    litdata = pytest.importorskip("litdata", reason="litdata is not installed")
    dataset = litdata.StreamingDataset(
        str(litdata_tokens), item_loader=litdata.TokensLoader(block_size=LENGTH), shuffle=True
    )
    loader = litdata.StreamingDataLoader(dataset, batch_size=ROWS, num_workers=0)
    batches = iter(loader)
    assert next(batches).shape == (ROWS, LENGTH)
    measure_batches("litdata TokensLoader, shuffled", lambda: next(batches).long())
