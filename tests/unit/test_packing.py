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


def bins_of(bins):
    return [bins[b].tolist() for b in range(len(bins))]


def test_groups_share_a_bin_and_keep_their_order():
    generator = np.random.default_rng(4)
    for number in range(40):
        lengths = generator.integers(0, 20, generator.integers(1, 60))
        boundaries = np.unique([0, len(lengths), *generator.integers(0, len(lengths), 12)])
        sums = np.add.reduceat(lengths, boundaries[:-1])
        capacity = int(sums.max()) + number
        bins = pack(lengths, max(capacity, 1), groups=boundaries)
        expected = [
            [d for g in held for d in range(boundaries[g], boundaries[g + 1])]
            for held in best_fit_decreasing(sums.tolist(), max(capacity, 1))
        ]
        assert bins_of(bins) == expected
        assert (bins.lengths == lengths[bins.documents]).all()


def test_groups_of_one_size_end_with_a_smaller_one():
    assert bins_of(pack([3, 3, 3, 3, 3], 7, groups=2)) == [[0, 1], [2, 3], [4]]
    assert bins_of(pack([1, 2, 3, 4], 20, groups=2, packing="none")) == [[0, 1], [2, 3]]


def test_overlong_groups_are_refused_truncated_split_or_dropped():
    lengths, groups = [4, 5, 3, 2, 6], [0, 3, 5]
    with pytest.raises(ValueError, match=r"1 groups are longer than 10, first group 0 with 12"):
        pack(lengths, 10, groups=groups)
    truncated = pack(lengths, 10, groups=groups, overlong="truncate")
    assert bins_of(truncated) == [[0, 1], [3, 4]]
    assert truncated.num_overlong_groups == 1
    assert bins_of(pack(lengths, 10, groups=groups, overlong="drop")) == [[3, 4]]
    split = pack(lengths, 10, groups=groups, overlong="split")
    assert bins_of(split) == [[0, 1], [3, 4], [2]]
    # A document that no bin holds is split first, and takes its group with it where it is dropped.
    split = pack([2, 23, 1, 4], 10, groups=[0, 3, 4], overlong="split")
    assert split.num_overlong_groups == split.num_overlong == 1
    assert sorted(split.lengths.tolist()) == [1, 2, 3, 4, 10, 10]
    assert bins_of(pack([2, 23, 1, 4], 10, groups=[0, 3, 4], overlong="drop")) == [[3]]


def test_groups_of_other_documents_are_refused():
    for groups, text in [
        (0, "at least 1 document"),
        ([0, 2], "end with the number of documents, 3"),
        ([1, 3], "begin with 0"),
        ([0, 2, 2, 3], "group 1 has no documents"),
        ([[0, 3]], "one dimension"),
        ([0.0, 3.0], "float64"),
    ]:
        with pytest.raises(ValueError, match=text):
            pack([1, 2, 3], 10, groups=groups)
    with pytest.raises(ValueError, match="would part groups"):
        pack([1, 2, 3], 10, groups=1, packing="concat")


def test_concatenated_documents_fill_every_bin_but_the_last():
    bins = pack([3, 0, 9, 2, 10], 5, packing="concat")
    pieces = list(zip(bins.documents, bins.starts, bins.lengths, strict=True))
    assert pieces == [
        (0, 0, 3),
        (2, 0, 2),
        (2, 2, 5),
        (2, 7, 2),
        (3, 0, 2),
        (4, 0, 1),
        (4, 1, 5),
        (4, 6, 4),
    ]
    assert bins.offsets.tolist() == [0, 2, 3, 6, 7, 8]
    generator = np.random.default_rng(5)
    lengths = generator.integers(0, 30, 300)
    bins = pack(lengths, 16, packing="concat")
    filled = np.add.reduceat(bins.lengths, bins.offsets[:-1])
    assert (filled[:-1] == 16).all()
    assert (np.bincount(bins.documents, bins.lengths, len(lengths)) == lengths).all()
    assert len(pack([], 5, packing="concat")) == len(pack([0], 5, packing="concat")) == 0
