"""What a backend draws from: logits cut to the ids that may come, and all that belongs to their rows.

`resolve` checks what a caller gives and brings it into the one form that every backend takes. B rows, V
vocabulary ids, N ids of the range that is read, S conditional streams, D draws a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mmfast.sampling.bitmap import Bits, IdSet, history_bitmap, num_words, packed
from mmfast.sampling.params import SamplingParams
from mmfast.sampling.weights import MAX_ALLOWED_IDS

Allowed = tuple[int, int] | torch.Tensor
_FORMATS = (torch.float32, torch.float16, torch.bfloat16)


class DrawInputs(NamedTuple):
    """One call of a backend.

    Attributes:
        conditions: S tensors [B, N], float32, float16 or bfloat16, any distance between rows.
        unconditional: [B, N] or None for no mixing.
        params: of B rows.
        seeds: [B] int64.
        steps: [B] int64.
        positions: [B] int64, number of each row's first draw; None is 0.
        num_draws: D.
        first_id: id that column 0 stands for.
        ranges: [B, 2] int64, half-open ranges of columns that exist in each row; None for all.
        mask: [B, N] or [1, N] bool, columns that exist; None for all.
        bits: the same as a bitmap of whole rows. At most one of the three is given.
        history: ids that a repetition penalty applies to, None without one.
        offsets: [B] float32 added to a row's logits before its penalty, None for none.
    """

    conditions: tuple[torch.Tensor, ...]
    unconditional: torch.Tensor | None
    params: SamplingParams
    seeds: torch.Tensor
    steps: torch.Tensor
    positions: torch.Tensor | None = None
    num_draws: int = 1
    first_id: int = 0
    ranges: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    bits: Bits | None = None
    history: Bits | None = None
    offsets: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        """B."""
        return self.conditions[0].shape[0]

    @property
    def num_ids(self) -> int:
        """N."""
        return self.conditions[0].shape[1]

    @property
    def device(self) -> torch.device:
        """Where the logits are."""
        return self.conditions[0].device

    def support(self) -> torch.Tensor | None:
        """[B, N] or [1, N] bool, columns that exist; None for all."""
        if self.bits is not None:
            return self.bits.unpacked(self.num_ids)
        if self.ranges is not None:
            columns = torch.arange(self.num_ids, device=self.device)
            return (columns >= self.ranges[:, :1]) & (columns < self.ranges[:, 1:])
        return self.mask


def resolve(
    logits: torch.Tensor,
    uncond: torch.Tensor | None,
    *,
    streams: Sequence[torch.Tensor],
    params: SamplingParams,
    seeds: torch.Tensor,
    steps: torch.Tensor,
    positions: torch.Tensor | None,
    num_draws: int,
    allowed: Allowed | None,
    history: torch.Tensor | None,
    exempt: IdSet,
) -> DrawInputs:
    """Arguments of `sample_prepared` as a backend takes them; `ValueError` for what does not fit."""
    num_rows, num_ids = check_logits(logits)
    conditions = (logits, *streams)
    _check_streams(conditions, uncond, params)
    num_prepared = params.num_rows
    for name, values in (("seeds", seeds), ("steps", steps), ("positions", positions)):
        if values is not None and not (values.shape == (num_rows,) and num_prepared == num_rows):
            raise ValueError(
                f"logits have {num_rows} rows, params {num_prepared}, {name} {tuple(values.shape)}"
            )
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; it must be at least 1")
    low, high, ranges, mask, bits = _resolve_allowed(allowed, logits)
    if high - low > MAX_ALLOWED_IDS:
        raise ValueError(
            f"{high - low} ids are allowed, more than {MAX_ALLOWED_IDS}: pass `allowed` with the "
            "range that this step may emit"
        )
    if (low, high) != (0, num_ids):
        conditions = tuple(stream[:, low:high] for stream in conditions)
        uncond = None if uncond is None else uncond[:, low:high]
    inputs = DrawInputs(
        conditions=conditions,
        unconditional=uncond,
        params=params,
        seeds=seeds,
        steps=steps,
        positions=positions,
        num_draws=num_draws,
        first_id=low,
        ranges=ranges,
        mask=mask,
        bits=bits,
    )
    if params.uses_share:
        inputs = inputs._replace(params=params.for_ids(_num_allowed(inputs)))
    if params.uses_penalty:
        if history is None:
            raise ValueError("a repetition_penalty needs the `history` of ids that it applies to")
        words = _history_words(history, exempt, num_rows, num_ids, logits.device)
        inputs = inputs._replace(
            history=Bits(words, low),
            offsets=_logprob_offsets(inputs) if params.uses_logprobs else None,
        )
    return inputs


def check_logits(logits: torch.Tensor) -> torch.Size:
    """Rows and ids of logits, if that is what they have, in a format that is read."""
    shape = logits.shape
    if len(shape) != 2 or logits.dtype not in _FORMATS:
        raise ValueError(
            f"logits are {tuple(shape)} {logits.dtype}; they must be [rows, ids] in float32, "
            "float16 or bfloat16"
        )
    if shape[1] == 0:
        raise ValueError("logits have no ids to draw from")
    return shape


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


def _check_streams(
    conditions: Sequence[torch.Tensor], uncond: torch.Tensor | None, params: SamplingParams
) -> None:
    shape = conditions[0].shape
    for other in (*conditions[1:], *(() if uncond is None else (uncond,))):
        if check_logits(other) != shape:
            raise ValueError(f"streams differ in shape: {tuple(shape)} and {tuple(other.shape)}")
    if len(conditions) != params.guidance.shape[0]:
        raise ValueError(
            f"{len(conditions)} conditional streams need as many guidance scales, "
            f"not {params.guidance.shape[0]}"
        )
    if uncond is None and params.needs_unconditional:
        raise ValueError(
            "a guidance_scale other than 1, further streams and contrastive decoding need the "
            "unconditional logits `uncond`"
        )


def _resolve_allowed(
    allowed: Allowed | None, logits: torch.Tensor
) -> tuple[int, int, torch.Tensor | None, torch.Tensor | None, Bits | None]:
    """Range to read, and ranges, mask or bitmap of each row inside it where the range does not say all."""
    num_rows, num_ids = logits.shape
    if allowed is None:
        return 0, num_ids, None, None, None
    if isinstance(allowed, tuple):
        low, high = allowed
        if not 0 <= low < high <= num_ids:
            raise ValueError(f"allowed range [{low}, {high}) is empty or outside 0..{num_ids}")
        return low, high, None, None, None
    allowed = allowed.to(logits.device)
    width = {torch.bool: num_ids, torch.int32: num_words(num_ids), torch.int64: 2}.get(
        allowed.dtype
    )
    is_shared = allowed.shape in ((width,), (1, width)) and allowed.dtype != torch.int64
    if width is None or not (is_shared or allowed.shape == (num_rows, width)):
        raise ValueError(
            f"allowed is {tuple(allowed.shape)} {allowed.dtype}; it must be (low, high), [{num_rows}, 2] "
            f"int64, a bool mask [{num_ids}] or [{num_rows}, {num_ids}], or a bitmap [{num_words(num_ids)}] or "
            f"[{num_rows}, {num_words(num_ids)}] int32"
        )
    if allowed.dtype == torch.bool:
        return 0, num_ids, None, allowed.reshape(-1, num_ids), None
    if allowed.dtype == torch.int32:
        return 0, num_ids, None, None, Bits(allowed.reshape(-1, num_words(num_ids)), 0)
    return _resolve_ranges(allowed, num_ids)


def _resolve_ranges(
    ranges: torch.Tensor, num_ids: int
) -> tuple[int, int, torch.Tensor | None, None, None]:
    """The ids that any row's range holds, and each row's range inside them.

    On an accelerator nothing is read back: all ids stay in sight and the ranges are taken as they are.
    """
    is_on_host = ranges.device.type == "cpu"
    if ranges.shape[0] == 0 or (not is_on_host and num_ids <= MAX_ALLOWED_IDS):
        return 0, num_ids, ranges, None, None
    low, high = int(ranges[:, 0].min()), int(ranges[:, 1].max())
    if low < 0 or high > num_ids or bool((ranges[:, 0] >= ranges[:, 1]).any()):
        raise ValueError(f"an allowed range is empty or outside 0..{num_ids}")
    return low, high, ranges - low, None, None


def _num_allowed(inputs: DrawInputs) -> int | torch.Tensor:
    """Allowed ids of each row, those that a NaN takes away included."""
    if inputs.ranges is not None:
        return inputs.ranges[:, 1] - inputs.ranges[:, 0]
    support = inputs.support()
    return inputs.num_ids if support is None else support.sum(-1)


def _history_words(
    history: torch.Tensor, exempt: IdSet, num_rows: int, num_ids: int, device: torch.device
) -> torch.Tensor:
    """[B, ceil(V / 32)] int32 without the exempt ids."""
    history = history.to(device)
    if history.dtype == torch.int64 and history.dim() == 2 and history.shape[0] == num_rows:
        history = history_bitmap(history, num_ids)
    if history.dtype != torch.int32 or history.shape != (num_rows, num_words(num_ids)):
        raise ValueError(
            f"history is {tuple(history.shape)} {history.dtype}; it must hold the ids of each row, "
            f"[{num_rows}, any] int64, or be their bitmap, [{num_rows}, {num_words(num_ids)}] int32"
        )
    if len(exempt) == 0:
        return history
    return history & ~packed(exempt, num_ids, device)


def _logprob_offsets(inputs: DrawInputs) -> torch.Tensor:
    """[B] float32: what turns mixed logits into mixed log-probabilities, 0 for rows that stay logits.

    A stream's log-probabilities are its logits less one number, so the mixture of them is that of the
    logits less the mixture of those numbers. Computed in float64; its last bit may differ between devices.
    """
    params, support = inputs.params, inputs.support()

    def log_mass(logits: torch.Tensor) -> torch.Tensor:
        wide = logits.to(torch.float64)
        exists = ~wide.isnan() if support is None else ~wide.isnan() & support
        return torch.where(exists, wide, -torch.inf).logsumexp(-1)

    weights = params.guidance.to(torch.float64)
    is_contrastive = params.contrastive_k > 0
    masses = [log_mass(stream) for stream in inputs.conditions]
    total = torch.zeros_like(masses[0])
    for weight, mass in zip(weights, masses, strict=True):
        total = torch.where(weight != 0, total + weight * mass, total)
    if inputs.unconditional is not None:
        rest = 1 - weights.sum(0)
        base = log_mass(inputs.unconditional)
        total = torch.where(rest != 0, total + rest * base, total)
        total = torch.where(is_contrastive, masses[0] - base, total)
    offsets = torch.where(params.penalizes_logprobs, -total, 0.0).to(torch.float32)
    # a row with an infinite logit is certain, and one without ids empty, whatever is added
    return torch.where(offsets.isfinite() & (offsets.abs() >= 2.0**-126), offsets, 0.0)
