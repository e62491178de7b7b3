"""What is asked of the engine and what comes back: plain frozen data, no tensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from mmfast.generate.grammar import Grammar
from mmfast.sampling.orders import Order, PenaltySpace, Ties, TopPBase, TopPRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How ids of one modality are drawn; ranges and meaning as in `mmfast.sampling.sample`.

    A repetition penalty counts the ids of the first stream's prompt and those emitted. Contrastive
    decoding takes the last stream as the unconditional one.
    """

    temperature: float = 1.0
    top_k: float = 0
    top_p: float = 1.0
    min_p: float = 0.0
    contrastive_alpha: float = 0.0
    contrastive_k: int = 1
    repetition_penalty: float = 1.0
    order: Order = "hf"
    ties: Ties | None = None
    top_p_rule: TopPRule | None = None
    top_p_base: TopPBase | None = None
    penalty_space: PenaltySpace | None = None
    min_p_first: bool | None = None
    filter_temperature: float | None = None
    greedy_below: float | None = None

    def given(self) -> dict[str, Any]:
        """Arguments for `SamplingParams.prepare`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One thing to generate.

    Attributes:
        streams: prompts, each at least one id. The first is the main one. With guidance there are
            several: the last is the unconditional one, and every id drawn is fed to all of them.
        guidance_weights: weight of each stream but the last: the logits drawn from are
            u + sum of w_i (c_i - u). Empty for a single stream.
        grammar: what may come at each position, and when it ends.
        sampling: settings by modality, as the grammar names them.
        seed: 64-bit; the n-th id of a request uses the n-th draw of its seed.
    """

    streams: tuple[tuple[int, ...], ...]
    grammar: Grammar
    guidance_weights: tuple[float, ...] = ()
    sampling: Mapping[str, SamplingSettings] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.streams or not all(self.streams):
            raise ValueError("a request needs at least one prompt, and no prompt may be empty")
        if len(self.guidance_weights) != len(self.streams) - 1:
            raise ValueError(
                f"{len(self.streams)} streams need {len(self.streams) - 1} guidance weights, "
                f"not {len(self.guidance_weights)}"
            )

    @property
    def num_positions(self) -> int:
        """Positions that the longest stream may come to fill; the last id is not fed again."""
        return max(map(len, self.streams)) + self.grammar.max_ids - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What one request gave.

    Attributes:
        ids: emitted ids, forced ones and a stop id included.
        logprobs: natural log-probability of each in the distribution it was drawn from; 0 where
            forced or greedy.
        finish: `complete` when the grammar ended, `length` when it ran out of room.
        status: bits of `mmfast.sampling.SampleOutput.status`, of all draws together.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["complete", "length"]
    status: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partial:
    """Where a request is.

    Attributes:
        request_idx: its place among the requests.
        ids: emitted so far.
        result: what it gave in the end, None before.
    """

    request_idx: int
    ids: tuple[int, ...]
    result: Result | None = None
