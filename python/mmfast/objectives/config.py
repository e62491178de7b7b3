"""Objectives as configuration: plain dataclasses that a vocabulary turns into native objectives."""

import dataclasses
from typing import Literal

from mmfast import _mmfast
from mmfast.data.segment import IMAGE, TEXT
from mmfast.errors import UsageError
from mmfast.vocab import Vocabulary

SEPARATOR_ROLES = ("bos", "eos", "break")
"""Special tokens that end a segment and are never part of a span."""

CAPTION_END_ROLES = ("break", "boi", "img")
"""Special tokens that end a caption: what follows belongs to the picture."""

MODALITY_NUMBERS = {"text": TEXT, "image": IMAGE}


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Every token predicts the next one of its document.

    Attributes:
        image_noise_prob: chance in [0, 1] that an image id in the input, never in the labels, is
            replaced by a random id of its code range.
        caption_dropout: chance in [0, 1] that a document with a picture loses its caption, the text in front
            of the first picture, so that the model learns to draw without one, as guidance needs
            (classifier-free guidance, arXiv 2207.12598). Special tokens stay, and text behind `boi` or
            `break` is no caption.
    """

    image_noise_prob: float = 0.0
    caption_dropout: float = 0.0

    def native(self, vocabulary: Vocabulary | None) -> _mmfast.Objective:
        """The objective for a vocabulary; only noise and dropout need one."""
        objective = _mmfast.Objective.next_token(
            image_noise_prob=self.image_noise_prob, code_ranges=code_ranges(vocabulary)
        )
        return _with_dropout(objective, self.caption_dropout, vocabulary)


@dataclasses.dataclass(frozen=True)
class Cm3:
    """Causal masking (CM3, arXiv 2201.07520): spans move to the end of their document.

    `a b [c d] e` becomes `a b <mask_0> e <mask_0> c d <eoss>`, so that a left-to-right model learns to
    fill in. A span lies in one segment: a run of ids of one sequence without a separator (`bos`, `eos`,
    `break`). Sequences without loss are never moved. Vocabulary roles: `mask_0 …` and `eoss`.

    A document that fills its row to the last three ids has no room for a span.

    Attributes:
        spans: how the number of spans is drawn: Poisson, or always `span_rate`.
        span_rate: Poisson mean in [0, 16], or the fixed number.
        min_spans: lower clamp of the number. 0 leaves 37 % of documents plain at rate 1 (metaseq's
            rule, with which CM3Leon was trained); 1 is the rule of the CM3 paper.
        max_spans: upper clamp; by default the number of sentinels.
        whole_segment_prob: chance that instead one whole segment is moved. Captioning and the
            unconditional stream of guidance depend on whole captions being masked, which random spans
            do in less than 0.1 % of documents.
        whole_segment_modality: modality of such a segment; any by default. A document without one is
            masked like any other.
        sentinel_loss_weight: weight of sentinels as targets. Their place is random, so the CM3 paper
            gives them 0.
        image_noise_prob: as in `NextToken`.
        caption_dropout: as in `NextToken`, before any span is drawn.
    """

    spans: Literal["poisson", "fixed"] = "poisson"
    span_rate: float = 1.0
    min_spans: int = 0
    max_spans: int | None = None
    whole_segment_prob: float = 0.3
    whole_segment_modality: Literal["text", "image"] | None = None
    sentinel_loss_weight: float = 0.0
    image_noise_prob: float = 0.0
    caption_dropout: float = 0.0

    def native(self, vocabulary: Vocabulary | None) -> _mmfast.Objective:
        """The objective for a vocabulary; `UsageError` if roles are missing, `ValueError` on bad values."""
        sentinels, eoss, separators = cm3_ids(vocabulary)
        modality = self.whole_segment_modality
        if modality is not None and modality not in MODALITY_NUMBERS:
            raise ValueError(
                f"whole_segment_modality is one of {sorted(MODALITY_NUMBERS)} or None, found {modality!r}"
            )
        max_spans = len(sentinels) if self.max_spans is None else self.max_spans
        for name, value in (("min_spans", self.min_spans), ("max_spans", max_spans)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, found {value}")
        objective = _mmfast.Objective.cm3(
            spans=self.spans,
            span_rate=self.span_rate,
            min_spans=self.min_spans,
            max_spans=max_spans,
            whole_segment_prob=self.whole_segment_prob,
            whole_segment_modality=None if modality is None else MODALITY_NUMBERS[modality],
            sentinel_loss_weight=self.sentinel_loss_weight,
            image_noise_prob=self.image_noise_prob,
            code_ranges=code_ranges(vocabulary),
            sentinels=sentinels,
            eoss=eoss,
            separators=separators,
        )
        return _with_dropout(objective, self.caption_dropout, vocabulary)


def _with_dropout(
    objective: _mmfast.Objective, probability: float, vocabulary: Vocabulary | None
) -> _mmfast.Objective:
    if probability == 0:
        return objective
    special, ends = caption_ids(vocabulary)
    return objective.with_caption_dropout(probability=probability, special=special, ends=ends)


def caption_ids(vocabulary: Vocabulary | None) -> tuple[list[int], list[int]]:
    """Ids that stay in a caption that is left out, and those of them that end one."""
    if vocabulary is None:
        raise UsageError(
            "caption_dropout needs a vocabulary: pass vocabulary=, or keep vocabulary.json beside the data"
        )
    ends = [vocabulary[role] for role in CAPTION_END_ROLES if role in vocabulary]
    return sorted(vocabulary.special.values()), ends


def code_ranges(vocabulary: Vocabulary | None) -> list[tuple[int, int]]:
    """First id and end of each code range."""
    return [] if vocabulary is None else [(r.base, r.end) for r in vocabulary.ranges]


def cm3_ids(vocabulary: Vocabulary | None) -> tuple[list[int], int, list[int]]:
    """Sentinels, end of span and separators; `UsageError` if a vocabulary cannot serve CM3."""
    if vocabulary is None:
        raise UsageError(
            "the CM3 objective needs a vocabulary: pass vocabulary=, or keep vocabulary.json beside the data"
        )
    missing = [role for role in ("mask_0", "eoss") if role not in vocabulary]
    if missing:
        raise UsageError(
            f"the CM3 objective needs special tokens {', '.join(missing)}; the vocabulary has "
            f"{', '.join(sorted(vocabulary.special))}"
        )
    separators = [vocabulary[role] for role in SEPARATOR_ROLES if role in vocabulary]
    return list(vocabulary.mask_ids), vocabulary["eoss"], separators
