"""Padding media to sizes that a tokenizer can code, and cutting the padding off again.

As NVIDIA/Cosmos-Tokenizer does it: sides to multiples of 16 whatever the tokenizer's factor, centred, with
black; frames to 1 + a multiple of 8, by repeating the first and the last. Where padding cannot be shared
evenly, the larger part comes after.

T frames, H W pixels.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

SPATIAL_MULTIPLE = 16
TEMPORAL_MULTIPLE = 8


class Crop(NamedTuple):
    """Where the media lies in its padded form: half-open ranges of frames, rows and columns."""

    frame_start: int
    top: int
    left: int
    frame_end: int
    bottom: int
    right: int

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The part of `[...,T,H,W]`."""
        return x[
            ..., self.frame_start : self.frame_end, self.top : self.bottom, self.left : self.right
        ]


def pad_video(x: torch.Tensor, *, fill: float = -1.0) -> tuple[torch.Tensor, Crop]:
    """`[B,C,T,H,W]` padded, and where it lies in the result.

    Args:
        x: pixels.
        fill: value of black, -1 for pixels in [-1, 1].
    """
    if x.ndim != 5 or 0 in x.shape:
        raise ValueError(f"video must be [B,C,T,H,W] with nothing empty, not {list(x.shape)}")
    num_frames, height, width = x.shape[2:]
    front, back = _both_sides(-(num_frames - 1) % TEMPORAL_MULTIPLE)
    above, below = _both_sides(-height % SPATIAL_MULTIPLE)
    before, after = _both_sides(-width % SPATIAL_MULTIPLE)
    x = functional.pad(x, (before, after, above, below), value=fill)
    x = torch.cat(
        (
            x[:, :, :1].expand(-1, -1, front, -1, -1),
            x,
            x[:, :, -1:].expand(-1, -1, back, -1, -1),
        ),
        dim=2,
    )
    crop = Crop(front, above, before, front + num_frames, above + height, before + width)
    return x, crop


def pad_image(x: torch.Tensor, *, fill: float = -1.0) -> tuple[torch.Tensor, Crop]:
    """`[B,C,H,W]` padded, and where it lies in the result, as one frame."""
    if x.ndim != 4:
        raise ValueError(f"images must be [B,C,H,W], not {list(x.shape)}")
    padded, crop = pad_video(x[:, :, None], fill=fill)
    return padded[:, :, 0], crop


def _both_sides(amount: int) -> tuple[int, int]:
    return amount // 2, amount - amount // 2
