"""The sampler inside Hugging Face `generate`: guided image ids, both rows of a pair with the same token.

    python examples/sample_in_generate.py

The model is a tiny Llama with random weights; `AutoModelForCausalLM.from_pretrained(...)` goes in its place.
Prompts and their unconditional twins are one batch: one forward pass a step.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmfast.sampling import SampleProcessor

IMAGE_IDS = (100, 356)  # half-open range of ids that an image may hold
NUM_IMAGE_IDS = 16


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def draw(model: LlamaForCausalLM, prompts: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """Image ids [B, NUM_IMAGE_IDS] for prompts [B, L]."""
    unconditional = torch.ones_like(prompts)  # a real model has a token for this
    processor = SampleProcessor(
        prompt_length=prompts.shape[1], seeds=seeds, pairs="halves",
        guidance_scale=3.0, temperature=0.9, top_k=64, top_p=0.95, allowed=IMAGE_IDS,
    )  # fmt: skip
    both = torch.cat([prompts, unconditional])
    ids = model.generate(
        both,
        attention_mask=torch.ones_like(both),
        max_new_tokens=NUM_IMAGE_IDS,
        do_sample=False,
        logits_processor=[processor],
    )
    return ids[: len(prompts), prompts.shape[1] :]


if __name__ == "__main__":
    model = tiny_model()
    prompts = torch.tensor([[5, 6, 7], [8, 9, 10], [5, 6, 7]])
    drawn = draw(model, prompts, seeds=torch.tensor([1, 2, 1]))
    for row in drawn.tolist():
        print(row)
    assert torch.equal(drawn[0], drawn[2]), "same prompt, same seed: the same ids"
