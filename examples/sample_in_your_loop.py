"""The sampler inside your own loop: guided image ids from any model that gives logits.

    python examples/sample_in_your_loop.py

The model here is a stand-in of twenty lines; replace `logits_of` by yours. What the sampler adds: guidance,
temperature, top-k, top-p and min-p per row, only over the ids that this step may emit, and draws that
depend on each row's seed and step alone, so a row gives the same ids in any batch, on CPU and GPU.
"""

import torch

from mmfast.sampling import SamplingParams, sample_prepared

VOCABULARY_SIZE = 1000
IMAGE_CODES = (700, 956)  # half-open range of ids that an image may hold
NUM_ROWS, NUM_STEPS = 4, 16


def logits_of(history: list[torch.Tensor], *, conditional: bool) -> torch.Tensor:
    """Stands in for a model: [rows, vocabulary] logits that favour codes near the last one."""
    ids = torch.arange(VOCABULARY_SIZE)
    last = history[-1] if history else torch.full((NUM_ROWS,), 800)
    distance = (ids[None, :] - last[:, None]).abs().float()
    drift = 0.02 * ids if conditional else 0.0
    return -distance / 8 + drift


def generate(seeds: torch.Tensor) -> torch.Tensor:
    # Derived once, not in every step; each value may also be a tensor with one entry per row.
    params = SamplingParams.prepare(len(seeds), guidance_scale=3.0, temperature=0.9, top_p=0.95)
    history: list[torch.Tensor] = []
    for step in range(NUM_STEPS):
        drawn = sample_prepared(
            logits_of(history, conditional=True),
            logits_of(history, conditional=False),
            params=params,
            seeds=seeds,
            steps=torch.full_like(seeds, step),
            allowed=IMAGE_CODES,
        )
        history.append(drawn.tokens)
    return torch.stack(history, dim=1)


if __name__ == "__main__":
    seeds = torch.tensor([1, 2, 3, 1])
    tokens = generate(seeds)
    for seed, row in zip(seeds.tolist(), tokens.tolist(), strict=True):
        print(f"seed {seed}: {row}")
    assert torch.equal(tokens[0], tokens[3]), "same seed, same logits: the same ids"
