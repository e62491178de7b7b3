"""Packing a corpus by its lengths, beside TRL's way: the same rule with a segment tree in Python.

2,000,000 documents of lognormal length; and the hard cases, where little or nothing fits beside what a
row already holds: lengths around half a row, and images of 1,024 or 4,096 ids with their captions.
"""

import numpy as np
import pytest

from mmfast.data import pack

NUM_DOCUMENTS = 2_000_000
NUM_PEER_DOCUMENTS = 20_000
CAPACITY = 4_096


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


def segment_tree_packing(lengths: list[int], capacity: int) -> int:
    """Number of bins of best-fit-decreasing as TRL does it: a tree of maxima finds the least space."""
    size = 1 << capacity.bit_length()
    tree = [0] * (2 * size)
    waiting = [0] * (capacity + 1)

    def mark(space: int, value: int) -> None:
        node = size + space - 1
        tree[node] = value
        while node > 1:
            node //= 2
            tree[node] = max(tree[2 * node], tree[2 * node + 1])

    def fitting(length: int) -> int:
        node = 1
        while node < size:
            node = 2 * node if tree[2 * node] >= length else 2 * node + 1
        return tree[node]

    num_bins = 0
    for length in sorted(lengths, reverse=True):
        space = fitting(length) if tree[1] >= length else 0
        if space:
            waiting[space] -= 1
            if not waiting[space]:
                mark(space, 0)
        else:
            num_bins += 1
            space = capacity
        left = space - length
        if left:
            waiting[left] += 1
            mark(left, left)
    return num_bins


@pytest.mark.benchmark(group="pack, 2 M documents")
@pytest.mark.parametrize("corpus_name", CORPORA)
def test_pack_mmfast(benchmark, corpus_name, rate) -> None:
    make, capacity = CORPORA[corpus_name]
    lengths = make(NUM_DOCUMENTS)
    rate(NUM_DOCUMENTS, "documents")
    bins = benchmark.pedantic(lambda: pack(lengths, capacity), rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {
        "bins": len(bins),
        "lower_bound": -(-bins.num_tokens // capacity),
        "fill": bins.fill,
    }


@pytest.mark.benchmark(group="pack, 20,000 documents")
@pytest.mark.parametrize("corpus_name", CORPORA)
def test_pack_small_mmfast(benchmark, corpus_name, rate) -> None:
    make, capacity = CORPORA[corpus_name]
    lengths = make(NUM_PEER_DOCUMENTS)
    rate(NUM_PEER_DOCUMENTS, "documents")
    bins = benchmark.pedantic(lambda: pack(lengths, capacity), rounds=7, warmup_rounds=1)
    benchmark.extra_info["bins"] = len(bins)


@pytest.mark.benchmark(group="pack, 20,000 documents")
@pytest.mark.parametrize("corpus_name", CORPORA)
def test_pack_segment_tree(benchmark, corpus_name, rate) -> None:
    make, capacity = CORPORA[corpus_name]
    lengths = make(NUM_PEER_DOCUMENTS).tolist()
    rate(NUM_PEER_DOCUMENTS, "documents")
    num_bins = benchmark.pedantic(
        lambda: segment_tree_packing(lengths, capacity), rounds=5, warmup_rounds=1
    )
    benchmark.extra_info["bins"] = num_bins
    assert num_bins == len(pack(np.asarray(lengths), capacity))
