"""The built-in image tokenizer: a convolutional autoencoder with finite scalar quantisation (FSQ).

    pixels [B,C,H,W] -> encoder -> latents [B,D,h,w] -> round each channel to its few levels
    -> code = mixed-radix number of the levels -> decoder -> pixels

FSQ follows Mentzer et al. 2023 (arXiv:2309.15505): channel d of the latent is squashed by tanh to the
open interval that holds `fsq_levels[d]` integers, rounded with a straight-through gradient, and scaled
to about [-1, 1]. There is no codebook to learn, hence none to collapse by itself; what can still
collapse is the encoder in front of it, whose activations run away and saturate the tanh. GroupNorm in
every block (it acts within one image, so codes do not depend on the rest of the batch) and a norm in
front of the projection to D channels prevent that.

Dimensions: B batch, C image channels, H W pixels, h w codes, D latent channels = len(fsq_levels).
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional

from mmfast.errors import CorruptDataError, FormatVersionError
from mmfast.files import write_bytes, write_json
from mmfast.tokenizers.images import (
    RESIZE_POLICIES,
    ResizePolicy,
    pixels_from_image,
    resize_image,
    tensor_from_pixels,
)
from mmfast.tokenizers.protocol import CONFIG_FILE, read_tokenizer_config

KIND = "fsq"
FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FsqConfig:
    """Shape of an FSQ tokenizer.

    Attributes:
        channels: 1 for grey, 3 for RGB.
        image_height, image_width: pixels it is trained at; any multiple of `downsample` can be encoded.
        fsq_levels: levels per latent channel; their product is the number of codes.
        stem_patch: side of the pixel square that enters as one position (1, 2 or 4). Full-resolution
            convolutions are what costs on large images.
        widths: channels at each resolution; each step after the first halves the resolution.
        num_blocks: residual blocks at each resolution.
        norm_groups: groups of GroupNorm; every width must be a multiple of it.
        resize: policy that brings an image to size.
    """

    channels: int = 3
    image_height: int = 256
    image_width: int = 256
    fsq_levels: tuple[int, ...] = (8, 8, 8, 16)
    stem_patch: int = 2
    widths: tuple[int, ...] = (64, 128, 256)
    num_blocks: int = 2
    norm_groups: int = 8
    resize: ResizePolicy = "center-crop"

    def __post_init__(self) -> None:
        # Configuration files give lists; a frozen value should hold tuples.
        object.__setattr__(self, "fsq_levels", tuple(self.fsq_levels))
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}")
        if not self.fsq_levels or min(self.fsq_levels) < 2:
            raise ValueError(f"fsq_levels {list(self.fsq_levels)} must be numbers of 2 or more")
        if self.num_codes > 2**24:
            raise ValueError(f"fsq_levels {list(self.fsq_levels)} make {self.num_codes:,} codes")
        if self.stem_patch not in (1, 2, 4):
            raise ValueError(f"stem_patch must be 1, 2 or 4, not {self.stem_patch}")
        if not self.widths or any(w < 1 or w % self.norm_groups for w in self.widths):
            raise ValueError(
                f"widths {list(self.widths)} must be multiples of norm_groups {self.norm_groups}"
            )
        if self.num_blocks < 1 or self.norm_groups < 1:
            raise ValueError("num_blocks and norm_groups must be 1 or more")
        if self.resize not in RESIZE_POLICIES:
            raise ValueError(f"resize must be one of {', '.join(RESIZE_POLICIES)}")
        for side in (self.image_height, self.image_width):
            if side < self.downsample or side % self.downsample:
                raise ValueError(
                    f"image size {side} is not a multiple of the downsampling factor {self.downsample}"
                )

    @property
    def downsample(self) -> int:
        """Pixels per code along each side."""
        return int(self.stem_patch * 2 ** (len(self.widths) - 1))

    @property
    def num_codes(self) -> int:
        """Size of the implied codebook."""
        return math.prod(self.fsq_levels)


class FiniteScalarQuantizer(nn.Module):
    """Rounds latents to `levels` values per channel; codes are mixed-radix, first channel fastest."""

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        num_levels = torch.tensor(list(levels), dtype=torch.int64)
        self.register_buffer("_num_levels", num_levels, persistent=False)
        place = torch.cumprod(torch.cat([torch.ones(1, dtype=torch.int64), num_levels[:-1]]), 0)
        self.register_buffer("_place", place, persistent=False)
        # With an even number of levels the integers lie half a step off centre; the shift makes a
        # zero latent fall on the interval's middle. The margin keeps tanh from reaching the border.
        half = (num_levels - 1).to(torch.float32) * (1 + 1e-3) / 2
        offset = torch.where(num_levels % 2 == 0, 0.5, 0.0)
        self.register_buffer("_half", half.view(-1, 1, 1), persistent=False)
        self.register_buffer("_offset", offset.view(-1, 1, 1), persistent=False)
        self.register_buffer("_shift", torch.atanh(offset / half).view(-1, 1, 1), persistent=False)
        self.register_buffer("_centre", (num_levels // 2).view(-1, 1, 1), persistent=False)

    _num_levels: torch.Tensor
    _place: torch.Tensor
    _half: torch.Tensor
    _offset: torch.Tensor
    _shift: torch.Tensor
    _centre: torch.Tensor

    def forward(self, z_bdhw: torch.Tensor) -> torch.Tensor:
        """Latents `[B,D,h,w]` to rounded values in about [-1, 1], gradient passed straight through."""
        bounded = torch.tanh(z_bdhw + self._shift) * self._half - self._offset
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / self._centre

    def codes_from_latents(self, z_bdhw: torch.Tensor) -> torch.Tensor:
        """Latents `[B,D,h,w]` to int64 codes `[B,h,w]`."""
        bounded = torch.tanh(z_bdhw + self._shift) * self._half - self._offset
        digits = bounded.round().to(torch.int64) + self._centre
        return (digits * self._place.view(-1, 1, 1)).sum(dim=1)

    def values_from_codes(self, codes_bhw: torch.Tensor) -> torch.Tensor:
        """int64 codes `[B,h,w]` to the values `[B,D,h,w]` that `forward` gives for them."""
        digits = codes_bhw[:, None] // self._place.view(-1, 1, 1) % self._num_levels.view(-1, 1, 1)
        return (digits - self._centre).to(torch.float32) / self._centre


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), same width in and out."""

    def __init__(self, width: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(norm_groups, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.norm_out = nn.GroupNorm(norm_groups, width)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B,width,H,W]` to the same shape."""
        y = self.conv_in(functional.silu(self.norm_in(x)))
        y = self.conv_out(functional.silu(self.norm_out(y)))
        out: torch.Tensor = x + y
        return out


class FsqImageTokenizer(nn.Module):
    """Encoder, quantiser and decoder; implements `ImageTokenizer` with one level of codes."""

    def __init__(self, config: FsqConfig) -> None:
        super().__init__()
        self.config = config
        groups, patch, widths = config.norm_groups, config.stem_patch, config.widths
        latent_width = len(config.fsq_levels)

        def blocks(width: int) -> list[nn.Module]:
            return [ResidualBlock(width, norm_groups=groups) for _ in range(config.num_blocks)]

        down: list[nn.Module] = [
            nn.PixelUnshuffle(patch),
            nn.Conv2d(config.channels * patch**2, widths[0], 3, padding=1),
            *blocks(widths[0]),
        ]
        for narrow, wide in itertools.pairwise(widths):
            down += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), *blocks(wide)]
        down += [
            nn.GroupNorm(groups, widths[-1]),
            nn.SiLU(),
            nn.Conv2d(widths[-1], latent_width, 1),
        ]
        self.encoder = nn.Sequential(*down)
        self.quantizer = FiniteScalarQuantizer(config.fsq_levels)

        up: list[nn.Module] = [
            nn.Conv2d(latent_width, widths[-1], 3, padding=1),
            *blocks(widths[-1]),
        ]
        for wide, narrow in itertools.pairwise(widths[::-1]):
            up += [
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(wide, narrow, 3, padding=1),
                *blocks(narrow),
            ]
        up += [
            nn.GroupNorm(groups, widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], config.channels * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
        ]
        self.decoder = nn.Sequential(*up)
        self._fingerprint: str | None = None

    @property
    def levels(self) -> int:
        """Number of code grids: one."""
        return 1

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes."""
        return (self.config.num_codes,)

    @property
    def downsample(self) -> int:
        """Pixels per code along each side."""
        return self.config.downsample

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.config.channels

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) it was trained at."""
        return self.config.image_height, self.config.image_width

    @property
    def resize(self) -> str:
        """How `preprocess` brings an image to size."""
        return self.config.resize

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of configuration and weights, computed once: treat it as frozen."""
        if self._fingerprint is None:
            digest = hashlib.sha256(_canonical(self.config).encode())
            for name, tensor in sorted(self.state_dict().items()):
                digest.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruction of `[B,C,H,W]` in [-1, 1], with straight-through gradients."""
        out: torch.Tensor = self.decoder(self.quantizer(self.encoder(x)))
        return out

    def preprocess(self, image: Image.Image, size: int | tuple[int, int]) -> torch.Tensor:
        """A Pillow image to float32 `[C,H,W]` in [-1, 1], resized by the tokenizer's policy."""
        height, width = (size, size) if isinstance(size, int) else size
        resized = resize_image(image, height=height, width=width, policy=self.config.resize)
        return tensor_from_pixels(pixels_from_image(resized, channels=self.config.channels))

    @torch.inference_mode()
    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`[B,C,H,W]` in [-1, 1] to `[codes]`, int64 `[B, H/downsample, W/downsample]`.

        Images do not influence each other, but float sums may be ordered differently at another batch
        size and move a latent that lies exactly between two levels; encode with one batch size where
        bytes must repeat, as `mmfast prepare` does.
        """
        factor = self.downsample
        if x.ndim != 4 or x.shape[1] != self.channels or any(s % factor for s in x.shape[2:]):
            raise ValueError(
                f"images must be [B,{self.channels},H,W] with H and W multiples of {factor}, "
                f"not {list(x.shape)}"
            )
        return [self.quantizer.codes_from_latents(self.encoder(x.to(self._device)))]

    @torch.inference_mode()
    def decode(self, codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """`[codes]` with int64 `[B,h,w]` to float32 `[B,C,H,W]`; values may exceed [-1, 1] a little."""
        if len(codes) != 1 or codes[0].ndim != 3:
            raise ValueError("codes must be a list of one [B,h,w] tensor")
        codes_bhw = codes[0].to(self._device)
        if codes_bhw.numel() and (codes_bhw.min() < 0 or codes_bhw.max() >= self.config.num_codes):
            raise ValueError(
                f"codes {codes_bhw.min()}..{codes_bhw.max()} are outside 0..{self.config.num_codes - 1}"
            )
        pixels: torch.Tensor = self.decoder(self.quantizer.values_from_codes(codes_bhw))
        return pixels

    def save(self, folder: Path) -> None:
        """Writes weights, then `config.json`.

        The configuration carries the fingerprint of the weights, so a folder left between the two
        renames is recognised when it is loaded.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._fingerprint = None
        tensors = {n: t.detach().cpu().contiguous() for n, t in self.state_dict().items()}
        write_bytes(folder / WEIGHTS_FILE, save(tensors))
        document = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self.config),
            "num_codes": self.config.num_codes,
            "downsample": self.downsample,
            "fingerprint": self.fingerprint,
        }
        write_json(folder / CONFIG_FILE, document)

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, device: str = "cpu") -> Self:
        """Loads what `save` wrote, ready for inference.

        Raises:
            CorruptDataError: missing or damaged weights, or weights that are not the ones the
                configuration was written for.
        """
        folder = Path(folder)
        document = read_tokenizer_config(folder)
        tokenizer = cls(_config_from_document(document, folder / CONFIG_FILE))
        weights = folder / WEIGHTS_FILE
        try:
            tokenizer.load_state_dict(load_file(weights))
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise CorruptDataError(
                f"{weights} does not hold the weights of {folder / CONFIG_FILE}: {error}"
            ) from error
        if tokenizer.fingerprint != document.get("fingerprint"):
            raise CorruptDataError(
                f"{folder}: configuration and weights have fingerprint {tokenizer.fingerprint}, but "
                f"{CONFIG_FILE} says {document.get('fingerprint')}; one of them was changed, copy both again"
            )
        return tokenizer.eval().requires_grad_(requires_grad=False).to(device)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device


def _canonical(config: FsqConfig) -> str:
    document = {"kind": KIND, **dataclasses.asdict(config)}
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _config_from_document(document: dict[str, Any], path: Path) -> FsqConfig:
    if document.get("format_version") != FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: tokenizer format {document.get('format_version')!r} is not {FORMAT_VERSION}; upgrade mmfast"
        )
    try:
        fields = {f.name: document[f.name] for f in dataclasses.fields(FsqConfig)}
        return FsqConfig(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(f"{path} does not describe an FSQ tokenizer: {error}") from error
