"""Published models' own sampling, step for step, and the arguments that make `sample` do the same.

Each test writes down in plain torch what the model's repository does to its logits (named there), at its own
vocabulary and settings, and expects the same kept ids with the same probabilities. Logits are synthetic.
"""

import torch
from tests.sampling.oracle import Kept, assert_kept

VISUAL_EMU3 = (151_854, 184_622)


def noise(size: int, seed: int, scale: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator) * scale


def streams(size: int, count: int = 2) -> list[torch.Tensor]:
    """Logits of one position from several prompts: alike, not equal."""
    shared = noise(size, 0, scale=1.0)
    return [shared + noise(size, seed, scale=0.3) for seed in range(1, count + 1)]


def only(scores: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Scores with every id outside [low, high) removed."""
    ids = torch.arange(len(scores))
    return scores.masked_fill((ids < low) | (ids >= high), -torch.inf)


def top_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    """All ids that equal the k-th stay, as in every repository here."""
    return scores.masked_fill(scores < scores.topk(k).values[-1], -torch.inf)


def top_p_exclusive(scores: torch.Tensor, p: float) -> torch.Tensor:
    """An id stays while the mass before it is at most p."""
    ranked, ids = scores.sort(descending=True)
    probabilities = ranked.softmax(-1)
    gone = probabilities.cumsum(-1) - probabilities > p
    return scores.masked_fill(torch.zeros_like(gone).scatter(0, ids, gone), -torch.inf)


def drawn_from(scores: torch.Tensor) -> Kept:
    """What `multinomial(softmax(scores))` draws from."""
    ids = (scores > -torch.inf).nonzero()[:, 0]
    return Kept(ids.numpy(), scores[ids].double().softmax(-1).numpy())


def assert_drawn_from(scores: torch.Tensor, *logits: torch.Tensor, **arguments) -> None:
    for backend, most in (("rust", 200), ("torch", 10)):
        assert_kept(drawn_from(scores), *logits, rare=True, most=most, backend=backend, **arguments)


def test_emu3():
    """baaivision/Emu3 `image_generation.py`: guidance on log-probabilities, then the allowed ids, then top-k.

    Visual ids 151,854..184,621 of 184,622, guidance 3.0, top-k 2048, temperature 1.
    """
    cond, uncond = (stream.double() for stream in streams(184_622))
    guided = 3.0 * (cond.log_softmax(-1) - uncond.log_softmax(-1)) + uncond.log_softmax(-1)
    scores = top_k(only(guided, *VISUAL_EMU3), 2_048)
    assert_drawn_from(
        scores, cond.float(), uncond.float(),
        guidance_scale=3.0, allowed=VISUAL_EMU3, top_k=2_048, order="hf", ties="keep",
    )  # fmt: skip


def test_chameleon_image():
    """facebookresearch/chameleon and GAIR-NLP/anole: three streams, g_text 3.0, g_image 1.2, T 0.7, top-p 0.9.

    u + g_image (i - u) + g_text (f - i), with f the full prompt and i its images alone: weights 3.0 and -1.8.
    """
    full, image, uncond = streams(65_536, 3)
    guided = uncond + 1.2 * (image - uncond) + 3.0 * (full - image)
    scores = only(guided, 4, 8_196).double() / 0.7
    ranked, ids = scores.sort(descending=True)
    probabilities = ranked.softmax(-1)
    gone = probabilities.cumsum(-1) - probabilities >= 0.9
    scores = scores.masked_fill(torch.zeros_like(gone).scatter(0, ids, gone), -torch.inf)
    assert_drawn_from(
        scores, full, uncond, others=[image], guidance_scale=(3.0, 1.2 - 3.0),
        allowed=(4, 8_196), temperature=0.7, top_p=0.9,
    )  # fmt: skip


def test_lumina_mgpt():
    """Alpha-VLLM/Lumina-mGPT `inference_solver.py`: guidance 3.0 on logits, image ids, top-k 2000, then T."""
    cond, uncond = streams(65_536)
    guided = 3.0 * (cond - uncond) + uncond
    scores = top_k(only(guided, 4, 8_196), 2_000) / 0.9
    assert_drawn_from(
        scores, cond, uncond,
        guidance_scale=3.0, allowed=(4, 8_196), top_k=2_000, temperature=0.9, ties="keep",
    )  # fmt: skip


def test_lumina_mgpt_text():
    """The same model between images: top-k 10 over everything that is not an image id."""
    cond = streams(65_536)[0]
    text = torch.ones(65_536, dtype=torch.bool)
    text[4:8_196] = False
    scores = top_k(cond.masked_fill(~text, -torch.inf), 10)
    assert_drawn_from(scores, cond, allowed=text, top_k=10, ties="keep")


def test_janus():
    """deepseek-ai/Janus `generation_inference.py`: u + 5 (c - u), softmax, nothing is cut off; 16,384 ids."""
    cond, uncond = streams(16_384)
    scores = uncond + 5 * (cond - uncond)
    assert_drawn_from(scores, cond, uncond, guidance_scale=5.0)
