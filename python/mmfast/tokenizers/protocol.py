"""What a visual tokenizer is to the rest of the package, and how one is loaded from a folder.

A tokenizer turns pixels into one or more grids of integer codes and back. A tokenizer's folder holds a
`config.json` whose `kind`, or transformers' `model_type`, names the class; weights are safetensors, so that
loading runs no code. Cosmos tokenizers are TorchScript, which is code: they load only where the caller says
that the user named the folder.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image

from mmfast.errors import UsageError
from mmfast.files import read_json_object

CONFIG_FILE = "config.json"
_CLASS_OF_KIND = {
    "fsq": "mmfast.tokenizers.fsq:FsqImageTokenizer",
    "emu3": "mmfast.tokenizers.emu3:Emu3ImageTokenizer",
    "cosmos": "mmfast.tokenizers.cosmos:CosmosTokenizer",
}
# Published folders say what they are in transformers' own field.
_KIND_OF_MODEL_TYPE = {"Emu3VisionVQ": "emu3", "emu3_vqgan": "emu3", "emu3": "emu3"}
TORCHSCRIPT_FILES = ("encoder.jit", "decoder.jit")


@runtime_checkable
class ImageTokenizer(Protocol):
    """Pixels to codes and back. B batch, C channels, H and W pixels, h and w codes.

    Attributes:
        levels: number of code grids that one image has.
        codebook_sizes: number of codes of each level.
        downsample: pixels per code along each side; H and W must be multiples of it.
        channels: 1 for grey, 3 for RGB.
        image_size: (H, W) it was trained at, the default size for preparing data.
        resize: how `preprocess` brings an image to size, e.g. `center-crop`.
        fingerprint: 16 hexadecimal digits of weights and configuration.
    """

    @property
    def levels(self) -> int:
        """Code grids per image."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes per level."""

    @property
    def downsample(self) -> int:
        """Pixels per code along each side."""

    @property
    def channels(self) -> int:
        """1 or 3."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""

    @property
    def resize(self) -> str:
        """Resize policy."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits."""

    def preprocess(self, image: Image.Image, size: int | tuple[int, int]) -> torch.Tensor:
        """A Pillow image to float32 `[C,H,W]` in [-1, 1] of the given size (or height, width)."""

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`[B,C,H,W]` in [-1, 1] to one int64 `[B,h,w]` per level."""

    def decode(self, codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """One int64 `[B,h,w]` per level to `[B,C,H,W]`, nominally in [-1, 1]."""

    def save(self, folder: Path) -> None:
        """Writes a folder that `load_image_tokenizer` reads back to an equal tokenizer."""


def load_image_tokenizer(
    folder: Path | str, *, device: str = "cpu", allow_torchscript: bool = False
) -> ImageTokenizer:
    """Loads the tokenizer in `folder`, of whatever kind its `config.json` says.

    Args:
        folder: a tokenizer of ours, Emu3's in any published layout, or a Cosmos tokenizer.
        device: where it runs.
        allow_torchscript: True only for a folder that the user named: TorchScript runs what it says.

    Raises:
        UsageError: no such folder, or nothing there that looks like a tokenizer, or an unknown kind.
        CorruptDataError: damaged configuration or weights.
    """
    folder = Path(folder)
    if is_torchscript_folder(folder):
        if not allow_torchscript:
            raise UsageError(
                f"{folder} holds TorchScript, which can run code; name the folder yourself if you trust it"
            )
        kind: Any = "cosmos"
    else:
        config = read_tokenizer_config(folder)
        kind = config.get("kind") or _KIND_OF_MODEL_TYPE.get(str(config.get("model_type")))
    if kind not in _CLASS_OF_KIND:
        raise UsageError(
            f"{folder / CONFIG_FILE}: unknown tokenizer kind {kind!r}; known: {', '.join(_CLASS_OF_KIND)}"
        )
    module, _, name = _CLASS_OF_KIND[kind].partition(":")
    tokenizer: ImageTokenizer = getattr(import_module(module), name).from_pretrained(
        folder, device=device
    )
    return tokenizer


def is_torchscript_folder(folder: Path) -> bool:
    """Whether a tokenizer's folder holds programs in place of weights."""
    return any((folder / name).is_file() for name in TORCHSCRIPT_FILES)


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a tokenizer's folder."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no image tokenizer ({CONFIG_FILE} is missing); "
            "`mmfast tokenizer train-image` makes one"
        )
    return read_json_object(path)
