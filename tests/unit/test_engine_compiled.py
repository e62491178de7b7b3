"""The compiled decoding step beside the plain one: the same ids, and still nothing of the neighbours."""

from unittest import mock

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmfast.errors import UsageError
from mmfast.generate import Engine, ImageGrammar, Request, SamplingSettings
from mmfast.models import register_attention
from mmfast.models.decode_attention import BLOCK
from mmfast.vocab import CodeRange

CODES = CodeRange(name="image", base=16, size=32)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8 * BLOCK,
        initializer_range=0.3,
        attn_implementation=register_attention(),
    )
    return LlamaForCausalLM(config).eval()


def request(seed: int, *, prompt_length: int) -> Request:
    prompt = tuple((seed + 3 * place) % 16 for place in range(prompt_length))
    return Request(
        streams=(prompt, (seed % 16,)),
        guidance_weights=(2.0,),
        grammar=ImageGrammar(4, 4, CODES),
        sampling={"image": SamplingSettings(top_p=0.9)},
        seed=seed,
    )


@pytest.mark.slow
def test_a_compiled_step_gives_the_ids_of_the_plain_one(llama: LlamaForCausalLM) -> None:
    # The last request's positions reach over four blocks of the cache, so two sizes are compiled.
    requests = [request(seed, prompt_length=5 + seed) for seed in range(3)]
    requests.append(request(3, prompt_length=4 * BLOCK + 1))
    expected = Engine(llama, num_rows=4).run(requests)
    engine = Engine(llama, num_rows=4, compiled=True)
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    alone = [engine.run([each])[0] for each in requests]
    assert graphs["unique_graphs"] - before == 2
    for found, plain in zip(alone, expected, strict=True):
        assert found.ids == plain.ids
        assert found.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
    # A row of few positions, now beside one of many.
    assert engine.run(requests[::-1]) == alone[::-1]


def test_compiling_is_refused_where_steps_are_graphs() -> None:
    model = mock.MagicMock()
    model.get_output_embeddings().weight.device = torch.device("cuda")
    with pytest.raises(UsageError, match="compiled=True is for CPU"):
        Engine(model, num_rows=1, compiled=True)
