"""What a document is made of: segments, each a run of ids of one modality.

A segment is one Megatron sequence on disk. Its mode byte holds the modality in bits 0-4; bit 5 (0x20) says
that its ids are placeholders for media, bit 6 (0x40) that it is context. Neither carries loss. Bit 7 is free
for recipes.
"""

import dataclasses
from typing import Any

import numpy.typing as npt

TEXT, IMAGE, VIDEO, AUDIO = range(4)
MODALITY_NAMES = ("text", "image", "video", "audio")
MODALITY_BITS = 0x1F
MEDIA = 0x20
NO_LOSS = 0x40


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A run of ids of one modality.

    Attributes:
        ids: token ids `[L]`, read-only, in the dataset's dtype.
        mode: mode byte, 0..255; 0 is text with loss.
        media: text of what the ids stand for (`MediaReference.from_text` reads it), None if they are
            themselves what is meant.
    """

    ids: npt.NDArray[Any]
    mode: int = TEXT
    media: str | None = None

    @property
    def modality(self) -> int:
        """0 text, 1 image, 2 video, 3 audio, 4..31 as a recipe defines."""
        return self.mode & MODALITY_BITS

    @property
    def has_loss(self) -> bool:
        """Whether training asks the model to predict these ids."""
        return not self.mode & (NO_LOSS | MEDIA)


def modality_name(modality: int) -> str:
    """`text`, `image`, `video`, `audio`, or `modality <n>` for those that recipes define."""
    if modality < len(MODALITY_NAMES):
        return MODALITY_NAMES[modality]
    return f"modality {modality}"
