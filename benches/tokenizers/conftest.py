"""Networks of Emu3's shape for benchmarks, random, with a codebook that lies where latents do."""

import pytest
import torch


@pytest.fixture(scope="session")
def emu3_tokenizer():
    """Emu3's tokenizer with its codebook of 32,768 and an eighth of its channels (4 M parameters)."""
    from examples.emu3.tiny_checkpoints import tiny_vqvae

    from mmfast.tokenizers.emu3 import Emu3ImageTokenizer

    return Emu3ImageTokenizer(tiny_vqvae(codebook_size=32_768))


@pytest.fixture(scope="session")
def photograph(emu3_tokenizer) -> torch.Tensor:
    """The astronaut at 512x512 as `[1,3,512,512]` in [-1, 1]."""
    from skimage import data

    pixels = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)
    return emu3_tokenizer.values_from_pixels(pixels)[None]
