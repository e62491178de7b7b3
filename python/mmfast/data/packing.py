"""Packing a whole corpus: which documents share a row, from their lengths alone.

Best-fit-decreasing over all documents at once, in time linear in their number: "Fewer Truncations
Improve Language Modeling" (arXiv 2404.10830). The loader packs windows of its stream by the same rule;
this is for planning ahead and for data that is packed once.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from mmfast._mmfast import pack_lengths
from mmfast.data.dataset import IndexedDataset
from mmfast.data.segment import IMAGE, MODALITY_BITS, VIDEO

Overlong = Literal["error", "truncate", "split", "drop"]
MAX_LENGTH = 2**32 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Bins:
    """Documents, or pieces of them, by bin. `N` pieces lie in `B` bins.

    Attributes:
        offsets: int64 `[B + 1]`; bin b holds pieces `offsets[b]..offsets[b + 1]`, longest first.
        documents: int64 `[N]`, the document that each piece is of.
        capacity: ids that a bin can hold.
        num_tokens: ids in all bins.
        num_overlong: documents that were longer than a bin.
    """

    offsets: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    capacity: int
    num_tokens: int
    num_overlong: int
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
        """Documents of a bin, longest piece first."""
        if not 0 <= index < len(self):
            raise IndexError(f"bin index {index} is out of range for {len(self)}")
        return self.documents[self.offsets[index] : self.offsets[index + 1]]

    @property
    def fill(self) -> float:
        """Part of the bins' room that holds ids, 0..1; 1 without bins."""
        room = len(self) * self.capacity
        return self.num_tokens / room if room else 1.0


def pack(
    lengths: npt.ArrayLike | Sequence[int], capacity: int, *, overlong: Overlong = "error"
) -> Bins:
    """Packs documents of the given lengths into as few bins of `capacity` ids as best fit finds.

    The result depends on the arguments alone. Equal lengths keep their order.

    Args:
        lengths: ids of each document, `[D]`, 0..2^32 - 1.
        capacity: ids that a bin can hold, at least 1.
        overlong: what happens to a longer document: `error` names the first, `truncate` keeps its
            first `capacity` ids, `split` makes pieces of at most `capacity`, `drop` leaves it out.
            Lengths say nothing of images inside; cut only where a cut anywhere is fine.

    Raises:
        ValueError: an over-long document with `overlong="error"`, or an argument out of range.

    Example:
        >>> bins = pack([3, 5, 7, 4, 5, 6], 10)
        >>> [bins[b].tolist() for b in range(len(bins))], bins.fill
        ([[2, 0], [5, 3], [1, 4]], 1.0)
    """
    if overlong not in get_args(Overlong):
        raise ValueError(f"overlong is one of {', '.join(get_args(Overlong))}; found {overlong!r}")
    if not 0 < capacity <= MAX_LENGTH:
        raise ValueError(f"capacity must be between 1 and 2^32 - 1, found {capacity}")
    whole = np.asarray(lengths)
    if whole.ndim != 1 or (whole.size and whole.dtype.kind not in "iu"):
        raise ValueError(
            f"lengths must be whole numbers in one dimension, found {whole.dtype} {whole.shape}"
        )
    if whole.size and not (whole.min() >= 0 and whole.max() <= MAX_LENGTH):
        raise ValueError("lengths must be between 0 and 2^32 - 1")
    is_overlong = whole > capacity
    num_overlong = int(np.count_nonzero(is_overlong))
    if num_overlong and overlong == "error":
        first = int(np.argmax(is_overlong))
        raise ValueError(
            f"{num_overlong:,} documents are longer than {capacity}, first document {first} with "
            f"{whole[first]} ids; choose overlong='truncate', 'split' or 'drop', or larger bins"
        )
    piece_documents: npt.NDArray[np.int64] | None = None
    piece_starts: npt.NDArray[np.int64] | None = None
    pieces = whole
    if num_overlong and overlong == "truncate":
        pieces = np.minimum(whole, capacity)
    elif num_overlong and overlong == "drop":
        piece_documents = np.flatnonzero(~is_overlong).astype(np.int64)
        pieces = whole[piece_documents]
    elif num_overlong:
        counts = np.maximum(-(-whole.astype(np.int64) // capacity), 1)
        piece_documents = np.repeat(np.arange(len(whole), dtype=np.int64), counts)
        before = np.repeat(np.cumsum(counts) - counts, counts)
        piece_starts = (np.arange(len(piece_documents), dtype=np.int64) - before) * capacity
        pieces = np.minimum(whole[piece_documents].astype(np.int64) - piece_starts, capacity)
    pieces = np.array(pieces, dtype=np.uint32, order="C")  # a copy: lengths are looked up later
    raw_offsets, raw_items = pack_lengths(pieces, capacity)
    items = raw_items.astype(np.int64)
    return Bins(
        offsets=raw_offsets.astype(np.int64),
        documents=items if piece_documents is None else piece_documents[items],
        capacity=capacity,
        num_tokens=int(pieces.sum(dtype=np.int64)),
        num_overlong=num_overlong,
        _pieces=items,
        _piece_lengths=pieces,
        _piece_starts=piece_starts,
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
    dataset: IndexedDataset, capacity: int, *, overlong: Overlong = "truncate"
) -> PackingFigures:
    """Packs the documents of a dataset by their lengths and counts; reads the index only.

    Raises:
        ValueError: as `pack` does; also when images or videos would be cut.
    """
    ends = np.concatenate([[0], np.cumsum(dataset.sequence_lengths, dtype=np.int64)])
    lengths = np.diff(ends[dataset.document_indices])
    modes = dataset.sequence_modes
    if overlong in ("truncate", "split") and modes is not None:
        _refuse_cut_images(dataset.document_indices, modes, lengths, capacity, overlong)
    bins = pack(lengths, capacity, overlong=overlong)
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
        inside = modes[boundaries[document] : boundaries[document + 1]] & MODALITY_BITS
        if np.isin(inside, (IMAGE, VIDEO)).any():
            raise ValueError(
                f"document {document} has {lengths[document]:,} ids and an image or video, which "
                f"overlong={overlong!r} could cut; choose 'drop', or a capacity that holds it"
            )
