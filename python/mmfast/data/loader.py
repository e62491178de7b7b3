"""Training batches from indexed datasets: shuffled, packed, resumable, the same for any number of ranks.

The work is native: one thread plans the next window of documents, one fills the next batches while the
trainer computes. A position in the stream is two numbers, so `state_dict` is small, equal on all ranks,
and can be loaded with another number of ranks or another batch size.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from torch.utils.data import IterableDataset, get_worker_info

from mmfast import _mmfast
from mmfast.data.batch import Batch
from mmfast.errors import StateMismatchError, UsageError
from mmfast.vocab import FILE_NAME, Vocabulary

STATE_KEYS = ("version", "seed", "window", "bin", "fingerprint")


class ObjectiveConfig(Protocol):
    """An objective's configuration, e.g. from `mmfast.objectives`."""

    def native(self, vocabulary: Vocabulary | None) -> _mmfast.Objective:
        """The native objective for a vocabulary."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset that takes part in a stream.

    Attributes:
        prefix: `<prefix>.bin` and `<prefix>.idx`.
        weight: its part of the stream's documents, in proportion to the other weights.
        max_epochs: how often it may be gone through; the stream ends where a source has no more. None
            for no limit.
    """

    prefix: Path | str
    weight: float = 1.0
    max_epochs: int | None = None


class Loader(IterableDataset[Batch]):
    """Iterates over the batches of a document stream; endless unless a source has `max_epochs`.

    The documents of a window are shuffled, brought into the objective's order, packed best-fit-decreasing
    into rows of `bin_tokens`, and the rows are shuffled. A document is never cut unless `overlong` says so,
    and an image never. Each epoch of a source gives each of its documents once.

    It is also an `IterableDataset`: `DataLoader(loader, batch_size=None)` works, in this process. Worker
    processes are refused: batches are made in native threads anyway, and a worker's position in the stream
    would never come back to `state_dict()`.

    Args:
        sources: datasets, as `Source` or prefix.
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
        overlong: what happens to a document longer than a row or `max_document_tokens`: `error`; `truncate` keeps the longest
            prefix that ends inside no image or video; `split` makes several documents, cut by the same
            rule; `drop` leaves it out. `counts` says how often.
        rank: this process among `world_size`.
        world_size: number of processes.
        prefetch_batches: batches made ahead; no part of any state.

    Attributes:
        num_documents: documents of the whole stream, None if it is endless.
        counts: what became of the documents of the windows begun so far, by name: `documents truncated
            split dropped empty`.
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
        sources: Sequence[Source | Path | str],
        objective: ObjectiveConfig,
        vocabulary: Vocabulary | None = None,
        *,
        bin_tokens: int = 2048,
        max_document_tokens: int | None = None,
        global_batch_bins: int = 8,
        seed: int = 0,
        window_documents: int = 65_536,
        overlong: Literal["error", "truncate", "split", "drop"] = "error",
        rank: int = 0,
        world_size: int = 1,
        prefetch_batches: int = 2,
    ) -> None:
        super().__init__()
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
        prefixes = [Path(entry.prefix) for entry in entries]
        self.vocabulary = _shared_vocabulary(prefixes, vocabulary)
        has_pad = self.vocabulary is not None and "pad" in self.vocabulary
        self._native = _mmfast.BatchLoader(
            prefixes,
            [entry.weight for entry in entries],
            [entry.max_epochs for entry in entries],
            objective.native(self.vocabulary),
            seed=seed,
            window_documents=window_documents,
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
            ("documents", "truncated", "split", "dropped", "empty"), 0
        )

    def __iter__(self) -> Iterator[Batch]:
        """Goes on from the current position; a second iterator shares it."""
        worker = get_worker_info()
        if worker is not None:
            raise UsageError(
                f"a Loader in a DataLoader worker ({worker.num_workers} asked for) would advance out of "
                "this process's sight, and its state_dict() would stay at the start; use num_workers=0 "
                "(batches are made in native threads)"
            )
        while (fields := self._native.next_batch()) is not None:
            self.counts = fields["counts"]
            yield Batch.from_arrays(fields)

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
