"""Many sequences or documents read in one call."""

import numpy as np
import pytest

from mmfast.data import IndexedDataset, IndexedDatasetBuilder

DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float64", "float32", "uint16")


def written(prefix, dtype="int32"):
    """Documents of 0 to 3 sequences of 0 to 9 ids."""
    generator = np.random.default_rng(1)
    document_lengths = generator.integers(0, 4, 50)
    lengths = generator.integers(0, 10, document_lengths.sum())
    flat = np.arange(lengths.sum()).astype(dtype)
    with IndexedDatasetBuilder(prefix, dtype=dtype) as builder:
        builder.add_documents(flat, lengths, document_lengths)
    return IndexedDataset(prefix)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_come_back_to_back_in_the_order_asked_for(tmp_path, dtype):
    dataset = written(tmp_path / "a", dtype)
    indices = np.random.default_rng(2).integers(-len(dataset), len(dataset), 200)
    ids, offsets = dataset.read(indices)
    assert ids.dtype == np.dtype(dtype)
    assert (offsets.dtype, offsets.shape, offsets[0]) == (np.int64, (201,), 0)
    for i, index in enumerate(indices):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == dataset[int(index)].tolist()
    assert len(ids) == offsets[-1]


def test_documents_come_with_all_their_sequences(tmp_path):
    dataset = written(tmp_path / "a")
    indices = list(range(dataset.num_documents))[::-1]
    ids, offsets = dataset.read(indices, unit="document")
    for i, index in enumerate(indices):
        expected = [x for segment in dataset.document(index) for x in segment.ids.tolist()]
        assert ids[offsets[i] : offsets[i + 1]].tolist() == expected


def test_ids_go_to_the_beginning_of_an_array_of_the_callers(tmp_path):
    dataset = written(tmp_path / "a")
    out = np.full(1_000, -1, np.int32)
    ids, offsets = dataset.read([3, 1, 3], out=out)
    assert np.shares_memory(ids, out)
    assert ids.tolist() == [*dataset[3], *dataset[1], *dataset[3]]
    assert (out[offsets[-1] :] == -1).all()


def test_what_is_read_is_a_copy_that_may_be_changed(tmp_path):
    dataset = written(tmp_path / "a")
    ids, _ = dataset.read(range(len(dataset)))
    ids[:] = -1
    assert dataset.tokens.min() == 0


def test_nothing_asked_for_is_nothing(tmp_path):
    ids, offsets = written(tmp_path / "a").read([])
    assert (ids.tolist(), offsets.tolist()) == ([], [0])


def test_an_index_past_the_end_is_named(tmp_path):
    dataset = written(tmp_path / "a")
    with pytest.raises(IndexError, match=f"sequence index {len(dataset)}"):
        dataset.read([0, len(dataset)])
    with pytest.raises(IndexError, match="document index -51"):
        dataset.read([-51], unit="document")


@pytest.mark.parametrize(
    "out",
    [
        np.zeros(1, np.int32),
        np.zeros(100, np.int64),
        np.zeros((100, 1), np.int32),
        np.zeros(200, np.int32)[::2],
        np.zeros(100, ">i4"),
    ],
    ids=["short", "wide", "flat", "strided", "swapped"],
)
def test_an_array_that_cannot_take_the_ids_is_refused(tmp_path, out):
    dataset = written(tmp_path / "a")
    longest = int(dataset.sequence_lengths.argmax())
    with pytest.raises(ValueError, match=r"do not fit|out must be"):
        dataset.read([longest], out=out)
    assert not out.any()


def test_a_read_only_array_is_refused(tmp_path):
    out = np.zeros(100, np.int32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        written(tmp_path / "a").read([0], out=out)


@pytest.mark.parametrize("indices", [[0.5], [[0, 1]], ["a"]])
def test_indices_that_are_no_whole_numbers_are_refused(tmp_path, indices):
    with pytest.raises(ValueError, match="whole numbers"):
        written(tmp_path / "a").read(indices)
