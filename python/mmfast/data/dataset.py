"""Reads indexed datasets without a copy, one or several as one, whole or in parts.

Files are mapped into memory and checked when they are opened. The arrays handed out are read-only views
of the mapping and keep it alive, so they may outlive the dataset object. On network file systems nothing
of `.bin` is mapped, and arrays are read into memory of their own.

The sidecar `<prefix>.mmf` has a hash of `.idx` and a CRC-32C for each block of at most 1 MiB of `.bin`.
It may be absent, as beside data of megatron-core's; nothing but checksums is missing then.
"""

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from mmfast._mmfast import DatasetReader, gather
from mmfast.data.prefixes import expand_prefixes
from mmfast.data.segment import MODALITY_BITS, Segment, modality_name
from mmfast.data.splits import cut, parse_split
from mmfast.errors import ForeignFormatWarning

# How much is checked: each level includes the ones before it.
Verify = Literal["none", "index", "lazy", "full"]
# How the files are reached.
Access = Literal["auto", "mmap", "pread"]

# Datasets of a view that are held open at once.
MAX_OPEN = 256

NUM_MODALITIES = MODALITY_BITS + 1
# Sequences that a scan reads between two reports of progress.
SEQUENCES_PER_SCAN = 1 << 14


class Scan(NamedTuple):
    """What a pass over all ids found.

    Attributes:
        id_range: smallest and largest id, None if there is none.
        sequences: sequences by modality name, only those that occur.
        tokens: ids by modality name, only those that occur.
    """

    id_range: tuple[int, int] | None
    sequences: dict[str, int]
    tokens: dict[str, int]


class DamagedBlock(NamedTuple):
    """A block of `.bin` whose content is not what was written.

    Attributes:
        block: its number, from 0.
        byte_range: where it lies in `.bin`, first byte and end.
        documents: the documents that have ids in it, first and end.
        description: all of it in words, with both checksums.
    """

    block: int
    byte_range: tuple[int, int]
    documents: tuple[int, int]
    description: str


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What `<prefix>.mmf` tells of a dataset.

    Attributes:
        fingerprint: 32 hexadecimal digits, equal for equal `.bin` and `.idx`.
        writer: name and version of the program that wrote the dataset.
        vocabulary_fingerprint: of the vocabulary that the ids belong to, if it was told.
        provenance: what the producer told; a merge lists its parts under `merged`.
        num_blocks: blocks of `.bin` with a checksum of their own.
    """

    fingerprint: str
    writer: str
    vocabulary_fingerprint: str | None
    provenance: dict[str, Any]
    num_blocks: int


class IndexedDataset:
    """A published `<prefix>.bin` and `<prefix>.idx`, or several, seen as a sequence of sequences of ids.

    `len(dataset)` counts sequences and `dataset[i]` is one; `document(k)` has the sequences of a
    document with their modes. Whether there are modes is told by the file. Pickling, as for worker
    processes, opens the files again by path; a forked process may go on using the object.

    Several prefixes, or a pattern such as `"data/shard-*"`, are read as one dataset, their documents one
    after the other; nothing is merged, and memory is a few numbers a dataset. Their ids may be of
    different dtypes and are then read in one that holds all. `select`, `split` and `shuffled` give parts of
    a dataset as datasets, without a copy.

    Args:
        prefix: path without `.bin` or `.idx`, a pattern of such paths, or several of either.
        verify: what is checked. `"none"`: header and sizes, in constant time, and the sidecar is not
            looked at. `"index"`: every entry of the index, and that the sidecar belongs to it.
            `"lazy"`: also each block of ids against its checksum, when it is first read. `"full"`: all
            blocks, now.
        access: `"mmap"` maps the files. `"pread"` reads the index into memory and ids when they are asked
            for: for network file systems, where each touched page of a map is a round trip and a file
            that shrinks ends the process. `"auto"` takes `"pread"` on NFS, Lustre, GPFS, Ceph, SMB, FUSE
            and the like, else `"mmap"`; `dataset.access` tells which, and why.
        max_open: datasets held open at once; each has two maps or one open file. Arrays keep theirs.

    Raises:
        FileNotFoundError: `.bin` or `.idx` is missing, or nothing matches a pattern.
        CorruptDataError: the files contradict the format, each other or a checksum. At `"lazy"`,
            reading a damaged block raises it too, each time.
        FormatVersionError: another format or version.
        ValueError: checksums are asked for and there is no sidecar, or there is no such level; or of
            several datasets some have modes and some have none.
        VocabularyMismatchError: several datasets are of different vocabularies.

    Warns:
        ForeignFormatWarning: not as megatron-core writes it, but understood; see `findings`.
    """

    def __init__(
        self,
        prefix: str | Path | Sequence[str | Path],
        *,
        verify: Verify = "index",
        access: Access = "auto",
        max_open: int = MAX_OPEN,
    ) -> None:
        self._open(expand_prefixes(prefix), verify, access, max_open)
        for finding in self._reader.findings:
            warnings.warn(finding, ForeignFormatWarning, stacklevel=2)

    def _open(
        self, prefixes: tuple[Path, ...], verify: Verify, access: Access, max_open: int
    ) -> None:
        #: Where the datasets are, in their order.
        self.prefixes = prefixes
        self._options = (verify, access, max_open)
        self._steps: tuple[tuple[str, *tuple[int, ...]], ...] = ()
        self._reader = DatasetReader(prefixes, verify=verify, access=access, max_open=max_open)

    @property
    def prefix(self) -> Path:
        """Where the dataset is.

        Raises:
            ValueError: there are several; see `prefixes`.
        """
        if len(self.prefixes) > 1:
            raise ValueError(
                f"{self.name} have no one prefix; `prefixes` has all, `shards()` gives each"
            )
        return self.prefixes[0]

    @property
    def name(self) -> str:
        """What to call the dataset in a sentence."""
        if len(self.prefixes) == 1:
            return str(self.prefixes[0])
        return f"{len(self.prefixes):,} datasets, {self.prefixes[0]} and on"

    @property
    def reader(self) -> DatasetReader:
        """The native reader, for native calls over the dataset."""
        return self._reader

    @property
    def is_whole(self) -> bool:
        """Whether this is one dataset or several as they are on disk, not a part of them."""
        return not self._steps

    def shards(self) -> Iterator["IndexedDataset"]:
        """The datasets that this is made of or a part of, each as a whole, opened one at a time."""
        if self.is_whole and len(self.prefixes) == 1:
            yield self
            return
        for prefix in self.prefixes:
            shard = object.__new__(IndexedDataset)
            shard._open((prefix,), *self._options)
            yield shard

    def select(self, start: int, stop: int) -> "IndexedDataset":
        """The documents `start..stop`; both may count from the end, as in a Python slice."""
        start, stop, _ = slice(start, stop).indices(self.num_documents)
        return self._part("slice", start, max(start, stop))

    def shuffled(self, seed: int) -> "IndexedDataset":
        """The same documents in an order that depends on `seed` and their number alone.

        Nothing is stored: the order is a permutation in closed form.
        """
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be between 0 and 2^64 - 1, found {seed}")
        return self._part("shuffled", seed)

    def split(
        self, parts: Mapping[str, float] | str, *, seed: int | None = None
    ) -> dict[str, "IndexedDataset"]:
        """Cuts the documents into parts, which share none and together have all.

        Args:
            parts: a weight for each part by name, in proportion to the others; or Megatron's string,
                e.g. `"969,30,1"`, whose parts are `train`, `valid` and `test`.
            seed: of the order in which documents are dealt out; the same for the same data gives the
                same parts. None cuts the documents as they lie, which is what megatron-core does: where
                each document is one sequence, at the very same places.

        Raises:
            ValueError: weights that are negative or all 0, or a string that is no split.

        Example:
            >>> dataset.split({"train": 0.98, "val": 0.02}, seed=0)["val"]  # doctest: +SKIP
        """
        weights = parse_split(parts) if isinstance(parts, str) else parts
        ranges = cut(weights, self.num_documents)
        row = self if seed is None else self.shuffled(seed)
        return {name: row.select(start, stop) for name, (start, stop) in ranges.items()}

    def _part(self, method: str, *arguments: int) -> "IndexedDataset":
        part = object.__new__(IndexedDataset)
        part.prefixes, part._options = self.prefixes, self._options
        part._steps = (*self._steps, (method, *arguments))
        part._reader = getattr(self._reader, method)(*arguments)
        return part

    def __len__(self) -> int:
        return self._reader.num_sequences

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[npt.NDArray[Any]]: ...
    def __getitem__(self, index: int | slice) -> npt.NDArray[Any] | list[npt.NDArray[Any]]:
        if isinstance(index, slice):
            sequence = self._reader.sequence
            return [sequence(i) for i in range(*index.indices(len(self)))]
        return self._reader.sequence(index)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return map(self._reader.sequence, range(len(self)))

    def get(self, index: int, offset: int = 0, length: int | None = None) -> npt.NDArray[Any]:
        """Part of a sequence: `length` ids from `offset` on, to its end by default.

        Raises:
            IndexError: no such sequence, or a part that reaches past its end.
        """
        return self._reader.sequence(index, offset, length)

    def read(
        self,
        indices: npt.ArrayLike,
        *,
        unit: Literal["sequence", "document"] = "sequence",
        out: npt.NDArray[Any] | None = None,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Copies many sequences, or whole documents, in one native call without the GIL.

        Args:
            indices: whole numbers `[N]` in any order, repeated or not; negative ones count from the end.
            unit: what they count; a document's sequences come one after another.
            out: where to put the ids: a writable, contiguous array `[>= num_ids]` of the dataset's
                dtype. A new array by default.

        Returns:
            The ids back to back, `[num_ids]` (the beginning of `out` if that is given), and int64
            `[N + 1]`: item i is `ids[offsets[i]:offsets[i + 1]]`.

        Raises:
            IndexError: no such sequence or document.
            ValueError: indices that are no whole numbers, or an `out` that cannot take the ids.
        """
        if unit not in ("sequence", "document"):
            raise ValueError(f"unit is 'sequence' or 'document', found {unit!r}")
        ids, offsets = self._gathered(indices, documents=unit == "document", out=out)
        return ids[: offsets[-1]], offsets

    def _gathered(
        self,
        indices: npt.ArrayLike,
        *,
        documents: bool,
        out: npt.NDArray[Any] | None = None,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        found = gather(self._reader, indices, documents=documents, out=out)
        if found is None:
            found = gather(self._reader, _whole_numbers(indices), documents=documents, out=out)
        assert found is not None, "an array of int64 is taken as it is"
        return found

    def mode(self, index: int) -> int:
        """Mode byte of a sequence; 0 in a file without modes."""
        return self._reader.mode(index)

    def document(self, index: int) -> list[Segment]:
        """The segments of a document; empty for an empty one."""
        return [Segment(*segment) for segment in self._reader.document(index)]

    def documents(self) -> Iterator[list[Segment]]:
        """All documents in order."""
        return map(self.document, range(self.num_documents))

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return self._reader.num_documents

    @property
    def num_tokens(self) -> int:
        """How many ids there are."""
        return self._reader.num_tokens

    @property
    def dtype(self) -> np.dtype[Any]:
        """Number type of the ids."""
        return np.dtype(self._reader.dtype)

    @property
    def multimodal(self) -> bool:
        """Whether sequences carry modes. A dataset without sequences cannot tell: False."""
        return self._reader.multimodal

    @property
    def access(self) -> str:
        """How the files are reached, and why: `mmap (the disk is local)`."""
        ways = self._reader.access
        if len(ways) == 1:
            return ways[0][0]
        return ", ".join(f"{num_datasets:,} by {way}" for way, num_datasets in ways)

    @property
    def findings(self) -> list[str]:
        """What is not as megatron-core writes it but was understood, in sentences; mostly nothing."""
        return self._reader.findings

    @property
    def tokens(self) -> npt.NDArray[Any]:
        """All ids back to back, `[num_tokens]`, read-only: a view, if this is one mapped dataset."""
        tokens = self._reader.tokens
        if tokens is not None:
            return tokens
        documents = np.arange(self.num_documents, dtype=np.int64)
        return _read_only(self._gathered(documents, documents=True)[0])

    @cached_property
    def sequence_lengths(self) -> npt.NDArray[np.int32]:
        """Length of each sequence in ids, `[len(self)]`, read-only."""
        return _read_only(self._reader.sequence_lengths())

    @cached_property
    def document_indices(self) -> npt.NDArray[np.int64]:
        """First sequence of each document, then `len(self)`: `[num_documents + 1]`, read-only."""
        return _read_only(self._reader.document_indices())

    @cached_property
    def sequence_modes(self) -> npt.NDArray[np.uint8] | None:
        """Mode byte of each sequence, `[len(self)]`, read-only; None in a file without modes."""
        modes = self._reader.sequence_modes()
        return None if modes is None else _read_only(modes)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over the whole index and samples of the ids."""
        return f"{self._reader.fingerprint():016x}"

    @cached_property
    def sidecar(self) -> Sidecar | None:
        """What the sidecar tells; None if there is none, or `verify="none"` asked to ignore it.

        None also for several datasets and for a part: `shards()` gives those that have one.
        """
        facts = self._reader.sidecar
        if facts is None:
            return None
        fingerprint, writer, vocabulary_fingerprint, provenance, num_blocks = facts
        return Sidecar(
            fingerprint=f"{fingerprint:032x}",
            writer=writer,
            vocabulary_fingerprint=vocabulary_fingerprint,
            provenance=json.loads(provenance),
            num_blocks=num_blocks,
        )

    def damaged_blocks(self) -> list[DamagedBlock]:
        """Compares all blocks of `.bin` with their checksums; those that differ.

        Raises:
            ValueError: there is no sidecar.
        """
        if not self.is_whole or len(self.prefixes) > 1:
            raise ValueError(f"{self.name}: ask each of `shards()` for its damaged blocks")
        num_blocks = self.sidecar.num_blocks if self.sidecar else 0
        return [DamagedBlock(*found) for found in self._reader.damaged_blocks(0, num_blocks)]

    def check(self, level: Verify | None = None) -> None:
        """Checks now what opening at this level checks, and at `"lazy"` what it would check later.

        Of a part, all of the datasets that it is a part of.

        Args:
            level: `"full"` where there is a sidecar and `"index"` where there is none by default.

        Raises:
            CorruptDataError: names the first damaged block, its place in `.bin` and the documents it
                hits, and the numbers of further ones.
            ValueError: checksums are asked for and there is no sidecar.
        """
        for shard in self.shards():
            shard.reader.verify(level or ("index" if shard.sidecar is None else "full"))

    def verify(
        self,
        vocabulary_size: int | None = None,
        *,
        level: Verify | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Scan:
        """Checks index and checksums as `check` does, then reads every id and counts them.

        Args:
            vocabulary_size: ids must lie in `[0, vocabulary_size)`; any are fine by default.
            level: see `check`.
            on_progress: called now and then with the number of ids read since the last call.

        Raises:
            CorruptDataError: see `check`; or an id is out of range: names it, its sequence and its
                document.
            ValueError: the dataset holds floats, or checksums are asked for without a sidecar.
        """
        self.check(level)
        allowed = None if vocabulary_size is None else (0, vocabulary_size)
        ends: list[int] = []
        sequences = np.zeros(NUM_MODALITIES, np.int64)
        tokens = np.zeros(NUM_MODALITIES, np.int64)
        for start in range(0, len(self), SEQUENCES_PER_SCAN):
            stop = min(start + SEQUENCES_PER_SCAN, len(self))
            id_range, found_sequences, found_tokens = self._reader.scan(start, stop, allowed)
            ends.extend(id_range or ())
            sequences += found_sequences
            tokens += found_tokens
            if on_progress is not None:
                on_progress(sum(found_tokens))
        present = np.flatnonzero(sequences).tolist()
        return Scan(
            (min(ends), max(ends)) if ends else None,
            {modality_name(i): int(sequences[i]) for i in present},
            {modality_name(i): int(tokens[i]) for i in present},
        )

    def __reduce__(self) -> tuple[Callable[..., "IndexedDataset"], tuple[Any, ...]]:
        return _opened_again, (self.prefixes, self._options, self._steps)

    def __repr__(self) -> str:
        part = "" if self.is_whole else "part of "
        return (
            f"IndexedDataset({part}{self.name!r}: {self.num_documents:,} documents, "
            f"{len(self):,} sequences, {self.num_tokens:,} ids of {self.dtype})"
        )


def _opened_again(
    prefixes: tuple[Path, ...],
    options: tuple[Verify, Access, int],
    steps: tuple[tuple[str, *tuple[int, ...]], ...],
) -> IndexedDataset:
    """What was pickled; its findings were told where it was opened first."""
    dataset = object.__new__(IndexedDataset)
    dataset._open(prefixes, *options)
    for method, *arguments in steps:
        dataset = dataset._part(method, *arguments)
    return dataset


def _whole_numbers(indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.asarray(indices)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"indices must be whole numbers in one dimension, found {array.dtype} {array.shape}"
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
