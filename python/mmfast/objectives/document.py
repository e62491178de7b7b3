"""An objective applied to one document, and CM3 undone.

L is the number of tokens after the transform: three more than the document's for each span.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mmfast.objectives.config import Cm3, NextToken, cm3_ids
from mmfast.vocab import Vocabulary

NO_LIMIT = 2**63


class SegmentLike(Protocol):
    """A run of ids under one mode byte, as `IndexedDataset.document` returns it."""

    @property
    def ids(self) -> npt.ArrayLike:
        """Token ids, one dimension."""

    @property
    def mode(self) -> int:
        """Modality in bits 0-4, "no loss" in bit 0x40."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TransformedDocument:
    """A document in training order.

    Attributes:
        ids: int64 [L], as targets.
        input_ids: int64 [L], as inputs; differs from `ids` only by image noise.
        modality_ids: uint8 [L]; sentinels count as text.
        loss_weights: float32 [L], the weight of each id as a target.
        num_spans: how many spans were moved.
    """

    ids: npt.NDArray[np.int64]
    input_ids: npt.NDArray[np.int64]
    modality_ids: npt.NDArray[np.uint8]
    loss_weights: npt.NDArray[np.float32]
    num_spans: int


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
    """What a loader with this seed makes of a document; equal arguments give equal results.

    Args:
        segments: the document's sequences.
        objective: the training objective.
        vocabulary: names sentinels, separators and code ranges; `NextToken` without noise needs none.
        seed: the loader's seed, 0 to 2^64 - 1.
        source: index of the document's source among the loader's, below 4,096.
        epoch: how often that source was gone through before, below 2^32.
        document: document number in the source, below 2^40.
        max_tokens: the loader's `bin_tokens`: limits the spans to what fits. None for no limit.

    Raises:
        ValueError: a number is out of range, or the document is longer than `max_tokens`.
        UsageError: the vocabulary lacks roles that the objective needs.
    """
    arrays = [np.asarray(segment.ids, dtype=np.int64).reshape(-1) for segment in segments]
    ids, input_ids, modality_ids, loss_weights, num_spans = objective.native(vocabulary).transform(
        np.concatenate([np.empty(0, np.int64), *arrays]),
        [len(array) for array in arrays],
        [segment.mode for segment in segments],
        max_tokens=NO_LIMIT if max_tokens is None else max_tokens,
        seed=seed,
        source=source,
        epoch=epoch,
        document=document,
    )
    return TransformedDocument(
        ids=ids,
        input_ids=input_ids,
        modality_ids=modality_ids,
        loss_weights=loss_weights,
        num_spans=num_spans,
    )


def restore_document(ids: npt.ArrayLike, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """The document that CM3 turned into `ids`: every span back where its sentinel stands.

    Raises:
        ValueError: a sentinel does not occur exactly twice, or a moved span has no end.
    """
    sentinels, eoss, _ = cm3_ids(vocabulary)
    array = np.asarray(ids, dtype=np.int64).reshape(-1)
    parts: list[npt.NDArray[np.int64]] = []
    copied, tail = 0, len(array)
    for number, sentinel in enumerate(sentinels):
        positions = np.flatnonzero(array == sentinel).tolist()
        if not positions:
            break
        if len(positions) != 2:
            raise ValueError(f"sentinel mask_{number} occurs {len(positions)} times, not twice")
        hole, moved = positions
        tail = moved if number == 0 else tail
        ends = np.flatnonzero(array[moved + 1 :] == eoss)
        if not len(ends) or not copied <= hole < tail:
            raise ValueError(f"the span of mask_{number} has no end or stands out of order")
        parts += [array[copied:hole], array[moved + 1 : moved + 1 + int(ends[0])]]
        copied = hole + 1
    return np.concatenate([*parts, array[copied:tail]])
