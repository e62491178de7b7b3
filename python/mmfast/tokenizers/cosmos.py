"""NVIDIA's discrete Cosmos tokenizers, from the TorchScript files they are published as.

    nvidia/Cosmos-0.1-Tokenizer-DV8x16x16/encoder.jit decoder.jit    video, 8 frames and 16x16 pixels a code
    nvidia/Cosmos-0.1-Tokenizer-DI16x16/…                            images

TorchScript is a program: `torch.jit.load` runs what the file says. So such a folder is loaded only when
the user names it, never because a model or dataset points to it.

A code is an index into FSQ levels (8,8,8,5,5,5): 64,000 codes, mixed radix, first channel fastest, which is
the map of `FiniteScalarQuantizer`. The encoder also gives the quantised values; quantising those once more
gives other codes, so nothing here does. Facts: NVIDIA/Cosmos-Tokenizer `cosmos_tokenizer/`, NVIDIA/NeMo
`nemo/collections/common/video_tokenizers/`.

Dimensions: B batch, T frames, H W pixels, t h w codes.
"""

import hashlib
import re
import shutil
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image

from mmfast.errors import CorruptDataError, UsageError
from mmfast.files import read_json_object, write_json
from mmfast.tokenizers.fsq import FiniteScalarQuantizer
from mmfast.tokenizers.images import tensor_from_pixels
from mmfast.tokenizers.padding import SPATIAL_MULTIPLE, Crop, pad_video
from mmfast.tokenizers.protocol import TORCHSCRIPT_FILES, is_torchscript_folder

KIND = "cosmos"
FSQ_LEVELS = (8, 8, 8, 5, 5, 5)
NUM_CODES = 64_000
ENCODER_FILE, DECODER_FILE = TORCHSCRIPT_FILES
WINDOW_FRAMES = 17
_VARIANT = re.compile(r"\b(D[IV])(?:(\d+)x)?(\d+)x(\d+)\b")


class WindowCodes(NamedTuple):
    """Codes of one window of a video, int64 `[B,t,h,w]`, and where its frames lie in the decoded window."""

    codes: torch.Tensor
    crop: Crop


def cosmos_quantizer() -> FiniteScalarQuantizer:
    """The map between latents, values and codes."""
    return FiniteScalarQuantizer(FSQ_LEVELS)


class CosmosTokenizer:
    """A discrete Cosmos tokenizer as an `ImageTokenizer`, and for video.

    Args:
        folder: holds `encoder.jit`, `decoder.jit` or both; each loads, and runs, on first use.
        variant: `DI8x8`, `DV8x16x16`, …; read from the folder's name when None.
        device: where both run.

    Raises:
        UsageError: no TorchScript file there, or a variant that cannot be known.
    """

    levels = 1
    codebook_sizes = (NUM_CODES,)
    channels = 3
    image_size = (512, 512)
    resize = "stretch"

    def __init__(
        self, folder: Path | str, *, variant: str | None = None, device: str = "cpu"
    ) -> None:
        self.folder = Path(folder)
        if not is_torchscript_folder(self.folder):
            raise UsageError(
                f"{self.folder} holds neither {ENCODER_FILE} nor {DECODER_FILE}; download these two files of, "
                "say, nvidia/Cosmos-0.1-Tokenizer-DV8x16x16"
            )
        self.variant = variant or _variant_of(self.folder)
        match = _VARIANT.fullmatch(self.variant)
        if match is None or (match[1] == "DV") != (match[2] is not None) or match[3] != match[4]:
            raise UsageError(
                f"{self.variant!r} is not a discrete Cosmos tokenizer like DI16x16 or DV8x16x16; continuous "
                "ones (CI, CV) have no codes"
            )
        self.is_video = match[1] == "DV"
        self.downsample = int(match[3])
        self.frames_per_code = int(match[2] or 1)
        self._device = device

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of variant and files, computed once."""
        digest = hashlib.sha256(self.variant.encode())
        for name in (ENCODER_FILE, DECODER_FILE):
            if (self.folder / name).is_file():
                with (self.folder / name).open("rb") as file:
                    digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    def preprocess(
        self, image: Image.Image, size: int | tuple[int, int] | None = None
    ) -> torch.Tensor:
        """A Pillow image to float32 `[3,H,W]` in [-1, 1], stretched (bicubic) to size; 512x512 when None."""
        size = self.image_size if size is None else size
        height, width = (size, size) if isinstance(size, int) else size
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        return tensor_from_pixels(torch.from_numpy(np.array(resized)).permute(2, 0, 1))

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`[B,3,H,W]` in [-1, 1], sides multiples of 16, to `[codes]`, int64 `[B,h,w]`.

        A video tokenizer sees each image as a video of one frame.
        """
        if x.ndim != 4:
            raise ValueError(f"images must be [B,3,H,W], not {list(x.shape)}")
        if not self.is_video:
            return [self._encode(x)]
        return [self._encode(x[:, :, None])[:, 0]]

    def decode(self, codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """`[codes]` with int64 `[B,h,w]` to float32 `[B,3,H,W]`, nominally in [-1, 1]."""
        if len(codes) != 1 or codes[0].ndim != 3:
            raise ValueError("codes must be a list of one [B,h,w] tensor")
        if not self.is_video:
            return self._decode(codes[0])
        return self._decode(codes[0][:, None])[:, :, 0]

    def encode_video(
        self, x: torch.Tensor, *, window_frames: int = WINDOW_FRAMES
    ) -> list[WindowCodes]:
        """Video of any size, `[B,3,T,H,W]` in [-1, 1], window by window, each padded by itself.

        Clips that are coded apart and put into one sequence show seams (nvidia-cosmos/cosmos-predict1, issue
        16); `window_frames=T` codes the whole clip at once.

        Raises:
            ValueError: the tokenizer codes images only, or a wrong shape.
        """
        if not self.is_video:
            raise ValueError(f"{self.variant} codes images; video needs a DV tokenizer")
        if window_frames < 1:
            raise ValueError(f"a window of {window_frames} frames is empty")
        windows = []
        for start in range(0, x.shape[2] if x.ndim == 5 else 0, window_frames):
            padded, crop = pad_video(x[:, :, start : start + window_frames])
            windows.append(WindowCodes(self._encode(padded), crop))
        if not windows:
            raise ValueError(f"video must be [B,3,T,H,W] with frames, not {list(x.shape)}")
        return windows

    def decode_video(self, windows: Sequence[WindowCodes]) -> torch.Tensor:
        """The windows of `encode_video` to float32 `[B,3,T,H,W]`, without their padding."""
        return torch.cat([crop.of(self._decode(codes)) for codes, crop in windows], dim=2)

    def save(self, folder: Path) -> None:
        """Copies the files and notes the variant, so that the copy may have any name."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (ENCODER_FILE, DECODER_FILE):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        facts = {"kind": KIND, "variant": self.variant, "fingerprint": self.fingerprint}
        write_json(folder / "config.json", facts)

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, device: str = "cpu") -> Self:
        """The tokenizer in `folder`; runs nothing yet.

        Raises:
            UsageError: as the class.
            CorruptDataError: the files are not those that `save` noted.
        """
        tokenizer = cls(folder, device=device)
        config = tokenizer.folder / "config.json"
        known = read_json_object(config).get("fingerprint") if config.is_file() else None
        if known is not None and known != tokenizer.fingerprint:
            raise CorruptDataError(
                f"{folder}: its files have fingerprint {tokenizer.fingerprint}, but config.json says {known}; "
                "one of them was changed, copy all again"
            )
        return tokenizer

    @torch.inference_mode()
    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != 3 or any(side % SPATIAL_MULTIPLE or not side for side in x.shape[-2:]):
            raise ValueError(
                f"pixels must have 3 channels and sides that are multiples of {SPATIAL_MULTIPLE}, not "
                f"{list(x.shape)}; `pad_image` brings them there"
            )
        # The last of the returned values is a loss that stands for nothing.
        indices = _run(self._encoder, x.to(self._device, self._dtype_of(self._encoder)))[0]
        codes: torch.Tensor = indices.to(torch.int64)
        if codes.numel() and (codes.min() < 0 or codes.max() >= NUM_CODES):
            raise CorruptDataError(
                f"{self.folder / ENCODER_FILE} gave codes {codes.min()}..{codes.max()}, outside "
                f"0..{NUM_CODES - 1}; is it another kind of tokenizer?"
            )
        return codes

    @torch.inference_mode()
    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        if codes.numel() and (codes.min() < 0 or codes.max() >= NUM_CODES):
            raise ValueError(f"codes {codes.min()}..{codes.max()} are outside 0..{NUM_CODES - 1}")
        pixels: torch.Tensor = _run(self._decoder, codes.to(self._device, torch.int32))
        return pixels.float()

    @cached_property
    def _encoder(self) -> Any:
        return _load(self.folder / ENCODER_FILE, self._device)

    @cached_property
    def _decoder(self) -> Any:
        return _load(self.folder / DECODER_FILE, self._device)

    @staticmethod
    def _dtype_of(module: Any) -> torch.dtype:
        """The type that the program computes in: bfloat16 as published."""
        floating = (p.dtype for p in module.parameters() if p.is_floating_point())
        return next(floating, torch.float32)


def _variant_of(folder: Path) -> str:
    """From `config.json` as `save` writes it, else from the nearest folder name that has one."""
    config = folder / "config.json"
    if config.is_file():
        noted = read_json_object(config).get("variant")
        if isinstance(noted, str):
            return noted
    for name in reversed(folder.resolve().parts):
        match = re.search(r"[CD][IV](?:\d+x)?\d+x\d+", name)
        if match:
            return match.group()
    raise UsageError(
        f"which Cosmos tokenizer {folder} holds cannot be read from its name; keep the published name, e.g. "
        "Cosmos-0.1-Tokenizer-DV8x16x16"
    )


def _load(path: Path, device: str) -> Any:
    if not path.is_file():
        raise UsageError(f"{path} is missing; download it from the tokenizer's page")
    try:
        with warnings.catch_warnings():
            # torch announces the end of TorchScript; Cosmos is published as nothing else.
            warnings.simplefilter("ignore")
            return torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise CorruptDataError(f"{path} is not a TorchScript file: {error}") from error


def _run(module: Any, argument: torch.Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return module(argument)
