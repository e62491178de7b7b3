"""Random views of images, each a pure function of (seed, purpose, index).

The same draws serve training of a tokenizer (a new view every step) and preparation of a dataset
(`copies` views of each record, encoded once and for all: the offline augmentation of LlamaGen, which
stores ten crops of every image; Sun et al. 2024, arXiv:2406.06525).
"""

import dataclasses
import functools
import hashlib
import math

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

FloatArray = npt.NDArray[np.float64]
NUM_AFFINE_DRAWS = 5


def keyed_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A counter-based generator (Philox4x64-10) named by seed and purpose, set to one index.

    At most three index numbers, each in 0..2^64-1; neighbouring indices give independent streams.
    """
    if len(index) > 3:
        raise ValueError("an index has at most three numbers")
    counter = np.array([0, *index, *[0] * (3 - len(index))], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=counter))


@functools.lru_cache(maxsize=64)
def _key(seed: int, purpose: str) -> npt.NDArray[np.uint64]:
    digest = hashlib.sha256(f"{purpose}\0{seed}".encode()).digest()
    return np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffineRange:
    """Widths of a small random affine change; every draw is uniform and centred on no change.

    Attributes:
        rotation_degrees: up to this angle either way.
        scale: up to this fraction larger or smaller, along each side independently.
        shift: up to this fraction of the side, each way.
    """

    rotation_degrees: float = 8.0
    scale: float = 0.1
    shift: float = 0.06


def affine_matrices(draws: FloatArray, ranges: AffineRange) -> torch.Tensor:
    """Uniform draws `[B,5]` in [0, 1) to source-from-target matrices `[B,2,3]` in [-1, 1] coordinates."""
    centred = 2.0 * draws - 1.0
    angle = centred[:, 0] * math.radians(ranges.rotation_degrees)
    scale_x = 1.0 / (1.0 + centred[:, 1] * ranges.scale)
    scale_y = 1.0 / (1.0 + centred[:, 2] * ranges.scale)
    # Coordinates span 2 from edge to edge, hence the factor on the shift.
    shift_x, shift_y = 2 * ranges.shift * centred[:, 3], 2 * ranges.shift * centred[:, 4]
    rows = [
        [np.cos(angle) * scale_x, -np.sin(angle) * scale_y, shift_x],
        [np.sin(angle) * scale_x, np.cos(angle) * scale_y, shift_y],
    ]
    return torch.from_numpy(np.array(rows).transpose(2, 0, 1).copy()).to(torch.float32)


def warp(x: torch.Tensor, source_from_target: torch.Tensor) -> torch.Tensor:
    """Images `[B,C,H,W]` seen through matrices `[B,2,3]`; outside its edge an image goes on as its border."""
    grid = functional.affine_grid(
        source_from_target.to(x.device), list(x.shape), align_corners=False
    )
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
