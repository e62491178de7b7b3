"""Objectives on single documents: Rust against the Python reference, golden vectors, inverse."""

import random

import numpy as np
import pytest

from mmfast.config import load_config
from mmfast.data import Segment
from mmfast.errors import ConfigError, UsageError
from mmfast.objectives import Cm3, NextToken, reference, restore_document, transform_document
from mmfast.vocab import Vocabulary

VOCABULARY = Vocabulary.build(
    100,
    roles=["bos", "eos", "pad", "break", "eoss", *(f"mask_{i}" for i in range(6))],
    codes=[("image", 64)],
)
EOS, BREAK, EOSS = VOCABULARY["eos"], VOCABULARY["break"], VOCABULARY["eoss"]
IMAGE_BASE = VOCABULARY.range("image").base

OBJECTIVES = [
    NextToken(),
    NextToken(image_noise_prob=0.3),
    Cm3(),
    Cm3(whole_segment_prob=0.0, min_spans=1, sentinel_loss_weight=0.5),
    Cm3(
        span_rate=2.5, whole_segment_prob=0.5, whole_segment_modality="image", image_noise_prob=0.1
    ),
    Cm3(spans="fixed", span_rate=2, whole_segment_modality="text", max_spans=3),
    NextToken(caption_dropout=0.5),
    Cm3(caption_dropout=0.5, span_rate=2.0, image_noise_prob=0.2),
]


def segment(ids, mode: int = 0) -> Segment:
    return Segment(np.asarray(ids, dtype=np.int64), mode)


def random_document(rng: random.Random) -> list[Segment]:
    """Zero to five sequences of text with separators, image codes, or context without loss."""
    document = []
    for _ in range(rng.randrange(6)):
        mode = rng.choice([0, 0, 1, 2, 0x40, 0x41])
        length = rng.choice([0, 1, 2, 5, 12, 20])
        if mode & 0x1F:
            ids = [IMAGE_BASE + rng.randrange(64) for _ in range(length)]
        else:
            ids = [rng.choice([EOS, BREAK, *range(10, 26)]) for _ in range(length)]
        document.append(segment(ids, mode))
    return document


@pytest.mark.parametrize("number", range(len(OBJECTIVES)))
def test_rust_equals_the_reference_id_for_id_and_cm3_can_be_undone(number: int) -> None:
    objective = OBJECTIVES[number]
    rng = random.Random(number)
    for case in range(1_700):  # times six objectives: more than 10^4 documents
        document = random_document(rng)
        ids = np.concatenate([np.empty(0, np.int64), *(s.ids for s in document)])
        where = {
            "seed": rng.getrandbits(64),
            "source": rng.randrange(4096),
            "epoch": rng.getrandbits(32),
            "document": rng.getrandbits(40),
            "max_tokens": None if case % 2 else len(ids) + rng.randrange(12),
        }
        native = transform_document(document, objective, VOCABULARY, **where)
        expected = reference.transform_document(document, objective, VOCABULARY, **where)
        for field in ("ids", "input_ids", "modality_ids", "loss_weights"):
            found, wanted = getattr(native, field), getattr(expected, field)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(
                found, wanted, err_msg=f"{field} of {document} at {where}"
            )
        assert native.num_spans == expected.num_spans
        if objective.caption_dropout == 0:
            assert len(native.ids) == len(ids) + 3 * native.num_spans
            np.testing.assert_array_equal(restore_document(native.ids, VOCABULARY), ids)


def test_reference_philox_gives_the_published_known_answers() -> None:
    """From the Random123 library's `kat_vectors`."""
    ones = 2**32 - 1
    assert reference.philox4x32([0] * 4, [0] * 2) == (
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    )
    assert reference.philox4x32([ones] * 4, [ones] * 2) == (
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    )


def test_a_caption_masked_whole_reads_as_the_captioning_prompt() -> None:
    document = [
        segment([EOS, 10, 11, 12, BREAK]),
        segment([IMAGE_BASE, IMAGE_BASE + 1], 1),
        segment([EOS]),
    ]
    objective = Cm3(whole_segment_prob=1.0, whole_segment_modality="text")
    mask = VOCABULARY["mask_0"]
    result = transform_document(document, objective, VOCABULARY, seed=3)
    image = [IMAGE_BASE, IMAGE_BASE + 1]
    assert result.ids.tolist() == [EOS, mask, BREAK, *image, EOS, mask, 10, 11, 12, EOSS]
    assert result.modality_ids.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert result.loss_weights.tolist() == [1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1]


def test_a_document_without_its_caption_reads_as_the_unconditional_prompt() -> None:
    document = [
        segment([EOS, 10, 11, 12, BREAK]),
        segment([IMAGE_BASE, IMAGE_BASE + 1], 1),
        segment([13, EOS]),
    ]
    plain = [i for s in document for i in s.ids.tolist()]
    dropped = 0
    for number in range(2_000):
        found = transform_document(
            document, NextToken(caption_dropout=0.3), VOCABULARY, seed=3, document=number
        ).ids.tolist()
        assert found in (plain, [EOS, BREAK, IMAGE_BASE, IMAGE_BASE + 1, 13, EOS])
        dropped += found != plain
    assert 0.27 < dropped / 2_000 < 0.33


def test_a_document_is_transformed_anew_in_each_epoch() -> None:
    document = [segment(range(10, 60))]
    results = {
        tuple(transform_document(document, Cm3(), VOCABULARY, seed=1, epoch=e, document=5).ids)
        for e in range(20)
    }
    assert len(results) > 5


def test_bad_settings_are_errors_that_name_the_setting() -> None:
    for objective, text in [
        (Cm3(span_rate=20.0), "span_rate"),
        (Cm3(spans="fixed", span_rate=1.5), "whole"),
        (Cm3(max_spans=7), "max_spans 7"),
        (Cm3(min_spans=-1), "min_spans"),
        (Cm3(whole_segment_prob=1.5), "whole_segment_prob"),
        (Cm3(sentinel_loss_weight=-1.0), "sentinel_loss_weight"),
        (NextToken(image_noise_prob=float("nan")), "image_noise_prob"),
        (NextToken(caption_dropout=1.5), "caption_dropout"),
    ]:
        with pytest.raises(ValueError, match=text):
            objective.native(VOCABULARY)
    with pytest.raises(UsageError, match="mask_0, eoss"):
        Cm3().native(Vocabulary.build(10, roles=["eos"]))
    with pytest.raises(UsageError, match="needs a vocabulary"):
        Cm3().native(None)
    with pytest.raises(ValueError, match="code ranges"):
        NextToken(image_noise_prob=0.1).native(None)


def test_numbers_out_of_range_are_refused() -> None:
    document = [segment([1, 2, 3])]
    for where in [{"source": 4096}, {"epoch": 2**32}, {"document": 2**40}, {"max_tokens": 2}]:
        with pytest.raises(ValueError, match="document"):
            transform_document(document, NextToken(), None, **{"seed": 0, **where})


def test_what_is_not_a_transformed_document_is_not_restored() -> None:
    mask_0, mask_1 = VOCABULARY.mask_ids[:2]
    for ids in [
        [mask_0, 5],
        [mask_0, 5, mask_0, 7],
        [mask_1, 5, mask_0, 6, mask_0, 7, EOSS, mask_1, 8, EOSS],
    ]:
        with pytest.raises(ValueError, match="mask_"):
            restore_document(ids, VOCABULARY)


def test_objectives_are_configuration() -> None:
    config = load_config(
        Cm3, overrides=["spans=fixed", "whole_segment_modality=text", "max_spans=2"]
    )
    assert config == Cm3(spans="fixed", whole_segment_modality="text", max_spans=2)
    with pytest.raises(ConfigError):
        load_config(Cm3, overrides=["spans=gauss"])
