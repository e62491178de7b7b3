"""Image files as they should not be: each has a stable reason, none a traceback."""

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmfast.errors import BadRecordError, UsageError
from mmfast.tokenizers.images import (
    DEFAULT_LIMITS,
    ImageLimits,
    image_path_under,
    images_from_tensor,
    list_images,
    open_image,
    pixels_from_image,
    resize_image,
    tensor_from_pixels,
)


def encoded(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def noise(size: tuple[int, int] = (32, 24), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


def reason_of(source: Path | bytes, limits: ImageLimits = DEFAULT_LIMITS) -> str:
    with pytest.raises(BadRecordError) as caught:
        open_image(source, limits=limits)
    assert str(caught.value)
    return caught.value.reason


def test_damaged_files_have_a_reason() -> None:
    jpeg, png = encoded(noise(), "JPEG"), encoded(noise())
    assert reason_of(b"") == "image_format"
    assert reason_of(b"just some text, renamed .png") == "image_format"
    assert reason_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == "image_format"
    assert reason_of(jpeg[: len(jpeg) // 2]) == "image_corrupt"
    assert reason_of(png[: len(png) // 2]) == "image_corrupt"
    assert reason_of(encoded(noise(), "TIFF")) == "image_format"


def test_sizes_are_judged_by_the_header() -> None:
    assert reason_of(encoded(Image.new("RGB", (1, 1)))) == "image_too_small"
    assert reason_of(encoded(Image.new("L", (900, 1)))) == "image_too_small"
    assert reason_of(png_header(9000, 9000)) == "image_too_many_pixels"
    # Beyond Pillow's own thresholds (a warning, then an error) the reason stays the same.
    assert reason_of(png_header(12000, 12000)) == "image_too_many_pixels"
    assert reason_of(png_header(60000, 60000)) == "image_too_many_pixels"
    generous = ImageLimits(max_pixels=10**12)
    assert reason_of(png_header(12000, 12000), generous) == "image_too_many_pixels"


def test_files_that_are_too_large_or_not_files_have_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise().save(path)
    assert reason_of(path, ImageLimits(max_bytes=100)) == "image_too_many_bytes"
    assert reason_of(tmp_path / "absent.png") == "image_missing"
    assert reason_of(tmp_path) == "image_unreadable"
    os.mkfifo(tmp_path / "pipe.png")
    assert reason_of(tmp_path / "pipe.png") == "image_unreadable"


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_give_an_image_or_a_reason(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for format_name in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        original = encoded(noise(), format_name)
        for _ in range(40):
            broken = bytearray(original)
            for position in rng.integers(0, len(broken), size=3):
                broken[position] = rng.integers(0, 256)
            # Anything but a BadRecordError fails the test.
            with contextlib.suppress(BadRecordError):
                assert open_image(bytes(broken)).mode in ("L", "RGB")


def test_every_colour_mode_becomes_grey_or_rgb() -> None:
    assert open_image(encoded(noise(mode="CMYK"), "JPEG")).mode == "RGB"
    assert open_image(encoded(noise(mode="P"))).mode == "RGB"
    assert open_image(encoded(noise(mode="L"))).mode == "L"
    assert open_image(encoded(noise(mode="1"))).mode == "L"
    assert open_image(encoded(noise(mode="LA"))).mode == "L"
    assert open_image(encoded(noise(), "WEBP")).mode == "RGB"


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32768, 65535]] * 4, dtype=np.uint16)
    image = open_image(encoded(Image.fromarray(values)))
    assert image.mode == "L"
    assert np.asarray(image)[0].tolist() == [0, 1, 128, 255]


def test_transparency_is_blended_on_white() -> None:
    half_red = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half_red.paste((255, 0, 0, 255), (0, 0, 4, 8))
    image = open_image(encoded(half_red))
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert image.getpixel((7, 0)) == (255, 255, 255)

    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 255, 0, 255, 0])
    image = open_image(encoded(palette, transparency=0))
    assert image.mode == "RGB"
    assert image.getpixel((3, 3)) == (255, 255, 255)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(gif).getpixel((4, 4)) == (255, 0, 0)


def test_images_stand_upright_by_their_orientation_tag() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(noise((32, 24)), "JPEG", exif=exif)).size == (24, 32)


EVIL_NAMES = [
    "",
    "/etc/passwd",
    "../secret.png",
    "a/../../secret.png",
    "a/../inside.png",
    "..",
    "link/secret.png",
    "link.png",
    "inside.png\0.jpg",
    "\0",
    "x" * 5000,
    "loop/loop/a.png",
]


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_paths_that_leave_the_root_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    noise().save(tmp_path / "secret.png")
    noise().save(root / "inside.png")
    (root / "link").symlink_to(tmp_path)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(BadRecordError) as caught:
        image_path_under(root.resolve(), name)
    assert caught.value.reason == "image_path"


def test_paths_inside_the_root_are_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    noise().save(tmp_path / "deep" / "a.png")
    (tmp_path / "alias.png").symlink_to(tmp_path / "deep" / "a.png")
    for name in ("deep/a.png", "./deep/a.png", "alias.png"):
        assert image_path_under(tmp_path.resolve(), name).name == "a.png"
    with pytest.raises(BadRecordError) as caught:
        image_path_under(tmp_path.resolve(), "deep/b.png")
    assert caught.value.reason == "image_missing"


def test_a_folder_without_images_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no image"):
        list_images(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        list_images(tmp_path / "absent")


@pytest.mark.parametrize("size", [(4, 4), (5, 400), (400, 5), (33, 47), (16, 16)])
@pytest.mark.parametrize("policy", ["center-crop", "stretch", "pad"])
def test_every_policy_gives_the_asked_size(size: tuple[int, int], policy: str) -> None:
    for mode in ("L", "RGB"):
        image = resize_image(noise(size, mode), height=16, width=24, policy=policy)
        assert (image.size, image.mode) == ((24, 16), mode)


def test_the_centre_is_kept_by_a_crop_and_all_is_kept_by_padding() -> None:
    wide = Image.new("L", (30, 10), 0)
    wide.paste(200, (10, 0, 20, 10))
    assert np.asarray(resize_image(wide, height=10, width=10)).min() == 200
    padded = np.asarray(resize_image(wide, height=30, width=30, policy="pad"))
    assert (padded[:9] == 255).all()
    assert (padded[12:18, 12:18] == 200).all()
    with pytest.raises(ValueError, match="center-crop"):
        resize_image(wide, height=4, width=4, policy="tile")


def test_pixels_survive_the_way_to_a_tensor_and_back() -> None:
    for channels, mode in ((1, "L"), (3, "RGB")):
        image = noise(mode=mode)
        x = tensor_from_pixels(pixels_from_image(image, channels=channels))[None]
        assert x.shape == (1, channels, 24, 32)
        assert x.min() >= -1
        assert x.max() <= 1
        assert np.array_equal(np.asarray(images_from_tensor(x)[0]), np.asarray(image))
