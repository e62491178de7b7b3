"""`order="hf", ties="keep"` keeps what transformers' own processors keep, stage by stage and together.

Kept sets are compared id by id. Where a nucleus ends among equal logits only the number of ids is: the
processor sorts with an unstable sort there, so which of the equal ids it keeps is not defined.
"""

import pytest
import torch
from transformers import (
    ClassifierFreeGuidanceLogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from mmfast.sampling import sample

NUM_ROWS, NUM_IDS = 24, 151
NO_IDS = torch.zeros(NUM_ROWS, 1, dtype=torch.int64)
NUM_DRAWS = 6_000


def distinct(seed: int) -> torch.Tensor:
    """Every logit of a row once, moderately far apart, so that all kept ids come out."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(NUM_ROWS, NUM_IDS, generator=generator).argsort(-1)
    steps = torch.rand(NUM_ROWS, NUM_IDS, generator=generator) * 0.04 + 0.005
    return steps.cumsum(-1).gather(-1, order)


def tied(seed: int) -> torch.Tensor:
    return (distinct(seed) * 2).round() / 2


def processors(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> list:
    steps = [TemperatureLogitsWarper(temperature)]
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return steps + ([MinPLogitsWarper(min_p)] if min_p else [])


def processed(steps: list, scores: torch.Tensor, ids: torch.Tensor = NO_IDS) -> torch.Tensor:
    return LogitsProcessorList(steps)(ids, scores.clone())


def seen(*streams: torch.Tensor, **arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, N] bool of ids that came out in many draws of each row, and the kept counts [B]."""
    out = sample(
        *streams, seeds=torch.arange(len(streams[0])), steps=0, num_draws=NUM_DRAWS,
        order="hf", ties="keep", **arguments,
    )  # fmt: skip
    found = torch.zeros(streams[0].shape, dtype=torch.bool).scatter(1, out.tokens, True)
    return found, out.num_kept


def assert_same_sets(scores: torch.Tensor, *streams: torch.Tensor, **arguments) -> None:
    found, num_kept = seen(*streams, **arguments)
    theirs = torch.isfinite(scores)
    assert torch.equal(theirs.sum(-1), num_kept)
    assert not (found & ~theirs).any()
    # What the draws did not show can only be rare.
    missing = torch.where(theirs & ~found, scores.softmax(-1), 0.0)
    assert missing.max() < 12 / NUM_DRAWS


CASES = (
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 37},
    {"top_k": 500},
    {"top_p": 0.6},
    {"top_p": 0.05},
    {"min_p": 0.2},
    {"temperature": 1.4, "top_k": 60, "top_p": 0.8},
    {"temperature": 0.5, "top_k": 60, "top_p": 0.9, "min_p": 0.3},
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_warpers_keep_the_same_ids(case):
    logits = distinct(1)
    assert_same_sets(processed(processors(**case), logits), logits, **case)


@pytest.mark.parametrize("case", [case for case in CASES if "top_p" not in case], ids=str)
def test_warpers_keep_the_same_equal_ids(case):
    logits = tied(2)
    assert_same_sets(processed(processors(**case), logits), logits, **case)


@pytest.mark.parametrize("case", [case for case in CASES if "top_p" in case], ids=str)
def test_a_nucleus_that_ends_among_equal_ids_has_the_same_size(case):
    for seed in range(6):
        logits = tied(seed)
        theirs = torch.isfinite(processed(processors(**case), logits)).sum(-1)
        ours = sample(logits, seeds=0, steps=0, order="hf", ties="keep", **case).num_kept
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("scale", [1.5, 3.0, 7.5])
def test_batched_guidance(scale):
    cond, uncond = distinct(3), distinct(4)
    guided = ClassifierFreeGuidanceLogitsProcessor(scale)(NO_IDS, torch.cat([cond, uncond]))
    case = {"temperature": 2.0, "top_k": 60, "top_p": 0.9}
    scores = processed(processors(**case), guided)
    assert_same_sets(scores, cond, uncond, guidance_scale=scale, **case)


@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_guidance_between_log_probabilities(scale):
    """As `generate(guidance_scale=…)` does it: a constant of the row apart, which no later stage sees."""
    cond, uncond = distinct(5), distinct(6)

    class Unconditional(UnbatchedClassifierFreeGuidanceLogitsProcessor):
        def get_unconditional_logits(self, input_ids):
            return uncond[:, None]

    steps = [Unconditional(scale, model=None)]
    case = {"temperature": 1.5, "top_k": 40, "top_p": 0.9}
    scores = processed([*steps, *processors(**case)], cond)
    assert_same_sets(scores, cond, uncond, guidance_scale=scale, **case)


def test_a_constraint_comes_before_every_filter():
    logits = distinct(7)
    allowed = torch.rand(NUM_ROWS, NUM_IDS, generator=torch.Generator().manual_seed(8)) < 0.3
    allowed[:, 5] = True
    rows = iter(range(10**9))

    def allowed_ids(batch_id: int, _) -> list[int]:
        return allowed[next(rows) % NUM_ROWS].nonzero()[:, 0].tolist()

    steps = [PrefixConstrainedLogitsProcessor(allowed_ids, num_beams=1)]
    case = {"temperature": 1.2, "top_k": 20, "top_p": 0.9}
    scores = processed([*steps, *processors(**case)], logits)
    assert_same_sets(scores, logits, allowed=allowed, **case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_ranked_as_float32(dtype):
    """`generate` widens logits before its processors; 16-bit logits tie often."""
    logits = distinct(9).to(dtype)
    case = {"temperature": 0.8, "top_k": 33}
    scores = processed(processors(**case), logits.float())
    assert_same_sets(scores, logits, **case)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_a_repetition_penalty_on_logits(penalty):
    logits = distinct(10) - 2
    seen = torch.randint(0, NUM_IDS, (NUM_ROWS, 40), generator=torch.Generator().manual_seed(1))
    case = {"temperature": 1.3, "top_k": 30, "top_p": 0.95}
    steps = [RepetitionPenaltyLogitsProcessor(penalty), *processors(**case)]
    scores = processed(steps, logits, seen)
    assert_same_sets(scores, logits, repetition_penalty=penalty, history=seen, **case)


def test_a_repetition_penalty_on_guided_log_probabilities():
    """In `generate` guidance comes first and leaves log-probabilities, which are all negative."""
    cond, uncond = distinct(11) / 2, distinct(12) / 2
    seen = torch.randint(0, NUM_IDS, (NUM_ROWS, 20), generator=torch.Generator().manual_seed(2))
    guided = 2.0 * (cond.log_softmax(-1) - uncond.log_softmax(-1)) + uncond.log_softmax(-1)
    case = {"temperature": 1.2, "top_k": 25}
    steps = [RepetitionPenaltyLogitsProcessor(1.2), *processors(**case)]
    scores = processed(steps, guided, seen)
    assert_same_sets(
        scores, cond, uncond, guidance_scale=2.0, repetition_penalty=1.2, history=seen,
        penalty_space="logprobs", **case,
    )  # fmt: skip
