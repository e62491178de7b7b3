"""A sampler to hold ours against that shares nothing with it: float64, a full sort, and Philox in NumPy.

It says which ids of one row are kept, with which probabilities, and which token a seed and step must give.
Since a token is the id whose stretch of the cumulative distribution, in id order, holds the random number,
one well-chosen step for each kept id shows a whole kept set through the public interface: every id comes
out where it must, and `num_kept` says that there is no other.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mmfast.sampling import SampleOutput, sample

SEED = 2_026
BOUNDARY = 2.0**-20
"""Ids whose prefix mass lies this near to p may be kept or not: logits are float32 until the weights."""
_NUM_STEPS = 1 << 21
_CHUNK = 1 << 15
_WORD = np.uint64(0xFFFFFFFF)


class Kept(NamedTuple):
    """Ids that are drawn from, in id order, and the probability of each."""

    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def kept(
    logits: torch.Tensor,
    *,
    ties: str = "index",
    rule: str = "reach",
    base: str = "survivors",
    slack: float = 0.0,
    **stages: float,
) -> Kept:
    """What the stages leave of one row, in the order in which they are named.

    Args:
        logits: [N], mixed already; -inf where an id does not exist.
        ties: `index` or `keep`, of top-k.
        rule: `reach` keeps an id while the mass before it is below p, `exclusive` while it is at most p.
        base: p is a part of the mass of `survivors` of top-k, or of the `full` mass before it.
        slack: how much mass more (or less) than asked for top-p and min-p keep.
        stages: `temperature top_k top_p min_p`, e.g. `kept(row, top_k=50, temperature=0.7)`.
    """
    z = logits.to(torch.float64).numpy().copy()
    scale = math.log2(math.e)
    whole = z
    for stage, value in stages.items():
        match stage:
            case "temperature":
                scale = math.log2(math.e) / value
            case "top_k":
                whole = z.copy()
                z[~_largest(z, int(value), ties)] = -np.inf
            case "top_p":
                mass = _weights(whole if base == "full" else z, scale).sum()
                z[~_nucleus(z, scale, value + slack, rule, mass)] = -np.inf
            case "min_p":
                z[_weights(z, scale) < value - slack] = -np.inf
    ids = np.flatnonzero(z > -np.inf)
    weights = _weights(z, scale)[ids]
    return Kept(ids, weights / weights.sum())


def _weights(z: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """2 to the gap in bits below the largest: exact where that is a whole number."""
    exists = z > -np.inf
    gap = np.where(exists, z, 0.0) - z.max()
    return np.where(exists, np.exp2(gap * scale), 0.0)


def _largest(z: NDArray[np.float64], k: int, ties: str) -> NDArray[np.bool_]:
    if not 0 < k < len(z):
        return np.ones(len(z), bool)
    ranked = np.argsort(-z, kind="stable")
    if ties == "keep":
        return z >= z[ranked[k - 1]]
    inside = np.zeros(len(z), bool)
    inside[ranked[:k]] = True
    return inside


def _nucleus(
    z: NDArray[np.float64], scale: float, p: float, rule: str, mass: float
) -> NDArray[np.bool_]:
    if p >= 1:
        return np.ones(len(z), bool)
    ranked = np.argsort(-z, kind="stable")
    weights = _weights(z, scale)[ranked]
    before = weights.cumsum() - weights
    stays = before < p * mass if rule == "reach" else before <= p * mass
    stays &= z[ranked] > -np.inf
    stays[0] = True
    inside = np.zeros(len(z), bool)
    inside[ranked[stays]] = True
    return inside


def philox(
    counter: tuple[NDArray[np.uint64] | int, ...], key: tuple[NDArray[np.uint64] | int, ...]
) -> tuple[NDArray[np.uint64], ...]:
    """Philox4x32-10 (Salmon et al. 2011): four words of 32 bits for each counter."""
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = (np.asarray(word, np.uint64) for word in key)
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c2 = (second >> np.uint64(32)) ^ c1 ^ k0, (first >> np.uint64(32)) ^ c3 ^ k1
        c1, c3 = second & _WORD, first & _WORD
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _WORD, (k1 + np.uint64(0xBB67AE85)) & _WORD
    return c0, c1, c2, c3


def uniforms(seeds: NDArray[np.int64] | int, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """The number in [0, 1) that each seed and step draws with."""
    seeds, steps = np.broadcast_arrays(np.asarray(seeds, np.int64), steps)
    numbers = np.empty(len(steps))
    for start in range(0, len(steps), _CHUNK):
        part = slice(start, start + _CHUNK)
        seed, step = (np.ascontiguousarray(v[part]).view(np.uint64) for v in (seeds, steps))
        counter = (0, step & _WORD, step >> np.uint64(32), 0)
        low, high, _, _ = philox(counter, (seed & _WORD, seed >> np.uint64(32)))
        numbers[part] = (high * 2.0**32 + low) / 2.0**64
    return numbers


@functools.cache
def _ordered_steps() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Numbers of the first steps of `SEED` in ascending order, and their steps."""
    numbers = uniforms(SEED, np.arange(_NUM_STEPS))
    order = np.argsort(numbers)
    return numbers[order], order


def steps_that_draw(expected: Kept, *, most: int = 3_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps of `SEED`, and the id that each must give: one an id, for `most` of them at most.

    The number of a step lies well inside its id's stretch of the distribution, so rounding decides nothing;
    ids that are too rare for one of the first two million steps are left out.
    """
    numbers, steps = _ordered_steps()
    ends = expected.probabilities.cumsum()
    chosen = np.unique(np.linspace(0, len(ends) - 1, min(most, len(ends))).astype(np.int64))
    width = expected.probabilities[chosen]
    middle = ends[chosen] - width / 2
    nearest = np.searchsorted(numbers, middle).clip(max=len(numbers) - 1)
    inside = np.abs(numbers[nearest] - middle) < np.maximum(width / 2 - 2e-6, width / 4)
    return torch.from_numpy(steps[nearest[inside]]), torch.from_numpy(expected.ids[chosen[inside]])


def assert_kept(
    expected: Kept,
    logits: torch.Tensor,
    uncond: torch.Tensor | None = None,
    *,
    others: Sequence[torch.Tensor] = (),
    history: torch.Tensor | None = None,
    rare: bool = False,
    most: int = 3_000,
    **arguments: Any,
) -> SampleOutput:
    """`sample` keeps exactly these ids of one row, and draws each with its probability.

    Args:
        expected: of the oracle.
        logits: [N], as are those of the other streams.
        uncond: as in `sample`.
        others: the `streams` of `sample`.
        history: ids [L] that a penalty applies to.
        rare: whether some ids may be too rare to be drawn.
        most: ids that are drawn at most.
        arguments: of `sample`.
    """
    steps, ids = steps_that_draw(expected, most=most)
    assert rare or len(ids) == min(most, len(expected.ids))
    out = sample(
        logits.expand(len(steps), -1),
        None if uncond is None else uncond.expand(len(steps), -1),
        streams=[other.expand(len(steps), -1) for other in others],
        history=None if history is None else history.expand(len(steps), -1),
        seeds=SEED,
        steps=steps,
        **arguments,
    )
    assert set(out.num_kept.tolist()) <= {len(expected.ids)}
    assert torch.equal(out.tokens, ids)
    place = np.searchsorted(expected.ids, ids.numpy())
    logprobs = torch.from_numpy(np.log(expected.probabilities[place]))
    assert torch.allclose(out.logprobs.double(), logprobs, atol=2e-5, rtol=0)
    return out
