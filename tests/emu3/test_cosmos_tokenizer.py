"""Cosmos: the published map of codes, padding, window and file rules; programs run only when named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.emu3.tiny_models import save_cosmos
from typer.testing import CliRunner

from mmfast.cli.tokenizer import app
from mmfast.errors import CorruptDataError, UsageError
from mmfast.tokenizers import load_image_tokenizer
from mmfast.tokenizers.cosmos import CosmosTokenizer, cosmos_quantizer
from mmfast.tokenizers.padding import pad_image, pad_video

# NVIDIA/Cosmos-Tokenizer `modules/quantizers.py`, computed with its code.
GOLDEN_CODES = [
    ((0.0,) * 6, 32036), ((-10.0,) * 6, 0), ((10.0,) * 6, 63999), ((1.0,) * 6, 63926),
    ((0.3, -0.3, 0.1, 0.5, -0.5, 0.2), 29981), ((-1.0, 2.0, -0.5, 0.9, -0.1, 0.7), 45241),
]  # fmt: skip
GOLDEN_VALUES = [(12345, (-0.75, 0.75, -1, 1, 1, -1)), (40000, (-1, -1, -0.75, 0.5, -1, 0.5))]
GOLDEN_PADDING = [
    ((1, 427, 640), (1, 432, 640), (0, 2, 0, 1, 429, 640)),
    ((9, 300, 451), (9, 304, 464), (0, 2, 6, 9, 302, 457)),
    ((10, 512, 512), (17, 512, 512), (3, 0, 0, 13, 512, 512)),
    ((16, 128, 128), (17, 128, 128), (0, 0, 0, 16, 128, 128)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cosmos(tmp_path_factory.mktemp("cosmos") / "Cosmos-0.1-Tokenizer-DV8x16x16")


def test_latents_and_codes_follow_the_published_map() -> None:
    quantizer = cosmos_quantizer()
    for latent, code in GOLDEN_CODES:
        assert int(quantizer.codes_from_latents(torch.tensor(latent).view(1, 6, 1, 1))) == code
    for code, values in GOLDEN_VALUES:
        assert quantizer.values_from_codes(torch.tensor([[[code]]])).flatten().tolist() == list(
            values
        )


def test_every_code_stands_for_its_own_values() -> None:
    quantizer = cosmos_quantizer()
    codes = torch.arange(64_000).view(1, 250, 256)
    values = quantizer.values_from_codes(codes)
    assert len(torch.unique(values.flatten(2)[0].T, dim=0)) == 64_000
    digits = (values * torch.tensor([4, 4, 4, 2, 2, 2]).view(6, 1, 1)).round().to(torch.int64)
    digits += torch.tensor([4, 4, 4, 2, 2, 2]).view(6, 1, 1)
    place = torch.tensor([1, 8, 64, 512, 2560, 12800]).view(6, 1, 1)
    assert torch.equal((digits * place).sum(1), codes)
    # Quantising values once more is another map: only an eighth of the codes stay.
    again = quantizer.codes_from_latents(values)
    assert (again == codes).float().mean() == pytest.approx(0.125, abs=0.001)
    assert codes.numpy().max() < 2**16


@pytest.mark.parametrize(("size", "padded", "crop"), GOLDEN_PADDING)
def test_padding_is_the_published_one(size, padded, crop) -> None:
    x = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    result, found = pad_video(x)
    assert result.shape[2:] == padded
    assert tuple(found) == crop
    assert torch.equal(found.of(result), x)
    if padded[0] > size[0]:
        assert torch.equal(result[:, :, -1], result[:, :, found.frame_end - 1])


def test_padding_is_taken_off_again_whatever_the_size() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        t, h, w = generator.integers(1, 40, 3).tolist()
        x = torch.rand(1, 1, t, h, w)
        padded, crop = pad_video(x)
        assert (padded.shape[2] - 1) % 8 == padded.shape[3] % 16 == padded.shape[4] % 16 == 0
        assert torch.equal(crop.of(padded), x)
        image, crop = pad_image(x[:, :, 0])
        assert torch.equal(crop.of(image[:, :, None])[:, :, 0], x[:, :, 0])
    with pytest.raises(ValueError, match="nothing empty"):
        pad_video(torch.zeros(1, 3, 0, 16, 16))


@pytest.mark.parametrize(("variant", "t", "s"), [("DV8x16x16", 8, 16), ("DV4x8x8", 4, 8)])
@pytest.mark.parametrize("frames", [1, 9, 10, 16, 17])
def test_video_codes_have_the_published_shapes(
    variant: str, t: int, s: int, frames: int, tmp_path: Path
) -> None:
    tokenizer = CosmosTokenizer(save_cosmos(tmp_path / variant, factor=s, frames=t))
    x = torch.rand(1, 3, frames, 40, 50, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (window,) = tokenizer.encode_video(x)
    padded = 1 if frames == 1 else 9 if frames == 9 else 17
    assert window.codes.shape == (1, 1 + (padded - 1) // t, 48 // s, 64 // s)
    assert tokenizer.decode_video([window]).shape == x.shape


def test_longer_videos_go_by_windows_of_17_frames(folder: Path) -> None:
    tokenizer = CosmosTokenizer(folder)
    x = torch.rand(1, 3, 40, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    windows = tokenizer.encode_video(x)
    assert [window.crop.frame_end - window.crop.frame_start for window in windows] == [17, 17, 6]
    assert tokenizer.decode_video(windows).shape == x.shape
    whole = tokenizer.encode_video(x, window_frames=40)
    assert [window.codes.shape[1] for window in whole] == [6]
    with pytest.raises(ValueError, match="empty"):
        tokenizer.encode_video(x, window_frames=0)


def test_an_image_is_a_video_of_one_frame(folder: Path) -> None:
    tokenizer = load_image_tokenizer(folder, allow_torchscript=True)
    x = torch.rand(2, 3, 48, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (codes,) = tokenizer.encode(x)
    assert codes.shape == (2, 3, 2)
    assert codes.dtype == torch.int64
    decoded = tokenizer.decode([codes])
    means = x.reshape(2, 3, 3, 16, 2, 16).mean(dim=(3, 5))
    assert (decoded[:, :, ::16, ::16] - means).abs().max() < 1 / 7 + 1e-6
    with pytest.raises(ValueError, match="multiples of 16"):
        tokenizer.encode(x[:, :, :40])


def test_programs_run_only_where_the_user_named_them(folder: Path) -> None:
    with pytest.raises(UsageError, match="can run code"):
        load_image_tokenizer(folder)


def test_what_a_folder_holds_is_known_from_its_name_or_noted(folder: Path, tmp_path: Path) -> None:
    tokenizer = CosmosTokenizer(folder)
    assert (tokenizer.variant, tokenizer.downsample, tokenizer.frames_per_code) == (
        "DV8x16x16",
        16,
        8,
    )
    tokenizer.save(tmp_path / "copy")
    copy = CosmosTokenizer.from_pretrained(tmp_path / "copy")
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.variant == "DV8x16x16"
    (tmp_path / "copy/decoder.jit").write_bytes(b"other")
    with pytest.raises(CorruptDataError, match="copy all again"):
        CosmosTokenizer.from_pretrained(tmp_path / "copy")
    (tmp_path / "nameless").mkdir()
    with pytest.raises(UsageError, match="holds neither"):
        CosmosTokenizer(tmp_path / "nameless")
    (tmp_path / "nameless/encoder.jit").write_bytes(b"not a program")
    with pytest.raises(UsageError, match="cannot be read from its name"):
        CosmosTokenizer(tmp_path / "nameless")
    with pytest.raises(UsageError, match="continuous"):
        CosmosTokenizer(tmp_path / "nameless", variant="CI16x16")
    broken = CosmosTokenizer(tmp_path / "nameless", variant="DI16x16")
    with pytest.raises(CorruptDataError, match="not a TorchScript file"):
        broken.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(UsageError, match=r"decoder\.jit is missing"):
        broken.decode([torch.zeros(1, 1, 1, dtype=torch.int64)])


def test_the_command_line_takes_a_folder_that_the_user_names(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["info", str(folder)])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.output)
    assert facts["fingerprint"] == CosmosTokenizer(folder).fingerprint
    assert facts["codebook_sizes"] == [64_000]
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "images/red.png")
    arguments = ["--tokenizer", folder, "--images", tmp_path / "images", "--image-size", 64]
    arguments += ["--output", tmp_path / "seen", "--device", "cpu"]
    done = CliRunner().invoke(app, ["reconstruct", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert "PSNR" in done.output
