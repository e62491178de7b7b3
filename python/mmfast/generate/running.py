"""Requests in their rows: who holds which, what each emits next, what is known of it on the host.

The host only counts. What a request emits is in the tensors of its `DecodeStep`; they are read when a
request ends, when someone looks, and after every step where a grammar wants to know the last id, for
stop ids one step late on CUDA.
"""

import collections
import dataclasses
from typing import Any

import torch

from mmfast.generate.grammar import Choice, Forced, Grammar
from mmfast.generate.prompts import Prompts
from mmfast.generate.requests import Request, Result, SamplingSettings
from mmfast.generate.step import DecodeStep, Lane, Member
from mmfast.models.decode_attention import BLOCK
from mmfast.sampling import SamplingParams

_NO_SETTINGS = SamplingSettings()
# On CUDA every number of blocks has a graph of its own, so they grow by a quarter at least.
_GRAPH_BLOCKS = 4


@dataclasses.dataclass(eq=False)
class Slot:
    """A running request and its rows [row, row + number of streams).

    Attributes:
        lanes: lane that draws each of its ids, None where one is forced; grows as it goes where the
            grammar wants to know the last id.
        has_ended: whether no further id is to come.
    """

    request_idx: int
    request: Request
    row: int
    lanes: list[Lane | None] = dataclasses.field(default_factory=list)
    members: dict[int, Member] = dataclasses.field(default_factory=dict)
    num_emitted: int = 0
    num_told: int = 0
    last_id: int | None = None
    has_ended: bool = False

    @property
    def rows(self) -> range:
        """The rows it holds."""
        return range(self.row, self.row + len(self.request.streams))


class Run:
    """State of one call of `Engine.stream`.

    Args:
        state: the rows' tensors, cleared.
        prompts: runs prompts.
        is_static: whether lanes keep their size and stop ids are read one step late.
        is_compiled: whether the step is compiled anew for every number of cache blocks.
    """

    def __init__(
        self, state: DecodeStep, prompts: Prompts, *, is_static: bool, is_compiled: bool
    ) -> None:
        self.slots: list[Slot] = []
        self._state = state
        self._prompts = prompts
        self._is_static = is_static
        self._is_compiled = is_compiled
        self._device = state.ids.device
        self._owner: list[Slot | None] = [None] * state.num_rows
        self._stale: set[int] = set()
        self._late: collections.deque[tuple[torch.Tensor, Any, list[Slot]]] = collections.deque()

    def free_row(self, num_streams: int) -> int | None:
        """First row of as many adjacent free ones, None if there are not."""
        run_length = 0
        for row, owner in enumerate(self._owner):
            run_length = 0 if owner is not None else run_length + 1
            if run_length == num_streams:
                return row - num_streams + 1
        return None

    def admit(self, slot: Slot) -> None:
        """Runs the request's prompts, all but their last id, into its rows."""
        grammar = slot.request.grammar
        table = None
        if grammar.stop_ids is not None:
            upcoming = [grammar.next(n, None) for n in range(grammar.max_ids)]
            codes = [self._code(slot, each) for each in upcoming if each is not None]
            table = torch.tensor(codes, dtype=torch.int64, device=self._device)
        for row, stream in zip(slot.rows, slot.request.streams, strict=True):
            self._state.cache.fill(row, self._prompts.pieces(stream[:-1]))
            self._state.start_row(row, prompt=stream, table=table)
            self._owner[row] = slot
        self.slots.append(slot)
        if grammar.stop_ids is None:
            self._ask(slot)
        elif not slot.lanes:
            slot.has_ended = True

    def _code(self, slot: Slot, upcoming: Forced | Choice) -> int:
        """What stands in the table for the next id of a slot; notes the lane that draws it."""
        if isinstance(upcoming, Forced):
            slot.lanes.append(None)
            return upcoming.token
        request = slot.request
        settings = request.sampling.get(upcoming.modality, _NO_SETTINGS)
        num_streams = len(request.streams)
        key = (upcoming.allowed, upcoming.modality, num_streams)
        lanes = self._state.lanes
        if key not in lanes:
            lanes[key] = Lane(
                -1 - len(lanes),
                upcoming.allowed,
                num_streams=num_streams,
                num_rows=self._state.num_rows,
                device=self._device,
                is_static=self._is_static,
            )
        lane = lanes[key]
        if lane.code not in slot.members:
            params = SamplingParams.prepare(
                1,
                guidance_scale=request.guidance_weights or 1.0,
                **settings.given(),
                device=self._device,
            )
            slot.members[lane.code] = Member(row=slot.row, seed=request.seed, params=params)
            self._stale.add(lane.code)
        slot.lanes.append(lane)
        return lane.code

    def _ask(self, slot: Slot) -> None:
        """Asks a grammar that wants to know the last id what comes now."""
        upcoming = slot.request.grammar.next(slot.num_emitted, slot.last_id)
        if upcoming is None:
            slot.has_ended = True
            return
        code = self._code(slot, upcoming)
        for row in slot.rows:
            self._state.table[row, slot.num_emitted] = code

    def step(self) -> None:
        """Feeds one id to every row and lets every slot emit its next one, if it has one."""
        live = [slot for slot in self.slots if not slot.has_ended]
        if not live:
            return
        active = {
            lane.code: lane for slot in live if (lane := slot.lanes[slot.num_emitted]) is not None
        }
        lanes = [active[code] for code in sorted(active)]
        for lane in lanes:
            if lane.code in self._stale:
                members = [slot.members.get(lane.code) for slot in self.slots]
                lane.load([member for member in members if member is not None])
                self._stale.discard(lane.code)
        longest = max(max(map(len, slot.request.streams)) + slot.num_emitted for slot in self.slots)
        self._state.run(lanes, self._num_blocks(longest))
        readers = []
        for slot in live:
            slot.num_emitted += 1
            grammar: Grammar = slot.request.grammar
            if grammar.stop_ids is not None and slot.num_emitted == len(slot.lanes):
                slot.has_ended = True
            elif grammar.stop_ids != ():
                readers.append(slot)
        self._read(readers)

    def _num_blocks(self, length: int) -> int:
        """Blocks to attend to for the longest row: one of few where each has a graph or is compiled."""
        num_blocks = -(-length // BLOCK)
        if self._is_compiled:
            # Powers of two from 4 on: torch gives up compiling one function after its eighth shape.
            num_blocks = max(_GRAPH_BLOCKS, 1 << (num_blocks - 1).bit_length())
        elif self._is_static:
            grain = max(_GRAPH_BLOCKS, 1 << max(num_blocks.bit_length() - 3, 0))
            num_blocks = -(-num_blocks // grain) * grain
        return min(num_blocks, self._state.cache.num_blocks)

    def _read(self, readers: list[Slot]) -> None:
        """Looks at the ids of slots that may end, or go on otherwise, because of them."""
        if readers:
            ids, event = self._state.ids, None
            if self._device.type == "cuda":
                ids = torch.empty_like(ids, device="cpu", pin_memory=True).copy_(
                    ids, non_blocking=True
                )
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
            elif self._is_static:
                ids = ids.clone()
            self._late.append((ids, event, readers))
        # A grammar that asks for the last id has to wait for it.
        is_asked = any(slot.request.grammar.stop_ids is None for slot in readers)
        num_late = 1 if self._is_static and readers and not is_asked else 0
        while len(self._late) > num_late:
            ids, event, earlier = self._late.popleft()
            if event is not None:
                event.synchronize()
            values = ids.tolist()
            for slot in earlier:
                if slot.has_ended:
                    continue
                slot.last_id = values[slot.row]
                stop_ids = slot.request.grammar.stop_ids
                if stop_ids is None:
                    self._ask(slot)
                elif slot.last_id in stop_ids:
                    slot.has_ended = True

    def ids(self, slot: Slot) -> tuple[int, ...]:
        """What a slot has emitted, up to a stop id if there was one."""
        ids: list[int] = self._state.history[slot.row, : slot.num_emitted].tolist()
        stops = set(slot.request.grammar.stop_ids or ())
        if stops:
            end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
            ids = ids[: end + 1]
        return tuple(ids)

    def take(self, slot: Slot, ids: tuple[int, ...]) -> Result:
        """The result of a slot that has ended; its rows are free and run dummies again."""
        logprobs = self._state.logprobs[slot.row, : len(ids)].tolist()
        logprobs = [
            0.0 if lane is None else logprob
            for lane, logprob in zip(slot.lanes, logprobs, strict=False)
        ]
        is_complete = slot.request.grammar.is_complete(len(ids), ids[-1] if ids else None)
        result = Result(
            ids=ids,
            logprobs=tuple(logprobs),
            finish="complete" if is_complete else "length",
            status=int(self._state.status[slot.row]),
        )
        self.slots.remove(slot)
        for row in slot.rows:
            self._owner[row] = None
            self._state.clear_row(row)
        self._stale.update(slot.members)
        return result
