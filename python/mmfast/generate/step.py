"""One decoding step of R rows: a function of tensors that stay where they are.

All that changes from step to step is in tensors made once: the id that each row feeds, its position, how
many ids it has emitted, and a table of what comes next. A step reads and writes only them and never asks
the host, so on CUDA it is captured once for each number of cache blocks and each set of active lanes and
then replayed; elsewhere the same function just runs.

The table [R, T] says what the n-th id of a row is: an id >= 0 that is fed without being drawn, or the
negative code of the lane that draws it. A lane is the rows that draw alike: same allowed ids, number of
streams, kind of sampler. Row R of every tensor is scratch: members that fill up a lane write there.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from mmfast.generate.cache import RowCache
from mmfast.generate.grammar import AllowedIds
from mmfast.models.decode_attention import BLOCK, cache_masks
from mmfast.sampling import SamplingParams, sample_prepared

Rows = torch.Tensor | slice


@dataclasses.dataclass(frozen=True)
class Member:
    """A request in a lane: its first row, seed and prepared parameters of one row."""

    row: int
    seed: int
    params: SamplingParams


class Lane:
    """Requests that draw together; `load` replaces its members.

    Args:
        code: its number in the table, negative.
        allowed: ids that may be drawn.
        num_streams: rows of each member, adjacent.
        num_rows: R.
        device: of all tensors.
        is_static: whether the lane always has room for as many members as fit R rows, so that its
            tensors stay where they are; else it is as large as its members are many.
    """

    def __init__(
        self,
        code: int,
        allowed: AllowedIds,
        *,
        num_streams: int,
        num_rows: int,
        device: torch.device,
        is_static: bool,
    ) -> None:
        self.code = code
        self.allowed = allowed
        self.num_streams = num_streams
        self.version = 0
        """Grows when tensors moved: what was captured with the old ones is of no use."""
        self._num_rows = num_rows
        self._device = device
        self._is_static = is_static
        self.mask: torch.Tensor | None = None
        if len(allowed.ranges) > 1:
            self.mask = torch.zeros(allowed.high - allowed.low, dtype=torch.bool)
            for low, high in allowed.ranges:
                self.mask[low - allowed.low : high - allowed.low] = True
            self.mask = self.mask.to(device)
        self.rows: list[torch.Tensor] = []
        """Where each stream's ids are written, [M] each."""
        self.logit_rows: list[Rows] = []
        """Where each stream's logits are read."""
        self.seeds = torch.empty(0, dtype=torch.int64)
        self.params: SamplingParams | None = None

    def load(self, members: Sequence[Member]) -> None:
        """Takes these members, at least one."""
        capacity = self._num_rows // self.num_streams if self._is_static else len(members)
        num_empty = capacity - len(members)
        scratch = self._num_rows
        first_rows = [member.row for member in members]
        seeds = [(member.seed + (1 << 63)) % (1 << 64) - (1 << 63) for member in members]
        params = SamplingParams.concatenate(
            [member.params for member in members] + [members[0].params] * num_empty
        )
        new_rows, new_logit_rows = [], []
        for stream in range(self.num_streams):
            rows = [row + stream for row in first_rows]
            new_rows.append(self._integers(rows + [scratch] * num_empty))
            new_logit_rows.append(self._integers(rows + [0] * num_empty))
        new_seeds = self._integers(seeds + [0] * num_empty)
        if self._is_static and self.params is not None and _fits(self.params, params):
            for old, new in zip(
                [*self.rows, *self.logit_rows, self.seeds, *_tensors(self.params)],
                [*new_rows, *new_logit_rows, new_seeds, *_tensors(params)],
                strict=True,
            ):
                old.copy_(new)  # type: ignore[union-attr]  # a static lane has no slices
            return
        self.version += 1
        self.rows, self.seeds, self.params = new_rows, new_seeds, params
        self.logit_rows = list(new_logit_rows)
        step = first_rows[1] - first_rows[0] if len(first_rows) > 1 else 1
        if (
            not self._is_static
            and step > 0
            and all(row == first_rows[0] + i * step for i, row in enumerate(first_rows))
        ):
            # Evenly spaced rows are read where they lie.
            stop = first_rows[-1] + 1
            self.logit_rows = [
                slice(first_rows[0] + stream, stop + stream, step)
                for stream in range(self.num_streams)
            ]

    def _integers(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _tensors(params: SamplingParams) -> list[torch.Tensor]:
    values = (getattr(params, field.name) for field in dataclasses.fields(params))
    return [value for value in values if isinstance(value, torch.Tensor)]


def _fits(old: SamplingParams, new: SamplingParams) -> bool:
    """Whether `new` can be written over `old`: what is known on the host is the same."""
    return all(
        a.shape == b.shape if isinstance(a, torch.Tensor) else a == b
        for a, b in (
            (getattr(old, field.name), getattr(new, field.name))
            for field in dataclasses.fields(old)
        )
    )


class DecodeStep:
    """The state of R rows and the step that advances it.

    Args:
        decode: `decode(ids [R], positions [R], cache=..., masks=...) -> [R, D]` hidden states.
        logits: `logits(hidden [R, D], low, high) -> [R, high - low]`.
        cache: of R rows.
        window: what layers with a sliding window see, None without such layers.
        max_ids: ids that a request may emit.
        device: of all tensors.
        use_graphs: capture and replay, for CUDA.

    Attributes:
        ids: [R + 1], what each row feeds next.
        positions: [R + 1], where.
        prompts: [R + 1, positions], ids that each row started with, -1 behind them.
        emitted: [R + 1], ids emitted so far; also the step of the next draw.
        is_live: [R + 1], 1 for rows of requests.
        table: [R + 1, T], what comes at each place, see above.
        history: [R + 1, T], ids emitted.
        logprobs: [R + 1, T] float32, of the drawn ones, in a request's first row.
        status: [R + 1] uint8, of all draws together, likewise.
    """

    def __init__(
        self,
        decode: Callable[..., torch.Tensor],
        logits: Callable[[torch.Tensor, int, int], torch.Tensor],
        cache: RowCache,
        *,
        window: int | None,
        max_ids: int,
        device: torch.device,
        use_graphs: bool,
    ) -> None:
        self.cache = cache
        self.num_rows = R = cache.num_rows
        self.max_ids = max_ids
        self._window = window
        self._decode = decode
        self._logits = logits
        self._rows = torch.arange(R, device=device)
        self._use_graphs = use_graphs
        self.lanes: dict[Hashable, Lane] = {}
        """All lanes so far, by what their members have in common."""
        self._graphs: dict[tuple[object, ...], Any] = {}

        def state(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(R + 1, *shape, dtype=dtype, device=device)

        self.ids, self.positions, self.emitted, self.is_live = (state() for _ in range(4))
        # An id more than asked for may be emitted before a stop id is seen.
        num_places = max_ids + 2
        self.table, self.history = state(num_places), state(num_places)
        self.prompts = state(cache.num_blocks * BLOCK).fill_(-1)
        self.logprobs = state(num_places, dtype=torch.float32)
        self.status = state(dtype=torch.uint8)

    def start_row(self, row: int, *, prompt: Sequence[int], table: torch.Tensor | None) -> None:
        """Puts a request into a row whose cache holds all of the prompt but its last id.

        Args:
            row: which.
            prompt: ids of the row's stream.
            table: what it is to emit, None to be told place by place.
        """
        self.prompts[row, : len(prompt)] = torch.tensor(prompt, device=self.prompts.device)
        self.prompts[row, len(prompt) :] = -1
        self.ids[row] = prompt[-1]
        self.positions[row] = len(prompt) - 1
        self.emitted[row] = 0
        self.is_live[row] = 1
        self.status[row] = 0
        if table is not None:
            self.table[row, : table.shape[0]] = table

    def clear_row(self, row: int) -> None:
        """Makes a row run a dummy: id 0 at position 0, for ever."""
        for state in (self.ids, self.positions, self.emitted, self.is_live):
            state[row] = 0
        self.table[row, 0] = 0

    def run(self, lanes: Sequence[Lane], num_blocks: int) -> None:
        """Feeds every row its id and puts the next one in its place.

        Args:
            lanes: all in which some row draws now.
            num_blocks: blocks of the cache that hold all positions.
        """
        if not self._use_graphs:
            self.advance(lanes, num_blocks)
            return
        key = (num_blocks, *((lane.code, lane.version) for lane in lanes))
        if key not in self._graphs:
            # The first time it just runs, which also warms up what a capture must find ready.
            self.advance(lanes, num_blocks)
            self._graphs[key] = None
            return
        if self._graphs[key] is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.advance(lanes, num_blocks)
            self._graphs[key] = graph
        self._graphs[key].replay()

    def advance(self, lanes: Sequence[Lane], num_blocks: int) -> None:
        """The step itself; see `run`."""
        R = self.num_rows
        positions = self.positions[:R]
        self.cache.set_positions(positions, self._rows)
        masks = cache_masks(positions, num_blocks, self._window)
        hidden = self._decode(self.ids[:R], positions, cache=self.cache, masks=masks)
        place = self.emitted[:, None]
        upcoming = self.table.gather(1, place)[:, 0]
        next_ids = upcoming.clone()
        logits_of: dict[AllowedIds, torch.Tensor] = {}
        for lane in lanes:
            if lane.allowed not in logits_of:
                logits_of[lane.allowed] = self._logits(hidden, lane.allowed.low, lane.allowed.high)
            self._draw(lane, logits_of[lane.allowed], upcoming, next_ids)
        self.history.scatter_(1, place, next_ids[:, None])
        self.ids.copy_(next_ids)
        self.positions += self.is_live
        self.emitted += self.is_live

    def _draw(
        self, lane: Lane, logits: torch.Tensor, upcoming: torch.Tensor, next_ids: torch.Tensor
    ) -> None:
        """Draws for all members of a lane, and keeps it for those that draw in this lane now."""
        assert lane.params is not None
        streams = [logits[rows] for rows in lane.logit_rows]
        first = lane.rows[0]
        steps = self.emitted[first]
        drawn = sample_prepared(
            streams[0],
            streams[-1] if len(streams) > 1 else None,
            streams=streams[1:-1],
            params=lane.params,
            seeds=lane.seeds,
            steps=steps,
            allowed=lane.mask,
            history=self._seen(lane, steps) if lane.params.uses_penalty else None,
        )
        is_here = upcoming[first] == lane.code
        for rows in lane.rows:
            tokens = torch.where(is_here, drawn.tokens + lane.allowed.low, next_ids[rows])
            next_ids.index_copy_(0, rows, tokens)
        logprobs = torch.where(is_here, drawn.logprobs, self.logprobs[first, steps])
        self.logprobs.index_put_((first, steps), logprobs)
        status = torch.where(is_here, drawn.status, 0) | self.status[first]
        self.status.index_copy_(0, first, status)

    def _seen(self, lane: Lane, steps: torch.Tensor) -> torch.Tensor:
        """Prompt and emitted ids of the members, [M, any], counted from the first allowed id."""
        first = lane.rows[0]
        places = torch.arange(self.history.shape[1], device=steps.device)
        emitted = torch.where(places < steps[:, None], self.history[first], -1)
        seen = torch.cat([self.prompts[first], emitted], dim=1)
        is_inside = (seen >= lane.allowed.low) & (seen < lane.allowed.high)
        return torch.where(is_inside, seen - lane.allowed.low, -1)
