"""`sample`: logits in, one token a row out (or several); the same token on every backend.

Shapes: B rows, V vocabulary ids, S conditional streams, D draws a row.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch

from mmfast.sampling import native, reference, triton
from mmfast.sampling.bitmap import IdSet
from mmfast.sampling.inputs import Allowed, DrawInputs, check_logits, resolve, row_integers
from mmfast.sampling.orders import Order, PenaltySpace, Ties, TopPBase, TopPRule
from mmfast.sampling.params import PerRow, SamplingParams
from mmfast.sampling.reference import STATUS_EMPTY
from mmfast.sampling.weights import EXPONENT_BITS

Backend = Literal["auto", "torch", "triton", "rust"]
_BACKENDS: tuple[str, ...] = get_args(Backend)
_NATS = math.log(2) / (1 << EXPONENT_BITS)
_PLAIN = (int, float, str, type(None))


class SampleOutput(NamedTuple):
    """What was drawn, each [B]; with `num_draws=D` tokens and log-probabilities are [B, D].

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
    positions: int | torch.Tensor = 0,
    num_draws: int | None = None,
    streams: Sequence[torch.Tensor] = (),
    guidance_scale: PerRow | Sequence[PerRow] = 1.0,
    contrastive_alpha: PerRow = 0.0,
    contrastive_k: PerRow = 1,
    repetition_penalty: PerRow = 1.0,
    history: torch.Tensor | None = None,
    exempt: IdSet = (),
    temperature: PerRow = 1.0,
    top_k: PerRow = 0,
    top_p: PerRow = 1.0,
    min_p: PerRow = 0.0,
    allowed: Allowed | None = None,
    order: Order | Sequence[Order] = "hf",
    ties: Ties | Sequence[Ties] | None = None,
    top_p_rule: TopPRule | Sequence[TopPRule] | None = None,
    top_p_base: TopPBase | Sequence[TopPBase] | None = None,
    penalty_space: PenaltySpace | Sequence[PenaltySpace] | None = None,
    min_p_first: bool | torch.Tensor | None = None,
    filter_temperature: PerRow | None = None,
    greedy_below: PerRow | None = None,
    backend: Backend = "auto",
) -> SampleOutput:
    """Mixes, filters and draws one token a row.

    A row's result depends on its own logits, parameters, seed, step and position only: not on its place in
    the batch, on the other rows or on the backend. Every number is a scalar or a [B] tensor, every name one
    for all rows or a list of B.

        >>> logits = torch.tensor([[0.0, 2.0, 1.0]])
        >>> sample(logits, temperature=0.0, seeds=0, steps=0).tokens.tolist()
        [1]

    Args:
        logits: [B, V] conditional logits, float32, float16 or bfloat16.
        uncond: [B, V] unconditional logits for classifier-free guidance or contrastive decoding.
        seeds: 64-bit seed of each row.
        steps: index of this draw within the row's request.
        positions: which of several draws of one step this is, in [0, 2**32): the position that a masked
            generator fills, say.
        num_draws: D independent draws a row, at `positions`, `positions + 1`, ...; None is one, without a
            dimension for it.
        streams: further conditional logits [B, V], mixed after `logits`:
            u + g_0 (logits - u) + g_1 (streams[0] - u) + ...
        guidance_scale: 1 takes `logits` as they are, 0 takes `uncond`; with `streams` a tuple of
            1 + len(streams) weights. `nested_guidance` gives those of Chameleon's nested form.
        contrastive_alpha: CD-K of CM3Leon (arXiv 2309.02591, equation 3): of the ids whose conditional
            probability is at least alpha times the `contrastive_k`-th largest, score logits - uncond;
            the most probable id is always among them. Rows at 0 are guided instead, and
            `guidance_scale` means nothing to the others.
        contrastive_k: k of that.
        repetition_penalty: logits of ids in `history` are multiplied by it below 0, divided above.
        history: ids each row has seen, int64 [B, any] (negative ones are padding), or their bitmap
            int32 [B, ceil(V / 32)] (`history_bitmap`, `add_to_history`).
        exempt: ids that are never penalised: ranges, a bool mask [V] or a bitmap.
        temperature: >= 0; 0 takes the largest logit, the lowest id on ties.
        top_k: keep the k largest; 0 is off; below 1 it is the part of the allowed ids to keep.
        top_p: then the shortest run of largest ids whose mass reaches p; 1 is off.
        min_p: then ids at least min_p times as probable as the most probable one; 0 is off.
        allowed: ids that exist at all: a half-open range `(low, high)`, a [B, 2] int64 tensor of
            ranges, a bool mask [V] or [B, V], or a bitmap int32 of [ceil(V / 32)] words or as many a row.
            Only the range is read. Ranges on an accelerator are not checked: an empty one gives status 4.
        order: whose rules to follow where no parameter says otherwise: `hf` (temperature, top-k, top-p,
            min-p), `emu3`, `vllm` (min-p first), `fourm` (filters before the temperature) or
            `chameleon`; `mmfast.sampling.orders` lists them.
        ties: `index` keeps exactly k ids, lower ids first; `keep` keeps all ids that equal the k-th,
            as transformers does.
        top_p_rule: `reach` keeps an id while the mass before it is below p; `exclusive` while it is at
            most p.
        top_p_base: `survivors` takes p of the mass that top-k has left, `full` of the mass before it.
        penalty_space: `logits`, or `logprobs`: the penalty scales guided log-probabilities (over the allowed
            ids), as where transformers guides. Those need a logarithm of a sum, which may differ in its
            last bit between devices: tokens of such rows are outside the promise.
        min_p_first: whether min-p comes before top-k and top-p.
        filter_temperature: temperature that top-k, top-p and min-p see, if not the draw's.
        greedy_below: temperatures below this count as 0.
        backend: `rust` for CPU tensors, `triton` fused kernels for CUDA tensors, `torch` the
            reference anywhere; `auto` takes Rust on the CPU, Triton for CUDA tensors that it can
            handle, and else the reference. All give the same tokens.

    Raises:
        ValueError: shapes, ranges or values that cannot be sampled from.
        ImportError: `backend="triton"` without Triton.
    """
    num_rows = check_logits(logits)[0]
    params = _prepared(
        num_rows,
        logits.device,
        guidance_scale=guidance_scale,
        contrastive_alpha=contrastive_alpha,
        contrastive_k=contrastive_k,
        repetition_penalty=repetition_penalty,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        order=order,
        ties=ties,
        top_p_rule=top_p_rule,
        top_p_base=top_p_base,
        penalty_space=penalty_space,
        min_p_first=min_p_first,
        filter_temperature=filter_temperature,
        greedy_below=greedy_below,
    )
    return sample_prepared(
        logits,
        uncond,
        params=params,
        seeds=row_integers(seeds, num_rows, "seeds", logits.device),
        steps=row_integers(steps, num_rows, "steps", logits.device),
        positions=None
        if isinstance(positions, int) and positions == 0
        else row_integers(positions, num_rows, "positions", logits.device),
        num_draws=num_draws,
        streams=streams,
        allowed=allowed,
        history=history,
        exempt=exempt,
        backend=backend,
    )


def _prepared(num_rows: int, device: torch.device, **settings: Any) -> SamplingParams:
    """Parameters of these settings: those of plain numbers and names are kept, since loops repeat them."""
    is_plain = all(isinstance(value, _PLAIN) for value in settings.values())
    return (_kept if is_plain else _derived)(num_rows, device, **settings)


def _derived(num_rows: int, device: torch.device, **settings: Any) -> SamplingParams:
    return SamplingParams.prepare(num_rows, device=device, **settings)


_kept = functools.lru_cache(maxsize=256)(_derived)


def sample_prepared(
    logits: torch.Tensor,
    uncond: torch.Tensor | None = None,
    *,
    params: SamplingParams,
    seeds: torch.Tensor,
    steps: torch.Tensor,
    positions: torch.Tensor | None = None,
    num_draws: int | None = None,
    streams: Sequence[torch.Tensor] = (),
    allowed: Allowed | None = None,
    history: torch.Tensor | None = None,
    exempt: IdSet = (),
    backend: Backend = "auto",
) -> SampleOutput:
    """`sample` for loops that keep their parameters: nothing is derived here again.

    Args:
        logits: [B, V].
        uncond: [B, V] or None.
        params: prepared for B rows on the logits' device.
        seeds: [B] int64.
        steps: [B] int64.
        positions: [B] int64; None is 0.
        num_draws: as in `sample`.
        streams: as in `sample`.
        allowed: as in `sample`.
        history: as in `sample`.
        exempt: as in `sample`.
        backend: as in `sample`.
    """
    inputs = resolve(
        logits,
        uncond,
        streams=streams,
        params=params,
        seeds=seeds,
        steps=steps,
        positions=positions,
        num_draws=1 if num_draws is None else num_draws,
        allowed=allowed,
        history=history,
        exempt=exempt,
    )
    is_single = num_draws is None
    match resolve_backend(backend, inputs):
        case "rust":
            return SampleOutput(*native.draw(inputs, is_single=is_single))
        case "triton":
            drawn = triton.draw(inputs)
        case _:
            drawn = reference.draw(inputs)
    tokens = drawn.tokens + inputs.first_id
    logprobs = (drawn.log2_probabilities.to(torch.float64) * _NATS).to(torch.float32)
    # on an accelerator nothing is read back to find out whether a row is empty
    is_empty = (drawn.status & STATUS_EMPTY) != 0
    logprobs = torch.where(is_empty[:, None], -math.inf, logprobs)
    return SampleOutput(
        tokens=tokens[:, 0] if is_single else tokens,
        logprobs=logprobs[:, 0] if is_single else logprobs,
        num_kept=drawn.num_kept,
        status=drawn.status,
    )


def resolve_backend(backend: Backend, inputs: DrawInputs) -> Literal["torch", "triton", "rust"]:
    """The backend that draws from these inputs; raises `ValueError` if it cannot be the one asked for."""
    if backend == "torch":
        return "torch"
    if backend not in _BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(_BACKENDS)}")
    if backend != "auto":
        problem = (native if backend == "rust" else triton).why_not(inputs)
        if problem is not None:
            raise ValueError(f"{problem}; backend='torch' does what is asked here")
        return backend
    if inputs.device.type == "cpu":
        return "rust" if native.why_not(inputs) is None else "torch"
    from mmfast.kernels import triton_available

    return "triton" if triton.why_not(inputs) is None and triton_available() else "torch"
