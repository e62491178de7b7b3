"""Reads indexed datasets without a copy.

Both files are mapped into memory and checked when they are opened. The arrays handed out are
read-only views of the mapping and keep it alive, so they may outlive the dataset object.

The sidecar `<prefix>.mmf` has a hash of `.idx` and a CRC-32C for each block of at most 1 MiB of `.bin`.
It may be absent, as beside data of megatron-core's; nothing but checksums is missing then.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from mmfast._mmfast import DatasetReader, gather
from mmfast.data.segment import MODALITY_BITS, Segment, modality_name

# How much is checked: each level includes the ones before it.
Verify = Literal["none", "index", "lazy", "full"]

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
    """A published `<prefix>.bin` and `<prefix>.idx`, seen as a sequence of sequences of ids.

    `len(dataset)` counts sequences and `dataset[i]` is one; `document(k)` has the sequences of a
    document with their modes. Whether there are modes is told by the file. Pickling, as for worker
    processes, opens the files again by path; a forked process may go on using the object.

    Args:
        prefix: path without `.bin` or `.idx`.
        verify: what is checked. `"none"`: header and sizes, in constant time, and the sidecar is not
            looked at. `"index"`: every entry of the index, and that the sidecar belongs to it.
            `"lazy"`: also each block of ids against its checksum, when it is first read. `"full"`: all
            blocks, now.

    Raises:
        FileNotFoundError: `.bin` or `.idx` is missing.
        CorruptDataError: the files contradict the format, each other or a checksum. At `"lazy"`,
            reading a damaged block raises it too, each time.
        FormatVersionError: another format or version.
        ValueError: checksums are asked for and there is no sidecar, or there is no such level.
    """

    def __init__(self, prefix: str | Path, *, verify: Verify = "index") -> None:
        self.prefix = Path(prefix).absolute()
        self._verify: Verify = verify
        self._reader = DatasetReader(self.prefix, verify)

    @property
    def reader(self) -> DatasetReader:
        """The native reader, for native calls over the dataset."""
        return self._reader

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
        wanted = np.asarray(indices)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise ValueError(
                f"indices must be whole numbers in one dimension, found {wanted.dtype} {wanted.shape}"
            )
        wanted = np.ascontiguousarray(wanted, dtype=np.int64)
        ids, offsets = gather(self._reader, wanted, documents=unit == "document", out=out)
        return ids[: offsets[-1]], offsets

    def mode(self, index: int) -> int:
        """Mode byte of a sequence; 0 in a file without modes."""
        return self._reader.mode(index)

    def document(self, index: int) -> list[Segment]:
        """The segments of a document; empty for an empty one."""
        start, end = self._reader.document(index)
        reader = self._reader
        return [Segment(reader.sequence(i), reader.mode(i)) for i in range(start, end)]

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
    def tokens(self) -> npt.NDArray[Any]:
        """All ids back to back, `[num_tokens]`, a read-only view."""
        return self._reader.tokens

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
        """What the sidecar tells; None if there is none, or `verify="none"` asked to ignore it."""
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
        num_blocks = self.sidecar.num_blocks if self.sidecar else 0
        return [DamagedBlock(*found) for found in self._reader.damaged_blocks(0, num_blocks)]

    def check(self, level: Verify | None = None) -> None:
        """Checks now what opening at this level checks, and at `"lazy"` what it would check later.

        Args:
            level: `"full"` where there is a sidecar and `"index"` where there is none by default.

        Raises:
            CorruptDataError: names the first damaged block, its place in `.bin` and the documents it
                hits, and the numbers of further ones.
            ValueError: checksums are asked for and there is no sidecar.
        """
        self._reader.verify(level or ("index" if self.sidecar is None else "full"))

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

    def __reduce__(self) -> tuple[Callable[..., "IndexedDataset"], tuple[Path]]:
        return partial(IndexedDataset, verify=self._verify), (self.prefix,)

    def __repr__(self) -> str:
        return (
            f"IndexedDataset({str(self.prefix)!r}: {self.num_documents:,} documents, "
            f"{len(self):,} sequences, {self.num_tokens:,} ids of {self.dtype})"
        )


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
