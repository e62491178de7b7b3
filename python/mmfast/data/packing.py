"""Packing a whole corpus: which documents share a row, from their lengths alone.

Best-fit-decreasing over all documents, or groups of them, at once, in time linear in their number: "Fewer Truncations
Improve Language Modeling" (arXiv 2404.10830). The loader packs windows of its stream by the same rule;
this is for planning ahead and for data that is packed once.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from mmfast._mmfast import pack_lengths
from mmfast.data.dataset import IndexedDataset
from mmfast.data.segment import IMAGE, MODALITY_BITS, VIDEO

Overlong = Literal["error", "truncate", "split", "drop"]
Packing = Literal["best_fit", "concat", "none"]
MAX_LENGTH = 2**32 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Bins:
    """Documents, or pieces of them, by bin. `N` pieces lie in `B` bins.

    Attributes:
        offsets: int64 `[B + 1]`; bin b holds pieces `offsets[b]..offsets[b + 1]`, the longest, or the longest
            group, first.
        documents: int64 `[N]`, the document that each piece is of.
        capacity: ids that a bin can hold.
        num_tokens: ids in all bins.
        num_overlong: documents that were longer than a bin.
        num_overlong_groups: groups that were longer than a bin.
    """

    offsets: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    capacity: int
    num_tokens: int
    num_overlong: int
    num_overlong_groups: int
    _pieces: npt.NDArray[np.int64] = dataclasses.field(repr=False)
    _piece_lengths: npt.NDArray[np.uint32] = dataclasses.field(repr=False)
    _piece_starts: npt.NDArray[np.int64] | None = dataclasses.field(repr=False)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where in its document each piece begins, int64 `[N]`; 0 unless documents were split."""
        if self._piece_starts is None:
            return np.zeros(len(self._pieces), np.int64)
        return self._piece_starts[self._pieces]

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Ids of each piece, int64 `[N]`."""
        return self._piece_lengths[self._pieces].astype(np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        """Documents of a bin."""
        if not 0 <= index < len(self):
            raise IndexError(f"bin index {index} is out of range for {len(self)}")
        return self.documents[self.offsets[index] : self.offsets[index + 1]]

    @property
    def fill(self) -> float:
        """Part of the bins' room that holds ids, 0..1; 1 without bins."""
        room = len(self) * self.capacity
        return self.num_tokens / room if room else 1.0


def pack(
    lengths: npt.ArrayLike | Sequence[int],
    capacity: int,
    *,
    overlong: Overlong = "error",
    packing: Packing = "best_fit",
    groups: npt.ArrayLike | int | None = None,
) -> Bins:
    """Packs documents of the given lengths into bins of `capacity` ids.

    The result depends on the arguments alone. Equal lengths keep their order.

    Args:
        lengths: ids of each document, `[D]`, 0..2^32 - 1.
        capacity: ids that a bin can hold, at least 1.
        overlong: what happens to a longer document: `error` names the first, `truncate` keeps its
            first `capacity` ids, `split` makes pieces of at most `capacity`, `drop` leaves it out.
            Lengths say nothing of images inside; cut only where a cut anywhere is fine.
        packing: `best_fit` fills as few bins as best fit finds; `concat` lays documents one after the
            other and cuts where a bin is full, so that none is over-long; `none` gives each document, or
            group, a bin of its own.
        groups: documents that share a bin, as runs of consecutive ones: so many each, or the first
            document of each group followed by the number of documents, `[G + 1]`. They keep their order
            inside. Of a group that no bin holds, `truncate` keeps the documents in front that fit, `split`
            parts it between documents, `drop` leaves all of it out.

    Raises:
        ValueError: an over-long document or group with `overlong="error"`, or an argument out of range.

    Example:
        >>> bins = pack([3, 5, 7, 4, 5, 6], 10)
        >>> [bins[b].tolist() for b in range(len(bins))], bins.fill
        ([[2, 0], [5, 3], [1, 4]], 1.0)
        >>> bins = pack([3, 5, 7, 4, 5, 1], 12, groups=2)
        >>> [bins[b].tolist() for b in range(len(bins))]
        [[2, 3], [0, 1], [4, 5]]
    """
    if overlong not in get_args(Overlong):
        raise ValueError(f"overlong is one of {', '.join(get_args(Overlong))}; found {overlong!r}")
    if packing not in get_args(Packing):
        raise ValueError(f"packing is one of {', '.join(get_args(Packing))}; found {packing!r}")
    if not 0 < capacity <= MAX_LENGTH:
        raise ValueError(f"capacity must be between 1 and 2^32 - 1, found {capacity}")
    whole = np.asarray(lengths)
    if whole.ndim != 1 or (whole.size and whole.dtype.kind not in "iu"):
        raise ValueError(
            f"lengths must be whole numbers in one dimension, found {whole.dtype} {whole.shape}"
        )
    if whole.size and not (whole.min() >= 0 and whole.max() <= MAX_LENGTH):
        raise ValueError("lengths must be between 0 and 2^32 - 1")
    if packing == "concat":
        if groups is not None:
            raise ValueError("packing concat would part groups; choose best_fit or none")
        return _concatenated(whole.astype(np.int64), capacity)
    boundaries = None if groups is None else group_boundaries(groups, len(whole))
    pieces = _Pieces.of(whole, capacity, overlong, boundaries)
    if boundaries is not None:
        pieces = pieces.grouped(capacity, overlong, boundaries)
    if packing == "none":
        blocks = np.arange(pieces.num_blocks, dtype=np.int64)
        offsets = np.arange(len(blocks) + 1, dtype=np.int64)
    else:
        raw_offsets, raw_blocks = pack_lengths(pieces.block_lengths(), capacity)
        offsets, blocks = raw_offsets.astype(np.int64), raw_blocks.astype(np.int64)
    if pieces.blocks is not None:
        first = np.concatenate([[0], np.cumsum(np.diff(pieces.blocks)[blocks])])
        blocks = _ranges(pieces.blocks[blocks], pieces.blocks[blocks + 1])
        offsets = first[offsets]
    documents = blocks if pieces.documents is None else pieces.documents[blocks]
    return Bins(
        offsets=offsets,
        documents=documents,
        capacity=capacity,
        num_tokens=int(pieces.lengths.sum(dtype=np.int64)),
        num_overlong=pieces.num_overlong,
        num_overlong_groups=pieces.num_overlong_groups,
        _pieces=blocks,
        _piece_lengths=pieces.lengths,
        _piece_starts=pieces.starts,
    )


def group_boundaries(groups: npt.ArrayLike | int, num_documents: int) -> npt.NDArray[np.int64]:
    """First document of each group, then the number of documents: int64 `[G + 1]`.

    Raises:
        ValueError: the groups are not those of so many documents.
    """
    if isinstance(groups, int):
        if groups < 1:
            raise ValueError(f"a group has at least 1 document, found {groups}")
        return np.append(np.arange(0, num_documents, groups), num_documents).astype(np.int64)
    boundaries = np.asarray(groups)
    if boundaries.ndim != 1 or boundaries.dtype.kind not in "iu":
        raise ValueError(
            "groups is a number of documents, or the first document of each group and the number of all "
            f"in one dimension; found {boundaries.dtype} {boundaries.shape}"
        )
    boundaries = boundaries.astype(np.int64)
    if not len(boundaries) or boundaries[0] != 0 or boundaries[-1] != num_documents:
        raise ValueError(
            f"the boundaries of groups begin with 0 and end with the number of documents, {num_documents}"
        )
    if (np.diff(boundaries) <= 0).any():
        first = int(np.argmax(np.diff(boundaries) <= 0))
        raise ValueError(f"group {first} has no documents: boundaries must rise")
    return boundaries


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pieces:
    """Documents as they go into bins, and which of them stay together.

    Attributes:
        lengths: ids of each piece, uint32 `[N]`.
        documents: the document of each; None if piece `i` is of document `i`.
        starts: where each begins in its document; None if all do at 0.
        blocks: first piece of each block that shares a bin, then N; None if each is a block.
        num_overlong: documents longer than a bin.
        num_overlong_groups: groups longer than a bin.
    """

    lengths: npt.NDArray[np.uint32]
    documents: npt.NDArray[np.int64] | None = None
    starts: npt.NDArray[np.int64] | None = None
    blocks: npt.NDArray[np.int64] | None = None
    num_overlong: int = 0
    num_overlong_groups: int = 0

    @classmethod
    def of(
        cls,
        whole: npt.NDArray[Any],
        capacity: int,
        overlong: Overlong,
        boundaries: npt.NDArray[np.int64] | None,
    ) -> "_Pieces":
        """Documents of these lengths, by the rule for over-long ones."""
        is_overlong = whole > capacity
        num_overlong = int(np.count_nonzero(is_overlong))
        if num_overlong and overlong == "error":
            first = int(np.argmax(is_overlong))
            raise ValueError(
                f"{num_overlong:,} documents are longer than {capacity}, first document {first} with "
                f"{whole[first]} ids; choose overlong='truncate', 'split' or 'drop', or larger bins"
            )
        documents: npt.NDArray[np.int64] | None = None
        starts: npt.NDArray[np.int64] | None = None
        pieces = whole
        if num_overlong and overlong == "truncate":
            pieces = np.minimum(whole, capacity)
        elif num_overlong and overlong == "drop":
            is_dropped = is_overlong
            if boundaries is not None:  # what belongs together is left out together
                has_overlong = np.logical_or.reduceat(is_overlong, boundaries[:-1])
                is_dropped = np.repeat(has_overlong, np.diff(boundaries))
            documents = np.flatnonzero(~is_dropped).astype(np.int64)
            pieces = whole[documents]
        elif num_overlong:
            counts = np.maximum(-(-whole.astype(np.int64) // capacity), 1)
            documents = np.repeat(np.arange(len(whole), dtype=np.int64), counts)
            before = np.repeat(np.cumsum(counts) - counts, counts)
            starts = (np.arange(len(documents), dtype=np.int64) - before) * capacity
            pieces = np.minimum(whole[documents].astype(np.int64) - starts, capacity)
        return cls(
            lengths=np.array(
                pieces, dtype=np.uint32, order="C"
            ),  # a copy: they are looked up later
            documents=documents,
            starts=starts,
            num_overlong=num_overlong,
        )

    def grouped(
        self, capacity: int, overlong: Overlong, boundaries: npt.NDArray[np.int64]
    ) -> "_Pieces":
        """The same with the pieces of a group as a block, by the rule for over-long groups."""
        documents = np.arange(len(self.lengths)) if self.documents is None else self.documents
        bounds = np.unique(np.searchsorted(documents, boundaries))
        ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        is_overlong = np.diff(ends[bounds]) > capacity
        if not is_overlong.any():
            return dataclasses.replace(self, blocks=bounds)
        if overlong == "error":
            first = int(np.argmax(is_overlong))
            group = int(np.searchsorted(boundaries, documents[bounds[first]], side="right")) - 1
            raise ValueError(
                f"{int(is_overlong.sum()):,} groups are longer than {capacity}, first group {group} with "
                f"{int(np.diff(ends[bounds])[first])} ids; choose overlong='truncate', 'split' or 'drop', "
                "or larger bins"
            )
        kept = np.ones(len(self.lengths), bool)
        inner: list[int] = []
        for group in np.flatnonzero(is_overlong).tolist():
            start, stop = int(bounds[group]), int(bounds[group + 1])
            if overlong == "drop":
                kept[start:stop] = False
                continue
            while (
                end := int(np.searchsorted(ends, ends[start] + capacity, side="right")) - 1
            ) < stop:
                if overlong == "truncate":
                    kept[end:stop] = False
                    break
                inner.append(end)
                start = end
        bounds = np.unique(np.concatenate([bounds, np.array(inner, np.int64)]))
        position = np.concatenate([[0], np.cumsum(kept)])
        return dataclasses.replace(
            self,
            lengths=self.lengths[kept],
            documents=documents[kept].astype(np.int64),
            starts=None if self.starts is None else self.starts[kept],
            blocks=np.unique(position[bounds]).astype(np.int64),
            num_overlong_groups=int(is_overlong.sum()),
        )

    @property
    def num_blocks(self) -> int:
        return len(self.lengths) if self.blocks is None else len(self.blocks) - 1

    def block_lengths(self) -> npt.NDArray[np.uint32]:
        if self.blocks is None:
            return self.lengths
        ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        return np.diff(ends[self.blocks]).astype(np.uint32)


def _ranges(starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers of many ranges, one range after the other."""
    counts = stops - starts
    before = np.cumsum(counts) - counts
    numbers: npt.NDArray[np.int64] = np.repeat(starts - before, counts)
    return numbers + np.arange(len(numbers))


def _concatenated(whole: npt.NDArray[np.int64], capacity: int) -> Bins:
    """Documents one after the other, cut where a bin is full."""
    ends = np.cumsum(whole)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(np.append(ends, 0), np.arange(0, total, capacity))
    starts, lengths = cuts[:-1], np.diff(cuts)
    documents = np.searchsorted(ends, starts, side="right").astype(np.int64)
    num_bins = -(-total // capacity)
    return Bins(
        offsets=np.searchsorted(starts, np.arange(num_bins + 1) * capacity).astype(np.int64),
        documents=documents,
        capacity=capacity,
        num_tokens=total,
        num_overlong=0,
        num_overlong_groups=0,
        _pieces=np.arange(len(lengths), dtype=np.int64),
        _piece_lengths=lengths.astype(np.uint32),
        _piece_starts=starts - (ends - whole)[documents],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingFigures:
    """What packing makes of a dataset.

    Attributes:
        num_documents: documents of the dataset, those that were dropped included.
        num_bins: bins that are needed.
        min_bins: bins that no packing can do without: the kept ids over the capacity, rounded up.
        fill: part of the bins' room that holds ids, 0..1.
        documents_per_bin: documents, or pieces of them, in a bin on average.
        num_overlong: documents longer than a bin.
        num_lost_tokens: ids that were cut off or left out.
    """

    num_documents: int
    num_bins: int
    min_bins: int
    fill: float
    documents_per_bin: float
    num_overlong: int
    num_lost_tokens: int


def packing_figures(
    dataset: IndexedDataset,
    capacity: int,
    *,
    overlong: Overlong = "truncate",
    packing: Packing = "best_fit",
) -> PackingFigures:
    """Packs the documents of a dataset by their lengths and counts; reads the index only.

    Raises:
        ValueError: as `pack` does; also when images or videos would be cut.
    """
    ends = np.concatenate([[0], np.cumsum(dataset.sequence_lengths, dtype=np.int64)])
    lengths = np.diff(ends[dataset.document_indices])
    modes = dataset.sequence_modes
    if packing == "concat" and modes is not None and _is_atomic(modes).any():
        raise ValueError(
            "packing='concat' cuts wherever a bin is full, and there are images or videos, which the loader "
            "does not cut; choose 'best_fit' or 'none'"
        )
    if packing != "concat" and overlong in ("truncate", "split") and modes is not None:
        _refuse_cut_images(dataset.document_indices, modes, lengths, capacity, overlong)
    bins = pack(lengths, capacity, overlong=overlong, packing=packing)
    return PackingFigures(
        num_documents=dataset.num_documents,
        num_bins=len(bins),
        min_bins=-(-bins.num_tokens // capacity),
        fill=bins.fill,
        documents_per_bin=len(bins.documents) / max(len(bins), 1),
        num_overlong=bins.num_overlong,
        num_lost_tokens=dataset.num_tokens - bins.num_tokens,
    )


def _refuse_cut_images(
    boundaries: npt.NDArray[np.int64],
    modes: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.int64],
    capacity: int,
    overlong: Overlong,
) -> None:
    """Where over-long documents hold images, lengths alone do not say what a cut would keep."""
    for document in np.flatnonzero(lengths > capacity).tolist():
        if _is_atomic(modes[boundaries[document] : boundaries[document + 1]]).any():
            raise ValueError(
                f"document {document} has {lengths[document]:,} ids and an image or video, which "
                f"overlong={overlong!r} could cut; choose 'drop', or a capacity that holds it"
            )


def _is_atomic(modes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return np.isin(modes & MODALITY_BITS, (IMAGE, VIDEO))
