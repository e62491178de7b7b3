"""Layers with a sliding window: what transformers computes for them, document by document."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from mmfast.errors import UsageError
from mmfast.models import attention_inputs, document_mask, register_attention
from mmfast.models.attention import mmfast_attention
from mmfast.models.windows import attend_to_blocks, block_mask, sliding_window

WINDOW = 7
LENGTHS = (20, 40)
CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
CONFIGS = {
    "mistral": MistralConfig(**SHAPE, sliding_window=WINDOW),
    "gemma3": Gemma3TextConfig(**SHAPE, **MIXED, sliding_window=WINDOW),
    "qwen2": Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
}


def model_of(config):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation=register_attention()
    ).eval()


def packed_row():
    documents = [torch.full((length,), k + 1) for k, length in enumerate(LENGTHS)]
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randint(0, 90, (1, sum(LENGTHS)), generator=generator),
        torch.cat([torch.arange(length) for length in LENGTHS])[None],
        torch.cat(documents).int()[None],
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_transformers_alone_and_packed(kind):
    model = model_of(CONFIGS[kind])
    ids, positions, document_ids = packed_row()
    window = sliding_window(model.config)
    assert window == WINDOW
    prepared = attention_inputs(document_ids, device=CPU, dtype=torch.float32, window=window)
    second = slice(LENGTHS[0], sum(LENGTHS))
    alone = {"input_ids": ids[:, second], "use_cache": False}
    with torch.no_grad():
        found = [
            model(input_ids=ids, position_ids=positions, use_cache=False, **given).logits[:, second]
            for given in (prepared, {"document_ids": document_ids})
        ]
        found.append(model(**alone).logits)
        padding_mask = torch.ones(1, LENGTHS[1], dtype=torch.long)
        padding_mask[:, :2] = 0
        padded = model(**alone, attention_mask=padding_mask).logits
        model.set_attn_implementation("sdpa")
        expected = model(**alone).logits
        expected_padded = model(**alone, attention_mask=padding_mask).logits
        model.set_attn_implementation(register_attention())
        # what a window too long to matter gives, so that the comparison could fail
        for module in model.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = 1000
        model.config.sliding_window = 1000
        unlimited = model(**alone).logits
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded[:, 2:], expected_padded[:, 2:], rtol=1e-5, atol=1e-5)
    assert (unlimited - expected).abs().max() > 1e-2


@pytest.mark.parametrize("num_heads", [2, 4, 6])
def test_flex_attention_sees_what_the_explicit_mask_shows(num_heads):
    generator = torch.Generator().manual_seed(num_heads)
    query = torch.randn(2, num_heads, 300, 16, generator=generator)
    key, value = torch.randn(2, 2, 2, 300, 16, generator=generator)
    document_ids = torch.randint(0, 4, (2, 300), generator=generator).sort(dim=1).values
    mask = block_mask(document_ids, 50)
    assert mask.sparsity() > 0  # blocks that nothing sees are left out
    found = attend_to_blocks(query, key, value, mask, scaling=0.3)
    given = {"sliding_window": 50, "window_mask": document_mask(document_ids, 50), "scaling": 0.3}
    expected, _ = mmfast_attention(torch.nn.Module(), query, key, value, None, **given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # and through the function that layers call, where a model's input is the mask of blocks
    found, _ = mmfast_attention(
        torch.nn.Module(), query, key, value, None, **given | {"window_mask": mask}
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="dropout"):
        mmfast_attention(
            torch.nn.Module(), query, key, value, None, dropout=0.1, **given | {"window_mask": mask}
        )


def test_which_window_a_model_has():
    assert sliding_window(LlamaConfig()) is None
    assert sliding_window(MistralConfig(sliding_window=None)) is None
    assert sliding_window(Qwen2Config(sliding_window=8, use_sliding_window=False)) is None
    all_full = Gemma3TextConfig(**SHAPE, layer_types=["full_attention"] * 2, sliding_window=8)
    assert sliding_window(all_full) is None
    assert sliding_window(CONFIGS["gemma3"]) == WINDOW
    # a window as long as a row is no window
    _, _, document_ids = packed_row()
    arguments = {"device": CPU, "dtype": torch.float32}
    assert "window_mask" not in attention_inputs(document_ids, window=60, **arguments)
    assert "window_mask" in attention_inputs(document_ids, window=59, **arguments)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_attention_does_not_compute_is_an_error(name):
    states = torch.zeros(1, 1, 3, 4)
    with pytest.raises(UsageError, match="does not compute"):
        mmfast_attention(torch.nn.Module(), states, states, states, None, **{name: torch.ones(1)})
