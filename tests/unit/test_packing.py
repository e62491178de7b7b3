"""Packing a corpus by its lengths."""

import numpy as np
import pytest

from mmfast.data import pack


def best_fit_decreasing(lengths, capacity):
    """The rule by looking at every bin: fullest bin that holds the piece, longest waiting first."""
    bins, since = [], []
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for time, item in enumerate(order):
        spaces = [capacity - sum(lengths[i] for i in held) for held in bins]
        fits = [b for b, space in enumerate(spaces) if space >= lengths[item]]
        if fits:
            best = min(fits, key=lambda b: (spaces[b], since[b]))
            bins[best].append(item)
            since[best] = time
        else:
            bins.append([item])
            since.append(time)
    return bins


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "uint64"])
def test_bins_are_those_of_best_fit_decreasing(dtype):
    lengths = np.random.default_rng(0).integers(0, 101, 300).astype(dtype)
    bins = pack(lengths, 100)
    found = [bins[b].tolist() for b in range(len(bins))]
    assert found == best_fit_decreasing(lengths.tolist(), 100)
    assert (bins.lengths == lengths[bins.documents]).all()
    assert bins.num_tokens == lengths.sum(dtype=np.int64)
    assert bins.fill == pytest.approx(lengths.sum(dtype=np.int64) / (100 * len(bins)))


def test_overlong_documents_are_an_error_that_names_the_first():
    with pytest.raises(ValueError, match=r"2 documents .* document 1 with 12"):
        pack([5, 12, 30], 10)


def test_overlong_documents_are_truncated_dropped_or_split():
    truncated = pack([5, 12, 30, 3], 10, overlong="truncate")
    assert sorted(zip(truncated.documents, truncated.lengths, strict=True)) == [
        (0, 5),
        (1, 10),
        (2, 10),
        (3, 3),
    ]
    dropped = pack([5, 12, 30, 3], 10, overlong="drop")
    assert [dropped[b].tolist() for b in range(len(dropped))] == [[0, 3]]
    split = pack([5, 12, 0, 30, 3], 10, overlong="split")
    pieces = sorted(zip(split.documents, split.starts, split.lengths, strict=True))
    assert pieces == [
        (0, 0, 5),
        (1, 0, 10),
        (1, 10, 2),
        (2, 0, 0),
        (3, 0, 10),
        (3, 10, 10),
        (3, 20, 10),
        (4, 0, 3),
    ]
    assert truncated.num_overlong == dropped.num_overlong == split.num_overlong == 2


def test_lengths_just_above_half_a_bin_get_one_each():
    bins = pack(np.full(1_000, 2_049), 4_096)
    assert len(bins) == 1_000
    assert len(pack(np.full(1_000, 2_048), 4_096)) == 500


def test_no_documents_need_no_bins():
    bins = pack([], 10)
    assert (len(bins), bins.num_tokens, bins.fill) == (0, 0, 1.0)
    with pytest.raises(IndexError, match="bin index 0"):
        bins[0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1], 0), "capacity"),
        (([1], 2**32), "capacity"),
        (([-1], 4), "lengths"),
        (([2**32], 4), "lengths"),
        (([1.5], 4), "whole numbers"),
        (([[1]], 4), "whole numbers"),
    ],
)
def test_unusable_arguments_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        pack(*arguments, overlong="drop")


def test_an_unknown_way_with_overlong_documents_is_refused():
    with pytest.raises(ValueError, match="overlong is one of error"):
        pack([1], 4, overlong="cut")
