"""Images in and out: safe opening, one resize policy for all, pixels to tensors and back.

Every image of a job passes `open_image`. It reads format and size from the header and checks both
before a pixel is decoded, turns Pillow's decompression-bomb warning into an error, and ends in one of
two modes: `L` (grey) or `RGB`. Whatever is wrong with a file becomes a `BadRecordError` with a stable
reason, so that a job can count it and go on:

    image_missing image_unreadable image_too_many_bytes image_format image_corrupt
    image_too_small image_too_many_pixels image_mode image_path

Tensors are float32 `[C,H,W]` in [-1, 1]; C is 1 (grey) or 3 (RGB).
"""

import dataclasses
import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from mmfast.errors import BadRecordError, UsageError

ResizePolicy = Literal["center-crop", "stretch", "pad"]
RESIZE_POLICIES: tuple[ResizePolicy, ...] = get_args(ResizePolicy)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")

# What Pillow's decoders raise on damaged input, from reading fuzz reports and from our hostile tests.
_DECODE_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
# `warnings.catch_warnings` swaps process-wide state, so threads that open images take turns.
_OPEN_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What `open_image` accepts.

    Attributes:
        max_pixels: width times height, read from the header before decoding.
        max_bytes: size of the encoded file.
        min_side: shorter side in pixels; below it there is nothing to see.
        formats: Pillow's names of the decoders that may run. TIFF is left out because its decoder
            is the largest target; name it here if your images need it.
    """

    max_pixels: int = 64 * 1024 * 1024
    max_bytes: int = 256 * 1024 * 1024
    min_side: int = 4
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


DEFAULT_LIMITS = ImageLimits()


def open_image(source: Path | bytes, *, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Opens and decodes one image, upright by its EXIF orientation, in mode `L` or `RGB`.

    Transparency is blended on white; 16-bit grey is scaled to 8 bits; CMYK and palettes become RGB;
    of an animation the first frame is taken.

    Raises:
        BadRecordError: see the file's head for the reasons; the text names the file.
    """
    name = str(source) if isinstance(source, Path) else "image"
    encoded = _read(source, limits) if isinstance(source, Path) else source
    if len(encoded) > limits.max_bytes:
        raise BadRecordError(
            "image_too_many_bytes", f"{name} has {len(encoded):,} bytes, over {limits.max_bytes:,}"
        )
    try:
        with _OPEN_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=limits.formats)
    except UnidentifiedImageError as error:
        raise BadRecordError(
            "image_format", f"{name} is not a readable {'/'.join(limits.formats)} image"
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadRecordError("image_too_many_pixels", f"{name}: {error}") from error
    except _DECODE_ERRORS as error:
        raise BadRecordError("image_corrupt", f"{name} has a damaged header: {error}") from error
    with image:
        _check_size(image.size, name, limits)
        try:
            image.load()
            return _plain(ImageOps.exif_transpose(image), name)
        except _DECODE_ERRORS as error:
            raise BadRecordError("image_corrupt", f"{name} does not decode: {error}") from error


def image_path_under(root: Path, name: str) -> Path:
    """The file that an annotation calls `name`, which must lie under `root`.

    `root` must be resolved. Absolute paths, `..`, NUL and links that lead out of the root are refused.

    Raises:
        BadRecordError: reason `image_path` for a name that leaves the root or cannot be a path,
            `image_missing` if there is no such file.
    """
    if not name or "\0" in name:
        raise BadRecordError("image_path", f"image path {name!r} is empty or holds a NUL")
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise BadRecordError("image_path", f"image path {name!r} is absolute or holds `..`")
    try:
        resolved = (root / relative).resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadRecordError("image_missing", f"there is no image {name!r} under {root}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise BadRecordError(
            "image_path", f"image path {name!r} cannot be used: {error}"
        ) from error
    if not resolved.is_relative_to(root):
        raise BadRecordError("image_path", f"image path {name!r} leads out of {root}")
    return resolved


def list_images(folder: Path) -> list[Path]:
    """All files under `folder` with an image suffix, sorted by path; linked folders are not walked.

    Raises:
        UsageError: `folder` is not a folder, or holds no image.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder of images")
    found = [
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=False)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        raise UsageError(f"{folder} holds no image ({' '.join(IMAGE_SUFFIXES)})")
    return sorted(found)


def resize_image(
    image: Image.Image, *, height: int, width: int, policy: ResizePolicy = "center-crop"
) -> Image.Image:
    """Brings an image to `height` x `width` with Lanczos filtering.

    `center-crop` scales until the target is just covered and cuts the centre; `stretch` ignores the
    aspect ratio; `pad` scales until the image just fits and fills the rest with white.
    """
    have_w, have_h = image.size
    if policy == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if policy == "center-crop":
        scale = max(width / have_w, height / have_h)
        box_w, box_h = width / scale, height / scale
        left, top = (have_w - box_w) / 2, (have_h - box_h) / 2
        box = (left, top, min(left + box_w, have_w), min(top + box_h, have_h))
        return image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    if policy == "pad":
        scale = min(width / have_w, height / have_h)
        inner = (max(1, round(have_w * scale)), max(1, round(have_h * scale)))
        white = 255 if image.mode == "L" else (255, 255, 255)
        canvas = Image.new(image.mode, (width, height), white)
        offset = ((width - inner[0]) // 2, (height - inner[1]) // 2)
        canvas.paste(image.resize(inner, Image.Resampling.LANCZOS), offset)
        return canvas
    raise ValueError(f"unknown resize policy {policy!r}; there are {', '.join(RESIZE_POLICIES)}")


def pixels_from_image(image: Image.Image, *, channels: int) -> torch.Tensor:
    """uint8 `[C,H,W]`; a grey image is repeated to three channels, a colour one weighed to one."""
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    tensor = torch.from_numpy(array.copy())
    return tensor[None] if channels == 1 else tensor.permute(2, 0, 1).contiguous()


def tensor_from_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float32 in [-1, 1], any shape."""
    return pixels.to(torch.float32) / 127.5 - 1.0


def pixels_from_tensor(x: torch.Tensor) -> torch.Tensor:
    """Float in [-1, 1] (clipped) to the nearest uint8 0..255, any shape."""
    return ((x.detach().float().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)


def images_from_tensor(x: torch.Tensor) -> list[Image.Image]:
    """`[B,C,H,W]` in [-1, 1] to B Pillow images, mode `L` for C = 1 and `RGB` for C = 3."""
    pixels = pixels_from_tensor(x).cpu()
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"images must be [B,1,H,W] or [B,3,H,W], not {list(pixels.shape)}")
    arrays = pixels.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(a[:, :, 0] if a.shape[2] == 1 else a) for a in arrays]


def side_by_side(rows: Sequence[Sequence[Image.Image]], *, gap: int = 2) -> Image.Image:
    """One picture of a table of equally sized images, row by row, on white."""
    cells = [image for row in rows for image in row]
    if not cells:
        raise ValueError("a grid needs at least one image")
    cell_w, cell_h = cells[0].size
    num_columns = max(len(row) for row in rows)
    sheet_size = (num_columns * (cell_w + gap) + gap, len(rows) * (cell_h + gap) + gap)
    sheet = Image.new("RGB", sheet_size, (255, 255, 255))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            corner = (gap + x * (cell_w + gap), gap + y * (cell_h + gap))
            sheet.paste(image.convert("RGB"), corner)
    return sheet


def _read(path: Path, limits: ImageLimits) -> bytes:
    """The file's bytes; only regular files, and never more than the limit."""
    try:
        # Looked at before opening: opening a named pipe would wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadRecordError("image_unreadable", f"{path} is not a regular file")
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)
    except FileNotFoundError as error:
        raise BadRecordError("image_missing", f"there is no image {path}") from error
    except OSError as error:
        raise BadRecordError("image_unreadable", f"cannot read {path}: {error.strerror}") from error


def _check_size(size: tuple[int, int], name: str, limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise BadRecordError(
            "image_too_many_pixels",
            f"{name} says it is {width} x {height}, over the limit of {limits.max_pixels:,} pixels",
        )
    if min(width, height) < limits.min_side:
        raise BadRecordError(
            "image_too_small",
            f"{name} is {width} x {height}; the shorter side must be at least {limits.min_side}",
        )


def _plain(image: Image.Image, name: str) -> Image.Image:
    """Any Pillow mode to `L` or `RGB`."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadRecordError("image_mode", f"{name} holds 32-bit grey values")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise BadRecordError("image_mode", f"{name} holds floating-point values")
    if image.has_transparency_data:
        is_grey = image.mode in ("L", "LA", "La", "1")
        upper = image.convert("RGBA")
        white = Image.new("RGBA", upper.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, upper).convert("L" if is_grey else "RGB")
    if image.mode in ("L", "RGB"):
        return image.copy()
    return image.convert("L" if image.mode == "1" else "RGB")
