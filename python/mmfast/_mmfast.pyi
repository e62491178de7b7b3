# Signatures of the native extension; checked against the binary by mypy.stubtest.
from collections.abc import Sequence
from os import PathLike
from typing import Any, final

import numpy as np
import numpy.typing as npt

from mmfast.sampling.inputs import DrawInputs

__all__ = [
    "BatchLoader",
    "DatasetReader",
    "DatasetWriter",
    "Objective",
    "__build__",
    "__version__",
    "draw_rows",
    "gather",
    "megatron_indices",
    "megatron_samples",
    "merge_datasets",
    "pack_lengths",
]

__version__: str
# Profile, target and compiler, for people: `release x86_64-linux, rustc 1.95.0 (…)`.
__build__: str

@final
class Objective:
    @staticmethod
    def next_token(
        *, image_noise_prob: float, code_ranges: Sequence[tuple[int, int]]
    ) -> Objective: ...
    @staticmethod
    def cm3(
        *,
        spans: str,
        span_rate: float,
        min_spans: int,
        max_spans: int,
        whole_segment_prob: float,
        whole_segment_modality: int | None,
        sentinel_loss_weight: float,
        image_noise_prob: float,
        code_ranges: Sequence[tuple[int, int]],
        sentinels: Sequence[int],
        eoss: int,
        separators: Sequence[int],
    ) -> Objective: ...
    def with_caption_dropout(
        self, /, *, probability: float, special: Sequence[int], ends: Sequence[int]
    ) -> Objective: ...
    def transform(
        self,
        /,
        ids: npt.NDArray[np.int64],
        lengths: Sequence[int],
        modes: Sequence[int],
        *,
        max_tokens: int,
        seed: int,
        source: int,
        epoch: int,
        document: int,
    ) -> tuple[
        npt.NDArray[np.int64],
        npt.NDArray[np.int64],
        npt.NDArray[np.uint8],
        npt.NDArray[np.float32],
        int,
    ]: ...

@final
class BatchLoader:
    def __new__(
        cls,
        /,
        readers: Sequence[DatasetReader],
        weights: Sequence[float],
        max_epochs: Sequence[int | None],
        groups: Sequence[npt.NDArray[np.uint64] | int | None],
        objective: Objective,
        *,
        seed: int,
        window_documents: int,
        packing: str,
        cut_at: str,
        bin_tokens: int,
        max_document_tokens: int | None,
        global_batch_bins: int,
        overlong: str,
        rank: int,
        world_size: int,
        pad_id: int,
        vocabulary_size: int | None,
        prefetch_batches: int,
    ) -> BatchLoader: ...
    def next_batch(self, /) -> dict[str, Any] | None: ...
    def next_into(self, /, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Any] | None: ...
    def num_wanted(self, /) -> int: ...
    def lend(self, /, owner: Any, arrays: dict[str, npt.NDArray[Any]]) -> None: ...
    def take_turns(self, /, turn: int, num_turns: int) -> None: ...
    def state(self, /) -> tuple[int, int, int, int, str]: ...
    def load_state(
        self, /, version: int, seed: int, window: int, bin_index: int, fingerprint: str
    ) -> None: ...
    def stop(self, /) -> None: ...
    @property
    def dry_point(self) -> tuple[int, str] | None: ...
    @property
    def num_source_documents(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

@final
class DatasetWriter:
    def __new__(
        cls,
        /,
        prefix: str | PathLike[str],
        dtype: str,
        multimodal: bool,
        *,
        resume: bool = False,
        vocabulary_fingerprint: str | None = None,
        provenance: str | None = None,
    ) -> DatasetWriter: ...
    def add_sequence(self, /, ids: npt.NDArray[Any], mode: int) -> None: ...
    def add_referring_sequence(
        self, /, ids: npt.NDArray[Any], mode: int, reference: str
    ) -> None: ...
    # These two take any arguments, and say whether they could do without converting them.
    def add_plain_sequence(self, /, ids: Any, mode: Any) -> bool: ...
    def add_plain_document(self, /, ids: Any, lengths: Any, modes: Any = None) -> bool: ...
    def end_document(self, /) -> None: ...
    def add_documents(
        self,
        /,
        ids: npt.NDArray[Any],
        lengths: npt.NDArray[np.int64],
        sequences_per_document: npt.NDArray[np.int64],
        modes: npt.NDArray[np.uint8] | None,
        references: Sequence[tuple[int, str]],
    ) -> None: ...
    def add_dataset(self, /, prefix: str | PathLike[str]) -> None: ...
    def flush(self, /) -> tuple[int, int, int]: ...
    def finish(self, /) -> tuple[int, int, int]: ...
    def abort(self, /) -> None: ...
    def discard(self, /) -> None: ...
    def is_open(self, /) -> bool: ...
    def durable(self, /) -> tuple[int, int, int]: ...
    def counts(self, /) -> tuple[int, int, int]: ...

@final
class DatasetReader:
    def __new__(
        cls,
        /,
        prefixes: Sequence[str | PathLike[str]],
        *,
        verify: str,
        access: str,
        max_open: int,
    ) -> DatasetReader: ...
    def slice(self, /, start: int, stop: int) -> DatasetReader: ...
    def shuffled(self, /, seed: int) -> DatasetReader: ...
    @property
    def num_documents(self, /) -> int: ...
    @property
    def num_sequences(self, /) -> int: ...
    @property
    def num_tokens(self, /) -> int: ...
    @property
    def dtype(self, /) -> str: ...
    @property
    def multimodal(self, /) -> bool: ...
    @property
    def access(self, /) -> list[tuple[str, int]]: ...
    @property
    def findings(self, /) -> list[str]: ...
    @property
    def tokens(self, /) -> npt.NDArray[Any] | None: ...
    @property
    def sidecar(self, /) -> tuple[int, str, str | None, str, int] | None: ...
    def verify(self, /, level: str) -> None: ...
    def damaged_blocks(
        self, /, start: int, stop: int
    ) -> list[tuple[int, tuple[int, int], tuple[int, int], str]]: ...
    def fingerprint(self, /) -> int: ...
    def sequence(
        self, /, index: int, offset: int = 0, length: int | None = None
    ) -> npt.NDArray[Any]: ...
    def mode(self, /, index: int) -> int: ...
    def document(self, /, index: int) -> list[tuple[npt.NDArray[Any], int, str | None]]: ...
    def sequence_lengths(self, /) -> npt.NDArray[np.int32]: ...
    def document_indices(self, /) -> npt.NDArray[np.int64]: ...
    def sequence_modes(self, /) -> npt.NDArray[np.uint8] | None: ...
    def scan(
        self, /, start: int, stop: int, allowed: tuple[int, int] | None = None
    ) -> tuple[tuple[int, int] | None, list[int], list[int]]: ...

def merge_datasets(
    output: str | PathLike[str], prefixes: Sequence[str | PathLike[str]]
) -> tuple[int, int, int]: ...
def gather(
    reader: DatasetReader,
    indices: npt.ArrayLike,
    *,
    documents: bool = False,
    out: npt.NDArray[Any] | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]] | None: ...
def megatron_indices(
    reader: DatasetReader,
    *,
    start: int,
    stop: int,
    sequence_length: int,
    num_samples: int | None,
    seed: int,
    extra_token: bool,
    drop_last: bool,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint32], int, bool]: ...
def megatron_samples(
    reader: DatasetReader,
    document_index: npt.NDArray[np.int32],
    bounds: npt.NDArray[np.int32],
    *,
    num_extra: int,
    tokens: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    loss_mask: npt.NDArray[np.float32],
) -> None: ...
def pack_lengths(
    lengths: npt.NDArray[np.uint32], capacity: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]: ...
def draw_rows(
    inputs: DrawInputs, num_threads: int, is_single: bool
) -> (
    tuple[
        npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.uint8]
    ]
    | None
): ...
