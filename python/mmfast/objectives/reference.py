"""Objectives in plain Python, slow and clear: what the native ones are tested against, id for id.

Draws come from Philox4x32-10 (Salmon et al., SC 2011) under a key of (seed, purpose) and a counter of
(draw, document, source, source epoch); only integers are compared. Spans follow metaseq's
`cm3_dataset.py` (facebookresearch/metaseq), without its defects: see `mmfast.objectives.Cm3`.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from mmfast.data.segment import IMAGE, MEDIA, MODALITY_BITS, NO_LOSS, TEXT, VIDEO
from mmfast.objectives.config import (
    MODALITY_NUMBERS,
    Cm3,
    NextToken,
    caption_ids,
    cm3_ids,
    code_ranges,
)
from mmfast.objectives.document import NO_LIMIT, SegmentLike, TransformedDocument
from mmfast.vocab import Vocabulary

PURPOSE_SPANS, PURPOSE_IMAGE_NOISE, PURPOSE_CAPTION_DROPOUT = 4, 5, 7
WHOLE_SEGMENT_DRAW, COUNT_DRAW, FIRST_CANDIDATE_DRAW = 0, 1, 2
CANDIDATES_PER_SPAN = 256
IDS_PER_SPAN = 3
LOW_32 = 2**32 - 1

Span = tuple[int, int]


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """One block of Philox4x32-10: four 32-bit words for a counter of four and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & LOW_32,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & LOW_32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & LOW_32, (k1 + 0xBB67AE85) & LOW_32
    return c0, c1, c2, c3


class Draws:
    """Numbered pairs of uniform 64-bit integers that belong to one document and purpose."""

    def __init__(self, *, seed: int, purpose: int, source: int, epoch: int, document: int) -> None:
        self.key = philox4x32((seed & LOW_32, seed >> 32, purpose, 0), (0, 0))[:2]
        self.counter = (document & LOW_32, (document >> 32) | (source << 8), epoch)

    def pair(self, draw: int) -> tuple[int, int]:
        """The two uniform numbers of a draw."""
        w0, w1, w2, w3 = philox4x32((draw, *self.counter), self.key)
        return w0 | (w1 << 32), w2 | (w3 << 32)


def below(limit: int, uniform: int) -> int:
    """A uniform integer below `limit` from a uniform 64-bit one."""
    return (uniform * limit) >> 64


def happens(probability: float, uniform: int) -> bool:
    """An event of a probability in [0, 1]; the product with 2^64 is exact."""
    return uniform < int(probability * 2**64)


def poisson(rate: float, uniform: int) -> int:
    """The Poisson number for a uniform 64-bit integer, from weights `rate^k / k!` in units of 2^-36."""
    rate_fixed = int(rate * 2**32)
    weights = [2**36]
    while weight := ((weights[-1] * rate_fixed) >> 32) // len(weights):
        weights.append(weight)
    total = sum(weights)
    return bisect.bisect_right(
        [(s << 64) // total for s in itertools.accumulate(weights)][:-1], uniform
    )


def transform_document(
    segments: Sequence[SegmentLike],
    objective: NextToken | Cm3,
    vocabulary: Vocabulary | None,
    *,
    seed: int,
    source: int = 0,
    epoch: int = 0,
    document: int = 0,
    max_tokens: int | None = None,
) -> TransformedDocument:
    """As `mmfast.objectives.transform_document`, for arguments in range."""

    def draws(purpose: int) -> Draws:
        return Draws(seed=seed, purpose=purpose, source=source, epoch=epoch, document=document)

    runs = [[int(i) for i in np.asarray(segment.ids).reshape(-1)] for segment in segments]
    uniform = draws(PURPOSE_CAPTION_DROPOUT).pair(0)[0]
    if happens(objective.caption_dropout, uniform):
        runs = without_caption(runs, [s.mode for s in segments], vocabulary)
    ids = [token for run in runs for token in run]
    lengths = [len(run) for run in runs]
    modes = [s.mode for s, length in zip(segments, lengths, strict=True) for _ in range(length)]
    inputs = noisy_inputs(ids, modes, objective, vocabulary, draws(PURPOSE_IMAGE_NOISE))
    tokens = [
        (token, input_id, mode & MODALITY_BITS, 0.0 if mode & NO_LOSS else 1.0)
        for token, input_id, mode in zip(ids, inputs, modes, strict=True)
    ]
    spans: list[Span] = []
    if isinstance(objective, Cm3):
        room = (NO_LIMIT if max_tokens is None else max_tokens) - len(ids)
        sequences = list(zip(lengths, [segment.mode for segment in segments], strict=True))
        spans = draw_spans(objective, vocabulary, draws(PURPOSE_SPANS), sequences, ids, room)
        sentinels, eoss, _ = cm3_ids(vocabulary)
        weight = objective.sentinel_loss_weight
        marks = [(sentinel, sentinel, TEXT, weight) for sentinel in sentinels]
        head, tail, copied = [], [], 0
        for (start, end), mark in zip(spans, marks, strict=False):
            head += [*tokens[copied:start], mark]
            tail += [mark, *tokens[start:end], (eoss, eoss, TEXT, 1.0)]
            copied = end
        tokens = head + tokens[copied:] + tail
    columns = list(zip(*tokens, strict=True)) or [(), (), (), ()]
    return TransformedDocument(
        ids=np.array(columns[0], dtype=np.int64),
        input_ids=np.array(columns[1], dtype=np.int64),
        modality_ids=np.array(columns[2], dtype=np.uint8),
        loss_weights=np.array(columns[3], dtype=np.float32),
        num_spans=len(spans),
    )


def without_caption(
    runs: Sequence[list[int]], modes: Sequence[int], vocabulary: Vocabulary | None
) -> list[list[int]]:
    """A document's sequences without the text before its first picture; special ids stay."""
    is_picture = [mode & MODALITY_BITS in (IMAGE, VIDEO) for mode in modes]
    if not any(is_picture):
        return list(runs)
    special, ends = caption_ids(vocabulary)
    result, in_caption = [], True
    for run, mode, picture in zip(runs, modes, is_picture, strict=True):
        in_caption = in_caption and not picture
        kept = []
        for token in run:
            is_text = mode & MODALITY_BITS == TEXT and not mode & MEDIA
            if is_text and token in ends:
                in_caption = False
            if not in_caption or not is_text or token in special:
                kept.append(token)
        result.append(kept)
    return result


def noisy_inputs(
    ids: Sequence[int],
    modes: Sequence[int],
    objective: NextToken | Cm3,
    vocabulary: Vocabulary | None,
    draws: Draws,
) -> Iterator[int]:
    """Input ids: image ids are replaced within their code range with the objective's chance."""
    ranges = code_ranges(vocabulary) if objective.image_noise_prob > 0 else []
    for position, (token, mode) in enumerate(zip(ids, modes, strict=True)):
        base, end = next((r for r in ranges if r[0] <= token < r[1]), (0, 0))
        if mode & MODALITY_BITS == IMAGE and base < end:
            replace, code = draws.pair(position)
            if happens(objective.image_noise_prob, replace):
                yield base + below(end - base, code)
                continue
        yield token


def draw_spans(
    objective: Cm3,
    vocabulary: Vocabulary | None,
    draws: Draws,
    sequences: Sequence[tuple[int, int]],
    ids: Sequence[int],
    room: int,
) -> list[Span]:
    """Spans of a document, sorted and disjoint, that add at most `room` ids."""
    sentinels, _, separators = cm3_ids(vocabulary)
    max_spans = len(sentinels) if objective.max_spans is None else objective.max_spans
    modality = objective.whole_segment_modality
    wanted = None if modality is None else MODALITY_NUMBERS[modality]

    uniform = draws.pair(COUNT_DRAW)[0]
    count = (
        poisson(objective.span_rate, uniform)
        if objective.spans == "poisson"
        else int(objective.span_rate)
    )
    count = min(max(count, objective.min_spans), max_spans)

    # What planning knows: lengths and modes.
    movable = [(length, mode) for length, mode in sequences if not mode & NO_LOSS and length]
    whole_uniform, which = draws.pair(WHOLE_SEGMENT_DRAW)
    takes_whole = happens(objective.whole_segment_prob, whole_uniform)
    may_take_whole = takes_whole and any(
        wanted in (None, mode & MODALITY_BITS) for _, mode in movable
    )
    most = min(max(count, int(may_take_whole)), sum(length for length, _ in movable))
    most = min(most, room // IDS_PER_SPAN)
    if most == 0:
        return []

    segments = segments_of(sequences, ids, separators)
    eligible = [span for span, mode in segments if wanted in (None, mode & MODALITY_BITS)]
    if takes_whole and eligible:
        return [eligible[below(len(eligible), which)]]
    return random_spans(draws, min(count, most), len(ids), [span for span, _ in segments])


def segments_of(
    sequences: Sequence[tuple[int, int]], ids: Sequence[int], separators: Sequence[int]
) -> list[tuple[Span, int]]:
    """Maximal runs without separators inside sequences with loss, each with its mode."""
    found: list[tuple[Span, int]] = []
    offset = 0
    for length, mode in sequences:
        start = offset
        for position in range(offset, offset + length + 1):
            if position == offset + length or ids[position] in separators:
                if start < position and not mode & NO_LOSS:
                    found.append(((start, position), mode))
                start = position + 1
        offset += length
    return found


def random_spans(
    draws: Draws, num_spans: int, num_ids: int, segments: Sequence[Span]
) -> list[Span]:
    """Disjoint candidates, clipped to the segment with which each overlaps most."""
    accepted: list[Span] = []
    clipped: list[Span] = []
    if not segments:
        return []
    for attempt in range(num_spans * CANDIDATES_PER_SPAN):
        if len(accepted) == num_spans:
            break
        low, high = sorted(draws.pair(FIRST_CANDIDATE_DRAW + attempt))
        candidate = (below(num_ids, low), (high * num_ids + 2**63) >> 64)
        if any(overlap(candidate, other) is not None for other in accepted):
            continue
        overlaps = [o for s in segments if (o := overlap(candidate, s)) is not None]
        if overlaps:
            accepted.append(candidate)
            clipped.append(max(overlaps, key=lambda span: span[1] - span[0]))
    return sorted(clipped)


def overlap(a: Span, b: Span) -> Span | None:
    """What two spans share; None if nothing."""
    start, end = max(a[0], b[0]), min(a[1], b[1])
    return (start, end) if start < end else None
