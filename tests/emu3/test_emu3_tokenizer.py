"""Emu3's image tokenizer: the stock codes and pixels for a quarter of the work, sizes as published."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.emu3.tiny_models import bundled_photos, save_original_layout, tiny_vqvae
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from mmfast.errors import BadRecordError, CorruptDataError, UsageError
from mmfast.tokenizers import load_image_tokenizer, open_image
from mmfast.tokenizers.emu3 import Emu3ImageTokenizer, smart_size
from mmfast.tokenizers.nearest_code import nearest_code

pytestmark = pytest.mark.xdist_group("emu3-tokenizer")

# Height and width of photographs, and the size they are coded at (published arithmetic).
GOLDEN_SIZES = {
    "astronaut.png": (512, 512, 512, 512),
    "chelsea.png": (300, 451, 424, 632),
    "coffee.png": (400, 600, 424, 632),
    "rocket.jpg": (427, 640, 424, 640),
    "china.jpg": (427, 640, 424, 640),
    "flower.jpg": (427, 640, 424, 640),
    "grace_hopper.jpg": (600, 512, 600, 512),
    "hubble_deep_field.jpg": (872, 1000, 872, 1000),
    "retina.jpg": (1411, 1411, 1024, 1024),
}


@pytest.fixture(scope="module")
def tokenizer() -> Emu3ImageTokenizer:
    return Emu3ImageTokenizer(tiny_vqvae())


def small_photo(name: str, *, longest: int = 160) -> Image.Image:
    image = open_image(bundled_photos()[name])
    image.thumbnail((longest, longest))
    return image


@pytest.mark.parametrize("name", GOLDEN_SIZES)
def test_photographs_get_the_published_size(name: str) -> None:
    height, width, *expected = GOLDEN_SIZES[name]
    assert list(smart_size(height, width)) == expected
    image = open_image(bundled_photos()[name])
    assert (image.height, image.width) == (height, width)


def test_sizes_round_half_to_even_and_bad_ones_are_named() -> None:
    assert smart_size(20, 60, min_pixels=1) == (16, 64)
    assert smart_size(300, 300, min_pixels=1) == (304, 304)
    assert smart_size(8, 8) == (512, 512)
    for size, reason in (((7, 20), "image_too_small"), ((100, 501), "image_aspect")):
        with pytest.raises(BadRecordError) as caught:
            smart_size(*size)
        assert caught.value.reason == reason
    assert smart_size(100, 500) == (232, 1152)


@pytest.mark.parametrize("name", sorted(bundled_photos()))
def test_preprocessing_is_the_published_arithmetic(
    name: str, tokenizer: Emu3ImageTokenizer
) -> None:
    from transformers import Emu3ImageProcessor

    image = small_photo(name)
    height, width = (round(side / 8) * 8 for side in (image.height, image.width))
    processor = Emu3ImageProcessor(
        min_pixels=8, max_pixels=10**8, spatial_factor=8, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    expected = processor(image.convert("RGB"), return_tensors="pt").pixel_values[0]
    ours = tokenizer.preprocess(image, (height, width))
    assert ours.dtype == torch.float32
    assert torch.equal(ours, expected[:, :height, :width].to(torch.float32))


@pytest.mark.parametrize("name", sorted(bundled_photos()))
def test_codes_equal_the_stock_path(name: str, tokenizer: Emu3ImageTokenizer) -> None:
    image = small_photo(name)
    x = tokenizer.preprocess(image, tuple(max(8, s // 8 * 8) for s in image.size[::-1]))[None]
    sizes = torch.tensor([x.shape[2:]])
    with torch.no_grad():
        stock = tokenizer.network.encode(x, sizes).image_tokens[0]
    (ours,) = tokenizer.encode(x)
    assert torch.equal(ours[0], stock)
    assert len(ours.unique()) > ours.numel() // 50


def test_pixels_equal_the_stock_path(tokenizer: Emu3ImageTokenizer) -> None:
    codes = torch.randint(4096, (2, 9, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stock = tokenizer.network.decode(codes)
    ours = tokenizer.decode([codes])
    assert ours.shape == (2, 3, 72, 56)
    # The same sums, in batches of another size.
    assert (ours - stock).abs().max() < 1e-4


def test_video_equals_the_stock_path(tokenizer: Emu3ImageTokenizer) -> None:
    x = torch.rand(2, 3, 8, 40, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        stock = tokenizer.network.encode(x.transpose(1, 2), torch.tensor([[40, 48]] * 2))
        (codes,) = tokenizer.encode_video(x)
        assert codes.shape == (2, 2, 5, 6)
        assert all(torch.equal(a, b) for a, b in zip(codes, stock.image_tokens, strict=True))
        decoded = tokenizer.network.decode(codes).transpose(1, 2)
    assert (tokenizer.decode_video([codes]) - decoded).abs().max() < 1e-4
    with pytest.raises(ValueError, match="multiple of 4"):
        tokenizer.encode_video(x[:, :, :6])


def test_a_still_image_costs_a_quarter_of_the_stock_work(tokenizer: Emu3ImageTokenizer) -> None:
    x = torch.zeros(1, 3, 96, 96)

    def convolved(function) -> float:
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as work:
            function()
        return sum(event.flops for event in work.key_averages() if event.key == "aten::conv2d")

    with torch.no_grad():
        stock = convolved(lambda: tokenizer.network.encode(x, torch.tensor([[96, 96]])))
        assert convolved(lambda: tokenizer.encode(x)) * 3.9 < stock
        codes = tokenizer.encode(x)
        stock = convolved(lambda: tokenizer.network.decode(codes[0]))
        assert convolved(lambda: tokenizer.decode(codes)) * 3.9 < stock


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 4), (65, 4097, 4), (200, 9000, 4), (130, 300, 8)])
def test_nearest_code_is_the_naive_argmin(n: int, k: int, d: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x, codebook = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
    distances = (x**2).sum(1, keepdim=True) + (codebook**2).sum(1) - 2 * x @ codebook.T
    assert torch.equal(nearest_code(x, codebook), distances.argmin(1))


def test_of_equally_near_codes_the_lowest_wins() -> None:
    x = torch.randn(70, 4, generator=torch.Generator().manual_seed(0))
    codebook = torch.randn(5000, 4, generator=torch.Generator().manual_seed(1))
    twice = torch.cat([codebook, codebook, codebook])
    assert torch.equal(nearest_code(x, twice), nearest_code(x, codebook))
    assert nearest_code(x, codebook[:1].expand(9000, -1)).unique().tolist() == [0]
    assert nearest_code(x[:0], codebook).shape == (0,)
    with pytest.raises(ValueError, match=r"\[N,D\]"):
        nearest_code(x, codebook[:, :3])
    with pytest.raises(ValueError, match="empty"):
        nearest_code(x, codebook[:0])


def test_the_search_at_90x90_needs_less_than_ten_megabytes() -> None:
    x, codebook = torch.randn(8100, 4), torch.randn(32768, 4)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as work:
        nearest_code(x, codebook)
    in_use = peak = 0
    for event in work.profiler.kineto_results.events():
        if event.name() == "[memory]":
            in_use += event.nbytes()
            peak = max(peak, in_use)
    assert 2**20 < peak < 10 * 10**6


def reference_codes(tensors: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The published encoder written from its description, on the original's names: four equal frames in."""

    def conv(name: str, h: torch.Tensor, **arguments) -> torch.Tensor:
        return functional.conv2d(h, tensors[f"{name}.weight"], tensors[f"{name}.bias"], **arguments)

    def norm(name: str, h: torch.Tensor) -> torch.Tensor:
        return functional.group_norm(
            h, 32, tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-6
        )

    def block(name: str, h: torch.Tensor) -> torch.Tensor:
        y = conv(f"{name}.conv1", functional.silu(norm(f"{name}.norm1", h)), padding=1)
        y = conv(f"{name}.conv2", functional.silu(norm(f"{name}.norm2", y)), padding=1)
        skip = conv(f"{name}.nin_shortcut", h) if f"{name}.nin_shortcut.weight" in tensors else h
        return skip + y

    def attention(name: str, h: torch.Tensor) -> torch.Tensor:
        n = norm(f"{name}.norm", h)
        q, k, v = (conv(f"{name}.{part}", n).flatten(2).transpose(1, 2) for part in "qkv")
        y = functional.scaled_dot_product_attention(q, k, v)
        return h + conv(f"{name}.proj_out", y.transpose(1, 2).reshape(h.shape))

    def conv3(name: str, h: torch.Tensor, **arguments) -> torch.Tensor:
        side = tensors[f"{name}.weight"].shape[3] // 2
        padded = functional.pad(h, (side, side, side, side, 2, 0))
        return functional.conv3d(
            padded, tensors[f"{name}.weight"], tensors[f"{name}.bias"], **arguments
        )

    def norm3(name: str, h: torch.Tensor) -> torch.Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(h, *(tensors[f"{name}.{each}"] for each in names))

    h = conv("encoder.conv_in", x, padding=1)
    for level in range(4):
        h = block(f"encoder.down.{level}.block.0", h)
        if level == 3:
            h = attention(f"encoder.down.{level}.attn.0", h)
        else:
            h = functional.pad(h, (0, 1, 0, 1))
            h = conv(f"encoder.down.{level}.downsample.conv", h, stride=2)
    h = block("encoder.mid.block_1", h)
    h = block("encoder.mid.block_2", attention("encoder.mid.attn_1", h))
    h = conv("encoder.conv_out", functional.silu(norm("encoder.norm_out", h)), padding=1)
    h = h[:, :, None].repeat(1, 1, 4, 1, 1)
    for i in range(2):
        h = functional.silu(conv3(f"encoder.time_conv.{i}.conv.conv", h, stride=(2, 1, 1)))
    y = conv3(
        "encoder.time_res_stack.0.conv1.conv",
        functional.silu(norm3("encoder.time_res_stack.0.norm1", h)),
    )
    y = conv3(
        "encoder.time_res_stack.0.conv2.conv",
        functional.silu(norm3("encoder.time_res_stack.0.norm2", y)),
    )
    h = conv3("quant_conv.conv", h + y)[:, :, 0]
    latents = h.permute(0, 2, 3, 1)
    return (
        torch.cdist(latents.flatten(0, 2), tensors["quantize.embedding.weight"])
        .argmin(1)
        .view(latents.shape[:3])
    )


def test_the_original_layout_gives_the_codes_of_the_published_network(
    tokenizer: Emu3ImageTokenizer, tmp_path: Path
) -> None:
    save_original_layout(tokenizer.network, tmp_path / "original")
    loaded = load_image_tokenizer(tmp_path / "original")
    x = tokenizer.preprocess(small_photo("rocket.jpg"), (80, 96))[None]
    (codes,) = loaded.encode(x)
    with torch.no_grad():
        expected = reference_codes(load_file(tmp_path / "original/model.safetensors"), x)
    # Distances in another order of sums may turn a near tie.
    assert (codes == expected).float().mean() > 0.99
    assert torch.equal(codes, tokenizer.encode(x)[0])
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.image_size == (512, 512)


def test_the_hf_layout_gives_the_same_tokenizer(
    tokenizer: Emu3ImageTokenizer, tmp_path: Path
) -> None:
    vq_config = tokenizer.network.config.to_dict()
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "emu3", "vq_config": vq_config})
    )
    tensors = {f"vqmodel.{k}": v for k, v in tokenizer.network.state_dict().items()}
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    places = {}
    for file, keys in shards.items():
        save_file({key: tensors[key].contiguous() for key in keys}, tmp_path / file)
        places |= dict.fromkeys(keys, file)
    # The language model's shard is not even opened.
    places["text_model.lm_head.weight"] = "absent.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert load_image_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_a_saved_tokenizer_is_read_back_and_by_transformers(
    tokenizer: Emu3ImageTokenizer, tmp_path: Path
) -> None:
    from transformers import Emu3VQVAE

    tokenizer.save(tmp_path)
    loaded = load_image_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    stock = Emu3VQVAE.from_pretrained(tmp_path)
    codes = torch.randint(4096, (1, 4, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (stock.decode(codes) - loaded.decode([codes])).abs().max() < 1e-4


def test_what_is_no_emu3_tokenizer_is_an_error_that_says_so(
    tokenizer: Emu3ImageTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"codebook_size": 100}))
    with pytest.raises(CorruptDataError, match="weights"):
        load_image_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"fingerprint": "0" * 16}))
    with pytest.raises(CorruptDataError, match="copy both again"):
        load_image_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.48, 0.45, 0.40]}')
    with pytest.raises(CorruptDataError, match="image_mean"):
        load_image_tokenizer(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CorruptDataError, match="cannot read the weights"):
        load_image_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="unknown tokenizer kind"):
        load_image_tokenizer(tmp_path)


def test_wrong_shapes_are_refused(tokenizer: Emu3ImageTokenizer) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        tokenizer.encode(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ValueError, match=r"\[B,h,w\]"):
        tokenizer.decode([torch.zeros(1, 4, 2, 2, dtype=torch.int64)])
    with pytest.raises(ValueError, match=r"outside 0\.\.4095"):
        tokenizer.decode([torch.full((1, 2, 2), 4096)])
