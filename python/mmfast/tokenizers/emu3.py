"""Emu3's image and video tokenizer: transformers' `Emu3VQVAE`, without its waste on still images.

The network codes four frames at a time. As published, a still image is repeated to four frames before
the encoder, although every 2-D layer treats frames alike, and of four decoded frames three are thrown
away. Here the 2-D layers run once and only the small temporal convolutions see four frames: the same
codes and pixels for a quarter of the work. Codes are found by `nearest_code`, which never writes the
matrix of 8,100 x 32,768 distances.

Sizes and pixels follow baaivision/Emu3 `image_processing_emu3visionvq.py`: both sides are brought near
multiples of 8 within 512^2..1024^2 pixels, bicubic, values (x / 255 - 0.5) / 0.5.

Dimensions: B batch, T frames, H W pixels, t h w codes, Z latent channels.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from mmfast.errors import BadRecordError, CorruptDataError
from mmfast.files import read_json_object, write_json
from mmfast.tokenizers.emu3_weights import load_emu3_vqvae, preprocessor_settings
from mmfast.tokenizers.nearest_code import nearest_code

KIND = "emu3"
MAX_ASPECT = 5
MIN_PIXELS, MAX_PIXELS = 512 * 512, 1024 * 1024
# The published arithmetic for each of the 256 values: float64 product, then float32.
_VALUE_OF_PIXEL = torch.from_numpy(
    ((np.arange(256) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
)


def smart_size(
    height: int,
    width: int,
    *,
    factor: int = 8,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
    """(height, width) that Emu3 gives an image: near multiples of `factor`, area within bounds.

    Halves round to even, as the published code does.

    Raises:
        BadRecordError: reason `image_too_small` for a side below `factor`, `image_aspect` for sides that
            differ by more than 5 times.
    """
    if min(height, width) < factor:
        raise BadRecordError(
            "image_too_small", f"an image of {width} x {height} has a side below {factor} pixels"
        )
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise BadRecordError(
            "image_aspect",
            f"the sides of {width} x {height} differ by more than {MAX_ASPECT} times",
        )
    new_h, new_w = round(height / factor) * factor, round(width / factor) * factor
    if new_h * new_w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_h = math.floor(height / shrink / factor) * factor
        new_w = math.floor(width / shrink / factor) * factor
    elif new_h * new_w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_h = math.ceil(height * grow / factor) * factor
        new_w = math.ceil(width * grow / factor) * factor
    return new_h, new_w


class Emu3ImageTokenizer:
    """`Emu3VQVAE` as an `ImageTokenizer`, and for video.

    Args:
        network: an `Emu3VQVAE` in eval mode.
        min_pixels: least area that `smart_size` gives.
        max_pixels: largest area that it gives, but for rounding up.
    """

    levels = 1
    channels = 3
    resize = "smart"

    def __init__(
        self, network: Any, *, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
    ) -> None:
        if not 1 <= min_pixels <= max_pixels:
            raise ValueError(f"pixels {min_pixels}..{max_pixels} are no range")
        self.network = network
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self._fingerprint: str | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes."""
        return (int(self.network.config.codebook_size),)

    @property
    def downsample(self) -> int:
        """Pixels per code along each side: 8 as published."""
        return int(self.network.spatial_scale_factor)

    @property
    def frames_per_code(self) -> int:
        """Frames of video per code: 4 as published."""
        return int(self.network.config.temporal_downsample_factor)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of a square image of the least area."""
        side = math.isqrt(self.min_pixels) // self.downsample * self.downsample
        return side, side

    def smart_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size is coded at; see `smart_size`."""
        return smart_size(
            height,
            width,
            factor=self.downsample,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )

    def preprocess(
        self, image: Image.Image, size: int | tuple[int, int] | None = None
    ) -> torch.Tensor:
        """A Pillow image to float32 `[3,H,W]` in [-1, 1].

        Args:
            image: of any mode; a grey one becomes RGB.
            size: side, or (height, width), to stretch it to; its `smart_size` when None.

        Raises:
            BadRecordError: as `smart_size`.
        """
        if size is None:
            height, width = self.smart_size(image.height, image.width)
        else:
            height, width = (size, size) if isinstance(size, int) else size
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        return self.values_from_pixels(torch.from_numpy(np.array(resized)).permute(2, 0, 1))

    @staticmethod
    def values_from_pixels(pixels: torch.Tensor) -> torch.Tensor:
        """uint8 pixels of any shape to float32 in [-1, 1], bit for bit as published."""
        return _VALUE_OF_PIXEL[pixels.to(torch.int64)]

    @torch.inference_mode()
    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`[B,3,H,W]` in [-1, 1] to `[codes]`, int64 `[B, H/8, W/8]`."""
        self._check_pixels(x, num_dimensions=4)
        z_bzhw = self._encode_frames(x)
        z_bzthw = z_bzhw[:, :, None].expand(-1, -1, self.frames_per_code, -1, -1)
        return [self._codes(z_bzthw)[:, 0]]

    @torch.inference_mode()
    def encode_video(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`[B,3,T,H,W]` in [-1, 1], T a multiple of 4, to `[codes]`, int64 `[B, T/4, H/8, W/8]`."""
        self._check_pixels(x, num_dimensions=5)
        if x.shape[2] == 0 or x.shape[2] % self.frames_per_code:
            raise ValueError(f"{x.shape[2]} frames are no multiple of {self.frames_per_code}")
        frames = x.transpose(1, 2).flatten(0, 1)
        z_bzhw = self._encode_frames(frames)
        z_btzhw = z_bzhw.reshape(x.shape[0], -1, *z_bzhw.shape[1:])
        return [self._codes(z_btzhw.transpose(1, 2))]

    @torch.inference_mode()
    def decode(self, codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """`[codes]` with int64 `[B,h,w]` to float32 `[B,3,8h,8w]`, nominally in [-1, 1]."""
        codes_bhw = self._check_codes(codes, num_dimensions=3)
        z, q = self._decode_time(codes_bhw[:, None])
        return self._decode_frames(z[:, :, 0], q[:, :, 0])

    @torch.inference_mode()
    def decode_video(self, codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """`[codes]` with int64 `[B,t,h,w]` to float32 `[B,3,4t,8h,8w]`."""
        codes_bthw = self._check_codes(codes, num_dimensions=4)
        z, q = (each.transpose(1, 2).flatten(0, 1) for each in self._decode_time(codes_bthw))
        frames = self._decode_frames(z, q)
        return frames.reshape(len(codes_bthw), -1, *frames.shape[1:]).transpose(1, 2)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of configuration and weights, computed once: treat it as frozen."""
        if self._fingerprint is None:
            config = self.network.config
            shape = {
                name: getattr(config, name)
                for name in (
                    "codebook_size", "embed_dim", "latent_channels", "base_channels", "num_res_blocks",
                    "temporal_downsample_factor",
                )
            }  # fmt: skip
            shape["channel_multiplier"] = list(config.channel_multiplier)
            digest = hashlib.sha256(json.dumps([KIND, shape], sort_keys=True).encode())
            for name, tensor in sorted(self.network.state_dict().items()):
                digest.update(f"{name}{list(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().float().contiguous().numpy())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def save(self, folder: Path) -> None:
        """Writes a folder that `Emu3VQVAE.from_pretrained` and `load_image_tokenizer` read."""
        self.network.save_pretrained(folder)
        path = folder / "config.json"
        write_json(path, read_json_object(path) | {"kind": KIND, "fingerprint": self.fingerprint})
        write_json(
            folder / "preprocessor_config.json",
            {
                "min_pixels": self.min_pixels,
                "max_pixels": self.max_pixels,
                "spatial_factor": self.downsample,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            },
        )

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Loads a published folder, in any of the layouts of `emu3_weights`, or what `save` wrote.

        Raises:
            UsageError: another kind of model.
            CorruptDataError: damaged files, or weights of another configuration.
        """
        folder = Path(folder)
        settings = preprocessor_settings(folder)
        area = {
            name: int(settings[name]) for name in ("min_pixels", "max_pixels") if name in settings
        }
        tokenizer = cls(load_emu3_vqvae(folder, dtype=dtype), **area)
        known = read_json_object(folder / "config.json").get("fingerprint")
        if known is not None and dtype == torch.float32 and known != tokenizer.fingerprint:
            raise CorruptDataError(
                f"{folder}: configuration and weights have fingerprint {tokenizer.fingerprint}, but "
                f"config.json says {known}; one of them was changed, copy both again"
            )
        tokenizer.network.to(device)
        return tokenizer

    def _check_pixels(self, x: torch.Tensor, *, num_dimensions: int) -> None:
        factor = self.downsample
        if x.ndim != num_dimensions or x.shape[1] != 3 or any(s % factor for s in x.shape[-2:]):
            letters = "[B,3,H,W]" if num_dimensions == 4 else "[B,3,T,H,W]"
            raise ValueError(
                f"pixels must be {letters} with H and W multiples of {factor}, not {list(x.shape)}"
            )

    def _check_codes(self, codes: Sequence[torch.Tensor], *, num_dimensions: int) -> torch.Tensor:
        if len(codes) != 1 or codes[0].ndim != num_dimensions:
            letters = "[B,h,w]" if num_dimensions == 3 else "[B,t,h,w]"
            raise ValueError(f"codes must be a list of one {letters} tensor")
        grid = codes[0].to(self.network.device)
        if grid.numel() and (grid.min() < 0 or grid.max() >= self.codebook_sizes[0]):
            raise ValueError(
                f"codes {grid.min()}..{grid.max()} are outside 0..{self.codebook_sizes[0] - 1}"
            )
        return grid

    def _encode_frames(self, x_bchw: torch.Tensor) -> torch.Tensor:
        """The 2-D part of the encoder: pixels to latents `[B,Z,h,w]`."""
        encoder = self.network.encoder
        h = encoder.conv_in(x_bchw.to(self.network.device, self.network.dtype))
        h = encoder.middle_block(encoder.down_block(h))
        h = encoder.norm_out(h)
        z: torch.Tensor = encoder.conv_out(h * torch.sigmoid(h))
        return z

    def _codes(self, z_bzthw: torch.Tensor) -> torch.Tensor:
        """The temporal part of the encoder and the search: latents of frames to codes `[B,t,h,w]`."""
        h = z_bzthw
        for convolution in self.network.encoder.time_conv:
            h = convolution(h)
            h = h * torch.sigmoid(h)
        for block in self.network.encoder.time_res_stack:
            h = block(h)
        h = self.network.quant_conv(h).permute(0, 2, 3, 4, 1)
        codes = nearest_code(h.flatten(0, 3), self.network.quantize.embedding.weight)
        return codes.view(h.shape[:4])

    def _decode_time(self, codes_bthw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The temporal part of the decoder: latents and what its norms look at, each `[B,Z,4t,h,w]`."""
        quantised = self.network.quantize.embedding(codes_bthw).permute(0, 4, 1, 2, 3)
        both = torch.cat((self.network.post_quant_conv(quantised), quantised))
        for block in self.network.decoder.time_res_stack:
            both = block(both)
        for convolution in self.network.decoder.time_conv:
            both = convolution(both)
            both = both * torch.sigmoid(both)
        z, q = both.chunk(2)
        return z, q

    def _decode_frames(self, z_bzhw: torch.Tensor, q_bzhw: torch.Tensor) -> torch.Tensor:
        """The 2-D part of the decoder: float32 pixels `[B,3,8h,8w]`."""
        decoder = self.network.decoder
        h = decoder.middle_block(decoder.conv_in(z_bzhw), q_bzhw)
        h = decoder.norm_out(decoder.up_block(h, q_bzhw), q_bzhw)
        pixels: torch.Tensor = decoder.conv_out(h * torch.sigmoid(h))
        return pixels.float()
