"""The engine beside transformers' own generation, class by class, and on Emu3's picture path."""

import numpy as np
import pytest
import torch
from transformers import (
    Emu3Config,
    Emu3ForCausalLM,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mmfast.errors import UsageError
from mmfast.generate import AllowedIds, Engine, ImageGrammar, Request, SamplingSettings, TextGrammar
from mmfast.models import register_attention
from mmfast.models.fused_decoder import fuse_decoder
from mmfast.vocab import CodeRange

VOCAB = 96
STOP, PAD = VOCAB - 1, VOCAB - 2
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": STOP,
}
# Places of codes, marks and the processor's placeholder in a vocabulary as the -hf folders have it.
CODES = CodeRange(name="image", base=60, size=32)
EOL, EOF, EOI, PLACEHOLDER = 50, 51, 52, 53


def emu3_config() -> Emu3Config:
    names = {f"<|visual token {code:06d}|>": CODES.base + code for code in range(CODES.size)}
    return Emu3Config(
        text_config=Emu3TextConfig(**SHAPE),
        vq_config={
            "codebook_size": CODES.size,
            "embed_dim": 4,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "hidden_size": 32,
            "num_attention_heads": 1,
        },
        vocabulary_map=names | {"<|extra_200|>": EOL, "<image>": PLACEHOLDER},
    )


def small_model(kind: str):
    torch.manual_seed(0)
    if kind == "opt":
        config = OPTConfig(
            vocab_size=VOCAB, hidden_size=32, ffn_dim=64, num_hidden_layers=2, dropout=0.0,
            num_attention_heads=4, max_position_embeddings=256, word_embed_proj_dim=32,
            init_std=0.3, pad_token_id=PAD, bos_token_id=1, eos_token_id=STOP,
        )  # fmt: skip
        return OPTForCausalLM(config).eval()
    if kind == "emu3 conditional":
        return Emu3ForConditionalGeneration(emu3_config()).eval()
    model, config = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "mistral": (MistralForCausalLM, MistralConfig),
        "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config),
        "qwen2 windowed": (Qwen2ForCausalLM, Qwen2Config),
        "emu3": (Emu3ForCausalLM, Emu3TextConfig),
    }[kind]
    return model(config(**SHAPE, **WINDOWS.get(kind, {}))).eval()


# A window that begins within a block of the cache; in all layers, in the first, in the second.
WINDOWS = {
    "mistral": {"sliding_window": 9},
    "gemma3": {
        "sliding_window": 9,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": False,
    },
    "qwen2 windowed": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
}
NOT_FUSED = ("opt", "gemma3")
KINDS = ["llama", "opt", "qwen2", "emu3", "emu3 conditional", *WINDOWS]


def biases_set(model):
    """Biases start at zero, where a lost one would not show."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "vqmodel" not in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_are_those_of_transformers(kind):
    model = biases_set(small_model(kind))
    rng = np.random.default_rng(1)
    # The longest prompt takes two pieces, and its answer passes into a further block.
    prompts = [tuple(rng.integers(2, 50, length).tolist()) for length in (1, 7, 100)]
    model.set_attn_implementation("sdpa")
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40
        )
        expected.append(made[0, len(prompt) :].tolist())
    model.set_attn_implementation(register_attention())
    grammar = TextGrammar(text=AllowedIds(((0, STOP),)), stop_ids=(STOP,), max_ids=40)
    requests = [
        Request(
            streams=(prompt,),
            grammar=grammar,
            sampling={"text": SamplingSettings(temperature=0.0)},
        )
        for prompt in prompts
    ]
    for fuse in (True, False):
        results = Engine(model, num_rows=3, fuse=fuse).run(requests)
        assert [list(result.ids) for result in results] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_the_known_shape_are_decoded_in_their_fused_form(kind):
    model = biases_set(small_model(kind))
    model.set_attn_implementation(register_attention())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engines = [Engine(model, num_rows=2, fuse=fuse) for fuse in (True, False, True)]
    is_fused = [type(engine._decode).__name__ == "FusedDecoder" for engine in engines]
    assert is_fused == [kind not in NOT_FUSED, False, kind not in NOT_FUSED]
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    if kind not in NOT_FUSED:
        # Joined once, and then found joined: nothing is held twice.
        attention = model.get_decoder().layers[1].self_attn
        q, k = attention.q_proj.weight, attention.k_proj.weight
        assert k.data_ptr() == q.data_ptr() + 4 * q.numel()
        joined = fuse_decoder(model.get_decoder())._layers[1].qkv[0]
        assert joined.data_ptr() == q.data_ptr()


def test_a_model_that_only_looks_like_llama_keeps_its_own_forward():
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    config = GraniteConfig(**SHAPE, residual_multiplier=0.5, logits_scaling=1.0)
    model = GraniteForCausalLM(config).eval()
    model.set_attn_implementation(register_attention())
    assert type(Engine(model, num_rows=2)._decode).__name__ != "FusedDecoder"


def test_layers_that_attend_in_another_way_are_refused():
    config = LlamaConfig(**SHAPE)
    config.layer_types = ["full_attention", "chunked_attention"]
    model = LlamaForCausalLM(config).eval()
    model.set_attn_implementation(register_attention())
    with pytest.raises(UsageError, match="chunked_attention"):
        Engine(model, num_rows=1)


def test_attention_sinks_are_refused():
    shape = SHAPE | {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    model = GptOssForCausalLM(GptOssConfig(**shape, sliding_window=9)).eval()
    model.set_attn_implementation(register_attention())
    with pytest.raises(UsageError, match="attention sinks"):
        Engine(model, num_rows=1)


def test_rotations_that_depend_on_the_longest_row_are_refused():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope)).eval()
    model.set_attn_implementation(register_attention())
    with pytest.raises(UsageError, match="rope_type dynamic"):
        Engine(model, num_rows=1)


class Recorder(Engine):
    """An engine that keeps the logits of all rows at every step."""

    def __init__(self, model, *, num_rows):
        self.seen = []
        super().__init__(model, num_rows=num_rows)
        self.seen.clear()

    def logits(self, hidden, low, high):
        logits = super().logits(hidden, low, high)
        self.seen.append(logits.clone())
        return logits


def test_emu3_draws_the_picture_that_transformers_draws(tmp_path):
    torch.manual_seed(3)
    Emu3ForConditionalGeneration(emu3_config()).save_pretrained(tmp_path)
    model = Emu3ForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="sdpa")
    model.eval()
    grammar = ImageGrammar(4, 6, CODES, end_of_row=EOL, closing=(EOF, EOI, STOP))
    prompt, negative = (1, 7, 8, 9, 20), (1, 30, 31)
    codes = list(range(CODES.base, CODES.end))

    def allowed(_, ids):
        upcoming = grammar.next(len(ids) - len(prompt), None)
        return [upcoming.token] if hasattr(upcoming, "token") else codes

    theirs = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        negative_prompt_ids=torch.tensor([negative]),
        negative_prompt_attention_mask=torch.ones(1, len(negative), dtype=torch.long),
        guidance_scale=3.0,
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        max_new_tokens=grammar.max_ids,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
    ids = theirs.sequences[0, len(prompt) :].tolist()
    model.set_attn_implementation(register_attention())
    engine = Recorder(model, num_rows=2)
    request = Request(
        streams=(prompt, negative),
        guidance_weights=(3.0,),
        grammar=grammar,
        sampling={"image": SamplingSettings(temperature=0.0)},
    )
    (result,) = engine.run([request])
    drawn = [n for n in range(grammar.max_ids) if not hasattr(grammar.next(n, None), "token")]
    assert len(engine.seen) == len(drawn) == 24
    for n, logits in zip(drawn, engine.seen, strict=True):
        assert result.ids[:n] == tuple(ids[:n])
        expected = theirs.logits[n][0, CODES.base : CODES.end]
        assert (logits[0] - expected).abs().max() <= 1e-5
        top = theirs.scores[n][0, CODES.base : CODES.end].topk(2).values
        if top[0] - top[1] > 1e-3:
            assert result.ids[n] == ids[n]
    assert result.ids == tuple(ids)
    pixels = model.decode_image_tokens(image_tokens=torch.tensor([ids]), height=4, width=6)
    mapped = model.vocabulary_mapping.convert_bpe2img(torch.tensor([ids[:-3]]).view(-1, 4, 7))
    assert grammar.codes_from_ids(result.ids)[0].tolist() == mapped[0].tolist()
    assert torch.isfinite(pixels).all()
