# Signatures of the native extension; checked against the binary by mypy.stubtest.
__version__: str

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

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
    def transform(
        self,
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
        prefixes: Sequence[str | Path],
        weights: Sequence[float],
        max_epochs: Sequence[int | None],
        objective: Objective,
        *,
        seed: int,
        window_documents: int,
        bin_tokens: int,
        global_batch_bins: int,
        overlong: str,
        rank: int,
        world_size: int,
        pad_id: int,
        vocabulary_size: int | None,
        prefetch_batches: int,
    ) -> BatchLoader: ...
    def next_batch(self) -> dict[str, Any] | None: ...
    def state(self) -> tuple[int, int, int, int, str]: ...
    def load_state(
        self, version: int, seed: int, window: int, bin: int, fingerprint: str
    ) -> None: ...
    def stop(self) -> None: ...
    @property
    def dry_point(self) -> tuple[int, str] | None: ...
    @property
    def num_source_documents(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
