"""A loop around `torch.multinomial`, made reproducible a row: two lines change.

    python examples/sample_for_multinomial.py

The loop is that of small GPT trainers: a forward pass, softmax, `torch.multinomial(probabilities, num_samples=1,
generator=generator)`. With torch's generator a row's ids depend on the rows beside it; with a `RowGenerator` on
its own seed alone, so that a request can be drawn again by itself, in another batch, or on another device.
"""

import torch

from mmfast.sampling import RowGenerator, multinomial

VOCABULARY_SIZE, NUM_STEPS = 50, 12


def tiny_model() -> torch.nn.Module:
    """Stands in for yours: ids [B, L] to logits [B, L, VOCABULARY_SIZE]."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Embedding(VOCABULARY_SIZE, 32), torch.nn.Linear(32, VOCABULARY_SIZE)
    )


@torch.no_grad()
def generate(model: torch.nn.Module, ids: torch.Tensor, generator: RowGenerator) -> torch.Tensor:
    for _ in range(NUM_STEPS):
        probabilities = model(ids)[:, -1].softmax(-1)
        # `torch.multinomial` with the same arguments stood here,
        drawn = multinomial(probabilities, num_samples=1, generator=generator)
        ids = torch.cat([ids, drawn], dim=1)
    return ids


if __name__ == "__main__":
    model = tiny_model()
    prompts = torch.tensor([[1], [2], [1]])
    # and a `torch.Generator` here.
    together = generate(model, prompts, RowGenerator(torch.tensor([10, 11, 10])))
    for row in together.tolist():
        print(row)
    alone = generate(model, prompts[1:2], RowGenerator(torch.tensor([11])))
    assert torch.equal(together[1:2], alone), "a row gives the same ids by itself"
    assert torch.equal(together[0], together[2]), "same prompt, same seed: the same ids"
    several = multinomial(torch.ones(2, 6), 6, generator=RowGenerator(3))
    print("without replacement:", several.tolist())
