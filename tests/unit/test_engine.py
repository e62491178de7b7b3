"""The engine: cached logits, grammar, and independence from neighbours, on a tiny random Llama."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from mmfast.errors import UsageError
from mmfast.generate import (
    AllowedIds,
    Choice,
    Engine,
    Forced,
    ImageGrammar,
    Request,
    SamplingSettings,
    TextGrammar,
)
from mmfast.generate.step import DecodeStep
from mmfast.models import register_attention
from mmfast.models.decode_attention import BLOCK, cache_mask, decode_attention
from mmfast.vocab import Vocabulary

VOCABULARY = Vocabulary.build(
    50, roles=["eos", "pad", "break", "eoss", "mask_0"], codes=[("image", 24)], multiple_of=8
)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY.size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        attn_implementation=register_attention(),
    )
    return LlamaForCausalLM(config).eval()


def random_prompt(rng: np.random.Generator, *, longest: int = 12) -> tuple[int, ...]:
    return tuple(rng.integers(0, 50, rng.integers(1, longest)).tolist())


def image_request(seed: int, *, guided: bool = True, longest: int = 12, side: int = 4) -> Request:
    rng = np.random.default_rng(seed)
    return Request(
        streams=tuple(random_prompt(rng, longest=longest) for _ in range(2 if guided else 1)),
        guidance_weights=(3.0,) if guided else (),
        grammar=ImageGrammar(side, side, VOCABULARY.range("image")),
        sampling={"image": SamplingSettings(top_p=0.9)},
        seed=seed,
    )


def uncached_logits(model, prompt, ids) -> torch.Tensor:
    """[len(ids), V]: the model's logits before each of `ids`, by one plain forward."""
    with torch.inference_mode():
        whole = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0]
    return whole[len(prompt) - 1 : len(prompt) - 1 + len(ids)]


class Recorder(Engine):
    """An engine that keeps the logits of its first row at every step."""

    def __init__(self, model, *, num_rows):
        self.seen = []
        super().__init__(model, num_rows=num_rows)
        self.seen.clear()

    def logits(self, hidden, low, high):
        logits = super().logits(hidden, low, high)
        self.seen.append(logits.clone())
        return logits


def test_cached_logits_equal_an_uncached_forward(llama):
    # 80 ids cross a block of the cache.
    engine = Recorder(llama, num_rows=3)
    request = dataclasses.replace(
        image_request(5), grammar=ImageGrammar(8, 10, VOCABULARY.range("image"))
    )
    (result,) = engine.run([request])
    image = VOCABULARY.range("image")
    for row, prompt in enumerate(request.streams):
        expected = uncached_logits(llama, prompt, result.ids)[:, image.base : image.end]
        found = torch.stack([step[row] for step in engine.seen])
        assert (found - expected).abs().max() <= 1e-5


def test_a_request_is_the_same_alone_in_company_and_in_any_order(llama):
    requests = [image_request(s, guided=s % 3 > 0, longest=90 if s == 3 else 12) for s in range(12)]
    num_rows = 8
    together = Engine(llama, num_rows=num_rows).run(requests)
    order = np.random.default_rng(0).permutation(len(requests))
    shuffled = Engine(llama, num_rows=num_rows).run([requests[i] for i in order])
    for place, request_idx in enumerate(order):
        assert shuffled[place] == together[request_idx]
    for request, result in zip(requests, together, strict=True):
        assert Engine(llama, num_rows=num_rows).run([request]) == [result]


@pytest.fixture
def logits_seen(monkeypatch):
    """Logits of both streams by (seed, number of the id), of every draw from now on."""
    seen = {}
    draw = DecodeStep._draw

    def spy(self, lane, logits, upcoming, next_ids):
        first = lane.rows[0]
        here = (upcoming[first] == lane.code).tolist()
        for m, (seed, step) in enumerate(
            zip(lane.seeds.tolist(), self.emitted[first].tolist(), strict=True)
        ):
            if here[m]:
                seen[seed, step] = torch.stack([logits[rows][m] for rows in lane.logit_rows])
        draw(self, lane, logits, upcoming, next_ids)

    monkeypatch.setattr(DecodeStep, "_draw", spy)
    return seen


@pytest.mark.parametrize("fuse", [True, False])
def test_logits_do_not_depend_on_company_order_or_time_of_admission(llama, logits_seen, fuse):
    """Alone, with 7 others, permuted and admitted late: bitwise; across row counts within 1e-5."""
    requests = [
        dataclasses.replace(
            image_request(s, longest=150 if s == 2 else 12),
            grammar=ImageGrammar(3, 2 + s % 3, VOCABULARY.range("image"), end_of_row=49),
        )
        for s in range(8)
    ]
    by_way = {}
    for way, chosen, num_rows in (
        ("alone", requests[5:6], 16),
        ("with 7 others", requests, 16),
        ("permuted", [requests[i] for i in (6, 1, 7, 3, 5, 0, 4, 2)], 16),
        ("late", [requests[i] for i in (0, 2, 7, 3, 1, 4, 6, 5)] + requests[:3], 16),
        ("fewer rows", requests[5:6], 2),
        ("later still", [*requests[:5], *requests[6:], requests[5]], 4),
    ):
        logits_seen.clear()
        # With 16 rows the eleven requests of "late" do not all fit at once.
        Engine(llama, num_rows=num_rows, fuse=fuse).run(chosen * (2 if way == "late" else 1))
        by_way[way] = {step: x for (seed, step), x in logits_seen.items() if seed == 5}
    alone = by_way["alone"]
    assert len(alone) == 12
    for way in ("with 7 others", "permuted", "late"):
        assert by_way[way].keys() == alone.keys()
        assert all(torch.equal(by_way[way][step], alone[step]) for step in alone)
    for way in ("fewer rows", "later still"):
        assert max((by_way[way][step] - alone[step]).abs().max() for step in alone) <= 1e-5


def test_a_thousand_random_grids_parse(llama):
    rng = np.random.default_rng(11)
    image = VOCABULARY.range("image")
    requests = [
        Request(
            streams=((seed % 50,),),
            grammar=ImageGrammar(
                *rng.integers(1, 7, 2).tolist(), image, end_of_row=49, closing=(48, 47)
            ),
            sampling={"image": SamplingSettings(temperature=2.0)},
            seed=seed,
        )
        for seed in range(1000)
    ]
    for request, result in zip(requests, Engine(llama, num_rows=64).run(requests), strict=True):
        grammar = request.grammar
        (codes,) = grammar.codes_from_ids(result.ids)
        assert codes.shape == (grammar.height, grammar.width)
        assert codes.min() >= 0
        lines = np.array(result.ids[:-2]).reshape(grammar.height, grammar.width + 1)
        assert (lines[:, -1] == 49).all()
        assert result.ids[-2:] == (48, 47)
        assert result.finish == "complete"


def test_guidance_draws_from_the_mixed_logits(llama):
    request = dataclasses.replace(
        image_request(2), sampling={"image": SamplingSettings(temperature=0.0)}
    )
    (result,) = Engine(llama, num_rows=4).run([request])
    conditional, unconditional = (
        uncached_logits(llama, prompt, result.ids) for prompt in request.streams
    )
    image = VOCABULARY.range("image")
    mixed = (unconditional + 3.0 * (conditional - unconditional))[:, image.base : image.end]
    assert (mixed.argmax(-1) + image.base).tolist() == list(result.ids)


def test_a_repetition_penalty_counts_prompt_and_emitted_ids(llama):
    grammar = TextGrammar(text=AllowedIds(((5, 45),)), stop_ids=(49,), max_ids=30)
    settings = SamplingSettings(temperature=0.0, repetition_penalty=1e4)
    request = Request(
        streams=((7, 9, 11, 9),), grammar=grammar, sampling={"text": settings}, seed=3
    )
    for static in (False, True):
        (result,) = Engine(llama, num_rows=2, static=static).run([request])
        seen = list(request.streams[0])
        logits = uncached_logits(llama, request.streams[0], result.ids)
        for token, row in zip(result.ids, logits, strict=True):
            row = row.clone()
            row[seen] = torch.where(row[seen] > 0, row[seen] / 1e4, row[seen] * 1e4)
            allowed = [*range(5, 45), 49]
            assert token == allowed[int(row[allowed].argmax())]
            seen.append(token)
        assert len(set(result.ids)) == len(result.ids)


def test_contrastive_decoding_takes_the_last_stream_as_the_weak_one(llama):
    settings = SamplingSettings(temperature=0.0, contrastive_alpha=0.5, contrastive_k=3)
    request = dataclasses.replace(image_request(4), sampling={"image": settings})
    (result,) = Engine(llama, num_rows=4).run([request])
    strong, weak = (uncached_logits(llama, prompt, result.ids) for prompt in request.streams)
    image = VOCABULARY.range("image")
    for token, s, w in zip(result.ids, strong, weak, strict=True):
        s, w = s[image.base : image.end], w[image.base : image.end]
        plausible = s.softmax(-1) >= 0.5 * s.softmax(-1).sort(descending=True).values[2]
        score = torch.where(plausible, s - w, -torch.inf)
        assert score.max() - score[token - image.base] <= 1e-4
    alone = dataclasses.replace(request, streams=request.streams[:1], guidance_weights=())
    with pytest.raises(UsageError, match="needs an unconditional stream"):
        Engine(llama, num_rows=4).run([alone])


def test_a_guidance_scale_of_one_is_the_conditional_stream_alone(llama):
    guided = dataclasses.replace(image_request(7), guidance_weights=(1.0,))
    alone = dataclasses.replace(guided, streams=guided.streams[:1], guidance_weights=())
    engine = Engine(llama, num_rows=2)
    assert engine.run([guided]) == engine.run([alone])


def test_three_streams_mix_with_their_weights(llama):
    rng = np.random.default_rng(9)
    request = dataclasses.replace(
        image_request(9),
        streams=tuple(random_prompt(rng) for _ in range(3)),
        guidance_weights=(2.0, 0.7),
        sampling={"image": SamplingSettings(temperature=0.0)},
    )
    (result,) = Engine(llama, num_rows=4).run([request])
    a, b, u = (uncached_logits(llama, prompt, result.ids) for prompt in request.streams)
    image = VOCABULARY.range("image")
    mixed = (u + 2.0 * (a - u) + 0.7 * (b - u))[:, image.base : image.end]
    assert (mixed.argmax(-1) + image.base).tolist() == list(result.ids)


def test_images_have_exactly_their_grid_of_codes(llama):
    rng = np.random.default_rng(3)
    requests, sizes = [], []
    for seed in range(40):
        height, width = (int(n) for n in rng.integers(1, 7, 2))
        sizes.append(height * width)
        grammar = ImageGrammar(height, width, VOCABULARY.range("image"))
        requests.append(dataclasses.replace(image_request(seed), grammar=grammar))
    for result, size in zip(Engine(llama, num_rows=7).run(requests), sizes, strict=True):
        assert len(result.ids) == len(result.logprobs) == size
        assert VOCABULARY.codes_from_ids("image", result.ids).shape == (size,)
        assert result.finish == "complete"
        assert all(logprob <= 0 for logprob in result.logprobs)


def test_text_ends_at_its_stop_id_or_at_its_room(llama):
    grammar = TextGrammar.of_vocabulary(VOCABULARY, stop_roles=("eoss",), max_ids=20)
    rng = np.random.default_rng(4)
    requests = [
        Request(
            streams=(random_prompt(rng),),
            grammar=grammar,
            sampling={"text": SamplingSettings(temperature=2.0)},
            seed=seed,
        )
        for seed in range(60)
    ]
    eoss = VOCABULARY["eoss"]
    results = Engine(llama, num_rows=8).run(requests)
    for result in results:
        body = result.ids[:-1] if result.finish == "complete" else result.ids
        assert (result.finish == "complete") == (result.ids[-1] == eoss)
        assert all(token < 50 for token in body)
        assert result.finish == "complete" or len(result.ids) == 20
    assert {result.finish for result in results} == {"complete", "length"}


@dataclasses.dataclass(frozen=True)
class LinesGrammar:
    """Rows of two free ids, each row closed by a forced one, as in Emu3's images."""

    num_lines: int = 3
    end_of_line: int = 49
    stop_ids: tuple[int, ...] | None = ()

    @property
    def max_ids(self) -> int:
        return 3 * self.num_lines

    def next(self, num_emitted, last_id):
        if num_emitted == self.max_ids:
            return None
        if num_emitted % 3 == 2:
            return Forced(self.end_of_line)
        return Choice(AllowedIds(((0, 40),)), "image")

    def is_complete(self, num_emitted, last_id):
        return num_emitted == self.max_ids


def test_forced_ids_are_fed_but_not_drawn(llama):
    request = dataclasses.replace(image_request(6), grammar=LinesGrammar())
    engine = Recorder(llama, num_rows=2)
    (result,) = engine.run([request])
    assert result.ids[2::3] == (49, 49, 49)
    assert result.logprobs[2::3] == (0.0, 0.0, 0.0)
    assert len(engine.seen) == 6
    expected = uncached_logits(llama, request.streams[0], result.ids)[4, :40]
    assert (engine.seen[3][0] - expected).abs().max() <= 1e-5


def test_mixed_kinds_share_a_batch(llama):
    text = TextGrammar.of_vocabulary(VOCABULARY, stop_roles=("eoss",), max_ids=6)
    requests = [
        dataclasses.replace(image_request(s, guided=False), grammar=text)
        if s % 2
        else image_request(s)
        for s in range(6)
    ]
    engine = Engine(llama, num_rows=5)
    assert engine.run(requests) == [engine.run([request])[0] for request in requests]


def test_opt_generates_as_its_uncached_forward():
    torch.manual_seed(1)
    config = OPTConfig(
        vocab_size=VOCABULARY.size, hidden_size=32, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.0,
        init_std=0.3, attn_implementation=register_attention(),
    )  # fmt: skip
    model = OPTForCausalLM(config).eval()
    engine = Recorder(model, num_rows=4)
    request = image_request(8)
    (result,) = engine.run([request])
    image = VOCABULARY.range("image")
    expected = uncached_logits(model, request.streams[0], result.ids)[:, image.base : image.end]
    assert (torch.stack([step[0] for step in engine.seen]) - expected).abs().max() <= 1e-5


@dataclasses.dataclass(frozen=True)
class AskingGrammar:
    """Text until `switch` is drawn, then two codes: what comes depends on the last id."""

    switch: int = 40
    stop_ids: tuple[int, ...] | None = None
    max_ids: int = 30

    def next(self, num_emitted, last_id):
        image = VOCABULARY.range("image")
        if num_emitted == self.max_ids:
            return None
        if last_id is not None and (last_id >= image.base or last_id == self.switch):
            return Choice(AllowedIds(((image.base, image.end),)), "image")
        return Choice(AllowedIds(((20, 50),)), "text")

    def is_complete(self, num_emitted, last_id):
        return num_emitted == self.max_ids


def mixed_requests() -> list[Request]:
    """Images of several grids, texts that end early and late, a grammar that wants the last id."""
    text = TextGrammar.of_vocabulary(VOCABULARY, stop_roles=("eoss",), max_ids=20)
    image = VOCABULARY.range("image")
    requests = []
    for seed in range(16):
        request = image_request(seed, guided=seed % 4 != 1, longest=100 if seed == 7 else 12)
        grammar = [
            ImageGrammar(2 + seed % 3, 3, image, end_of_row=49, closing=(48, 47)),
            text,
            ImageGrammar(3, 1 + seed % 4, image),
            AskingGrammar(),
        ][seed % 4]
        sampling = {"image": SamplingSettings(top_k=5), "text": SamplingSettings(temperature=3.0)}
        requests.append(dataclasses.replace(request, grammar=grammar, sampling=sampling))
    return requests


def test_steps_in_fixed_memory_with_stops_read_late_give_the_same(llama):
    # What runs on CUDA: lanes filled up to R rows, stop ids seen one step late.
    requests = mixed_requests()
    plain = Engine(llama, num_rows=6, static=False)
    static = Engine(llama, num_rows=6, static=True)
    expected = plain.run(requests)
    assert static.run(requests) == expected
    # A second run finds the memory of the first.
    assert static.run(requests[3:9]) == expected[3:9]
    assert {len(result.ids) for result in expected[1::4]} - {20}
    assert any(max(result.ids) >= 50 and min(result.ids) < 50 for result in expected[3::4])


def test_prompts_with_one_beginning_are_run_once(llama):
    engine = Engine(llama, num_rows=4)
    rng = np.random.default_rng(0)
    shared = tuple(rng.integers(0, 50, 2 * BLOCK + 7).tolist())
    grammar = ImageGrammar(1, 3, VOCABULARY.range("image"))
    requests = [
        Request(streams=((*shared, i, 1, 2), shared), guidance_weights=(2.0,), grammar=grammar)
        for i in (3, 3, 4)
    ]
    kept = []
    make = engine.prompts
    engine.prompts = lambda num_positions: kept.append(make(num_positions)) or kept[0]
    together = engine.run(requests)
    # Two whole pieces once, then the ends: two of nine ids, one of six.
    assert kept[0].num_computed == 2 * BLOCK + 9 + 9 + 6
    for request, result in zip(requests, together, strict=True):
        assert Engine(llama, num_rows=4).run([request]) == [result]


def test_few_prompts_are_kept(llama):
    prompts = Engine(llama, num_rows=1).prompts(100)
    for start in range(8):
        assert len(prompts.pieces(range(start, start + 40))) == 1
    assert prompts.num_computed == 8 * 40
    prompts.pieces(range(7, 47))
    assert prompts.num_computed == 8 * 40
    prompts.pieces(range(40))
    assert prompts.num_computed == 9 * 40
    assert prompts.pieces(()) == []


def test_streaming_shows_ids_as_they_come(llama):
    requests = mixed_requests()[:6]
    engine = Engine(llama, num_rows=4)
    expected = engine.run(requests)
    seen = {}
    for partial in engine.stream(requests, every=3):
        result = expected[partial.request_idx]
        assert result.ids[: len(partial.ids)] == partial.ids
        if partial.result is None:
            assert len(partial.ids) % 3 == 0
            seen[partial.request_idx] = len(partial.ids)
        else:
            assert partial.result == result
    assert seen[0] >= 6
    with pytest.raises(UsageError, match="every 1 or more"):
        next(engine.stream(requests, every=0))
    # Two streams would write into the same rows.
    unfinished = engine.stream(requests, every=1)
    next(unfinished)
    with pytest.raises(UsageError, match="has not come to its end"):
        engine.run(requests)
    unfinished.close()
    assert engine.run(requests) == expected


def test_what_does_not_fit_is_refused_before_anything_runs(llama):
    engine = Engine(llama, num_rows=2)
    long = dataclasses.replace(image_request(0), streams=((1,) * 250, (2,)))
    with pytest.raises(UsageError, match="context of 256 tokens: its prompt has 250 ids"):
        engine.run([long])
    fits = dataclasses.replace(long, streams=((1,) * 241, (2,)))
    assert len(engine.run([fits])[0].ids) == 16
    three = dataclasses.replace(long, streams=((1,), (2,), (3,)), guidance_weights=(1.0, 2.0))
    with pytest.raises(UsageError, match="3 streams"):
        engine.run([three])
    with pytest.raises(UsageError, match="prompt id outside"):
        engine.run([dataclasses.replace(long, streams=((1, 9999), (2,)))])
    with pytest.raises(ValueError, match="no prompt may be empty"):
        dataclasses.replace(long, streams=((1,), ()))
    with pytest.raises(ValueError, match="2 streams need 1 guidance"):
        dataclasses.replace(long, guidance_weights=())
    assert engine.run([]) == []


def test_models_that_scale_their_logits_are_refused():
    from transformers import CohereConfig, CohereForCausalLM

    config = CohereConfig(
        vocab_size=80, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, logit_scale=0.01, initializer_range=1.0,
        attn_implementation=register_attention(), pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with pytest.raises(UsageError, match="changes its logits"):
        Engine(CohereForCausalLM(config).eval(), num_rows=1)


def test_attention_over_blocks_ignores_what_lies_beyond_a_row():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 1, 8, generator=generator)
    # 14 blocks: trees of several depths, with and without an odd one out.
    key, value = torch.randn(2, 14, 3, 2, BLOCK, 8, generator=generator)
    for last in (0, BLOCK - 1, 2 * BLOCK + 5, 5 * BLOCK, 7 * BLOCK - 1):
        positions = torch.tensor([0, last // 2, last])
        num_blocks = last // BLOCK + 1
        attended = [
            decode_attention(query, key, value, mask=cache_mask(positions, n), scaling=0.3)
            for n in range(num_blocks, 15)
        ]
        assert all(torch.equal(attended[0], other) for other in attended)
        for row, position in enumerate(positions.tolist()):
            k, v = (
                x[:, row].transpose(0, 1).flatten(1, 2)[:, : position + 1].repeat_interleave(2, 0)
                for x in (key, value)
            )
            weights = (query[row, :, 0, None] @ k.transpose(-1, -2) * 0.3).softmax(-1)
            assert torch.allclose(attended[0][row, 0], (weights @ v)[:, 0], atol=1e-6)
    with pytest.raises(ValueError, match="cache of blocks"):
        decode_attention(query, key[:, :, :, :-1], value, mask=cache_mask(positions, 7))


def test_text_grammar_leaves_out_special_ids_among_the_text():
    inside = Vocabulary(size=20, text_size=12, special={"eos": 3, "eoss": 15}, ranges=())
    grammar = TextGrammar.of_vocabulary(inside, stop_roles=("eoss",), max_ids=2)
    assert grammar.text.ranges == ((0, 3), (4, 12))
    choice = grammar.next(0, None)
    assert choice is not None
    assert [i for i in range(20) if i in choice.allowed] == [0, 1, 2, *range(4, 12), 15]
    with pytest.raises(ValueError, match="overlap"):
        AllowedIds(((0, 3), (2, 5)))
