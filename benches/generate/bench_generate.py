"""An image of 32 x 32 codes with guidance 3, by an Emu3-shaped model, fp32, one thread.

4 layers of width 256 and Emu3's whole vocabulary of 184,622 ids, random weights. Every contender emits the
same 1,059 ids: 32 rows of 32 codes and an end of row, then end of frame, end of image, end of sequence.

- mmfast: the engine with two rows; top-k 2048 at temperature 1, as Emu3's authors publish.
- transformers, unbatched guidance: `generate` as Emu3's model card has it: a second forward for each id
  (`UnbatchedClassifierFreeGuidanceLogitsProcessor`), then a prefix function, top-k 2048.
- transformers, batched guidance: conditional and unconditional prompt as two rows of one batch, mixed by
  a logits processor with the same formula, the same prefix function; greedy, so that both rows get the
  same id, which spares it the draw.

Before anything is timed, ours and the batched form must give the same ids where they take the largest logit
and it is clearly the largest.
"""

import pytest
import torch
from transformers import Emu3ForCausalLM, Emu3TextConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import (
    PrefixConstrainedLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from mmfast.generate import Engine, ImageGrammar, Request, SamplingSettings
from mmfast.models import register_attention
from mmfast.vocab import CodeRange

SIDE, GUIDANCE, TOP_K = 32, 3.0, 2_048
CODES = CodeRange(name="image", base=151_854, size=32_768)
EOL, CLOSING, PAD = 151_846, (151_847, 151_853, 151_850), 151_643
GRAMMAR = ImageGrammar(SIDE, SIDE, CODES, end_of_row=EOL, closing=CLOSING)
NUM_IDS = GRAMMAR.max_ids
PROMPT, NEGATIVE = tuple(range(100, 140)), tuple(range(300, 350))
ALONE = "image of 32 x 32 codes, guidance 3, Emu3-shaped"
pytestmark = [pytest.mark.benchmark(group=ALONE), pytest.mark.timeout(1_200)]


@pytest.fixture(scope="module")
def model() -> Emu3ForCausalLM:
    torch.manual_seed(0)
    config = Emu3TextConfig(
        vocab_size=CODES.end,
        hidden_size=256,
        intermediate_size=896,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=4_096,
        pad_token_id=PAD,
    )
    return Emu3ForCausalLM(config).eval()


def request(
    *,
    grammar: ImageGrammar = GRAMMAR,
    top_k: int = TOP_K,
    temperature: float = 1.0,
    seed: int = 0,
) -> Request:
    return Request(
        streams=(PROMPT, NEGATIVE),
        guidance_weights=(GUIDANCE,),
        grammar=grammar,
        sampling={"image": SamplingSettings(top_k=top_k, temperature=temperature)},
        seed=seed,
    )


def prefix_function(prompt_length: int):
    """The grammar as a prefix function, which is called for every row and id."""
    codes = list(range(CODES.base, CODES.end))

    def allowed(_, ids: torch.Tensor) -> list[int]:
        upcoming = GRAMMAR.next(len(ids) - prompt_length, None)
        return [upcoming.token] if hasattr(upcoming, "token") else codes

    return allowed


class BatchedGuidance(LogitsProcessor):
    """Row 0 conditional, row 1 unconditional; both become the mixture of their log-probabilities."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [2, V] of both rows to one mixture for both."""
        del input_ids
        conditional, unconditional = torch.log_softmax(scores, dim=-1)
        return (unconditional + GUIDANCE * (conditional - unconditional)).expand(2, -1)


def processors(guidance: LogitsProcessor, prompt_length: int) -> LogitsProcessorList:
    constraint = PrefixConstrainedLogitsProcessor(prefix_function(prompt_length), num_beams=1)
    return LogitsProcessorList([guidance, constraint])


def generate_unbatched(model: Emu3ForCausalLM) -> torch.Tensor:
    ids = torch.tensor([PROMPT])
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        GUIDANCE, model, unconditional_ids=torch.tensor([NEGATIVE])
    )
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=processors(guidance, len(PROMPT)),
        do_sample=True,
        top_k=TOP_K,
        max_new_tokens=NUM_IDS,
        eos_token_id=CLOSING[-1],
        pad_token_id=PAD,
    )


def generate_batched(model: Emu3ForCausalLM, num_ids: int = NUM_IDS) -> torch.Tensor:
    length = max(len(PROMPT), len(NEGATIVE))
    rows = [(PAD,) * (length - len(prompt)) + prompt for prompt in (PROMPT, NEGATIVE)]
    ids = torch.tensor(rows)
    return model.generate(
        ids,
        attention_mask=(ids != PAD).long(),
        logits_processor=processors(BatchedGuidance(), length),
        do_sample=False,
        max_new_tokens=num_ids,
        eos_token_id=CLOSING[-1],
        pad_token_id=PAD,
    )[:, length:]


@pytest.fixture(scope="module", autouse=True)
def equal_greedy_ids(model: Emu3ForCausalLM) -> None:
    """The gate: the first row of the picture is the same, greedily."""
    model.set_attn_implementation("sdpa")
    theirs = generate_batched(model, SIDE + 1)[0].tolist()
    model.set_attn_implementation(register_attention())
    first_row = ImageGrammar(1, SIDE, CODES, end_of_row=EOL)
    (result,) = Engine(model, num_rows=2).run([request(grammar=first_row, temperature=0.0)])
    assert list(result.ids) == theirs


@pytest.mark.parametrize("num_images", [1, 16])
def test_generate_mmfast(measure, model, num_images) -> None:
    model.set_attn_implementation(register_attention())
    engine = Engine(model, num_rows=2 * num_images)
    requests = [request(seed=seed) for seed in range(num_images)]
    name = "mmfast" if num_images == 1 else f"mmfast, {num_images} images at once"
    rounds = 3 if num_images == 1 else 1
    amount = NUM_IDS * num_images
    results = measure(
        name, lambda: engine.run(requests), amount, "ids", rounds=rounds, warmup_rounds=0
    )
    assert all(len(result.ids) == NUM_IDS for result in results)


@pytest.mark.parametrize("form", ["unbatched", "batched"])
def test_generate_transformers(measure, model, form) -> None:
    model.set_attn_implementation("sdpa")
    generate = generate_unbatched if form == "unbatched" else generate_batched
    name = f"transformers generate, {form} guidance"
    ids = measure(name, lambda: generate(model), NUM_IDS, "ids", rounds=1, warmup_rounds=0)
    assert ids.shape[-1] >= NUM_IDS
