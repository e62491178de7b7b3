"""Sampling parameters in the form that backends read: derived once, in float64, on the CPU.

Backends never divide by a temperature or round a probability themselves; they get the float32 and
integer values computed here, so they cannot disagree about them. B rows, S conditional streams.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch

from mmfast.sampling.weights import PROBABILITY_BITS

Order = Literal["hf", "vllm"]
Ties = Literal["index", "keep"]
PerRow = float | int | torch.Tensor

TOP_P_OFF = 1 << PROBABILITY_BITS
_GREEDY_BELOW = {"hf": 0.0, "vllm": 1e-5}
_SMALLEST_NORMAL = 2.0**-126


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Prepared parameters of B rows, all tensors on one device.

    Attributes:
        guidance: [S, B] float32, weight of each conditional stream.
        bits_per_logit: [B] float32, log2(e) / temperature: one unit of logit in bits.
        greedy: [B] bool, rows that take the largest logit.
        top_k: [B] int64, 0 is off.
        top_p: [B] int64, floor(p * 2**31); 2**31 is off.
        min_p: [B] int64, floor(p * 2**31); 0 is off.
        order: stage order of a published sampler (see `sample`).
        ties: what top-k does with ids equal to the k-th.
        uses_rank: whether any row has top-k or top-p, known on the host.
        needs_unconditional: whether any row mixes with the unconditional stream, likewise.
    """

    guidance: torch.Tensor
    bits_per_logit: torch.Tensor
    greedy: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    order: Order
    ties: Ties
    uses_rank: bool
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
        order: Order = "hf",
        ties: Ties = "index",
        device: torch.device | str = "cpu",
    ) -> "SamplingParams":
        """Derives the parameters; every value is a scalar or a [B] tensor.

        Args:
            num_rows: B.
            guidance_scale: weight of the conditional stream, any finite number; a list or tuple
                gives one for each of several streams.
            temperature: >= 0, may be infinite; 0 is greedy. `order="vllm"` is greedy below 1e-5.
            top_k: >= 0; 0 keeps all ids.
            top_p: >= 0; 1 or more keeps all ids.
            min_p: in [0, 1]; 0 keeps all ids.
            order: see `sample`.
            ties: see `sample`.
            device: where the tensors go.

        Raises:
            ValueError: a value out of range (NaN included) or of the wrong shape.
        """
        if order not in _GREEDY_BELOW:
            raise ValueError(f"order is {order!r}; it must be one of {sorted(_GREEDY_BELOW)}")
        if ties not in ("index", "keep"):
            raise ValueError(f"ties is {ties!r}; it must be 'index' or 'keep'")
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
        k = _per_row(top_k, num_rows, "top_k", 0.0, 2.0**53)
        if (k != k.floor()).any():
            raise ValueError("top_k must be a whole number of ids")
        p = _per_row(top_p, num_rows, "top_p", 0.0, math.inf).clamp(max=1.0)
        minimum = _per_row(min_p, num_rows, "min_p", 0.0, 1.0)
        bits_per_logit = _without_subnormals((math.log2(math.e) / temperatures).to(torch.float32))
        greedy = (
            (temperatures == 0)
            | torch.isinf(bits_per_logit)
            | (temperatures < _GREEDY_BELOW[order])
        )
        return cls(
            guidance=_without_subnormals(guidance).to(device),
            bits_per_logit=torch.where(greedy, 0.0, bits_per_logit).to(device),
            greedy=greedy.to(device),
            top_k=k.to(torch.int64).to(device),
            top_p=(p * TOP_P_OFF).floor().to(torch.int64).to(device),
            min_p=(minimum * TOP_P_OFF).floor().to(torch.int64).to(device),
            order=order,
            ties=ties,
            uses_rank=bool(((k > 0) | (p < 1)).any()),
            needs_unconditional=len(scales) > 1 or bool((guidance != 1).any()),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["SamplingParams"]) -> "SamplingParams":
        """Rows of several objects one after another; they must agree on S, `order` and `ties`."""
        if len({(part.order, part.ties, part.guidance.shape[0]) for part in parts}) != 1:
            raise ValueError(
                "rows with different order, ties or number of streams cannot be joined"
            )
        first = parts[0]
        return cls(
            guidance=torch.cat([part.guidance for part in parts], dim=1),
            bits_per_logit=torch.cat([part.bits_per_logit for part in parts]),
            greedy=torch.cat([part.greedy for part in parts]),
            top_k=torch.cat([part.top_k for part in parts]),
            top_p=torch.cat([part.top_p for part in parts]),
            min_p=torch.cat([part.min_p for part in parts]),
            order=first.order,
            ties=first.ties,
            uses_rank=any(part.uses_rank for part in parts),
            needs_unconditional=any(part.needs_unconditional for part in parts),
        )


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


def _without_subnormals(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values.abs() < _SMALLEST_NORMAL, 0.0, values)
