"""Sampling parameters in the form that backends read: derived once, in float64, on the CPU.

Backends never divide by a temperature or round a probability themselves; they get the float32 and
integer values computed here, so they cannot disagree about them. B rows, S conditional streams.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import torch

from mmfast.sampling.orders import (
    RULE_EXCLUSIVE,
    RULE_FULL_MASS,
    RULE_KEEP_TIES,
    RULE_MIN_P_FIRST,
    RULES,
    Order,
    PenaltySpace,
    Ties,
    TopPBase,
    TopPRule,
)
from mmfast.sampling.weights import PROBABILITY_BITS

PerRow = float | int | torch.Tensor
Name = TypeVar("Name", bound=str)

TOP_P_OFF = 1 << PROBABILITY_BITS
_SMALLEST_NORMAL = 2.0**-126
_COLDEST_FILTER = 1e-30


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Prepared parameters of B rows, all tensors on one device.

    Attributes:
        guidance: [S, B] float32, weight of each conditional stream.
        bits_per_logit: [B] float32, log2(e) / temperature: one unit of logit in bits.
        filter_bits_per_logit: [B] float32, the same of the filters' temperature.
        greedy: [B] bool, rows that take the largest logit.
        top_k: [B] int64, 0 is off.
        top_k_share: [B] float64 in [0, 1), top-k as a part of the row's ids; 0 where `top_k` says it.
        top_p: [B] int64, floor(p * 2**31); 2**31 is off.
        min_p: [B] int64, floor(p * 2**31); 0 is off.
        contrastive_k: [B] int64, 0 is off.
        contrastive_log_alpha: [B] float32, ln(alpha).
        repetition_penalty: [B] float32, 1 is off.
        penalizes_logprobs: [B] bool, rows whose penalty scales log-probabilities.
        rules: [B] int64, bits `RULE_*` of `mmfast.sampling.orders`.
        rule_sets: every value in `rules`, known on the host, as are the following.
        top_k_bound: what no row keeps more ids than (ties apart); 0 if unknown or some row may keep all.
        uses_rank: whether any row has top-k or top-p.
        uses_share: whether any row has a `top_k_share`.
        uses_contrast: whether any row has contrastive decoding.
        uses_penalty: whether any row has a repetition penalty.
        uses_logprobs: whether any row penalises log-probabilities.
        filters_apart: whether the filters of any row see another temperature than its draw.
        needs_unconditional: whether any row mixes with the unconditional stream.
    """

    guidance: torch.Tensor
    bits_per_logit: torch.Tensor
    filter_bits_per_logit: torch.Tensor
    greedy: torch.Tensor
    top_k: torch.Tensor
    top_k_share: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    contrastive_k: torch.Tensor
    contrastive_log_alpha: torch.Tensor
    repetition_penalty: torch.Tensor
    penalizes_logprobs: torch.Tensor
    rules: torch.Tensor
    rule_sets: frozenset[int]
    top_k_bound: int
    uses_rank: bool
    uses_share: bool
    uses_contrast: bool
    uses_penalty: bool
    uses_logprobs: bool
    filters_apart: bool
    needs_unconditional: bool

    @property
    def num_rows(self) -> int:
        """B."""
        return self.greedy.shape[0]

    @classmethod
    def prepare(
        cls,
        num_rows: int,
        *,
        guidance_scale: PerRow | Sequence[PerRow] = 1.0,
        temperature: PerRow = 1.0,
        top_k: PerRow = 0,
        top_p: PerRow = 1.0,
        min_p: PerRow = 0.0,
        contrastive_alpha: PerRow = 0.0,
        contrastive_k: PerRow = 1,
        repetition_penalty: PerRow = 1.0,
        order: Order | Sequence[Order] = "hf",
        ties: Ties | Sequence[Ties] | None = None,
        top_p_rule: TopPRule | Sequence[TopPRule] | None = None,
        top_p_base: TopPBase | Sequence[TopPBase] | None = None,
        penalty_space: PenaltySpace | Sequence[PenaltySpace] | None = None,
        min_p_first: bool | torch.Tensor | None = None,
        filter_temperature: PerRow | None = None,
        greedy_below: PerRow | None = None,
        device: torch.device | str = "cpu",
    ) -> "SamplingParams":
        """Derives the parameters; numbers are scalars or [B] tensors, names one or one for each row.

        Args:
            num_rows: B.
            guidance_scale: weight of the conditional stream, any finite number; a list or tuple
                gives one for each of several streams (see `nested_guidance`).
            temperature: >= 0, may be infinite; 0 is greedy.
            top_k: >= 0; 0 keeps all ids; below 1 the part of the row's allowed ids to keep, rounded down to
                a number of at least 1.
            top_p: >= 0; 1 or more keeps all ids.
            min_p: in [0, 1]; 0 keeps all ids.
            contrastive_alpha: >= 0; 0 is off.
            contrastive_k: >= 1, read where `contrastive_alpha` is not 0.
            repetition_penalty: > 0; 1 is off.
            order: see `sample`; what follows is taken from it where it is None.
            ties: see `sample`.
            top_p_rule: see `sample`.
            top_p_base: see `sample`.
            penalty_space: see `sample`.
            min_p_first: see `sample`.
            filter_temperature: >= 1e-30; that of top-k, top-p and min-p.
            greedy_below: temperatures below this are greedy.
            device: where the tensors go.

        Raises:
            ValueError: a value out of range (NaN included) or of the wrong shape.
        """
        orders = [RULES[name] for name in _names(order, num_rows, "order", tuple(RULES))]
        keeps_ties = _is(ties, "keep", [r.ties for r in orders], "ties", get_args(Ties))
        is_exclusive = _is(
            top_p_rule,
            "exclusive",
            [r.top_p_rule for r in orders],
            "top_p_rule",
            get_args(TopPRule),
        )
        is_full = _is(
            top_p_base, "full", [r.top_p_base for r in orders], "top_p_base", get_args(TopPBase)
        )
        penalizes_logprobs = _is(
            penalty_space, "logprobs", [r.penalty_space for r in orders], "penalty_space",
            get_args(PenaltySpace),
        )  # fmt: skip
        if min_p_first is None:
            min_p_first = torch.tensor([rules.min_p_first for rules in orders])
        has_min_p_first = _per_row(min_p_first, num_rows, "min_p_first", 0.0, 1.0).bool()
        rules = (
            keeps_ties * RULE_KEEP_TIES
            + is_exclusive * RULE_EXCLUSIVE
            + is_full * RULE_FULL_MASS
            + has_min_p_first * RULE_MIN_P_FIRST
        )

        scales: list[PerRow] = (
            list(guidance_scale) if isinstance(guidance_scale, Sequence) else [guidance_scale]
        )
        guidance = torch.stack(
            [
                _per_row(value, num_rows, "guidance_scale", -math.inf, math.inf, open_ends=True)
                for value in scales
            ]
        ).to(torch.float32)
        if not torch.isfinite(guidance).all():
            raise ValueError("guidance_scale does not fit float32")

        temperatures = _per_row(temperature, num_rows, "temperature", 0.0, math.inf)
        bits_per_logit = _bits_per_logit(temperatures)
        if greedy_below is None:
            greedy_below = torch.tensor([r.greedy_below for r in orders], dtype=torch.float64)
        greedy = (
            (temperatures == 0)
            | torch.isinf(bits_per_logit)
            | (temperatures < _per_row(greedy_below, num_rows, "greedy_below", 0.0, math.inf))
        )
        bits_per_logit = torch.where(greedy, 0.0, bits_per_logit)
        filter_bits_per_logit = bits_per_logit
        if filter_temperature is not None:
            filter_bits_per_logit = _bits_per_logit(
                _per_row(
                    filter_temperature, num_rows, "filter_temperature", _COLDEST_FILTER, math.inf
                )
            )
        elif any(r.filter_temperature is not None for r in orders):
            # NaN marks the rows whose filters see the draw's temperature
            own = torch.tensor([r.filter_temperature or math.nan for r in orders]).double()
            filter_bits_per_logit = torch.where(own.isnan(), bits_per_logit, _bits_per_logit(own))

        k = _per_row(top_k, num_rows, "top_k", 0.0, 2.0**53)
        is_share = k < 1
        if (~is_share & (k != k.floor())).any():
            raise ValueError(
                "top_k must be a whole number of ids, or below 1 the part of them to keep"
            )
        p = _per_row(top_p, num_rows, "top_p", 0.0, math.inf).clamp(max=1.0)
        if any(r.zero_top_p_is_off for r in orders):
            p = torch.where(torch.tensor([r.zero_top_p_is_off for r in orders]) & (p == 0), 1.0, p)
        minimum = _per_row(min_p, num_rows, "min_p", 0.0, 1.0)

        alpha = _per_row(contrastive_alpha, num_rows, "contrastive_alpha", 0.0, 1e300)
        is_contrastive = alpha > 0
        log_alpha = torch.log2(torch.where(is_contrastive, alpha, 1.0)) * math.log(2)
        candidates = _per_row(contrastive_k, num_rows, "contrastive_k", 1.0, 2.0**53)
        if (candidates != candidates.floor()).any():
            raise ValueError("contrastive_k must be a whole number of ids")
        penalty = _per_row(repetition_penalty, num_rows, "repetition_penalty", 1e-30, 1e30)
        penalty = penalty.to(torch.float32)
        is_penalised = penalty != 1

        return cls(
            guidance=_without_subnormals(guidance).to(device),
            bits_per_logit=bits_per_logit.to(device),
            filter_bits_per_logit=filter_bits_per_logit.to(device),
            greedy=greedy.to(device),
            top_k=torch.where(is_share, 0.0, k).to(torch.int64).to(device),
            top_k_share=torch.where(is_share, k, 0.0).to(device),
            top_p=(p * TOP_P_OFF).floor().to(torch.int64).to(device),
            min_p=(minimum * TOP_P_OFF).floor().to(torch.int64).to(device),
            contrastive_k=torch.where(is_contrastive, candidates, 0.0).to(torch.int64).to(device),
            contrastive_log_alpha=_without_subnormals(log_alpha.to(torch.float32)).to(device),
            repetition_penalty=penalty.to(device),
            penalizes_logprobs=penalizes_logprobs.to(device),
            rules=rules.to(device),
            rule_sets=frozenset(rules.tolist()),
            top_k_bound=_bound(torch.where(greedy, 1.0, torch.where(is_share, 0.0, k)).tolist()),
            uses_rank=bool(((k > 0) | (p < 1)).any()),
            uses_share=bool((is_share & (k > 0)).any()),
            uses_contrast=bool(is_contrastive.any()),
            uses_penalty=bool(is_penalised.any()),
            uses_logprobs=bool((is_penalised & penalizes_logprobs).any()),
            filters_apart=bool((filter_bits_per_logit != bits_per_logit).any()),
            needs_unconditional=(
                len(scales) > 1 or bool((guidance != 1).any() | is_contrastive.any())
            ),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["SamplingParams"]) -> "SamplingParams":
        """Rows of several objects one after another, each with its own rules; they must agree on S."""
        if len({part.guidance.shape[0] for part in parts}) != 1:
            raise ValueError("rows with different numbers of streams cannot be joined")

        def joined(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            if isinstance(values[0], torch.Tensor):
                return torch.cat(values, dim=-1)
            if name == "top_k_bound":
                return _bound(
                    [bound for part, bound in zip(parts, values, strict=True) if part.num_rows]
                )
            return frozenset().union(*values) if name == "rule_sets" else any(values)

        return cls(**{field.name: joined(field.name) for field in dataclasses.fields(cls)})

    def for_ids(self, num_allowed: int | torch.Tensor) -> "SamplingParams":
        """The same with every share of the ids turned into a number of them.

        Args:
            num_allowed: allowed ids of a row, one number for all or [B] int64.
        """
        if not self.uses_share:
            return self
        counts = (self.top_k_share * num_allowed).floor().clamp(min=1).to(torch.int64)
        return dataclasses.replace(
            self,
            top_k=torch.where(self.top_k_share > 0, counts, self.top_k),
            top_k_share=torch.zeros_like(self.top_k_share),
            uses_share=False,
        )


def _bound(counts: list[float]) -> int:
    """The largest count, 0 if there is none or one is 0."""
    return int(max(counts)) if counts and all(counts) else 0


def _per_row(
    value: PerRow, num_rows: int, name: str, low: float, high: float, *, open_ends: bool = False
) -> torch.Tensor:
    """[B] float64 on the CPU, checked against its range."""
    tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    if tensor.dim() > 1 or (tensor.dim() == 1 and tensor.shape[0] != num_rows):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; it must be a number or have {num_rows} rows"
        )
    inside = (tensor > low) & (tensor < high) if open_ends else (tensor >= low) & (tensor <= high)
    if not inside.all():
        bad = tensor[~inside].flatten()[0].item()
        raise ValueError(f"{name} is {bad}; it must lie in [{low}, {high}]")
    return tensor.expand(num_rows)


def _names(
    value: Name | Sequence[Name], num_rows: int, name: str, known: tuple[str, ...]
) -> list[str]:
    """One of the known names for each row."""
    names: list[str] = [value] * num_rows if isinstance(value, str) else list(value)
    if len(names) != num_rows:
        raise ValueError(f"{name} has {len(names)} names; it must be one or have {num_rows} rows")
    for unknown in set(names if num_rows else [value]) - set(known):
        raise ValueError(f"{name} is {unknown!r}; it must be one of {', '.join(known)}")
    return names


def _is(
    value: str | Sequence[str] | None,
    wanted: str,
    default: list[Any],
    name: str,
    known: tuple[str, ...],
) -> torch.Tensor:
    """[B] bool: whether a row's name is the wanted one; that of its order where none is given."""
    names = default if value is None else _names(value, len(default), name, known)
    return torch.tensor([chosen == wanted for chosen in names], dtype=torch.bool)


def _bits_per_logit(temperatures: torch.Tensor) -> torch.Tensor:
    return _without_subnormals((math.log2(math.e) / temperatures).to(torch.float32))


def _without_subnormals(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values.abs() < _SMALLEST_NORMAL, 0.0, values)
