"""Published models' own sampling, step for step, and the arguments that make `sample` do the same.

Each test writes down in plain torch what the model's repository does to its logits (named there), at its own
vocabulary and settings, and expects the same kept ids with the same probabilities. Logits are synthetic.
"""

import pytest
import torch
from tests.sampling.oracle import Kept, assert_kept

from mmfast.sampling import nested_guidance

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


def top_p(scores: torch.Tensor, p: float) -> torch.Tensor:
    """The shortest run of most probable ids whose mass reaches p."""
    ranked, ids = scores.sort(descending=True, stable=True)
    probabilities = ranked.softmax(-1)
    gone = probabilities.cumsum(-1) - probabilities >= p
    return scores.masked_fill(torch.zeros_like(gone).scatter(0, ids, gone), -torch.inf)


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
    for backend, most in (("auto", 60), ("torch", 4)):
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

    u + g_image (i - u) + g_text (f - i), with f the full prompt and i its images alone; image ids only.
    """
    full, image, uncond = streams(65_536, 3)
    guided = uncond + 1.2 * (image - uncond) + 3.0 * (full - image)
    scores = top_p(only(guided, 4, 8_196).double() / 0.7, 0.9)
    assert_drawn_from(
        scores, image, uncond, others=[full], guidance_scale=nested_guidance(1.2, 3.0),
        allowed=(4, 8_196), temperature=0.7, top_p=0.9, order="chameleon",
    )  # fmt: skip


def test_chameleon_text():
    """The same repositories' text: allowed ids, repetition penalty 1.2, T 0.7, top-p 0.9."""
    logits = streams(65_536)[0]
    seen = torch.randint(8_196, 65_536, (400,), generator=torch.Generator().manual_seed(0))
    scores = only(logits, 8_196, 65_536)
    scores[seen] = torch.where(scores[seen] < 0, scores[seen] * 1.2, scores[seen] / 1.2)
    scores = top_p(scores.double() / 0.7, 0.9)
    assert_drawn_from(
        scores, logits, allowed=(8_196, 65_536), repetition_penalty=1.2, history=seen,
        temperature=0.7, top_p=0.9, order="chameleon",
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


def test_llamagen():
    """FoundationVision/LlamaGen `generate.py`: u + 7.5 (c - u), T, top-k 1000, top-p exclusive; 16,384 ids.

    Its text-to-image defaults but for a top-p below 1. After `cfg_interval` steps only c is left: scale 1.
    """
    cond, uncond = streams(16_384)
    for scale in (7.5, 1.0):
        guided = uncond + (cond - uncond) * scale
        scores = top_p_exclusive(top_k(guided.double() / 0.9, 1_000), 0.95)
        assert_drawn_from(
            scores, cond, uncond, guidance_scale=scale, temperature=0.9, top_k=1_000, top_p=0.95,
            ties="keep", top_p_rule="exclusive",
        )  # fmt: skip


def test_illume_plus():
    """ILLUME+ `inference_utils.py`: log-probability guidance 2.0, one level's ids, T, top-k, top-p exclusive.

    Semantic level: T 1.0, top-k 2048, top-p 0.8; pixel level: T 2.0, top-k 6144, top-p 1.0.
    """
    size, levels = 152_064 + 32_768 + 98_304, ((152_064, 184_832), (184_832, 283_136))
    cond, uncond = (stream.double() for stream in streams(size))
    guided = 2.0 * (cond.log_softmax(-1) - uncond.log_softmax(-1)) + uncond.log_softmax(-1)
    settings = ((1.0, 2_048, 0.8), (2.0, 6_144, 1.0))
    for level, (temperature, k, p) in zip(levels, settings, strict=True):
        scores = top_k(only(guided, *level) / temperature, k)
        if p < 1:
            scores = top_p_exclusive(scores, p)
        assert_drawn_from(
            scores, cond.float(), uncond.float(), guidance_scale=2.0, allowed=level,
            temperature=temperature, top_k=k, top_p=p, ties="keep", top_p_rule="exclusive",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("temperature", "k", "p"), [(6.0, 0.0, 0.9), (0.5, 0.0, 0.9), (1.0, 0.1, 0.0)]
)
def test_4m(temperature, k, p):
    """apple/ml-4m `fourm/models/generate.py`: guidance 3.0, filters at T 1, then the temperature.

    Text-to-RGB tokens: T from 6.0 down to 0.5, top-p 0.9, top-k off; 16,384 ids, k also as a fraction.
    """
    cond, uncond = streams(16_384)
    scores = (uncond + (cond - uncond) * 3.0).double()
    if k > 0:
        scores = top_k(scores, int(k * 16_384))
    if p > 0:
        scores = top_p_exclusive(scores, p)
    assert_drawn_from(
        scores / temperature, cond, uncond, guidance_scale=3.0, temperature=temperature,
        top_k=k, top_p=p, order="fourm",
    )  # fmt: skip


def test_4m_with_several_conditions():
    """The same file's multi-condition guidance: u + w_1 (c_1 - u) + w_2 (c_2 - u), a weight may be negative."""
    first, second, uncond = streams(4_096, 3)
    scores = uncond + 2.0 * (first - uncond) - 0.5 * (second - uncond)
    assert_drawn_from(
        top_p_exclusive(scores.double(), 0.9), first, uncond, others=[second],
        guidance_scale=(2.0, -0.5), top_p=0.9, order="fourm",
    )  # fmt: skip


def contrastive(cond: torch.Tensor, uncond: torch.Tensor, alpha: float, k: int) -> torch.Tensor:
    """CM3Leon, equation 3: log-ratios of ids within alpha of the k-th largest conditional probability."""
    expert, amateur = cond.double().softmax(-1), uncond.double().softmax(-1)
    scores = expert.log() - amateur.log()
    return scores.masked_fill(expert < alpha * expert.topk(k).values[-1], -torch.inf)


CONTRASTIVE = [
    (1, 0.5, {0: 0.7311, 1: 0.2689}),
    (2, 0.5, {0: 0.2447, 1: 0.0900, 2: 0.6652}),
    (2, 0.1, {0: 0.2245, 1: 0.0826, 2: 0.6103, 3: 0.0826}),
]


@pytest.mark.parametrize(("k", "alpha", "golden"), CONTRASTIVE)
def test_cm3leon_contrastive_decoding_of_six_ids(k, alpha, golden):
    """Worked by hand from arXiv 2309.02591, equations 1 to 3."""
    cond = torch.tensor([3, 2.5, 2, 0.5, -1, -3])
    uncond = torch.tensor([2, 2.5, 0, 0.5, -2, -1])
    expected = drawn_from(contrastive(cond, uncond, alpha, k))
    assert dict(zip(expected.ids.tolist(), expected.probabilities.round(4), strict=True)) == golden
    for backend in ("auto", "torch"):
        assert_kept(
            expected, cond, uncond, contrastive_alpha=alpha, contrastive_k=k, backend=backend
        )


def test_cm3leon_contrastive_decoding_and_guidance():
    """The same at its own size: 8,192 image ids; and guidance l_u + a (l_c - l_u), a = 3, top-p 0.9."""
    cond, uncond = streams(65_536)
    inside = only(cond, 4, 8_196), only(uncond, 4, 8_196)
    for alpha, k in ((0.1, 1), (0.5, 5), (0.9, 50)):
        scores = contrastive(cond[4:8_196], uncond[4:8_196], alpha, k)
        whole = torch.full((65_536,), -torch.inf, dtype=torch.float64)
        whole[4:8_196] = scores
        assert_drawn_from(
            whole, cond, uncond, contrastive_alpha=alpha, contrastive_k=k, allowed=(4, 8_196)
        )
    guided = inside[1] + 3.0 * (inside[0] - inside[1])
    guided = guided.masked_fill(guided.isnan(), -torch.inf).double()
    assert_drawn_from(
        top_p(guided, 0.9), cond, uncond, guidance_scale=3.0, top_p=0.9, allowed=(4, 8_196)
    )


def test_flashinfer_joint_filters():
    """FlashInfer's `top_k_top_p_sampling_from_probs(filter_apply_order="joint")`: p of the whole mass."""
    logits = streams(16_384)[0]
    probabilities = logits.double().softmax(-1)
    ranked, ids = probabilities.sort(descending=True, stable=True)
    inside = (ranked.cumsum(-1) - ranked < 0.3) & (torch.arange(16_384) < 500)
    scores = torch.full((16_384,), -torch.inf, dtype=torch.float64)
    scores[ids[inside]] = ranked[inside].log()
    assert_drawn_from(scores, logits, top_k=500, top_p=0.3, top_p_base="full")
