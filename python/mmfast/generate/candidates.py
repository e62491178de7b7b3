"""Best of n: several candidates of every request, of which a score picks one.

Candidate j of a request has the seed `seed + j * 2**32`, so candidate 0 is what the request alone gives,
and requests whose seeds are neighbours share no candidate. Their prompts are run once.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from mmfast.errors import UsageError
from mmfast.generate.requests import Request, Result

Scorer = Callable[[int, Result], float]
"""Request number and one candidate's result to a score; the largest wins, the earlier one on ties."""


def with_candidates(requests: Sequence[Request], num_candidates: int) -> list[Request]:
    """Every request `num_candidates` times, one after another."""
    if num_candidates < 1:
        raise UsageError(f"a request needs at least one candidate, not {num_candidates}")
    return [
        dataclasses.replace(request, seed=(request.seed + (j << 32)) % (1 << 64))
        for request in requests
        for j in range(num_candidates)
    ]


def mean_logprob(request_idx: int, result: Result) -> float:
    """How probable the drawn ids were, a drawn id; the score where nothing better is known."""
    del request_idx
    drawn = [logprob for logprob in result.logprobs if logprob != 0.0]
    return sum(drawn) / len(drawn) if drawn else 0.0


def best_candidates(results: Sequence[Result], num_candidates: int, scorer: Scorer) -> list[Result]:
    """The best of each `num_candidates` results.

    Raises:
        UsageError: a score is not a number.
    """
    best = []
    for start in range(0, len(results), num_candidates):
        request_idx = start // num_candidates
        candidates = results[start : start + num_candidates]
        scores = [float(scorer(request_idx, result)) for result in candidates]
        if any(math.isnan(score) for score in scores):
            raise UsageError(f"the scorer gave no number for request {request_idx}: {scores}")
        best.append(candidates[scores.index(max(scores))])
    return best
