"""Training batches from indexed datasets: shuffled, packed, resumable, the same for any number of ranks.

The work is native: one thread plans the next window of documents, one fills the next batches while the
trainer computes. A position in the stream is two numbers, so `state_dict` is small, equal on all ranks,
and can be loaded with another number of ranks or another batch size.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mmfast import _mmfast
from mmfast.data.batch import ROW_DTYPES, STATE_KEYS, Batch
from mmfast.data.dataset import IndexedDataset
from mmfast.data.packing import group_boundaries
from mmfast.errors import StateMismatchError, UsageError
from mmfast.vocab import FILE_NAME, Vocabulary

Allocate = Callable[[tuple[int, int], torch.dtype], torch.Tensor]


class ObjectiveConfig(Protocol):
    """An objective's configuration, e.g. from `mmfast.objectives`."""

    def native(self, vocabulary: Vocabulary | None) -> _mmfast.Objective:
        """The native objective for a vocabulary."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset that takes part in a stream.

    Attributes:
        prefix: `<prefix>.bin` and `<prefix>.idx`; or a pattern of prefixes or several of them, read as one
            dataset; or an open `IndexedDataset`, e.g. a part that `split` gave.
        weight: its part of the stream's documents, in proportion to the other weights.
        max_epochs: how often it may be gone through; the stream ends where a source has no more. None
            for no limit.
        groups: documents that must share a row, as runs of consecutive ones (a query and the documents
            retrieved for it): so many each, or the first document of each group followed by the number of
            documents, `[G + 1]`. A group is shuffled, counted and packed as one document would be; its
            documents keep their order, and stay documents of their own. `bin_tokens` limits it as
            `overlong` says: `truncate` keeps the documents in front that fit, `split` parts it between
            documents, `drop` leaves all of it out.
    """

    prefix: Path | str | Sequence[Path | str] | IndexedDataset
    weight: float = 1.0
    max_epochs: int | None = None
    groups: int | npt.ArrayLike | None = None


class Loader(IterableDataset[Batch]):
    """Iterates over the batches of a document stream; endless unless a source has `max_epochs`.

    The documents of a window are shuffled, brought into the objective's order, packed best-fit-decreasing
    into rows of `bin_tokens`, and the rows are shuffled. A document is never cut unless `overlong` says so,
    and an image never. Each epoch of a source gives each of its documents once.

    It is also an `IterableDataset`: `DataLoader(loader, batch_size=None, num_workers=N)` gives the same
    batches in the same order for any N, although N = 0 is fastest: batches are made in native threads, and
    workers have to copy them between processes. Workers begin where this process's loader stands, and
    what they read does not move it; so keep the `state` of the last batch, not `state_dict()`.

    Args:
        sources: datasets, as `Source`, prefix or `IndexedDataset`.
        objective: `mmfast.objectives.NextToken()` or `Cm3()`.
        vocabulary: names the special tokens; read from `vocabulary.json` beside the data if None, and
            compared with it otherwise. Plain Megatron files need none for `NextToken`.
        bin_tokens: tokens a row, L.
        max_document_tokens: longest document in the objective's form, e.g. the model's context; None for
            no limit but the row. A higher limit than `bin_tokens` changes nothing.
        global_batch_bins: rows a step over all ranks; a rank gets `ceil(global_batch_bins / world_size)`,
            some of them empty when that does not divide.
        seed: of the order and of all random choices, 0 to 2^64 - 1.
        window_documents: documents that are packed together. More pack better and take longer to plan.
        packing: how documents share rows. `best_fit`: whole ones, in as few rows as possible. `concat`: one
            after the other, cut where a row ends; a row ends early before an image that does not fit it,
            and `overlong` is asked only where no row holds an image. `none`: one document, or group, a
            row; nothing is planned ahead, so a state is restored at once.
        cut_at: where documents may be cut, if at all: `ids`, between any two of a text segment; `segments`,
            between segments only. Images and videos are never cut.
        overlong: what happens to a document longer than a row or `max_document_tokens`: `error`; `truncate` keeps the longest
            prefix that ends where a cut is allowed; `split` makes several documents, cut by the same
            rule; `drop` leaves it out. `counts` says how often.
        rank: this process among `world_size`.
        world_size: number of processes.
        prefetch_batches: batches made ahead in native threads; no part of any state. 0 makes each batch in
            the calling thread, when it is asked for.
        pin_memory: fill batches in page-locked memory, from which `batch.to(device, non_blocking=True)`
            does not wait. It is torch's own, which does not hand it out again before such copies are done.
        allocate: makes the tensors that batches are filled in, called with shape and dtype for each of the
            six of a batch; by default they are ours and used again when nobody holds them.

    Attributes:
        num_documents: documents of the whole stream, a group counted as one; None if it is endless.
        counts: the `counts` of the last batch.
        vocabulary: the vocabulary in use, or None.

    Raises:
        ValueError: a setting or source is unusable; later, a document is too long.
        FileNotFoundError: a dataset is missing.
        VocabularyMismatchError: datasets and vocabulary differ; later, an id lies outside.

    Example:
        >>> loader = Loader(["data/train"], NextToken(), bin_tokens=2048)  # doctest: +SKIP
        >>> for batch in loader:  # doctest: +SKIP
        ...     logits = model(batch.input_ids, batch.position_ids, batch.document_ids)
    """

    def __init__(
        self,
        sources: Sequence[Source | Path | str | IndexedDataset],
        objective: ObjectiveConfig,
        vocabulary: Vocabulary | None = None,
        *,
        bin_tokens: int = 2048,
        max_document_tokens: int | None = None,
        global_batch_bins: int = 8,
        seed: int = 0,
        window_documents: int = 65_536,
        packing: Literal["best_fit", "concat", "none"] = "best_fit",
        cut_at: Literal["ids", "segments"] = "ids",
        overlong: Literal["error", "truncate", "split", "drop"] = "error",
        rank: int = 0,
        world_size: int = 1,
        prefetch_batches: int = 2,
        pin_memory: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        super().__init__()
        settings = {name: value for name, value in locals().items() if name in _ARGUMENTS}
        #: What makes this loader anew in another process.
        self._settings: dict[str, Any] = settings
        entries = [s if isinstance(s, Source) else Source(s) for s in sources]
        if not entries:
            raise ValueError("a loader needs at least one source")
        _require_unsigned(seed=(seed, 64), window_documents=(window_documents, 64))
        _require_unsigned(bin_tokens=(bin_tokens, 32), global_batch_bins=(global_batch_bins, 32))
        if max_document_tokens is not None:
            _require_unsigned(max_document_tokens=(max_document_tokens, 32))
        _require_unsigned(rank=(rank, 32), world_size=(world_size, 32))
        _require_unsigned(prefetch_batches=(prefetch_batches, 16))
        for entry in entries:
            _require_unsigned(max_epochs=(entry.max_epochs or 0, 32))
        datasets = [_dataset(entry.prefix) for entry in entries]
        prefixes = [prefix for dataset in datasets for prefix in dataset.prefixes]
        self.vocabulary = _shared_vocabulary(prefixes, vocabulary)
        has_pad = self.vocabulary is not None and "pad" in self.vocabulary
        self._native = _mmfast.BatchLoader(
            [dataset.reader for dataset in datasets],
            [entry.weight for entry in entries],
            [entry.max_epochs for entry in entries],
            [_groups(entry.groups) for entry in entries],
            objective.native(self.vocabulary),
            seed=seed,
            window_documents=window_documents,
            packing=packing,
            cut_at=cut_at,
            bin_tokens=bin_tokens,
            max_document_tokens=max_document_tokens,
            global_batch_bins=global_batch_bins,
            overlong=overlong,
            rank=rank,
            world_size=world_size,
            pad_id=self.vocabulary["pad"] if self.vocabulary is not None and has_pad else 0,
            vocabulary_size=None if self.vocabulary is None else self.vocabulary.size,
            prefetch_batches=prefetch_batches,
        )
        dry = self._native.dry_point
        self.num_documents: int | None = None if dry is None else dry[0]
        self.counts: dict[str, int] = dict.fromkeys(
            ("documents", "truncated", "split", "dropped", "empty", "overlong_groups"), 0
        )
        self._allocate = _allocate_pinned if pin_memory and allocate is None else allocate
        if pin_memory and not torch.cuda.is_available():
            raise UsageError("pin_memory=True needs a CUDA device, and torch finds none here")
        self._shape = (-(-global_batch_bins // world_size), bin_tokens)
        #: In a `DataLoader` worker: the state in which this loader came into it.
        self._worker_start: dict[str, int | str] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Goes on from the current position; a second iterator shares it."""
        worker = get_worker_info()
        if worker is not None:
            # Each iteration of the DataLoader begins at the same place, in all workers.
            self._worker_start = self._worker_start or self.state_dict()
            self._native.take_turns(worker.id, worker.num_workers)
            self.load_state_dict(self._worker_start)
        return _Batches(self)

    def _next(self) -> Batch | None:
        if self._allocate is not None:
            for _ in range(self._native.num_wanted()):
                rows = {
                    name: self._allocate(self._shape, dtype) for name, dtype in ROW_DTYPES.items()
                }
                self._native.lend(rows, _arrays(rows))
        fields = self._native.next_batch()
        if fields is None:
            return None
        self.counts = fields["counts"]
        return Batch.from_native(fields, fields.get("lent"))

    def next_into(self, batch: Batch) -> Batch | None:
        """The next batch, in the tensors of `batch`; None at the end of the stream.

        `batch` is one that this loader, or one of the same shape, gave before, moved to pinned memory if
        you like. Its tensors of shape [B, L] are overwritten; the other fields come with the result. With
        `prefetch_batches=0` ids go there without another copy.

        Raises:
            ValueError: a tensor has another dtype or shape, or is not contiguous in CPU memory.
        """
        rows = batch.rows
        fields = self._native.next_into(_arrays(rows))
        if fields is None:
            return None
        self.counts = fields["counts"]
        return Batch.from_native(fields, rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the data anew and goes on at the same position."""
        return _opened, (type(self), self._settings, self.state_dict())

    def limit(self) -> str | None:
        """One sentence on where the stream ends and why; None if it is endless."""
        dry = self._native.dry_point
        if dry is None:
            return None
        return f"the stream ends after {dry[0]:,} documents, when {dry[1]} has no epochs left"

    def state_dict(self) -> dict[str, int | str]:
        """The position after the last delivered batch: JSON, below 1 KiB, the same on every rank."""
        return dict(zip(STATE_KEYS, self._native.state(), strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the batch that was the last one when `state` was taken.

        Rank, world size and `global_batch_bins` may differ from then.

        Raises:
            StateMismatchError: seed, data, blend, objective or packing differ; the text says which.
        """
        try:
            version, seed, window, bin_, fingerprint = (state[key] for key in STATE_KEYS)
            self._native.load_state(version, seed, window, bin_, fingerprint)
        except (KeyError, TypeError, OverflowError) as error:
            raise StateMismatchError(
                f"not a state of a Loader: {error!r}; expected the keys {', '.join(STATE_KEYS)}"
            ) from error

    def close(self) -> None:
        """Ends the threads. The loader can still be used and starts them again."""
        self._native.stop()


class _Batches(Iterator[Batch]):
    """The batches of a loader.

    Not a generator, which would keep each batch, and so its memory, in use while the next one is made.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __next__(self) -> Batch:
        batch = self.loader._next()
        if batch is None:
            raise StopIteration
        return batch


_ARGUMENTS = frozenset(inspect.signature(Loader.__init__).parameters) - {"self"}


def _opened(kind: type[Loader], settings: dict[str, Any], state: dict[str, int | str]) -> Loader:
    """The loader of some arguments at a position."""
    loader = kind(**settings)
    loader.load_state_dict(state)
    return loader


def _allocate_pinned(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def _arrays(rows: dict[str, torch.Tensor]) -> dict[str, npt.NDArray[Any]]:
    """The memory of CPU tensors as arrays."""
    for name, tensor in rows.items():
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} must be in CPU memory to be filled, found {tensor.device}")
    return {name: tensor.numpy() for name, tensor in rows.items()}


def _dataset(named: Path | str | Sequence[Path | str] | IndexedDataset) -> IndexedDataset:
    return named if isinstance(named, IndexedDataset) else IndexedDataset(named)


def _groups(groups: int | npt.ArrayLike | None) -> npt.NDArray[np.uint64] | int | None:
    """Groups as the native loader takes them."""
    if groups is None:
        return None
    if isinstance(groups, int):
        _require_unsigned(groups=(groups, 64))
        return groups
    boundaries = np.asarray(groups)
    num_documents = int(boundaries[-1]) if boundaries.ndim == 1 and boundaries.size else 0
    return group_boundaries(groups, num_documents).astype(np.uint64)


def _require_unsigned(**values_and_bits: tuple[int, int]) -> None:
    """Raises `ValueError` for the first value that is not a whole number of at most so many bits."""
    for name, (value, bits) in values_and_bits.items():
        if not isinstance(value, int) or not 0 <= value < 2**bits:
            raise ValueError(f"{name} is a whole number from 0 to 2^{bits} - 1, found {value!r}")


def _shared_vocabulary(prefixes: Sequence[Path], given: Vocabulary | None) -> Vocabulary | None:
    """The one vocabulary of all datasets and the caller, None if nobody has one."""
    shared, owner = given, "the loader's `vocabulary`"
    for folder in dict.fromkeys(prefix.parent for prefix in prefixes):
        path = folder / FILE_NAME
        if not path.exists():
            continue
        found = Vocabulary.load(path)
        if shared is None:
            shared, owner = found, str(path)
        else:
            found.require_same(shared, here=str(path), there=owner)
    return shared
