"""Documents in Arrow arrays, taken without copying their ids.

Each row of a list array is a document: a list of ids is a document of one sequence, a list of lists one of
several. pyarrow is imported only when such an array is met.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Rows(NamedTuple):
    """Consecutive rows, as `IndexedDatasetBuilder.add_documents` takes them."""

    flat: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    document_lengths: npt.NDArray[np.int64]


def is_arrow(source: Any) -> bool:
    """Whether `source` shows itself through the Arrow PyCapsule interface."""
    return hasattr(source, "__arrow_c_array__") or hasattr(source, "__arrow_c_stream__")


def arrow_rows(source: Any) -> Iterator[Rows]:
    """The rows of an Arrow array (or of one of another library's), chunk by chunk.

    Raises:
        ValueError: a row, or an id in it, is null; nothing has been given out then.
        TypeError: the array holds something else than lists of numbers.
        ImportError: pyarrow is not installed.
    """
    import pyarrow as pa

    if not isinstance(source, pa.Array | pa.ChunkedArray):
        is_stream = hasattr(source, "__arrow_c_stream__")
        source = pa.chunked_array(source) if is_stream else pa.array(source)
    chunks = source.chunks if isinstance(source, pa.ChunkedArray) else [source]
    if not _is_list(source.type):
        raise TypeError(f"an Arrow array of lists of ids is expected, not of {source.type}")
    first_row = 0
    for chunk in chunks:
        _require_no_nulls(chunk, first_row)
        first_row += len(chunk)
    for chunk in chunks:
        yield _rows(chunk)


def _rows(chunk: Any) -> Rows:
    sequences = chunk.flatten()
    if _is_list(sequences.type):
        return Rows(_numbers(sequences.flatten()), _lengths(sequences), _lengths(chunk))
    return Rows(_numbers(sequences), _lengths(chunk), np.ones(len(chunk), np.int64))


def _is_list(type_: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
    )


def _lengths(lists: Any) -> npt.NDArray[np.int64]:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(lists.type):
        return np.full(len(lists), lists.type.list_size, np.int64)
    return np.asarray(np.diff(lists.offsets.to_numpy()), np.int64)


def _numbers(values: Any) -> npt.NDArray[Any]:
    import pyarrow as pa

    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise TypeError(f"an Arrow array of lists of ids is expected, not of {values.type}")
    return np.asarray(values.to_numpy(zero_copy_only=True))


def _require_no_nulls(chunk: Any, first_row: int) -> None:
    """Names the first row with a null at any depth."""
    levels: list[npt.NDArray[np.int64]] = []
    values = chunk
    while True:
        if values.null_count:
            rows = np.arange(first_row, first_row + len(chunk))
            for lengths in levels:
                rows = np.repeat(rows, lengths)
            row = rows[int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))]
            what = "is null" if values is chunk else "holds a null"
            raise ValueError(f"row {row} of the Arrow array {what}; fill it or drop the row")
        if not _is_list(values.type):
            return
        levels.append(_lengths(values))
        values = values.flatten()
