"""Emu3's image tokenizer beside transformers' own path, and its ids beside spelling them out.

One photograph at 512x512 becomes 64x64 codes of 32,768 and pixels again; the search is also timed alone at
90x90, the grid of a 720x720 picture. The ids of an image are held against the published way, which formats a
string for each visual token and tokenises 95,000 characters. Before anything is timed both must give the same.
"""

import numpy as np
import pytest
import torch

from mmfast.recipes.emu3.vocabulary import (
    emu3_vocabulary,
    ids_from_template,
    image_ids,
    load_emu3_text_tokenizer,
    text_size_of,
)
from mmfast.tokenizers.nearest_code import nearest_code

ENCODE = "Emu3 encode, 512x512"
DECODE = "Emu3 decode, 64x64 codes"
SEARCH = "nearest of 32,768 codes, 90x90"
VISUAL_IDS = "Emu3 visual ids, 64x64"


@pytest.mark.benchmark(group=ENCODE)
@pytest.mark.parametrize("contender", ["mmfast", "transformers"])
def test_encode(contender: str, emu3_tokenizer, photograph, measure) -> None:
    size = torch.tensor([photograph.shape[2:]])

    def stock() -> torch.Tensor:
        with torch.no_grad():
            return emu3_tokenizer.network.encode(photograph, size).image_tokens[0]

    def ours() -> torch.Tensor:
        return emu3_tokenizer.encode(photograph)[0][0]

    assert torch.equal(stock(), ours())
    measure(contender, ours if contender == "mmfast" else stock, 1, "images", rounds=3)


@pytest.mark.benchmark(group=DECODE)
@pytest.mark.parametrize("contender", ["mmfast", "transformers"])
def test_decode(contender: str, emu3_tokenizer, photograph, measure) -> None:
    codes = emu3_tokenizer.encode(photograph)

    def stock() -> torch.Tensor:
        with torch.no_grad():
            return emu3_tokenizer.network.decode(codes[0])

    def ours() -> torch.Tensor:
        return emu3_tokenizer.decode(codes)

    assert (stock() - ours()).abs().max() < 1e-3
    measure(contender, ours if contender == "mmfast" else stock, 1, "images", rounds=3)


@pytest.mark.benchmark(group=SEARCH)
@pytest.mark.parametrize("contender", ["mmfast nearest_code", "transformers quantizer"])
def test_search(contender: str, emu3_tokenizer, measure) -> None:
    generator = torch.Generator().manual_seed(0)
    quantizer = emu3_tokenizer.network.quantize
    codebook = quantizer.embedding.weight.detach()
    latents = codebook[torch.randint(len(codebook), (8100,), generator=generator)]
    latents = latents + 0.1 * torch.randn(latents.shape, generator=generator)
    grid = latents.view(1, 1, 90, 90, 4).permute(0, 1, 4, 2, 3)

    def stock() -> torch.Tensor:
        with torch.no_grad():
            return quantizer(grid).flatten()

    def ours() -> torch.Tensor:
        return nearest_code(latents, codebook)

    assert torch.equal(stock(), ours())
    peak = peak_megabytes(ours if contender.startswith("mmfast") else stock)
    measure(
        contender, ours if contender.startswith("mmfast") else stock, 8100, "vectors", rounds=3, peak_megabytes=peak
    )  # fmt: skip


def peak_megabytes(function) -> float:
    """Most memory that torch held at once within the call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as work:
        function()
    in_use = peak = 0
    for event in work.profiler.kineto_results.events():
        if event.name() == "[memory]":
            in_use += event.nbytes()
            peak = max(peak, in_use)
    return peak / 1e6


@pytest.mark.benchmark(group=VISUAL_IDS)
@pytest.mark.parametrize("contender", ["mmfast", "spelled out and tokenised"])
def test_visual_ids(contender: str, tmp_path_factory, measure) -> None:
    from examples.emu3.tiny_checkpoints import write_tiktoken

    folder = tmp_path_factory.mktemp("text")
    write_tiktoken(folder)
    text = load_emu3_text_tokenizer(folder)
    vocabulary = emu3_vocabulary(text_size=text_size_of(text))
    codes = np.random.default_rng(0).integers(0, 32_768, (64, 64))

    def ours() -> np.ndarray:
        return image_ids(codes, vocabulary)

    def spelled() -> list[int]:
        rows = ["".join(f"<|visual token {code:06d}|>" for code in row) for row in codes.tolist()]
        return ids_from_template(text, "<|extra_200|>".join(rows) + "<|extra_200|>")

    assert ours().tolist() == spelled()
    measure(contender, ours if contender == "mmfast" else spelled, 1, "images", rounds=20)
