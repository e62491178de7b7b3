"""megatron-core's own sample order, for runs that must see exactly what a Megatron run saw.

The three indices of `GPTDataset` (megatron-core 0.16) for a given seed, number for number: which
sequence stands where after shuffling, where each sample begins, and in which order samples are read.
Unlike the loader's order they are arrays in memory, and samples cut through documents; so data with
images, which must stay whole, is refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfast._mmfast import megatron_indices, megatron_samples
from mmfast.data.dataset import IndexedDataset

MAX_SEED = 2**32 - 1


class MegatronSample(NamedTuple):
    """One sample as `GPTDataset` gives it.

    Attributes:
        tokens: int64 `[L]`, `[B, L]` in a batch, as are the others; 0 where a short sample is padded.
        labels: int64 `[L]`, `labels[t]` follows `tokens[t]`; 0 where there is none.
        loss_mask: float32 `[L]`, 0 where there is no label and 1 elsewhere.
    """

    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.float32]


class MegatronOrder:
    """The samples of a `GPTDataset` over one indexed dataset; `order[i]` is sample `i` in its order.

    What Megatron calls a document here is a sequence of the indexed dataset.

    Args:
        dataset: a dataset or its prefix; without images and videos.
        sequence_length: ids that the model sees of a sample, at least 1.
        num_samples: samples wanted; epochs are added until there are at least as many, and
            `len(order)` counts all that they hold. None for one epoch.
        seed: Megatron's `random_seed`, 0..2^32 - 1.
        sequences: the half-open range of sequences that a split exposes; all by default.
        extra_token: Megatron's `add_extra_token_to_sequence`: samples overlap by one id, so that the
            last position has a label as well.
        drop_last: leave out ids that do not fill a last sample. Megatron can keep them, padded, in its
            validation split.

    Raises:
        ValueError: a segment that must stay whole, no ids, a range past the end, or more than 32-bit
            indices can count.

    Example:
        >>> from mmfast.data import IndexedDatasetBuilder
        >>> with IndexedDatasetBuilder("/tmp/megatron-order") as builder:
        ...     builder.add_documents([5, 6, 7, 8, 9], [3, 2])
        >>> order = MegatronOrder("/tmp/megatron-order", sequence_length=2, seed=1234)
        >>> order.document_index.tolist(), order.sample_index.tolist()
        ([0, 1], [[0, 0], [0, 2], [1, 1]])
        >>> order[0].tokens.tolist(), order[0].labels.tolist()
        ([5, 6], [6, 7])
    """

    def __init__(
        self,
        dataset: IndexedDataset | str | Path,
        *,
        sequence_length: int,
        num_samples: int | None = None,
        seed: int = 1234,
        sequences: tuple[int, int] | None = None,
        extra_token: bool = True,
        drop_last: bool = True,
    ) -> None:
        self.dataset = dataset if isinstance(dataset, IndexedDataset) else IndexedDataset(dataset)
        start, stop = sequences or (0, len(self.dataset))
        if not 0 <= start <= stop <= len(self.dataset):
            raise ValueError(
                f"sequences {start}..{stop} are not a range of the {len(self.dataset):,} in "
                f"{self.dataset.name}"
            )
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed must be between 0 and 2^32 - 1 for Megatron, found {seed}")
        if not 0 < sequence_length < 2**31:
            raise ValueError(f"sequence_length must be at least 1, found {sequence_length}")
        if num_samples is not None and num_samples < 0:
            raise ValueError(f"num_samples must not be negative, found {num_samples}")
        self.sequence_length = sequence_length
        self.num_extra = int(extra_token)
        document_index, sample_index, shuffle_index, self.num_epochs, self.separate_final_epoch = (
            megatron_indices(
                self.dataset.reader,
                start=start,
                stop=stop,
                sequence_length=sequence_length,
                num_samples=num_samples,
                seed=seed,
                extra_token=extra_token,
                drop_last=drop_last,
            )
        )
        #: Sequence at each place of the shuffled row, int32 `[num_epochs * num_sequences]`.
        self.document_index: npt.NDArray[np.int32] = document_index
        #: (place in `document_index`, offset in its sequence) where each sample begins, and where the
        #: last one ends: int32 `[num_samples + 1, 2]`.
        self.sample_index: npt.NDArray[np.int32] = sample_index.reshape(-1, 2)
        #: Samples in the order in which they are read, uint32 `[num_samples]`.
        self.shuffle_index: npt.NDArray[np.uint32] = shuffle_index

    def __len__(self) -> int:
        return len(self.shuffle_index)

    def __getitem__(self, index: int) -> MegatronSample:
        return self.sample(index)

    def __iter__(self) -> Iterator[MegatronSample]:
        return map(self.sample, range(len(self)))

    def ids(self, index: int) -> npt.NDArray[np.int64]:
        """The ids of sample `index`, at most `sequence_length` and the extra one; fewer in a short one.

        Raises:
            IndexError: no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample index {index} is out of range for {len(self)}")
        sample = int(self.shuffle_index[index])
        (first, first_offset), (last, last_offset) = self.sample_index[sample : sample + 2].tolist()
        end = last_offset + self.num_extra
        parts: list[npt.NDArray[Any]] = []
        for place in range(first, last + 1):
            ids = self.dataset[int(self.document_index[place])]
            start = first_offset if place == first else 0
            parts.append(ids[start:end] if place == last else ids[start:])
        return np.concatenate(parts, dtype=np.int64)

    def sample(self, index: int) -> MegatronSample:
        """Sample `index` in reading order, padded to `sequence_length`.

        Raises:
            IndexError: no such sample.
        """
        return MegatronSample(*(rows[0] for rows in self.batch([index])))

    def batch(self, indices: npt.ArrayLike, *, out: MegatronSample | None = None) -> MegatronSample:
        """Many samples in one native call, in arrays of shape `[B, L]`.

        Args:
            indices: samples in reading order, `[B]`.
            out: arrays of the same dtypes and shape to fill, e.g. of the batch before: fresh memory
                costs page faults.

        Raises:
            IndexError: no such sample.
            ValueError: `out` does not fit.
        """
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
            raise ValueError(
                f"indices are whole numbers in one dimension, found {chosen.dtype} {chosen.shape}"
            )
        chosen = chosen.astype(np.int64)
        is_outside = (chosen < 0) | (chosen >= len(self))
        if is_outside.any():
            raise IndexError(
                f"sample index {chosen[is_outside][0]} is out of range for {len(self)}"
            )
        shape = (len(chosen), self.sequence_length)
        if out is None:
            out = MegatronSample(
                np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.float32)
            )
        arrays: list[npt.NDArray[Any]] = [out.tokens, out.labels, out.loss_mask]
        dtypes = [np.dtype(np.int64), np.dtype(np.int64), np.dtype(np.float32)]
        for name, array, dtype in zip(MegatronSample._fields, arrays, dtypes, strict=True):
            if array.shape != shape or array.dtype != dtype or not array.flags.carray:
                raise ValueError(
                    f"{name} must be a writable, contiguous array of {dtype} with the shape "
                    f"{shape}, found {array.dtype} {array.shape}"
                )
        if len(chosen):
            samples = self.shuffle_index[chosen].astype(np.int64)
            megatron_samples(
                self.dataset.reader,
                self.document_index,
                np.hstack([self.sample_index[samples], self.sample_index[samples + 1]]),
                num_extra=self.num_extra,
                tokens=out.tokens,
                labels=out.labels,
                loss_mask=out.loss_mask,
            )
        return out
