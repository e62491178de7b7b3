"""Media references: from the builder through files, merges and views into batches."""

import numpy as np
import pytest
import torch

from mmfast.data import (
    BatchMedia,
    IndexedDataset,
    IndexedDatasetBuilder,
    Loader,
    MediaReference,
    Segment,
    merge_datasets,
)
from mmfast.data.rendering import Renderer
from mmfast.data.segment import IMAGE, MEDIA, VIDEO
from mmfast.errors import CorruptDataError
from mmfast.objectives import Cm3, NextToken
from mmfast.vocab import Vocabulary

ROLES = ["eos", "pad", "break", "eoss", "mask_0", "mask_1"]
VOCABULARY = Vocabulary.build(50, roles=ROLES, codes=[("image", 16)])
PLACEHOLDER = VOCABULARY["pad"]
NUM_DOCUMENTS = 40


def reference(number: int) -> MediaReference:
    if number % 3 == 0:
        return MediaReference(store="features", index=number)
    return MediaReference(path=f"clips/{number}.mp4", seconds=(0.5, number + 1.0))


def write(prefix, numbers=range(NUM_DOCUMENTS)):
    """Documents `caption, video placeholders, answer`; the caption's ids tell the document's number."""
    with IndexedDatasetBuilder(prefix, dtype="int32", multimodal=True) as builder:
        for number in numbers:
            builder.add_item([number, number, 1])
            builder.add_item([PLACEHOLDER] * (2 + number % 3), VIDEO, media=reference(number))
            builder.add_item([number, 2])
            builder.end_document()
    VOCABULARY.save(prefix.parent)
    return prefix


def loader(prefix, objective, **arguments):
    settings = {"bin_tokens": 32, "global_batch_bins": 4, "seed": 3, **arguments}
    return Loader([prefix], objective, **settings)


def test_segments_carry_what_their_ids_stand_for(tmp_path):
    dataset = IndexedDataset(write(tmp_path / "a"))
    for number, (caption, video, answer) in enumerate(dataset.documents()):
        assert (caption.media, answer.media) == (None, None)
        assert MediaReference.from_text(video.media) == reference(number)
        assert (video.mode, video.modality, video.has_loss) == (MEDIA | VIDEO, VIDEO, False)


def test_whole_documents_and_batches_of_them_may_refer(tmp_path):
    media = [None, reference(0), None, reference(1)]
    ids, lengths = np.arange(8), [2, 2, 2, 2]
    with IndexedDatasetBuilder(tmp_path / "a", multimodal=True) as one:
        one.add_document(ids[:4], lengths[:2], [0, IMAGE], media=media[:2])
        one.add_document(ids[4:], lengths[2:], [0, IMAGE], media=media[2:])
    with IndexedDatasetBuilder(tmp_path / "b", multimodal=True) as batch:
        batch.add_documents(ids, lengths, [2, 2], [0, IMAGE] * 2, media=media)
    for suffix in (".bin", ".idx", ".media"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with (
        pytest.raises(ValueError, match="2 sequences, but 1 entries of media"),
        IndexedDatasetBuilder(tmp_path / "c", multimodal=True) as builder,
    ):
        builder.add_document([1, 2], [1, 1], media=[None])
    with (
        pytest.raises(ValueError, match="no modes"),
        IndexedDatasetBuilder(tmp_path / "c") as builder,
    ):
        builder.add_item([1], media=reference(0))


def test_a_rendered_document_says_what_its_placeholders_stand_for(tmp_path):
    rendered = Renderer(vocabulary=VOCABULARY).document(
        IndexedDataset(write(tmp_path / "a")).document(1)
    )
    assert '3 ids  stand for {"path": "clips/1.mp4", "seconds": [0.5, 2.0]}' in rendered


def test_merges_keep_references(tmp_path):
    parts = [write(tmp_path / "a", range(3)), write(tmp_path / "b", range(3, 9))]
    merge_datasets(tmp_path / "joined", parts)
    joined = IndexedDataset(tmp_path / "joined")
    found = [MediaReference.from_text(segments[1].media) for segments in joined.documents()]
    assert found == [reference(number) for number in range(9)]


@pytest.mark.parametrize(
    "objective", [NextToken(), Cm3(), Cm3(whole_segment_prob=1.0)], ids=["next", "cm3", "whole"]
)
def test_a_batch_names_the_media_of_its_rows(tmp_path, objective):
    prefix = write(tmp_path / "a")
    seen = []
    batches = iter(loader(prefix, objective))
    while len(seen) < 3 * NUM_DOCUMENTS:
        batch = next(batches)
        is_placeholder = torch.zeros_like(batch.input_ids, dtype=torch.bool)
        for entry in batch.media:
            here = slice(entry.start, entry.start + entry.num_ids)
            assert (batch.input_ids[entry.row, here] == PLACEHOLDER).all()
            assert (batch.modality_ids[entry.row, here] == VIDEO).all()
            assert len(set(batch.document_ids[entry.row, here].tolist())) == 1
            is_placeholder[entry.row, here] = True
            # The caption before it stays in the same document and tells its number.
            document = batch.document_ids[entry.row] == batch.document_ids[entry.row, entry.start]
            own = set(batch.input_ids[entry.row][document].tolist())
            numbers = [n for n in range(NUM_DOCUMENTS) if reference(n) == entry.reference]
            assert set(numbers) & own
            seen.append(numbers[0])
        # Nobody is asked to predict a placeholder, and nothing else is video.
        assert torch.equal(is_placeholder, batch.modality_ids == VIDEO)
        labels = torch.where(batch.loss_weights > 0, batch.labels, -1)
        assert not (labels == PLACEHOLDER).any()
    first_epoch = seen[:NUM_DOCUMENTS]
    assert len(set(first_epoch)) > NUM_DOCUMENTS // 2


def test_workers_and_ranks_pass_media_on(tmp_path):
    prefix = write(tmp_path / "a")

    def media(**arguments):
        batches = iter(loader(prefix, NextToken(), **arguments))
        return [next(batches).media for _ in range(6)]

    whole = media()
    halves = [media(rank=rank, world_size=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        rows = sorted(entry.text for entry in batch)
        assert rows == sorted(entry.text for half in halves for entry in half[step])


def test_media_segments_are_never_cut(tmp_path):
    with IndexedDatasetBuilder(tmp_path / "a", multimodal=True) as builder:
        for _ in range(20):
            builder.add_item([1] * 10)
            builder.add_item([0] * 12, media=reference(1))
            builder.add_item([2] * 30)
            builder.end_document()
    VOCABULARY.save(tmp_path)
    for overlong in ("truncate", "split"):
        batch = next(iter(loader(tmp_path / "a", NextToken(), bin_tokens=16, overlong=overlong)))
        assert all(entry.num_ids == 12 for entry in batch.media)


def test_a_missing_media_file_is_an_error_when_batches_need_it(tmp_path):
    prefix = write(tmp_path / "a")
    (tmp_path / "a.media").unlink()
    assert IndexedDataset(prefix).document(0)[1].media is None
    with pytest.raises(ValueError, match=r"nothing says what they stand for.*\.media"):
        next(iter(loader(prefix, NextToken())))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"path": "a", "store": "b", "index": 0},
        {"store": "b"},
        {"store": "b", "index": -1},
        {"path": "a", "index": 3},
        {"path": "a", "region": (0.5, 0, 0.5, 1)},
        {"path": "a", "seconds": (3, 2)},
        {"store": "b", "index": 0, "seconds": (1, 2)},
    ],
)
def test_a_reference_names_one_thing(fields):
    with pytest.raises(ValueError, match=r"media reference|store|region|seconds"):
        MediaReference(**fields)


def test_references_are_read_back_and_other_texts_refused():
    for entry in (reference(0), reference(1), MediaReference(path="ü.png", region=(0, 0, 0.5, 1))):
        assert MediaReference.from_text(entry.to_text()) == entry
    for text in ("clip.mp4", "[]", '{"path": 3, "x": 1}', '{"path": "a", "region": 3}'):
        with pytest.raises(CorruptDataError, match="no media reference"):
            MediaReference.from_text(text)
    assert BatchMedia(0, 1, 2, reference(3).to_text()).reference == reference(3)
    assert Segment(np.zeros(1)).media is None
