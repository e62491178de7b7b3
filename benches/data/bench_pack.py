"""Packing a corpus by its lengths into rows of 4,096, beside TRL.

Corpora: documents of lognormal length, and the hard cases, where little or nothing fits beside what a
row already holds: lengths around half a row, and images of 1,024 or 4,096 ids with their captions (in
rows of 8,192).

TRL's algorithm is the loop of its `_pack_bfd` round its own segment tree, on bare lengths: the function
itself also moves the ids, which no memory holds for 2 M documents. At 20,000 documents the function is
run as well, and the loop must give as many rows. `pack_dataset` is what TRL's users call: it packs 1,000
documents at a time and moves their ids.
"""

from collections import defaultdict, deque

import numpy as np
import pytest

from mmfast.data import pack

NUM_DOCUMENTS = 2_000_000
NUM_PEER_DOCUMENTS = 20_000
CAPACITY = 4_096
WINDOW = 65_536


def lognormal(num_documents: int) -> np.ndarray:
    """Mean 1,100, sigma 0.6, cut at a row."""
    drawn = np.random.default_rng(0).lognormal(np.log(1_100) - 0.18, 0.6, num_documents)
    return np.clip(drawn, 8, CAPACITY).astype(np.uint32)


def half_a_row(num_documents: int) -> np.ndarray:
    """Within 64 ids of half a row: one or two to a row."""
    drawn = np.random.default_rng(1).integers(-64, 66, num_documents)
    return (CAPACITY // 2 + drawn).astype(np.uint32)


def captioned_images(num_documents: int) -> np.ndarray:
    """Images of 1,024 ids, a tenth of 4,096, each with a caption of 12 to 119 ids."""
    generator = np.random.default_rng(2)
    images = np.where(generator.random(num_documents) < 0.1, 4_096, 1_024)
    return (images + generator.integers(12, 120, num_documents)).astype(np.uint32)


CORPORA = {
    "lognormal": (lognormal, CAPACITY),
    "half a row": (half_a_row, CAPACITY),
    "captioned images": (captioned_images, 2 * CAPACITY),
}


def trl_rows(lengths: np.ndarray, capacity: int) -> int:
    """Rows that the loop of TRL's `_pack_bfd` fills: its tree finds the least space that is enough."""
    data_utils = pytest.importorskip("trl.data_utils", reason="trl is not installed")
    tree = data_utils._SegmentTree(capacity)
    tree.add(capacity)
    rows_by_space: dict[int, deque[list[int]]] = defaultdict(deque)
    rows: list[list[int]] = []
    order = np.argsort(lengths, kind="stable")[::-1]
    for document, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        space = tree.search(length)
        if space < capacity:
            row = rows_by_space[space].popleft()
            if not rows_by_space[space]:
                tree.remove(space)
        else:
            row = []
            rows.append(row)
        row.append(document)
        rows_by_space[space - length].append(row)
        if space > length:
            tree.add(space - length)
    return len(rows)


def note_rows(benchmark, num_rows: int, lengths: np.ndarray, capacity: int) -> None:
    benchmark.extra_info |= {
        "rows": num_rows,
        "fill_percent": 100 * float(lengths.sum(dtype=np.int64)) / (num_rows * capacity),
    }


@pytest.mark.parametrize("corpus_name", CORPORA)
def test_pack_mmfast(benchmark, measure, corpus_name) -> None:
    benchmark.group = f"pack 2 M lengths, {corpus_name}"
    make, capacity = CORPORA[corpus_name]
    lengths = make(NUM_DOCUMENTS)
    bins = measure("mmfast pack", lambda: pack(lengths, capacity), len(lengths), "documents")
    note_rows(benchmark, len(bins), lengths, capacity)


@pytest.mark.slow
@pytest.mark.parametrize("corpus_name", CORPORA)
def test_pack_trl(benchmark, measure, corpus_name) -> None:
    """Once, for the number of rows: it takes seconds."""
    benchmark.group = f"pack 2 M lengths, {corpus_name}"
    make, capacity = CORPORA[corpus_name]
    lengths = make(NUM_DOCUMENTS)
    num_rows = measure(
        "trl algorithm, all at once",
        lambda: trl_rows(lengths, capacity),
        len(lengths),
        "documents",
        rounds=1,
        warmup_rounds=0,
    )
    note_rows(benchmark, num_rows, lengths, capacity)


@pytest.fixture(scope="module")
def trl_dataset():
    """20,000 documents of lognormal length for TRL, as a Hugging Face dataset in memory."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    import pyarrow as pa

    lengths = lognormal(NUM_PEER_DOCUMENTS)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = pa.array(np.zeros(offsets[-1], np.int32))
    table = pa.table({"ids": pa.ListArray.from_arrays(pa.array(offsets), ids)})
    return datasets.Dataset(table)


SMALL = pytest.mark.benchmark(group="pack 20,000 lengths, lognormal")


@SMALL
def test_pack_small_mmfast(benchmark, measure) -> None:
    lengths = lognormal(NUM_PEER_DOCUMENTS)
    bins = measure("mmfast pack", lambda: pack(lengths, CAPACITY), len(lengths), "documents")
    note_rows(benchmark, len(bins), lengths, CAPACITY)


@SMALL
def test_pack_small_trl(benchmark, measure) -> None:
    lengths = lognormal(NUM_PEER_DOCUMENTS)
    num_rows = measure(
        "trl algorithm, all at once",
        lambda: trl_rows(lengths, CAPACITY),
        len(lengths),
        "documents",
    )
    note_rows(benchmark, num_rows, lengths, CAPACITY)


@SMALL
def test_pack_small_trl_function(benchmark, measure, trl_dataset) -> None:
    """The function whose loop stands above: the same number of rows, and the ids moved."""
    data_utils = pytest.importorskip("trl.data_utils", reason="trl is not installed")
    table = trl_dataset.data.table
    packed = measure(
        "trl _pack_bfd, all at once, moving ids",
        lambda: data_utils._pack_bfd(table, CAPACITY),
        len(table),
        "documents",
    )
    lengths = lognormal(NUM_PEER_DOCUMENTS)
    assert len(packed) == trl_rows(lengths, CAPACITY)
    note_rows(benchmark, len(packed), lengths, CAPACITY)


@SMALL
def test_pack_small_trl_dataset(benchmark, measure, trl_dataset) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    import datasets

    datasets.disable_progress_bars()
    packed = measure(
        "trl pack_dataset, as shipped, moving ids",
        lambda: trl.pack_dataset(
            trl_dataset,
            CAPACITY,
            map_kwargs={"keep_in_memory": True, "load_from_cache_file": False},
        ),
        len(trl_dataset),
        "documents",
    )
    note_rows(benchmark, len(packed), lognormal(NUM_PEER_DOCUMENTS), CAPACITY)


@pytest.mark.benchmark(group="pack a window of 65,536 lengths, lognormal")
def test_pack_windows_mmfast(benchmark, measure) -> None:
    """One window a round; `fill_lost_percent` is what 30 windows lose against all at once."""
    windows = lognormal(30 * WINDOW).reshape(30, WINDOW)
    turns = iter(range(10**9))
    measure(
        "mmfast pack, a window",
        lambda: pack(windows[next(turns) % len(windows)], CAPACITY),
        WINDOW,
        "documents",
        rounds=30,
        warmup_rounds=3,
    )
    in_windows = sum(len(pack(window, CAPACITY)) for window in windows)
    at_once = len(pack(windows.reshape(-1), CAPACITY))
    num_ids = float(windows.sum(dtype=np.int64))
    benchmark.extra_info |= {
        "fill_percent": 100 * num_ids / (in_windows * CAPACITY),
        "fill_lost_percent": 100 * num_ids / CAPACITY * (1 / at_once - 1 / in_windows),
    }
