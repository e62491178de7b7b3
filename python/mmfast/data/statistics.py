"""What a dataset is made of: shares of the modalities and how long documents are. Reads the index only."""

import dataclasses

import numpy as np

from mmfast.data.dataset import IndexedDataset
from mmfast.data.segment import MODALITY_BITS, modality_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """One modality's part of a dataset."""

    modality: str
    num_sequences: int
    num_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthBin:
    """Documents of `low` to `high` ids, both included."""

    low: int
    high: int
    num_documents: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Figures of one dataset.

    Attributes:
        shares: modalities that occur, by number.
        quantiles: ids per document at `min p5 median p95 max`; empty without documents.
        mean: ids per document, 0 without documents.
        histogram: documents by length, in bins `0, 1, 2-3, 4-7, …`, from the first filled to the last.
    """

    num_documents: int
    num_tokens: int
    shares: list[Share]
    quantiles: dict[str, int]
    mean: float
    histogram: list[LengthBin]


def dataset_statistics(dataset: IndexedDataset) -> Statistics:
    """Counts a dataset by modality and document length."""
    lengths = dataset.sequence_lengths.astype(np.int64)
    modes = dataset.sequence_modes
    modalities = np.zeros(len(lengths), np.int64) if modes is None else modes & MODALITY_BITS
    sequences = np.bincount(modalities, minlength=1)
    tokens = np.bincount(modalities, weights=lengths, minlength=1)
    shares = [
        Share(modality=modality_name(i), num_sequences=int(sequences[i]), num_tokens=int(tokens[i]))
        for i in np.flatnonzero(sequences).tolist()
    ]
    ends = np.concatenate([[0], np.cumsum(lengths)])[dataset.document_indices]
    per_document = np.diff(ends)
    return Statistics(
        num_documents=dataset.num_documents,
        num_tokens=dataset.num_tokens,
        shares=shares,
        quantiles=_quantiles(per_document),
        mean=float(per_document.mean()) if per_document.size else 0.0,
        histogram=_histogram(per_document),
    )


def _quantiles(lengths: np.ndarray) -> dict[str, int]:
    if not lengths.size:
        return {}
    at = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
    found = np.quantile(lengths, list(at.values()), method="lower").astype(np.int64).tolist()
    return dict(zip(at, found, strict=True))


def _histogram(lengths: np.ndarray) -> list[LengthBin]:
    # The number of binary digits is the bin: 0 -> 0, 1 -> 1, 2..3 -> 2, 4..7 -> 3.
    _, digits = np.frexp(lengths.astype(np.float64))
    counts = np.bincount(digits, minlength=1)
    filled = np.flatnonzero(counts)
    if not filled.size:
        return []
    return [
        LengthBin(low=(1 << i) >> 1, high=(1 << i) - 1, num_documents=int(counts[i]))
        for i in range(int(filled[0]), int(filled[-1]) + 1)
    ]
