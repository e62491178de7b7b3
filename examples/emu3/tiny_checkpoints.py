"""Tiny random stand-ins for Emu3's and Cosmos' published files in their real layouts, and photographs to try them on.

    python examples/emu3/tiny_checkpoints.py --output out/emu3/raw

writes `Emu3-Gen/emu3.tiktoken`, `Emu3-VisionTokenizer/`, `Cosmos-0.1-Tokenizer-DV8x16x16/`, eight photographs that
come with scikit-image and scikit-learn in `photos/`, their captions as .txt beside them and as .pkl in `captions/`,
and `prompts.jsonl`. The networks are random: codes repeat and decode, but pictures look like noise.
"""

import argparse
import base64
import json
import pickle  # noqa: TID251 -- writes what NeMo's script reads
import warnings
from pathlib import Path

import torch
from PIL import Image

from mmfast.tokenizers import open_image
from mmfast.tokenizers.emu3 import Emu3ImageTokenizer

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "china.jpg",
    "coffee.png",
    "flower.jpg",
    "retina.jpg",
    "rocket.jpg",
    "hubble_deep_field.jpg",
)
CAPTIONS = (
    "an astronaut in an orange suit",
    "a cat that looks at you",
    "a temple in china",
    "a cup of coffee",
    "a yellow flower",
    "the inside of an eye",
    "a rocket at night",
    "many galaxies",
)


def bundled_photos() -> dict[str, Path]:
    """Photographs that come with scikit-image, scikit-learn and matplotlib, by file name."""
    import matplotlib as mpl
    import skimage
    import sklearn

    skimage_data = Path(skimage.__file__).parent / "data"
    sklearn_data = Path(sklearn.__file__).parent / "datasets/images"
    mpl_data = Path(mpl.get_data_path()) / "sample_data"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "camera.png",
             "page.png", "horse.png", "logo.png", "hubble_deep_field.jpg", "no_time_for_that_tiny.gif")  # fmt: skip
    found = {name: skimage_data / name for name in names}
    found |= {name: sklearn_data / name for name in ("china.jpg", "flower.jpg")}
    found["grace_hopper.jpg"] = mpl_data / "grace_hopper.jpg"
    return {name: path for name, path in found.items() if path.is_file()}


def write_tiktoken(folder: Path) -> Path:
    """`emu3.tiktoken` with the 256 bytes and a few merges."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = [
        b" a",
        b"re",
        b"th",
        b" the",
        b"in",
        b" in",
        b"ing",
        b"\xc3\xa9",
        b"image",
        b"im",
        b"age",
    ]
    merges = sorted(set(merges), key=lambda token: (len(token), token))
    tokens = [bytes([byte]) for byte in range(256)] + merges
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    path = folder / "emu3.tiktoken"
    path.write_text("".join(lines))
    return path


def tiny_vqvae(*, codebook_size: int = 4096, base_channels: int = 32, seed: int = 0):
    """A random `Emu3VQVAE` whose codebook lies where the latents of photographs do."""
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Emu3VQVAE(
            Emu3VQVAEConfig(
                codebook_size=codebook_size,
                base_channels=base_channels,
                channel_multiplier=[1, 1, 1, 2],
                num_res_blocks=1,
                attn_resolutions=[3],
                hidden_size=2 * base_channels,
            )
        ).eval()
        fit_codebook(network)
    return network


def fit_codebook(network) -> None:
    """Draws the codebook around the latents of a photograph, so that nearly all codes differ."""
    image = Image.open(bundled_photos()["coffee.png"]).resize((192, 192))
    tokenizer = Emu3ImageTokenizer(network)
    latents: list[torch.Tensor] = []
    handle = network.quant_conv.register_forward_hook(lambda *call: latents.append(call[2]))
    tokenizer.encode(tokenizer.preprocess(image, 192)[None])
    handle.remove()
    latent = latents[0].transpose(0, 1).flatten(1)
    codebook = network.quantize.embedding.weight
    noise = torch.randn(codebook.shape)
    with torch.no_grad():
        codebook.copy_(latent.mean(1) + latent.std(1) * noise)


def save_cosmos(folder: Path, *, factor: int = 16, frames: int = 8) -> Path:
    """A miniature DV tokenizer as TorchScript: block means through the FSQ map, and back."""
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(_MiniEncoder(factor, frames)).save(folder / "encoder.jit")
        torch.jit.script(_MiniDecoder(factor, frames)).save(folder / "decoder.jit")
    return folder


class _MiniEncoder(torch.nn.Module):
    def __init__(self, factor: int, frames: int) -> None:
        super().__init__()
        self.factor, self.frames = factor, frames
        self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        b, c, t, h, w = x.shape
        starts = torch.arange(0, t, self.frames)
        x = x[:, :, starts] * self.scale
        f = self.factor
        means = x.reshape(b, c, len(starts), h // f, f, w // f, f).mean(dim=[4, 6])
        digits = ((means + 1) / 2 * torch.tensor([7.0, 7.0, 7.0]).view(1, 3, 1, 1, 1)).round()
        place = torch.tensor([1.0, 8.0, 64.0]).view(1, 3, 1, 1, 1)
        indices = (digits * place).sum(dim=1).to(torch.int32)
        return indices, digits, torch.zeros(1)


class _MiniDecoder(torch.nn.Module):
    def __init__(self, factor: int, frames: int) -> None:
        super().__init__()
        self.factor, self.frames = factor, frames

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        f = self.factor
        place = torch.tensor([1, 8, 64], dtype=torch.int32).view(1, 3, 1, 1, 1)
        digits = (indices[:, None] // place) % 8
        x = digits.float() / 7 * 2 - 1
        x = x.repeat_interleave(f, dim=3).repeat_interleave(f, dim=4)
        first, rest = x[:, :, :1], x[:, :, 1:].repeat_interleave(self.frames, dim=2)
        return torch.cat([first, rest], dim=2)


def write_example(output: Path, *, side: int = 128) -> None:
    """Everything the module's head lists, under `output`."""
    write_tiktoken(output / "Emu3-Gen")
    Emu3ImageTokenizer(tiny_vqvae()).save(output / "Emu3-VisionTokenizer")
    save_cosmos(output / "Cosmos-0.1-Tokenizer-DV8x16x16")
    (output / "photos").mkdir()
    (output / "captions").mkdir()
    photos = bundled_photos()
    for name, caption in zip(PHOTOS, CAPTIONS, strict=True):
        stem = Path(name).stem
        image = open_image(photos[name])
        image.thumbnail((side, side))
        image.save(output / f"photos/{stem}.jpg")
        (output / f"photos/{stem}.txt").write_text(caption + "\n")
        (output / f"captions/{stem}.pkl").write_bytes(
            pickle.dumps({"captions": {"llava": caption}})
        )
    prompts = "".join(json.dumps({"prompt": caption}) + "\n" for caption in CAPTIONS)
    (output / "prompts.jsonl").write_text(prompts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    write_example(parser.parse_args().output)
