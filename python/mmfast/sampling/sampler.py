"""`sample`: logits in, one token a row out; the same token on every backend.

Shapes: B rows, V vocabulary ids, S conditional streams.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from mmfast.sampling import native, reference, triton
from mmfast.sampling.params import Order, PerRow, SamplingParams, Ties
from mmfast.sampling.reference import STATUS_EMPTY
from mmfast.sampling.weights import EXPONENT_BITS, MAX_ALLOWED_IDS

Backend = Literal["auto", "torch", "triton", "rust"]
Allowed = tuple[int, int] | torch.Tensor
_NATS = math.log(2) / (1 << EXPONENT_BITS)


@dataclasses.dataclass(frozen=True)
class SampleOutput:
    """What was drawn, each [B].

    Attributes:
        tokens: int64 ids in the full vocabulary.
        logprobs: float32 natural log-probability of each token in the distribution it was drawn
            from (after all filters); 0 for greedy rows, -inf for rows without any id left.
        num_kept: int64, ids that were left to draw from.
        status: uint8 bits: 1 NaN or -inf excluded an allowed id, 2 a logit was +inf, 4 nothing was
            left (the token is then the lowest allowed id).
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    num_kept: torch.Tensor
    status: torch.Tensor


def sample(
    logits: torch.Tensor,
    uncond: torch.Tensor | None = None,
    *,
    seeds: int | torch.Tensor,
    steps: int | torch.Tensor,
    streams: Sequence[torch.Tensor] = (),
    guidance_scale: PerRow | Sequence[PerRow] = 1.0,
    temperature: PerRow = 1.0,
    top_k: PerRow = 0,
    top_p: PerRow = 1.0,
    min_p: PerRow = 0.0,
    allowed: Allowed | None = None,
    order: Order = "hf",
    ties: Ties = "index",
    backend: Backend = "auto",
) -> SampleOutput:
    """Mixes, filters and draws one token a row.

    A row's result depends on its own logits, parameters, seed and step only: not on its place in the
    batch, on the other rows or on the backend. Every parameter is a scalar or a [B] tensor.

        >>> logits = torch.tensor([[0.0, 2.0, 1.0]])
        >>> sample(logits, temperature=0.0, seeds=0, steps=0).tokens.tolist()
        [1]

    Args:
        logits: [B, V] conditional logits, float32, float16 or bfloat16.
        uncond: [B, V] unconditional logits for classifier-free guidance.
        seeds: 64-bit seed of each row.
        steps: index of this draw within the row's request.
        streams: further conditional logits [B, V], mixed after `logits`:
            u + g_0 (logits - u) + g_1 (streams[0] - u) + ...
        guidance_scale: 1 takes `logits` as they are, 0 takes `uncond`; with `streams` a tuple of
            1 + len(streams) weights.
        temperature: >= 0; 0 takes the largest logit, the lowest id on ties.
        top_k: keep the k largest; 0 is off.
        top_p: then the shortest run of largest ids whose mass reaches p; 1 is off.
        min_p: then ids at least min_p times as probable as the most probable one; 0 is off.
        allowed: ids that exist at all: a half-open range `(low, high)`, a [B, 2] int64 tensor of
            ranges, or a bool mask [V] or [B, V]. Only the range is read.
        order: `hf` is temperature, top-k, top-p, min-p; `vllm` has min-p before top-k.
        ties: `index` keeps exactly k ids, lower ids first; `keep` keeps all ids that equal the k-th,
            as transformers does.
        backend: `rust` for CPU tensors, `triton` one fused kernel for CUDA tensors, `torch` the
            reference anywhere; `auto` takes Rust on the CPU, Triton for CUDA tensors that it can
            handle, and else the reference. All give the same tokens.

    Raises:
        ValueError: shapes, ranges or values that cannot be sampled from.
        ImportError: `backend="triton"` without Triton.
    """
    num_rows = _num_rows(logits)
    params = SamplingParams.prepare(
        num_rows,
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        order=order,
        ties=ties,
        device=logits.device,
    )
    return sample_prepared(
        logits,
        uncond,
        params=params,
        seeds=row_integers(seeds, num_rows, "seeds", logits.device),
        steps=row_integers(steps, num_rows, "steps", logits.device),
        streams=streams,
        allowed=allowed,
        backend=backend,
    )


def sample_prepared(
    logits: torch.Tensor,
    uncond: torch.Tensor | None = None,
    *,
    params: SamplingParams,
    seeds: torch.Tensor,
    steps: torch.Tensor,
    streams: Sequence[torch.Tensor] = (),
    allowed: Allowed | None = None,
    backend: Backend = "auto",
) -> SampleOutput:
    """`sample` for loops that keep their parameters: nothing is derived here again.

    Args:
        logits: [B, V].
        uncond: [B, V] or None.
        params: prepared for B rows on the logits' device.
        seeds: [B] int64.
        steps: [B] int64.
        streams: as in `sample`.
        allowed: as in `sample`.
        backend: as in `sample`.
    """
    conditions = (logits, *streams)
    _check(conditions, uncond, params, seeds, steps)
    low, high, support = _resolve_allowed(allowed, logits)
    if high - low > MAX_ALLOWED_IDS:
        raise ValueError(
            f"{high - low} ids are allowed, more than {MAX_ALLOWED_IDS}: pass `allowed` with the "
            "range that this step may emit"
        )
    cut = [stream[:, low:high] for stream in conditions]
    base = None if uncond is None else uncond[:, low:high]
    match resolve_backend(backend, cut):
        case "triton":
            drawn = triton.draw(cut, base, params, support, seeds, steps)
        case "rust":
            drawn = native.draw(cut, base, params, support, seeds, steps)
        case _:
            drawn = reference.draw(cut, base, params, support, seeds, steps)
    logprobs = (drawn.log2_probabilities.to(torch.float64) * _NATS).to(torch.float32)
    is_empty = (drawn.status & STATUS_EMPTY) != 0
    return SampleOutput(
        tokens=drawn.tokens + low,
        logprobs=torch.where(is_empty, -math.inf, logprobs),
        num_kept=drawn.num_kept,
        status=drawn.status,
    )


def resolve_backend(
    backend: Backend, conditions: Sequence[torch.Tensor]
) -> Literal["torch", "triton", "rust"]:
    """The backend that draws from these logits; raises `ValueError` if it cannot be the one asked for."""
    if backend == "torch":
        return "torch"
    if backend not in get_args(Backend):
        raise ValueError(
            f"backend is {backend!r}; it must be one of {', '.join(get_args(Backend))}"
        )
    is_on_cpu = conditions[0].device.type == "cpu"
    if backend == "rust":
        if not is_on_cpu:
            raise ValueError(
                f"the Rust backend needs CPU tensors, found {conditions[0].device}; backend='torch' does "
                "what is asked here"
            )
        return "rust"
    problem = triton.why_not(conditions)
    if backend == "triton":
        if problem is not None:
            raise ValueError(f"{problem}; backend='torch' does what is asked here")
        return "triton"
    if is_on_cpu:
        return "rust"
    from mmfast.kernels import triton_available

    return "triton" if problem is None and triton_available() else "torch"


def _num_rows(logits: torch.Tensor) -> int:
    if logits.dim() != 2 or not logits.is_floating_point() or logits.dtype == torch.float64:
        raise ValueError(
            f"logits are {tuple(logits.shape)} {logits.dtype}; they must be [rows, ids] in float32, "
            "float16 or bfloat16"
        )
    return logits.shape[0]


def row_integers(
    value: int | torch.Tensor, num_rows: int, name: str, device: torch.device
) -> torch.Tensor:
    """[B] int64 of one number for all rows or a tensor [B]; `ValueError` for any other tensor."""
    if isinstance(value, int):
        # A seed may be given as an unsigned 64-bit number; the bits are what counts.
        value &= (1 << 64) - 1
        signed = value - (1 << 64) if value >= 1 << 63 else value
        return torch.full((num_rows,), signed, dtype=torch.int64, device=device)
    if value.shape != (num_rows,) or value.dtype != torch.int64:
        raise ValueError(
            f"{name} is {tuple(value.shape)} {value.dtype}; it must be [{num_rows}] int64"
        )
    return value.to(device)


def _check(
    conditions: Sequence[torch.Tensor],
    uncond: torch.Tensor | None,
    params: SamplingParams,
    seeds: torch.Tensor,
    steps: torch.Tensor,
) -> None:
    num_rows = _num_rows(conditions[0])
    for other in (*conditions[1:], *(() if uncond is None else (uncond,))):
        if other.shape != conditions[0].shape:
            raise ValueError(
                f"streams differ in shape: {tuple(conditions[0].shape)} and {tuple(other.shape)}"
            )
    if len(conditions) != params.guidance.shape[0]:
        raise ValueError(
            f"{len(conditions)} conditional streams need as many guidance scales, "
            f"not {params.guidance.shape[0]}"
        )
    if uncond is None and params.needs_unconditional:
        raise ValueError(
            "a guidance_scale other than 1, or further streams, need the unconditional logits `uncond`"
        )
    if not params.num_rows == seeds.shape[0] == steps.shape[0] == num_rows:
        raise ValueError(
            f"logits have {num_rows} rows, params {params.num_rows}, seeds {seeds.shape[0]}, "
            f"steps {steps.shape[0]}"
        )


def _resolve_allowed(
    allowed: Allowed | None, logits: torch.Tensor
) -> tuple[int, int, torch.Tensor | None]:
    """Range to read, and a mask inside it where the range does not say all."""
    num_rows, num_ids = logits.shape
    if num_ids == 0:
        raise ValueError("logits have no ids to draw from")
    if allowed is None:
        return 0, num_ids, None
    if isinstance(allowed, tuple):
        low, high = allowed
        if not 0 <= low < high <= num_ids:
            raise ValueError(f"allowed range [{low}, {high}) is empty or outside 0..{num_ids}")
        return low, high, None
    allowed = allowed.to(logits.device)
    if allowed.dtype == torch.bool:
        if allowed.shape not in ((num_ids,), (1, num_ids), (num_rows, num_ids)):
            raise ValueError(
                f"allowed mask is {tuple(allowed.shape)}; it must be [{num_ids}] or "
                f"[{num_rows}, {num_ids}]"
            )
        return 0, num_ids, allowed.reshape(-1, num_ids)
    if allowed.shape != (num_rows, 2) or allowed.dtype != torch.int64:
        raise ValueError(
            f"allowed is {tuple(allowed.shape)} {allowed.dtype}; it must be (low, high), "
            f"[{num_rows}, 2] int64 or a bool mask"
        )
    if num_rows == 0:
        return 0, num_ids, None
    low, high = int(allowed[:, 0].min()), int(allowed[:, 1].max())
    if low < 0 or high > num_ids or bool((allowed[:, 0] >= allowed[:, 1]).any()):
        raise ValueError(f"an allowed range is empty or outside 0..{num_ids}")
    ids = torch.arange(low, high, device=logits.device)
    return low, high, (ids >= allowed[:, :1]) & (ids < allowed[:, 1:])
