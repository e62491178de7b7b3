"""megatron-core's order: the shuffles against NumPy's own, all indices against the rules read plainly."""

import itertools

import numpy as np
import pytest

from mmfast.data import IndexedDataset, IndexedDatasetBuilder, MegatronOrder


@pytest.fixture
def dataset(tmp_path):
    """100 sequences of 0 to 60 ids that count up, so that an id tells where it is."""
    lengths = np.random.default_rng(0).integers(0, 61, 100)
    lengths[-1] = 7
    with IndexedDatasetBuilder(tmp_path / "text", dtype="int32") as builder:
        builder.add_documents(np.arange(lengths.sum(), dtype=np.int32), lengths)
    return IndexedDataset(tmp_path / "text")


def expected_indices(lengths, first, length, num_samples, seed, extra, drop_last):
    """The rules of `GPTDataset`, one after another, over NumPy's RandomState."""
    epoch_tokens = sum(lengths)
    num_epochs = 1
    while num_samples is not None and num_epochs * epoch_tokens < num_samples * length + extra:
        num_epochs += 1
    before = ((num_epochs - 1) * epoch_tokens - extra) // length
    per_epoch = (epoch_tokens - extra) // length
    separate = num_epochs > 1 and num_samples - before < int(0.8 * per_epoch)
    random = np.random.RandomState(seed)
    sequences = list(range(first, first + len(lengths)))
    parts = [num_epochs - 1, 1] if separate else [num_epochs]
    document_index = []
    for part in parts:
        row = np.array(sequences * part, np.int32)
        random.shuffle(row)
        document_index += row.tolist()
    total = num_epochs * epoch_tokens - extra
    num = total // length if drop_last else -(-total // length)
    # Every id of the row with its place and offset; then look samples up in it.
    where = [(p, o) for p, s in enumerate(document_index) for o in range(lengths[s - first])]
    rows = [(0, 0)]
    for sample in range(1, num + 1):
        if sample * length + extra <= len(where):
            place, offset = where[sample * length + extra - 1]
            rows.append((place, offset + 1 - extra))
        else:
            rows.append((len(document_index) - 1, lengths[document_index[-1] - first] - extra))
    shuffle_index = np.arange(num, dtype=np.uint32)
    cut = before if separate else num
    random.shuffle(shuffle_index[:cut])
    if separate:
        random.shuffle(shuffle_index[cut:])
    return document_index, rows, shuffle_index


CASES = [
    *itertools.product((1, 2, 33, 128), (None, 1, 40, 111, 250), (0, 1234, 2**32 - 1), (True,)),
    *itertools.product((33, 128), (None, 40, 250), (5,), (False,)),
]


@pytest.mark.parametrize("extra_token", [True, False])
@pytest.mark.parametrize(("length", "num_samples", "seed", "drop_last"), CASES)
def test_indices_are_those_of_the_rules(dataset, length, num_samples, seed, drop_last, extra_token):
    lengths = dataset.sequence_lengths.tolist()
    expected = expected_indices(lengths, 0, length, num_samples, seed, int(extra_token), drop_last)
    if not drop_last and lengths[expected[0][-1]] == 0:
        pytest.skip("megatron-core has no index where a partial sample ends in an empty sequence")
    order = MegatronOrder(
        dataset,
        sequence_length=length,
        num_samples=num_samples,
        seed=seed,
        extra_token=extra_token,
        drop_last=drop_last,
    )
    document_index, rows, shuffle_index = expected
    assert order.document_index.dtype == np.int32
    assert order.sample_index.dtype == np.int32
    assert order.shuffle_index.dtype == np.uint32
    assert order.document_index.tolist() == document_index
    assert order.sample_index.tolist() == [list(row) for row in rows]
    assert order.shuffle_index.tolist() == shuffle_index.tolist()


def test_final_epoch_is_shuffled_on_its_own_when_few_samples_are_needed(dataset):
    per_epoch = (dataset.num_tokens - 1) // 64
    few = MegatronOrder(dataset, sequence_length=64, num_samples=per_epoch + 10)
    many = MegatronOrder(dataset, sequence_length=64, num_samples=per_epoch * 2 - 1)
    assert (few.num_epochs, few.separate_final_epoch) == (2, True)
    assert (many.num_epochs, many.separate_final_epoch) == (2, False)
    assert sorted(few.document_index[100:].tolist()) == list(range(100))


def test_a_split_exposes_its_range_of_sequences(dataset):
    order = MegatronOrder(dataset, sequence_length=16, seed=3, sequences=(20, 60))
    lengths = dataset.sequence_lengths[20:60].tolist()
    document_index, rows, shuffle_index = expected_indices(lengths, 20, 16, None, 3, 1, True)
    assert order.document_index.tolist() == document_index
    assert order.sample_index.tolist() == [list(row) for row in rows]
    assert order.shuffle_index.tolist() == shuffle_index.tolist()


def test_samples_are_cut_from_the_shuffled_row_and_labels_are_one_ahead(dataset):
    order = MegatronOrder(dataset, sequence_length=50, num_samples=100, seed=9)
    row = np.concatenate([dataset[int(i)] for i in order.document_index])
    assert len(order) >= 100
    for i, (tokens, labels, loss_mask) in enumerate(order):
        start = int(order.shuffle_index[i]) * 50
        assert tokens.tolist() == row[start : start + 50].tolist()
        assert labels.tolist() == row[start + 1 : start + 51].tolist()
        assert loss_mask.tolist() == [1] * 50
    assert tokens.dtype == labels.dtype == np.int64


def test_a_short_sample_is_padded_without_loss(tmp_path):
    with IndexedDatasetBuilder(tmp_path / "short") as builder:
        builder.add_documents(np.arange(1, 13, dtype=np.int32), [12])
    order = MegatronOrder(tmp_path / "short", sequence_length=4, drop_last=False)
    last = order.shuffle_index.tolist().index(2)
    tokens, labels, loss_mask = order[last]
    assert tokens.tolist() == [9, 10, 11, 12]
    assert labels.tolist() == [10, 11, 12, 0]
    assert loss_mask.tolist() == [1, 1, 1, 0]


def test_the_last_label_is_missing_without_the_extra_token(dataset):
    order = MegatronOrder(dataset, sequence_length=8, extra_token=False)
    tokens, labels, loss_mask = order[0]
    assert labels[:-1].tolist() == tokens[1:].tolist()
    assert (labels[-1], loss_mask.tolist()) == (0, [1] * 7 + [0])


def test_images_are_refused_because_samples_would_cut_them(tmp_path):
    with IndexedDatasetBuilder(tmp_path / "pairs", multimodal=True) as builder:
        builder.add_item([1, 2, 3])
        builder.add_item([4, 5, 6, 7], mode=1)
        builder.end_document()
    with pytest.raises(ValueError, match=r"sequence 1 .*image"):
        MegatronOrder(tmp_path / "pairs", sequence_length=2)
    assert len(MegatronOrder(tmp_path / "pairs", sequence_length=2, sequences=(0, 1))) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"sequence_length": 0}, "sequence_length"),
        ({"sequence_length": 4, "seed": -1}, "seed"),
        ({"sequence_length": 4, "seed": 2**32}, "seed"),
        ({"sequence_length": 4, "num_samples": -1}, "num_samples"),
        ({"sequence_length": 4, "num_samples": 2**40}, "32-bit"),
        ({"sequence_length": 4, "sequences": (5, 101)}, "range"),
        ({"sequence_length": 4, "sequences": (5, 5)}, "no ids"),
    ],
)
def test_unusable_arguments_are_refused(dataset, arguments, text):
    with pytest.raises(ValueError, match=text):
        MegatronOrder(dataset, **arguments)


def test_a_sample_past_the_end_is_an_index_error(dataset):
    order = MegatronOrder(dataset, sequence_length=50)
    with pytest.raises(IndexError, match="sample index"):
        order[len(order)]
    with pytest.raises(IndexError, match="sample index"):
        order[-1]


def test_a_batch_holds_the_samples_one_by_one(tmp_path):
    prefix = tmp_path / "data"
    generator = np.random.default_rng(6)
    lengths = generator.integers(0, 40, 60).tolist()
    with IndexedDatasetBuilder(prefix, dtype="uint16") as builder:
        builder.add_documents(generator.integers(0, 60_000, sum(lengths)), lengths)
    for extra_token, drop_last in itertools.product([True, False], repeat=2):
        order = MegatronOrder(
            prefix,
            sequence_length=16,
            num_samples=150,
            extra_token=extra_token,
            drop_last=drop_last,
        )
        chosen = generator.integers(0, len(order), 50)
        chosen[0] = int(np.argmax(order.shuffle_index))  # the short one, if there is one
        batch = order.batch(chosen)
        for row, index in enumerate(chosen.tolist()):
            ids = order.ids(index)
            expected = np.zeros((2, 17), np.int64)
            expected[0, : len(ids)], expected[1, : len(ids) - 1] = ids, ids[1:]
            assert (batch.tokens[row] == expected[0, :16]).all()
            assert (batch.labels[row] == expected[1, :16]).all()
            assert (batch.loss_mask[row] == (np.arange(16) < len(ids) - 1)).all()
        again = order.batch(chosen[::-1], out=batch)
        assert again is batch
        assert (batch.tokens[-1] == order[int(chosen[0])].tokens).all()
    assert order.batch([]).tokens.shape == (0, 16)
    for indices in ([len(order)], [-1]):
        with pytest.raises(IndexError, match="out of range"):
            order.batch(indices)
    with pytest.raises(ValueError, match=r"tokens must be .* int64 with the shape \(1, 16\)"):
        order.batch([0], out=batch)
