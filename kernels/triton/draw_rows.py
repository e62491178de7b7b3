"""The sampler on a GPU, host side: which kernels draw from which rows, and with how much work a program.

- Ranges of at most `MAX_RANGE` ids: `draw_range`, one launch, one read.
- Whole rows with a top-k of at most `MAX_TOP_K`: `group_maxima`, `gather_candidates`, `draw_candidates`, two reads;
  with other filters by rank `tile_masses` comes second, and there are three. `draw_streaming` draws from rows with
  more candidates than fit.
- Whole rows without filters by rank: `group_maxima`, `tile_masses`, `draw_from_tiles`, two reads and a tile.

All give what `mmfast.sampling.reference.draw` defines, bit for bit, whatever the launch parameters. Nothing waits
for the device; one buffer is allocated a call, or none with a `Workspace`, so calls can be captured in a CUDA graph.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mmfast.kernels import MAX_RANGE
from mmfast.kernels.contrast_floor import contrast_floor_kernel
from mmfast.kernels.draw_candidates import draw_candidates_kernel
from mmfast.kernels.draw_in_registers import DrawOutputs, RowParameters
from mmfast.kernels.draw_range import draw_range_kernel
from mmfast.kernels.draw_streaming import draw_streaming_kernel
from mmfast.kernels.gather_candidates import Candidates, gather_candidates_kernel
from mmfast.kernels.group_maxima import RowMaxima, group_maxima_kernel
from mmfast.kernels.sampling_keys import LogitInputs
from mmfast.kernels.sampling_numbers import triton
from mmfast.kernels.tile_masses import (
    TileMasses,
    draw_from_tiles_kernel,
    tile_masses_kernel,
)

MAX_TOP_K = 4096
"""Largest top-k whose candidates one program holds."""
_MAX_SPLITS = 64
_RULE_FULL_MASS = 4
_INTERPRETED_PROCESSORS = 4


@dataclass(frozen=True)
class LaunchShape:
    """How work is shared out, all powers of two; no choice changes a result.

    Attributes:
        num_splits: programs a row in kernels that read whole rows.
        tile: ids that a program reads at a time.
        num_groups: groups of ids whose maxima are taken, at least `num_splits`.
        max_candidates: ids that the buffer holds; rows with more are left to `draw_streaming`.
        max_range: widest range that `draw_range` takes.
    """

    num_splits: int
    tile: int = 2048
    num_groups: int = 4096
    max_candidates: int = 4096
    max_range: int = MAX_RANGE

    @classmethod
    def of(
        cls, num_rows: int, num_ids: int, top_k_bound: int, num_processors: int
    ) -> "LaunchShape":
        """The shape for a batch.

        Args:
            num_rows: B.
            num_ids: N.
            top_k_bound: largest top-k of any row, 0 if some row keeps all.
            num_processors: of the device.
        """
        tile = 2048
        # about two programs a processor, and no program without a tile
        splits = triton.next_power_of_2(max(2 * num_processors // max(num_rows, 1), 1))
        splits = min(splits, triton.next_power_of_2(triton.cdiv(num_ids, tile)), _MAX_SPLITS)
        if not 0 < top_k_bound <= MAX_TOP_K:
            return cls(num_splits=splits, tile=tile, num_groups=4096, max_candidates=8192)
        # with twice as many groups as k, 1.4 k keys reach the k-th largest maximum where ids are shuffled
        groups = max(triton.next_power_of_2(2 * top_k_bound), 512, splits)
        return cls(num_splits=splits, tile=tile, num_groups=groups, max_candidates=groups)


class Launch(NamedTuple):
    """One kernel with its grid, arguments and options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> None:
        """Enqueues it."""
        self.kernel[self.grid](*self.arguments, **self.options, enable_fp_fusion=False)

    def compile(self) -> Any:
        """Compiles it for the active device without running it."""
        return self.kernel.warmup(
            *self.arguments, grid=self.grid, **self.options, enable_fp_fusion=False
        )


class Workspace:
    """Memory between a call's kernels, kept from call to call; for one stream of calls at a time."""

    def __init__(self) -> None:
        self._words = torch.empty(0, dtype=torch.int32)

    def take(self, sizes: list[int], device: torch.device) -> list[torch.Tensor]:
        """Uninitialised int32 tensors of these sizes; allocates when more is asked for than ever before."""
        aligned = [-(-size // 32) * 32 for size in sizes]
        if self._words.numel() < sum(aligned) or self._words.device != device:
            self._words = torch.empty(sum(aligned), dtype=torch.int32, device=device)
        parts = self._words[: sum(aligned)].split(aligned)
        return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def draw_rows(
    inputs: Any, *, shape: LaunchShape | None = None, workspace: Workspace | None = None
) -> DrawOutputs:
    """Draws `inputs.num_draws` ids a row, counted from the start of the range that is read.

    Args:
        inputs: a `mmfast.sampling.inputs.DrawInputs`, which this package does not import.
        shape: how work is shared out; None takes what suits the batch and the device.
        workspace: memory to use again; None allocates.
    """
    outputs, launches = plan(inputs, shape=shape, workspace=workspace)
    for launch in launches:
        launch.run()
    return outputs


def plan(
    inputs: Any, *, shape: LaunchShape | None = None, workspace: Workspace | None = None
) -> tuple[DrawOutputs, list[Launch]]:
    """Where the draws will be, and the launches that put them there."""
    first = inputs.conditions[0]
    num_rows, num_ids = first.shape
    device = first.device
    params = inputs.params
    outputs = DrawOutputs(
        tokens=torch.empty(num_rows, inputs.num_draws, dtype=torch.int64, device=device),
        log2_probabilities=torch.empty(
            num_rows, inputs.num_draws, dtype=torch.int64, device=device
        ),
        num_kept=torch.empty(num_rows, dtype=torch.int64, device=device),
        status=torch.empty(num_rows, dtype=torch.uint8, device=device),
        num_draws=inputs.num_draws,
    )
    if num_rows == 0:
        return outputs, []
    if shape is None:
        shape = LaunchShape.of(num_rows, num_ids, params.top_k_bound, num_processors(device))
    is_small = num_ids <= shape.max_range
    splits = shape.num_splits
    # tiles of all splits, those beyond the end of the row included
    num_tiles = splits * triton.cdiv(num_ids, splits * shape.tile)
    per_row = [1, 1] if params.uses_contrast else [0, 0]
    if not is_small:
        per_row += [shape.num_groups, splits, splits, 1, 2 * num_tiles, num_tiles, num_tiles]
        per_row += [shape.max_candidates, shape.max_candidates]
    sizes = [num_rows * size for size in per_row]
    floor, likeliest, *scratch = (workspace or Workspace()).take(sizes, device)

    logits = logit_inputs(inputs, floor, likeliest)
    parameters = row_parameters(inputs)
    launches = []
    if params.uses_contrast:
        arguments = (logits, params.contrastive_log_alpha, num_ids)
        launches.append(Launch(contrast_floor_kernel, (num_rows,), arguments, _whole_row(shape)))
    if is_small:
        block = max(triton.next_power_of_2(num_ids), 32)
        options = {"BLOCK": block, "num_warps": num_warps(block)}
        arguments = (outputs, logits, parameters, num_ids)
        return outputs, [*launches, Launch(draw_range_kernel, (num_rows,), arguments, options)]

    found = RowMaxima(*scratch[:4], num_splits=splits)
    launches.append(_first_read(found, logits, num_ids, shape))
    tiles = None
    is_bounded = 0 < params.top_k_bound <= MAX_TOP_K and not _has_full_mass(params)
    if not params.uses_rank or not is_bounded:
        masses, num_kept, highest = scratch[4:7]
        tiles = TileMasses(masses.view(torch.int64), num_kept, highest, num_tiles)
    row_reads = _RowReads(outputs, found, tiles, logits, parameters, num_ids, shape)
    if not params.uses_rank:
        return outputs, [*launches, *row_reads.without_rank()]
    return outputs, [*launches, *row_reads.by_rank(Candidates(*scratch[7:]))]


def _whole_row(shape: LaunchShape) -> dict[str, int]:
    # programs with whole rows have many values alive: fewer ids a thread
    return {"TILE": shape.tile, "num_warps": num_warps(4 * shape.tile)}


def _first_read(found: RowMaxima, logits: LogitInputs, num_ids: int, shape: LaunchShape) -> Launch:
    width = shape.num_groups // shape.num_splits
    height = max(shape.tile // width, 1)
    return Launch(
        group_maxima_kernel,
        (logits.num_rows, shape.num_splits),
        (found, logits, num_ids, triton.cdiv(num_ids, shape.num_splits * height * width)),
        {"HEIGHT": height, "WIDTH": width, "num_warps": num_warps(2 * height * width)},
    )


class _RowReads(NamedTuple):
    """What follows the first read of whole rows."""

    outputs: DrawOutputs
    found: RowMaxima
    tiles: TileMasses | None
    logits: LogitInputs
    parameters: RowParameters
    num_ids: int
    shape: LaunchShape

    def without_rank(self) -> list[Launch]:
        outputs, found, tiles, logits, parameters, num_ids, shape = self
        options = {
            "MAX_SPLITS": shape.num_splits,
            "MAX_TILES": self.max_tiles,
            "NUM_GROUPS": shape.num_groups,
            "TILE": shape.tile,
            "num_warps": self.num_warps,
        }
        arguments = (outputs, tiles, found, logits, parameters, num_ids)
        draw = Launch(draw_from_tiles_kernel, (logits.num_rows,), arguments, options)
        return [self.masses(is_filtered=True), draw]

    def by_rank(self, candidates: Candidates) -> list[Launch]:
        outputs, found, tiles, logits, parameters, num_ids, shape = self
        options = {"MAX_TILES": self.max_tiles, "MAX_CANDIDATES": shape.max_candidates}
        gather = Launch(
            gather_candidates_kernel,
            (logits.num_rows, shape.num_splits),
            (candidates, found, tiles, logits, parameters, num_ids, self.tiles_per_split),
            {
                **options,
                "NUM_GROUPS": shape.num_groups,
                "TILE": shape.tile,
                "num_warps": self.num_warps,
            },
        )
        draw = Launch(
            draw_candidates_kernel,
            (logits.num_rows,),
            (outputs, candidates, found, tiles, parameters, num_ids),
            {
                **options,
                "MAX_SPLITS": shape.num_splits,
                "num_warps": min(max(shape.max_candidates // 256, 1), 32),
            },
        )
        whole_row = _whole_row(shape)
        if logits.penalty is not None:
            # its divisions need more registers than 512 threads have
            whole_row["num_warps"] = max(whole_row["num_warps"] // 2, 1)
        leftover = Launch(
            draw_streaming_kernel,
            (logits.num_rows,),
            (outputs, found, logits, parameters, num_ids),
            {**whole_row, "MAX_CANDIDATES": shape.max_candidates},
        )
        masses = [] if tiles is None else [self.masses(is_filtered=False)]
        return [*masses, gather, draw, leftover]

    def masses(self, *, is_filtered: bool) -> Launch:
        shape = self.shape
        return Launch(
            tile_masses_kernel,
            (self.logits.num_rows, shape.num_splits),
            (
                self.tiles,
                self.found,
                self.logits,
                self.parameters,
                self.num_ids,
                self.tiles_per_split,
            ),
            {
                "IS_FILTERED": is_filtered,
                "NUM_GROUPS": shape.num_groups,
                "TILE": shape.tile,
                "num_warps": self.num_warps,
            },
        )

    @property
    def tiles_per_split(self) -> int:
        return triton.cdiv(self.num_ids, self.shape.num_splits * self.shape.tile)

    @property
    def max_tiles(self) -> int:
        """A power of two; rows of different lengths share few of them, so that few kernels are compiled."""
        return max(triton.next_power_of_2(self.shape.num_splits * self.tiles_per_split), 16)

    @property
    def num_warps(self) -> int:
        return num_warps(max(self.shape.tile, self.shape.num_groups // 2))


def logit_inputs(inputs: Any, floor: torch.Tensor, likeliest: torch.Tensor) -> LogitInputs:
    """Logits as kernels take them; rows that are not contiguous are copied."""
    params, bits, history = inputs.params, inputs.bits, inputs.history
    conditions = tuple(map(_rows_contiguous, inputs.conditions))
    base = None if inputs.unconditional is None else _rows_contiguous(inputs.unconditional)
    mask = None if inputs.mask is None else _rows_contiguous(inputs.mask).view(torch.uint8)
    has_contrast = params.uses_contrast
    return LogitInputs(
        conditions=conditions,
        condition_strides=tuple(condition.stride(0) for condition in conditions),
        base=base,
        base_stride=None if base is None else base.stride(0),
        guidance=params.guidance,
        num_rows=conditions[0].shape[0],
        ranges=None if inputs.ranges is None else inputs.ranges.contiguous(),
        mask=mask,
        mask_stride=None if mask is None else _row_stride(mask),
        bits=None if bits is None else _rows_contiguous(bits.words),
        bits_stride=None if bits is None else _row_stride(_rows_contiguous(bits.words)),
        bits_first=None if bits is None else bits.first_id,
        history=None if history is None else _rows_contiguous(history.words),
        history_stride=None if history is None else _row_stride(_rows_contiguous(history.words)),
        history_first=None if history is None else history.first_id,
        penalty=None if history is None else params.repetition_penalty,
        offsets=inputs.offsets,
        contrastive_k=params.contrastive_k if has_contrast else None,
        contrast_floor=floor if has_contrast else None,
        likeliest=likeliest if has_contrast else None,
    )


def row_parameters(inputs: Any) -> RowParameters:
    """Parameters of rows as kernels take them."""
    params = inputs.params
    return RowParameters(
        bits_per_logit=params.bits_per_logit,
        filter_bits_per_logit=params.filter_bits_per_logit if params.filters_apart else None,
        greedy=params.greedy.view(torch.uint8),
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        rules=params.rules,
        seeds=inputs.seeds,
        steps=inputs.steps,
        positions=inputs.positions,
    )


def num_warps(block: int) -> int:
    """Warps of one program: at most 16 ids a thread, which fit its registers."""
    return min(max(block // 512, 1), 16)


@functools.cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; a few in the interpreter."""
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _has_full_mass(params: Any) -> bool:
    return any(rules & _RULE_FULL_MASS for rules in params.rule_sets)


def _row_stride(tensor: torch.Tensor) -> int:
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)


def _rows_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
