"""The loader end to end on small datasets written by the builder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.loader_data import (
    BREAK,
    EOS,
    NUM_DOCUMENTS,
    PAD,
    VOCABULARY,
    documents_of,
    make_loader,
    same,
    take,
    write_pairs,
)

from mmfast.data import IndexedDataset, IndexedDatasetBuilder, Loader, Source
from mmfast.errors import StateMismatchError, VocabularyMismatchError
from mmfast.objectives import Cm3, NextToken, reference, restore_document
from mmfast.vocab import Vocabulary


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train")


def test_an_epoch_holds_every_document_once_in_the_references_form(prefix: Path) -> None:
    loader = make_loader(prefix, sources=[Source(prefix, max_epochs=1)])
    dataset = IndexedDataset(prefix)
    seen = []
    for batch in loader:
        for document in documents_of(batch):
            number = int(restore_document(document.numpy(), VOCABULARY)[1])
            expected = reference.transform_document(
                dataset.document(number), Cm3(), VOCABULARY, seed=3, document=number, max_tokens=128
            )
            np.testing.assert_array_equal(document.numpy(), expected.ids)
            seen.append(number)
    assert sorted(seen) == list(range(NUM_DOCUMENTS))
    assert loader.num_documents == NUM_DOCUMENTS
    assert (
        loader.limit() == f"the stream ends after 200 documents, when {prefix} has no epochs left"
    )
    assert loader.counts.pop("documents") == 200
    assert not any(loader.counts.values())


def test_batches_have_the_promised_fields(prefix: Path) -> None:
    loader = make_loader(prefix)
    assert loader.limit() is None
    assert loader.num_documents is None
    for batch in take(loader, 10):
        B, L = batch.input_ids.shape
        assert (B, L) == (5, 128)
        dtypes = {
            "input_ids": torch.int64,
            "labels": torch.int64,
            "position_ids": torch.int32,
            "document_ids": torch.int32,
            "modality_ids": torch.uint8,
            "loss_weights": torch.float32,
        }
        for name, dtype in dtypes.items():
            assert getattr(batch, name).shape == (B, L)
            assert getattr(batch, name).dtype == dtype
        real = batch.document_ids > 0
        assert (batch.input_ids[~real] == PAD).all()
        assert batch.num_tokens == int(real.sum())
        assert batch.padding_fraction == pytest.approx(1 - batch.num_tokens / (B * L))
        follows = torch.zeros_like(real)
        follows[:, :-1] = real[:, :-1] & (batch.document_ids[:, 1:] == batch.document_ids[:, :-1])
        shifted = torch.roll(batch.input_ids, -1, dims=1)
        assert torch.equal(batch.labels, torch.where(follows, shifted, -100))
        assert (batch.loss_weights[~follows] == 0).all()
        sentinels = torch.isin(batch.labels, torch.tensor(VOCABULARY.mask_ids))
        assert torch.equal(batch.loss_weights, (follows & ~sentinels).float())
        assert batch.weight_sum == pytest.approx(float(batch.loss_weights.sum()))
        assert torch.equal(
            batch.position_ids[:, 1:][follows[:, :-1]],
            batch.position_ids[:, :-1][follows[:, :-1]] + 1,
        )
        assert (
            batch.num_documents
            == len(documents_of(batch))
            == int((real & (batch.position_ids == 0)).sum())
        )
        is_code = batch.input_ids >= VOCABULARY.range("image").base
        assert torch.equal(batch.modality_ids, is_code.to(torch.uint8))
        lengths = batch.cu_seqlens.diff()
        assert batch.cu_seqlens.dtype == torch.int32
        assert (int(batch.cu_seqlens[0]), int(batch.cu_seqlens[-1])) == (0, B * L)
        assert int(lengths.max()) == batch.max_seqlen
        ends = torch.zeros(B * L, dtype=torch.bool)
        ends[batch.cu_seqlens[1:].long() - 1] = True
        numbers = batch.document_ids.flatten()
        rows = torch.arange(B).repeat_interleave(L)
        changes = (numbers[1:] != numbers[:-1]) | (rows[1:] != rows[:-1])
        assert torch.equal(ends[:-1], changes)


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 8])
def test_ranks_share_out_the_rows_of_one_process(prefix: Path, world_size: int) -> None:
    whole = take(make_loader(prefix), 8)
    ranks = [make_loader(prefix, rank=r, world_size=world_size) for r in range(world_size)]
    parts = [take(loader, 8) for loader in ranks]
    for step, batch in enumerate(whole):
        for rank in range(world_size):
            part = parts[rank][step]
            assert part.num_rows == -(-5 // world_size)
            for row in range(part.num_rows):
                index = rank + row * world_size
                if index < 5:
                    assert torch.equal(part.input_ids[row], batch.input_ids[index])
                    assert torch.equal(part.labels[row], batch.labels[index])
                else:
                    assert not part.loss_weights[row].any()
                    assert not part.document_ids[row].any()
        assert sum(p[step].weight_sum for p in parts) == pytest.approx(batch.weight_sum)
    assert all(loader.state_dict() == ranks[0].state_dict() for loader in ranks)


def test_a_restored_loader_goes_on_as_the_unbroken_one_at_every_step(prefix: Path) -> None:
    loader = make_loader(prefix)
    iterator = iter(loader)
    states, batches = [loader.state_dict()], []
    for _ in range(25):
        batches.append(next(iterator))
        states.append(loader.state_dict())
    assert states[-1]["window"] > 3
    for step, state in enumerate(states[:-1]):
        text = json.dumps(state)
        assert len(text) < 1024
        restored = make_loader(prefix, prefetch_batches=1 + step % 4)
        restored.load_state_dict(json.loads(text))
        assert restored.state_dict() == state
        assert same(next(iter(restored)), batches[step])
        assert restored.state_dict() == states[step + 1]


def test_a_state_of_another_stream_is_refused(prefix: Path, tmp_path: Path) -> None:
    loader = make_loader(prefix)
    take(loader, 3)
    state = loader.state_dict()
    for settings, text in [
        ({"bin_tokens": 256}, "packing"),
        ({"overlong": "split"}, "packing"),
        ({"window_documents": 71}, "packing"),
        ({"objective": NextToken()}, "objective"),
        ({"sources": [Source(prefix, max_epochs=9)]}, "blend"),
        ({"sources": [write_pairs(tmp_path / "other", seed=1)]}, "data"),
        ({"seed": 4}, "seed 3"),
    ]:
        with pytest.raises(StateMismatchError, match=text):
            make_loader(prefix, **settings).load_state_dict(state)
    for broken in [
        {},
        {**state, "bin": "x"},
        {**state, "bin": 10**6},
        {**state, "version": 99},
        {**state, "bin": -1},
        {**state, "window": 2**60},
    ]:
        with pytest.raises(StateMismatchError):
            loader.load_state_dict(broken)
    make_loader(prefix, global_batch_bins=2, rank=1, world_size=2).load_state_dict(state)


def test_sources_are_blended_by_weight(prefix: Path, tmp_path: Path) -> None:
    other = tmp_path / "text"
    with IndexedDatasetBuilder(other) as builder:
        for _ in range(50):
            builder.add_document([250] * 10, lengths=[10])
    sources = [Source(prefix, weight=3.0), Source(other, weight=1.0)]
    loader = Loader(sources, NextToken(), window_documents=400, global_batch_bins=1)
    batches = take(loader, 100)
    captions = sum(int((b.input_ids == BREAK).sum()) for b in batches)
    texts = sum(b.num_documents for b in batches) - captions
    assert captions / texts == pytest.approx(3.0, rel=0.1)


def test_a_plain_megatron_dataset_needs_no_vocabulary(tmp_path: Path) -> None:
    with IndexedDatasetBuilder(tmp_path / "plain", dtype="uint16") as builder:
        for number in range(30):
            builder.add_document([number] * 9, lengths=[9])
    loader = Loader([tmp_path / "plain"], NextToken(), bin_tokens=20, global_batch_bins=2)
    batch = take(loader, 1)[0]
    assert loader.vocabulary is None
    assert batch.num_documents == 4
    assert batch.input_ids[0, -2:].tolist() == [0, 0]


def test_overlong_documents_follow_the_setting(prefix: Path) -> None:
    with pytest.raises(
        ValueError, match=r"document \d+ of .*train has \d+ ids and does not fit a row of 24"
    ):
        take(make_loader(prefix, bin_tokens=24), 1)
    once = [Source(prefix, max_epochs=1)]
    for overlong in ("truncate", "split", "drop"):
        loader = make_loader(prefix, bin_tokens=24, overlong=overlong, sources=once)
        batches = list(loader)
        key = {"truncate": "truncated", "split": "split", "drop": "dropped"}[overlong]
        assert loader.counts["documents"] == NUM_DOCUMENTS
        assert 0 < loader.counts[key] < NUM_DOCUMENTS
        # Images are whole: their 16 ids or none of them.
        for batch in batches:
            for row in range(batch.num_rows):
                for number in batch.document_ids[row].unique():
                    inside = (batch.document_ids[row] == number) & (batch.modality_ids[row] == 1)
                    assert int(inside.sum()) in (0, 16)


def test_a_vocabulary_that_is_not_the_datas_is_refused(prefix: Path, tmp_path: Path) -> None:
    other = Vocabulary.build(301, roles=list(VOCABULARY.special), codes=[("image", 64)])
    with pytest.raises(VocabularyMismatchError, match="text_size"):
        Loader([prefix], NextToken(), other)
    with IndexedDatasetBuilder(tmp_path / "data") as builder:
        builder.add_document([1, 5_000], lengths=[2])
    with pytest.raises(VocabularyMismatchError, match="id 5000 at position 1"):
        take(Loader([tmp_path / "data"], NextToken(), VOCABULARY), 1)


def test_unusable_arguments_are_refused_when_the_loader_is_made(prefix: Path) -> None:
    for settings, text in [
        ({"sources": []}, "at least one source"),
        ({"sources": [Source(prefix, max_epochs=0)]}, "0 epochs"),
        ({"sources": [Source(prefix, max_epochs=-1)]}, "max_epochs"),
        ({"seed": -1}, "seed"),
        ({"bin_tokens": 1.5}, "bin_tokens"),
        ({"sources": [Source(prefix, weight=-1.0)]}, "weight -1"),
        ({"bin_tokens": 0}, "bin_tokens"),
        ({"global_batch_bins": 0}, "global_batch_bins"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"overlong": "cut"}, "overlong"),
    ]:
        with pytest.raises(ValueError, match=text):
            make_loader(prefix, **settings)
    with pytest.raises(FileNotFoundError):
        make_loader(prefix.with_name("missing"))


def test_documents_are_cut_at_a_limit_below_the_row(prefix: Path) -> None:
    loader = make_loader(prefix, max_document_tokens=25, overlong="truncate")
    lengths = [len(document) for batch in take(loader, 20) for document in documents_of(batch)]
    assert max(lengths) <= 25
    assert loader.counts["truncated"] > 0
    with pytest.raises(StateMismatchError, match="max_document_tokens"):
        make_loader(prefix, overlong="truncate").load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match=r"has \d+ ids and does not fit max_document_tokens 25"):
        take(make_loader(prefix, max_document_tokens=25), 1)
    for wrong in (0, -1, 2.5):
        with pytest.raises(ValueError, match="max_document_tokens"):
            make_loader(prefix, max_document_tokens=wrong)


def test_a_closed_loader_starts_again_where_it_stood(prefix: Path) -> None:
    expected = take(make_loader(prefix), 4)
    loader = make_loader(prefix)
    take(loader, 2)
    loader.close()
    assert same(take(loader, 1)[0], expected[2])


def test_batches_move_between_devices(prefix: Path) -> None:
    batch = take(make_loader(prefix), 1)[0]
    moved = batch.to("meta")
    assert moved.labels.device.type == moved.cu_seqlens.device.type == "meta"
    assert moved.num_tokens == batch.num_tokens


def test_rows_without_packing_hold_one_document_and_a_state_needs_no_window(prefix: Path) -> None:
    once = [Source(prefix, max_epochs=1)]
    loader = make_loader(prefix, packing="none", sources=once, objective=NextToken())
    batches = list(loader)
    numbers = [int(document[1]) for batch in batches for document in documents_of(batch)]
    assert sorted(numbers) == list(range(NUM_DOCUMENTS))
    assert all(int(batch.document_ids.max()) == 1 for batch in batches)
    assert [batch.state["window"] for batch in batches[:3]] == [4, 9, 14]


def test_concatenated_rows_cut_text_and_end_early_before_an_image(prefix: Path) -> None:
    once = [Source(prefix, max_epochs=1)]
    loader = make_loader(
        prefix, packing="concat", sources=once, objective=NextToken(), bin_tokens=24
    )
    images, num_tokens = 0, 0
    for batch in loader:
        num_tokens += batch.num_tokens
        for row in range(batch.num_rows):
            for number in batch.document_ids[row].unique():
                inside = (batch.document_ids[row] == number) & (batch.modality_ids[row] == 1)
                assert int(inside.sum()) in (0, 16)
                images += int(inside.sum()) // 16
    assert images == NUM_DOCUMENTS
    assert num_tokens == IndexedDataset(prefix).num_tokens
    assert loader.counts["split"] > 0
    with pytest.raises(ValueError, match=r"has \d+ ids and does not fit a row of 15"):
        take(make_loader(prefix, packing="concat", bin_tokens=15), 1)


def test_text_segments_are_whole_where_cuts_are_between_segments(prefix: Path) -> None:
    settings = {"bin_tokens": 24, "overlong": "split", "objective": NextToken()}
    loader = make_loader(prefix, cut_at="segments", **settings)
    for batch in take(loader, 20):
        for document in documents_of(batch):
            text = document[document < VOCABULARY.ranges[0].base].tolist()
            assert text in ([EOS], []) or (text[0] == EOS and BREAK in text)
    with pytest.raises(StateMismatchError, match="cut_at"):
        make_loader(prefix, **settings).load_state_dict(loader.state_dict())


def test_groups_share_a_row_in_their_order(prefix: Path) -> None:
    boundaries = [0, 3, 4, *range(7, NUM_DOCUMENTS, 2), NUM_DOCUMENTS]
    group_of = np.repeat(np.arange(len(boundaries) - 1), np.diff(boundaries))
    for groups in (boundaries, np.array(boundaries, dtype=np.uint16), 2):
        expected = np.arange(NUM_DOCUMENTS) // 2 if isinstance(groups, int) else group_of
        sources = [Source(prefix, max_epochs=1, groups=groups)]
        loader = make_loader(prefix, sources=sources, objective=NextToken())
        assert loader.num_documents == expected[-1] + 1
        rows_of_group: dict[int, list[list[int]]] = {}
        for batch in loader:
            for row in range(batch.num_rows):
                ids, numbers = batch.input_ids[row], batch.document_ids[row]
                found = [int(ids[numbers == n][1]) for n in range(1, int(numbers.max()) + 1)]
                for group in {int(expected[document]) for document in found}:
                    inside = [d for d in found if expected[d] == group]
                    rows_of_group.setdefault(group, []).append(inside)
        for group, rows in rows_of_group.items():
            assert rows == [np.flatnonzero(expected == group).tolist()]
        assert len(rows_of_group) == expected[-1] + 1
    for groups, text in [
        (0, "at least 1 document"),
        ([0, 5], "end with the number of documents, 200"),
        ([0, 5, 5, 200], "boundaries must rise"),
        ([0.5], "one dimension"),
        (-1, "groups is a whole number"),
    ]:
        with pytest.raises(ValueError, match=text):
            make_loader(prefix, sources=[Source(prefix, groups=groups)])
    with pytest.raises(ValueError, match="would part the groups"):
        make_loader(prefix, packing="concat", sources=[Source(prefix, groups=2)])
    grouped = make_loader(prefix, sources=[Source(prefix, groups=2)])
    with pytest.raises(StateMismatchError, match="groups of a source"):
        make_loader(prefix).load_state_dict(grouped.state_dict())
