"""Writes indexed datasets: megatron-core's builder methods over the native writer.

`.bin` and `.idx` are byte for byte those of megatron-core
(`megatron/core/datasets/indexed_dataset.py`). What differs is how they come to be: ids outside the
dtype are an error instead of wrapping round, the files appear at once when they are complete, and until
then whatever was there stays. Beside the two lies `.mmf` with checksums of both, made while the ids are
written; other readers need not know it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from mmfast._mmfast import DatasetWriter
from mmfast._mmfast import merge_datasets as _merge_datasets
from mmfast.data.arrow import arrow_rows, is_arrow
from mmfast.data.media import MediaReference
from mmfast.data.segment import MEDIA

# megatron-core stores ids as uint16 below this many, with a margin for padding the vocabulary.
UINT16_BELOW = 65_500


class Written(NamedTuple):
    """What a dataset, or a part of one, holds."""

    num_documents: int
    num_sequences: int
    num_tokens: int


def optimal_dtype(vocabulary_size: int | None) -> str:
    """Megatron's choice: `uint16` for fewer than 65,500 ids, else (or if unknown) `int32`.

    GPTDataset has a second rule for readers that skip the header: `uint16` up to 65,536 ids. Between
    the two a file written here is `int32` and must be read with its header.
    """
    if vocabulary_size is not None and vocabulary_size < UINT16_BELOW:
        return "uint16"
    return "int32"


class IndexedDatasetBuilder:
    """Writes `<prefix>.bin`, `<prefix>.idx` and the sidecar `<prefix>.mmf`.

    As a context manager it finalizes at the end of the block, or aborts if an exception leaves it:

        >>> with IndexedDatasetBuilder("/tmp/example", dtype="uint16") as builder:
        ...     builder.add_document([1, 2, 3, 4], lengths=[3, 1])
        ...     builder.add_item([5, 6])
        ...     builder.end_document()

    Ids are one array of any shape (flattened in C order), a list, or a CPU tensor. Those that do not
    fit the dtype raise `ValueError` naming document and position, and nothing of that call is kept.
    Any number of builders may run at once, each on its own prefix; a second one on the same prefix is
    a `UsageError`.

    With `resume=True` a journal is kept beside the files, and what `flush` acknowledges outlives the
    process, whatever ends it. A producer that can find its place again by the number of documents is
    run again until it is through:

        >>> documents = [[1, 2, 3], [4], [5, 6]]
        >>> with IndexedDatasetBuilder("/tmp/example", dtype="uint16", resume=True) as builder:
        ...     for document in documents[builder.written.num_documents :]:
        ...         builder.add_document(document, [len(document)])

    Args:
        prefix: path without `.bin` or `.idx`; its folder is created.
        dtype: uint8, int8, uint16, int16, int32, int64, float32 or float64.
        multimodal: whether each sequence carries a mode.
        resume: go on after the documents that an earlier builder, killed or aborted, left in its
            journal. Where there is no journal (also where the dataset is finished) it begins anew, as
            a builder without `resume` always does; that one discards a journal.
        vocabulary_fingerprint: `Vocabulary.fingerprint` of the ids, kept in the sidecar.
        provenance: what to remember of where the data came from, kept in the sidecar: a mapping that
            JSON can hold. The key `merged` is taken by `add_index`.

    Raises:
        ValueError: the journal to resume from was begun for another dtype, kind or prefix.
        VocabularyMismatchError: it was begun with another vocabulary.
        CorruptDataError: it, or the ids that it acknowledges, are damaged; nothing is touched.
        UsageError: another builder is at work on the prefix.
    """

    def __init__(
        self,
        prefix: str | Path,
        *,
        dtype: npt.DTypeLike = "int32",
        multimodal: bool = False,
        resume: bool = False,
        vocabulary_fingerprint: str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.prefix = Path(prefix)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.multimodal = multimodal
        self.resume = resume
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._writer = DatasetWriter(
            self.prefix,
            self.dtype.name,
            multimodal,
            resume=resume,
            vocabulary_fingerprint=vocabulary_fingerprint,
            provenance=json.dumps(dict(provenance), allow_nan=False) if provenance else None,
        )
        self._written: Written | None = None

    @property
    def written(self) -> Written:
        """Documents ended, sequences and ids added so far, those that were resumed from included."""
        return self._written or Written(*self._writer.counts())

    @property
    def durable(self) -> Written:
        """What is acknowledged: a builder that resumes will find at least this."""
        return self._written or Written(*self._writer.durable())

    def add_item(
        self, ids: npt.ArrayLike, mode: int = 0, *, media: MediaReference | None = None
    ) -> None:
        """Adds one sequence to the open document; `end_document` ends it.

        With `media` the ids are placeholders for what it names; their mode gets the bit `MEDIA`.
        """
        if media is not None:
            mode = int(_modes([mode])[0]) | MEDIA
            self._writer.add_referring_sequence(self._array(ids), mode, media.to_text())
            return
        if not self._writer.add_plain_sequence(ids, mode):
            self._writer.add_sequence(self._array(ids), int(_modes([mode])[0]))

    def end_document(self) -> None:
        """Ends the open document, which may be empty."""
        self._writer.end_document()

    def add_document(
        self,
        ids: npt.ArrayLike,
        lengths: npt.ArrayLike,
        modes: npt.ArrayLike | None = None,
        *,
        media: Sequence[MediaReference | None] | None = None,
    ) -> None:
        """Adds one document: `ids` of all its sequences back to back; `lengths`, `modes`, `media` of each."""
        if media is not None:
            self.add_documents(ids, lengths, [len(media)], modes, media=media)
        elif not self._writer.add_plain_document(ids, lengths, modes):
            lengths = _counts(lengths)
            self._add(self._array(ids), lengths, _counts([len(lengths)]), modes)

    def add_documents(
        self,
        flat: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        document_lengths: npt.ArrayLike | None = None,
        modes: npt.ArrayLike | None = None,
        *,
        media: Sequence[MediaReference | None] | None = None,
    ) -> None:
        """Adds many documents at once, the fastest way.

        An Arrow array (pyarrow's, chunked or not, or any object with its PyCapsule interface) goes as it
        is, without `lengths`: a row is a document, a list of ids, or of lists of ids for several
        sequences. Each of its chunks is added whole or not at all.

        Args:
            flat: ids of all sequences back to back, or an Arrow array.
            lengths: length of each sequence, in ids.
            document_lengths: how many of these sequences each document has; one each by default.
            modes: mode byte of each sequence; 0 by default.
            media: what each sequence's ids are placeholders for, None for those that are none. The others'
                modes get the bit `MEDIA`.

        Raises:
            ValueError: numbers that do not add up, an id that does not fit the dtype, a null.
        """
        if lengths is not None:
            lengths = _counts(lengths)
            counts = (
                np.ones_like(lengths) if document_lengths is None else _counts(document_lengths)
            )
            modes, texts = _referring(len(lengths), modes, media)
            self._add(self._array(flat), lengths, counts, modes, texts)
        elif is_arrow(flat):
            if document_lengths is not None:
                raise TypeError("the rows of an Arrow array are the documents; use lists of lists")
            self._add_arrow(flat, modes, media)
        else:
            raise TypeError("lengths are missing; only an Arrow array of lists goes without")

    def add_index(self, prefix: str | Path) -> None:
        """Appends all documents of a published dataset of the same dtype and kind.

        Its checksums are taken over, its ids are not read. Raises `VocabularyMismatchError` if the
        sidecars of two datasets appended here name different vocabularies.
        """
        self._writer.add_dataset(Path(prefix))

    def flush(self) -> Written:
        """Acknowledges all documents that have ended: makes them durable, and counts them.

        It happens by itself after every 64 MiB of ids. Each time costs two waits for the disk.

        Raises:
            ValueError: the builder was made without `resume=True`.
            OSError: the disk failed or is full; what was acknowledged before stays so.
        """
        return Written(*self._writer.flush())

    def finalize(self) -> Written:
        """Makes everything durable and publishes it: the pair replaces an old one as a whole.

        Raises:
            ValueError: the last document was not ended; end it and finalize again.
            OSError: the disk failed or is full. With `resume=True` the documents are kept for another
                builder, else they are gone. If it failed at the very last, the new pair is in place.
        """
        self._written = Written(*self._writer.finish())
        return self._written

    def abort(self) -> None:
        """Stops: nothing is published, and what was there before stays. Harmless when finished.

        With `resume=True` what is acknowledged stays for another builder, which may also `discard` it.
        """
        self._writer.abort()

    def discard(self) -> None:
        """Aborts, and gives up what a journal has acknowledged as well. Harmless when finished."""
        self._writer.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._writer.is_open() and error is None:
                self.finalize()
            elif self._writer.is_open() and self.resume:
                self.flush()
        except Exception as unkept:
            if error is None:
                raise
            error.add_note(f"documents since the last flush could not be kept: {unkept}")
        finally:
            self.abort()

    def _add_arrow(
        self,
        source: Any,
        modes: npt.ArrayLike | None,
        media: Sequence[MediaReference | None] | None,
    ) -> None:
        chunks = list(arrow_rows(source))
        num_sequences = sum(len(rows.lengths) for rows in chunks)
        modes, texts = _referring(num_sequences, modes, media)
        if modes is not None and len(modes) != num_sequences:
            raise ValueError(f"there are {num_sequences} sequences, but {len(modes)} modes")
        first = 0
        for rows in chunks:
            end = first + len(rows.lengths)
            these = None if modes is None else modes[first:end]
            inside = [(i - first, text) for i, text in texts if first <= i < end]
            self._add(self._array(rows.flat), rows.lengths, rows.document_lengths, these, inside)
            first = end

    def _add(
        self,
        ids: npt.NDArray[Any],
        lengths: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        modes: npt.ArrayLike | None,
        texts: Sequence[tuple[int, str]] = (),
    ) -> None:
        modes = None if modes is None else _modes(modes)
        self._writer.add_documents(ids, lengths, counts, modes, texts)

    def _array(self, ids: npt.ArrayLike) -> npt.NDArray[Any]:
        """The ids as a flat array of the dataset's dtype, or of int64 for the writer to check."""
        array = np.asarray(ids)
        if array.dtype != self.dtype:
            array = self._converted(array)
        return np.require(array, requirements=("C", "A")).reshape(-1)

    def _converted(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.size == 0:
            return array.astype(self.dtype)
        if self.dtype.kind == "f":
            if array.dtype.kind == "f" and np.can_cast(array.dtype, self.dtype):
                return array.astype(self.dtype)
        elif array.dtype.kind == "i":
            return array.astype(np.int64, copy=False)
        elif array.dtype.kind == "u":
            if array.max() > np.iinfo(np.int64).max:
                raise ValueError(f"token {array.max()} does not fit 64 signed bits")
            return array.astype(np.int64)
        raise TypeError(f"values of {array.dtype} do not go into a dataset of {self.dtype}")


def merge_datasets(output: str | Path, prefixes: Sequence[str | Path]) -> Written:
    """Joins datasets into one, in the order given, without reading them into memory.

    The bytes are those of `add_index` called for each prefix in turn. `output` may be one of them: a
    plain Megatron dataset merged into itself gets a sidecar. Checksums are taken over from the parts.

    Raises:
        ValueError: no prefixes, or datasets of different dtype or kind.
        CorruptDataError: a part contradicts its format.
        VocabularyMismatchError: the sidecars of two parts name different vocabularies.
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    return Written(*_merge_datasets(output, [Path(prefix) for prefix in prefixes]))


def _counts(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, not {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int64).reshape(-1)


def _modes(values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    array = np.asarray(values)
    if array.size:
        if array.dtype.kind not in "iu":
            raise TypeError(f"modes must be integers, not {array.dtype}")
        if array.min() < 0 or array.max() > np.iinfo(np.uint8).max:
            raise ValueError(f"modes must be 0..255, found {array.min()}..{array.max()}")
    return np.ascontiguousarray(array, dtype=np.uint8).reshape(-1)


def _referring(
    num_sequences: int,
    modes: npt.ArrayLike | None,
    media: Sequence[MediaReference | None] | None,
) -> tuple[npt.NDArray[np.uint8] | None, list[tuple[int, str]]]:
    """Modes with the bit `MEDIA` where it belongs, and the text for each such sequence."""
    own = None if modes is None else _modes(modes)
    if media is None:
        return own, []
    if len(media) != num_sequences:
        raise ValueError(f"there are {num_sequences} sequences, but {len(media)} entries of media")
    flags = np.array([MEDIA if entry else 0 for entry in media], np.uint8)
    texts = [(i, entry.to_text()) for i, entry in enumerate(media) if entry]
    return flags if own is None else own | flags, texts
