"""The built-in image tokenizer: quantiser, shapes, saving, training and its verdict on itself."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast.config import load_config, preset_names
from mmfast.errors import CorruptDataError, UsageError
from mmfast.tokenizers import ImageTokenizer, load_image_tokenizer
from mmfast.tokenizers.fsq import FiniteScalarQuantizer, FsqConfig, FsqImageTokenizer
from mmfast.tokenizers.fsq_training import FsqTrainingConfig, load_images, psnr_db, train_fsq
from mmfast.tokenizers.images import list_images

SMALLEST = FsqConfig(
    channels=1,
    image_height=8,
    image_width=8,
    fsq_levels=(4, 3, 3),
    stem_patch=2,
    widths=(16, 16),
    num_blocks=1,
)
FEW_STEPS = FsqTrainingConfig(
    tokenizer=SMALLEST, steps=60, batch_size=16, learning_rate=4e-3, warmup_steps=5
)


def untrained(config: FsqConfig = SMALLEST, seed: int = 0) -> FsqImageTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FsqImageTokenizer(config).eval()


def write_shapes(folder: Path, num_images: int, *, mode: str = "L") -> Path:
    """Bars and discs at random places: images that differ and that a tiny network can learn."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(num_images):
        pixels = np.zeros((8, 8), dtype=np.uint8)
        top, left = rng.integers(0, 5, size=2)
        pixels[top : top + 3, left : left + 3] = rng.integers(120, 256)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i:03}.png")
    return folder


@pytest.mark.parametrize("levels", [(8, 6, 5), (8, 8, 8, 16), (2,), (3, 2, 7, 4)])
def test_every_code_survives_the_way_through_values_and_back(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(int(np.prod(levels))).view(1, -1, 1)
    values = quantizer.values_from_codes(codes)
    # Undo the squashing: a latent whose bounded value is the code's own integer.
    bounded = values * quantizer._centre
    latents = torch.atanh((bounded + quantizer._offset) / quantizer._half) - quantizer._shift
    assert torch.equal(quantizer.codes_from_latents(latents), codes)
    torch.testing.assert_close(quantizer(latents), values, atol=1e-5, rtol=0)
    assert len(values[0].flatten(1).T.unique(dim=0)) == codes.numel()


def test_latents_however_large_stay_inside_the_codebook() -> None:
    quantizer = FiniteScalarQuantizer((8, 6, 5))
    extremes = torch.tensor([-1e30, -50.0, 0.0, 50.0, 1e30]).view(-1, 1, 1, 1).expand(5, 3, 2, 2)
    codes = quantizer.codes_from_latents(extremes)
    assert codes.min() == 0
    assert codes.max() == 239


def test_rounding_passes_gradients_straight_through() -> None:
    latents = torch.zeros(1, 3, 2, 2, requires_grad=True)
    FiniteScalarQuantizer((8, 6, 5))(latents).sum().backward()
    assert latents.grad is not None
    assert (latents.grad > 0).all()


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (12, 20), (64, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_follow_the_factor_at_any_size(size: tuple[int, int], channels: int) -> None:
    tokenizer = untrained(dataclasses.replace(SMALLEST, channels=channels))
    x = torch.rand(3, channels, *size) * 2 - 1
    (codes,) = tokenizer.encode(x)
    assert codes.dtype == torch.int64
    assert codes.shape == (3, size[0] // 4, size[1] // 4)
    assert codes.min() >= 0
    assert codes.max() < tokenizer.codebook_sizes[0] == 36
    assert tokenizer.decode([codes]).shape == x.shape
    assert isinstance(tokenizer, ImageTokenizer)


def test_images_do_not_influence_their_neighbours_in_a_batch() -> None:
    tokenizer = untrained()
    x = torch.rand(6, 1, 8, 8) * 2 - 1
    together = tokenizer.encode(x)[0]
    torch.manual_seed(1)
    others = torch.rand(6, 1, 8, 8) * 2 - 1
    others[2] = x[2]
    assert torch.equal(tokenizer.encode(others)[0][2], together[2])


def test_wrong_sizes_and_codes_are_refused() -> None:
    tokenizer = untrained()
    with pytest.raises(ValueError, match="multiples of 4"):
        tokenizer.encode(torch.zeros(1, 1, 8, 10))
    with pytest.raises(ValueError, match=r"outside 0\.\.35"):
        tokenizer.decode([torch.full((1, 2, 2), 36)])
    with pytest.raises(ValueError, match="not a multiple of the downsampling factor"):
        dataclasses.replace(SMALLEST, image_height=10)


@pytest.mark.parametrize("preset", preset_names("mmfast.tokenizers.presets"))
def test_presets_resolve(preset: str) -> None:
    config = load_config(
        FsqTrainingConfig, preset=preset, preset_package="mmfast.tokenizers.presets"
    )
    assert config.tokenizer.image_height % config.tokenizer.downsample == 0


def test_the_base_preset_has_the_grid_and_codebook_of_cm3leon() -> None:
    config = load_config(
        FsqTrainingConfig, preset="base", preset_package="mmfast.tokenizers.presets"
    )
    shape = config.tokenizer
    assert (shape.image_height // shape.downsample) * (
        shape.image_width // shape.downsample
    ) == 1024
    assert shape.num_codes == 8192


def test_a_saved_tokenizer_loads_equal(tmp_path: Path) -> None:
    tokenizer = untrained()
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_image_tokenizer(tmp_path / "tokenizer")
    assert loaded.fingerprint == tokenizer.fingerprint
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    assert torch.equal(loaded.encode(x)[0], tokenizer.encode(x)[0])
    assert torch.equal(loaded.decode(loaded.encode(x)), tokenizer.decode(tokenizer.encode(x)))
    assert not list((tmp_path / "tokenizer").glob("*.tmp"))


def test_the_fingerprint_tells_weights_and_configurations_apart() -> None:
    wider = dataclasses.replace(SMALLEST, resize="pad")
    prints = {untrained().fingerprint, untrained(seed=1).fingerprint, untrained(wider).fingerprint}
    assert len(prints) == 3


def test_weights_of_another_tokenizer_are_recognised(tmp_path: Path) -> None:
    untrained().save(tmp_path / "a")
    untrained(seed=1).save(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes(
        (tmp_path / "b" / "model.safetensors").read_bytes()
    )
    with pytest.raises(CorruptDataError, match="fingerprint"):
        load_image_tokenizer(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"kind": "fsq", "format_version": 99}'),
        ("config.json", b'{"kind": "fsq", "format_version": 1, "channels": "many"}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 64),
    ],
)
def test_a_damaged_tokenizer_folder_is_a_clear_error(
    tmp_path: Path, name: str, content: bytes
) -> None:
    untrained().save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptDataError, match=name.replace(".", r"\.")):
        load_image_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train-image"):
        load_image_tokenizer(tmp_path)


def test_training_learns_and_repeats_by_seed(tmp_path: Path) -> None:
    images = load_images(list_images(write_shapes(tmp_path / "images", 60)), FEW_STEPS)
    first, report = train_fsq(images, FEW_STEPS)
    again, _ = train_fsq(images, FEW_STEPS)
    other, _ = train_fsq(images, dataclasses.replace(FEW_STEPS, seed=1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert report.usable
    assert report.last_loss < report.first_loss
    assert report.psnr_db > report.psnr_db_of_mean_image + 2
    assert report.num_held_out == 3
    assert report.num_train == 57


def test_grey_and_colour_folders_choose_their_channels(tmp_path: Path) -> None:
    for mode, channels in (("L", 1), ("RGB", 3)):
        folder = write_shapes(tmp_path / mode, 3, mode=mode)
        assert load_images(list_images(folder), FEW_STEPS).channels == channels
    forced = dataclasses.replace(FEW_STEPS, colour="rgb")
    assert load_images(list_images(tmp_path / "L"), forced).held_out.shape[1] == 3


def test_crops_are_cut_from_large_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, size=(40, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    Image.fromarray(pixels[:6, :6]).save(tmp_path / "small.png")
    config = dataclasses.replace(FEW_STEPS, views="crops", steps=3, augment="affine")
    tokenizer, report = train_fsq(load_images(list_images(tmp_path), config), config)
    assert tokenizer.channels == 3
    assert report.steps == 3


def test_images_beyond_the_cache_give_the_same_tokenizer(tmp_path: Path) -> None:
    paths = list_images(write_shapes(tmp_path / "images", 40))
    for views in ("whole", "crops"):
        config = dataclasses.replace(FEW_STEPS, steps=5, views=views)
        cached, _ = train_fsq(load_images(paths, config), config)
        lazily = dataclasses.replace(config, cache_bytes=8 * 8 * 10)
        streamed, report = train_fsq(load_images(paths, lazily), lazily)
        assert streamed.fingerprint == cached.fingerprint
        assert report.num_train == 38


def test_a_file_that_goes_bad_during_training_is_counted(tmp_path: Path) -> None:
    paths = list_images(write_shapes(tmp_path / "images", 12))
    config = dataclasses.replace(FEW_STEPS, steps=3, cache_bytes=8 * 8)
    images = load_images(paths, config)
    for path in paths[:6]:
        path.write_bytes(b"gone")
    _, report = train_fsq(images, config)
    assert report.skipped["image_format"] > 0


def test_a_single_image_is_trained_and_measured_on(tmp_path: Path) -> None:
    paths = list_images(write_shapes(tmp_path / "images", 1))
    _, report = train_fsq(load_images(paths, FEW_STEPS), FEW_STEPS)
    assert (report.num_train, report.num_held_out) == (1, 1)


def test_a_folder_of_one_flat_colour_is_reported_as_collapsed(tmp_path: Path) -> None:
    for i in range(8):
        Image.new("L", (8, 8), 90).save(tmp_path / f"{i}.png")
    config = dataclasses.replace(FEW_STEPS, steps=10, held_out_fraction=0.5)
    _, report = train_fsq(load_images(list_images(tmp_path), config), config)
    assert not report.usable
    assert any("codes tell nothing" in warning for warning in report.warnings)
    assert any("collapsed" in warning for warning in report.warnings)


def test_too_many_unreadable_images_stop_training(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "images", 4)
    (folder / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match=r"1 of 5 images cannot be read \(image_format 1\)"):
        load_images(list_images(folder), FEW_STEPS)
    lenient = dataclasses.replace(FEW_STEPS, max_bad_fraction=0.5)
    assert load_images(list_images(folder), lenient).skipped == {"image_format": 1}


def test_psnr_matches_its_formula() -> None:
    black = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    grey = black + torch.tensor([0, 51], dtype=torch.uint8).view(2, 1, 1, 1)
    assert psnr_db(grey, black) == pytest.approx([99.0, 20 * np.log10(5)])
