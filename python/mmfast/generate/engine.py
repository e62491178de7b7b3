"""Turns requests into ids: a fixed number of rows that each take one token a step.

A request holds as many adjacent rows as it has streams. Its prompts, all but their last id, are run
alone in pieces of fixed shape (`prompts.py`) and copied into its rows; from then on every step feeds one
id to every row (`step.py`), and rows without a request run a dummy. So what a request gets depends on the
request and on the number of rows R, never on its neighbours, on the order of arrival or on how many
requests there are.

A step: feed ids, evaluate the language-model head on the ranges that grammars allow (all rows, only
those ids), draw once per request, note the ids; a finished request's rows go to the next one at once.
The host only counts. It reads ids where a grammar wants to know them: for stop ids one step late on
CUDA, so that the device never waits.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from mmfast.console import Progress
from mmfast.errors import UsageError
from mmfast.generate.cache import RowCache
from mmfast.generate.grammar import Choice, Forced, Grammar
from mmfast.generate.prompts import Prompts
from mmfast.generate.requests import Partial, Request, Result, SamplingSettings
from mmfast.generate.step import DecodeStep, Lane, Member
from mmfast.models.decode_attention import BLOCK, cache_mask
from mmfast.models.fused_decoder import FusedDecoder, fuse_decoder
from mmfast.sampling import SamplingParams

_NO_SETTINGS = SamplingSettings()
# On CUDA every number of blocks has a graph of its own, so they grow by a quarter at least.
_GRAPH_BLOCKS = 4
_LANES_KEPT = 64


@dataclasses.dataclass(eq=False)
class _Slot:
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
        return range(self.row, self.row + len(self.request.streams))


class Engine:
    """Generates with one causal language model on one device.

    Args:
        model: a transformers causal language model with attention `"mmfast"`, in eval mode.
        num_rows: R. Results may differ in their last bits between different R.
        static: keep every tensor of a step in its place, and read stop ids one step late; None does
            it on CUDA, where steps are also captured as graphs. Results are the same.
        fuse: decode in fewer, larger operations where the model has the shape for it
            (`mmfast.models.fused_decoder`); its projections become views of joined ones.
    """

    def __init__(
        self, model: Any, *, num_rows: int, static: bool | None = None, fuse: bool = True
    ) -> None:
        if num_rows < 1:
            raise UsageError(f"the engine needs at least one row, not {num_rows}")
        self.num_rows = num_rows
        self._model = model
        self._config = model.config.get_text_config()
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()
        self.device: torch.device = self._head.weight.device
        self.is_static = self.device.type == "cuda" if static is None else static
        self._max_positions = int(self._config.max_position_embeddings)
        self._step: DecodeStep | None = None
        self._check_layers()
        self._check_head()
        self._decode: Callable[..., torch.Tensor] = self._decode_plain
        fused = fuse_decoder(self._decoder) if fuse else None
        if fused is not None and self._agree(fused, self._decode_plain):
            self._decode = fused

    def run(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Result]:
        """Runs all requests; results in their order.

        Args:
            requests: what to generate.
            progress: told of ids as they come, of `num_ids` in all; shows how many requests are done.

        Raises:
            UsageError: a request that does not fit the model's context or the rows.
        """
        results: dict[int, Result] = {}
        for partial in self.stream(requests, every=BLOCK, progress=progress):
            if partial.result is not None:
                results[partial.request_idx] = partial.result
        return [results[request_idx] for request_idx in range(len(requests))]

    @torch.inference_mode()
    def stream(
        self,
        requests: Sequence[Request],
        *,
        every: int = BLOCK,
        progress: Progress | None = None,
    ) -> Iterator[Partial]:
        """Runs all requests and yields each one's ids after every `every` of them, and its result.

        Args:
            requests: what to generate.
            every: ids between two looks at a request, at least 1; on CUDA each look waits for the
                device.
            progress: as in `run`.

        Raises:
            UsageError: a request that does not fit the model's context or the rows.
        """
        self.check(requests)
        if every < 1:
            raise UsageError(f"ids can be looked at after every 1 or more, not {every}")
        if not requests:
            return
        run = _Run(self, requests)
        waiting = collections.deque(enumerate(requests))
        num_done = 0
        while waiting or run.slots:
            while waiting and (row := run.free_row(len(waiting[0][1].streams))) is not None:
                run.admit(_Slot(*waiting.popleft(), row=row))
            run.step()
            for slot in list(run.slots):
                is_due = slot.num_emitted - slot.num_told >= every
                if not slot.has_ended and not is_due:
                    continue
                ids = run.ids(slot)
                result = None
                if slot.has_ended:
                    result = run.take(slot, ids)
                    num_done += 1
                if progress is not None:
                    # What an early end leaves over counts as done.
                    last = slot.request.grammar.max_ids if slot.has_ended else slot.num_emitted
                    progress.advance(last - slot.num_told, done=f"{num_done}/{len(requests)}")
                slot.num_told = slot.num_emitted
                yield Partial(request_idx=slot.request_idx, ids=ids, result=result)

    def check(self, requests: Sequence[Request], *, numbers: Sequence[int] | None = None) -> None:
        """Refuses what `run` could not do.

        Args:
            requests: what is to be generated.
            numbers: what each is called in messages; 0, 1, ... by default.

        Raises:
            UsageError: a request that does not fit the model's context or the rows.
        """
        for number, request in zip(
            range(len(requests)) if numbers is None else numbers, requests, strict=True
        ):
            self._check_fits(number, request)

    def _check_fits(self, request_idx: int, request: Request) -> None:
        if len(request.streams) > self.num_rows:
            raise UsageError(
                f"request {request_idx} has {len(request.streams)} streams, but the engine has only "
                f"{self.num_rows} rows; raise the number of rows"
            )
        if request.num_positions > self._max_positions:
            longest = max(map(len, request.streams))
            raise UsageError(
                f"request {request_idx} does not fit the model's context of {self._max_positions} "
                f"tokens: its prompt has {longest} ids and up to {request.grammar.max_ids} are to be "
                "generated; shorten the prompt"
            )
        vocab_size = self._head.weight.shape[0]
        for stream in request.streams:
            if min(stream) < 0 or max(stream) >= vocab_size:
                raise UsageError(
                    f"request {request_idx} has a prompt id outside 0..{vocab_size - 1}: "
                    f"{min(stream) if min(stream) < 0 else max(stream)}"
                )
        for modality, settings in request.sampling.items():
            if settings.contrastive_alpha and len(request.streams) == 1:
                raise UsageError(
                    f"request {request_idx}: contrastive decoding of {modality} needs an "
                    "unconditional stream, and there is only one stream"
                )

    def _check_layers(self) -> None:
        """Decoding sees all that came before, so layers with another view must not be there."""
        kinds = set(getattr(self._config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise UsageError(
                f"{type(self._model).__name__} has layers of kind {', '.join(sorted(kinds))}; "
                "generation knows full attention only"
            )
        rope = getattr(self._config, "rope_parameters", None) or {}
        if (kind := rope.get("rope_type")) in ("dynamic", "longrope"):
            raise UsageError(
                f"{type(self._model).__name__} rotates by the longest row's length (rope_type {kind}), so "
                "a row would depend on its neighbours; generation does not run it"
            )

    def _check_head(self) -> None:
        """The head is evaluated in slices, so it must be a plain product; scaled logits are not."""
        vocab_size = self._head.weight.shape[0]
        # Several ids, since a padding id has an embedding of zeros and would show nothing.
        ids = torch.arange(min(vocab_size, 8), device=self.device)[None]
        with torch.inference_mode():
            whole = self._model(input_ids=ids, use_cache=False).logits[0].float()
            hidden = self._decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
            sliced = self.logits(hidden, 0, vocab_size).float()
        if (whole - sliced).abs().max() > 1e-2 * sliced.abs().max():
            raise UsageError(
                f"{type(self._model).__name__} changes its logits after the head (scaling or "
                "capping), which generation does not support yet"
            )

    def _decode_plain(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        *,
        cache: RowCache,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """[R] ids at [R] positions to [R, D] hidden states, by the model's own forward."""
        hidden: torch.Tensor = self._decoder(
            input_ids=ids[:, None],
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
            cache_mask=mask,
        ).last_hidden_state[:, 0]
        return hidden

    @torch.inference_mode()
    def _agree(self, fused: FusedDecoder, plain: Callable[..., torch.Tensor]) -> bool:
        """Whether both give the same hidden states of a few ids, up to rounding."""
        rows = torch.arange(2, device=self.device)
        hidden = []
        for decode in (fused, plain):
            cache = RowCache(self._config.num_hidden_layers, num_rows=2, num_positions=BLOCK)
            for place in range(4):
                positions = torch.full((2,), place, device=self.device)
                cache.set_positions(positions, rows)
                ids = (2 * place + rows) % self._head.weight.shape[0]
                mask = cache_mask(positions, 1)
                states = decode(ids, positions, cache=cache, mask=mask).float()
            hidden.append(states)
        tolerance = 1e-4 if self._head.weight.dtype == torch.float32 else 5e-2
        difference = (hidden[0] - hidden[1]).abs().max()
        return bool(difference <= tolerance * hidden[1].abs().max())

    def logits(self, hidden: torch.Tensor, low: int, high: int) -> torch.Tensor:
        """[R, D] hidden states to [R, high - low] logits of those ids only."""
        bias = self._head.bias
        return F.linear(
            hidden, self._head.weight[low:high], None if bias is None else bias[low:high]
        )

    def decode_step(self, num_positions: int, max_ids: int) -> DecodeStep:
        """A cleared step with room for both: the last one, and what it captured, if it has it."""
        step = self._step
        if (
            step is None
            or step.cache.num_blocks * BLOCK < num_positions
            or step.max_ids < max_ids
            or len(step.lanes) > _LANES_KEPT
        ):
            self._step = step = DecodeStep(
                self._decode,
                self.logits,
                RowCache(
                    self._config.num_hidden_layers,
                    num_rows=self.num_rows,
                    num_positions=num_positions,
                ),
                max_ids=max_ids,
                device=self.device,
                use_graphs=self.is_static and self.device.type == "cuda",
            )
        for row in range(self.num_rows):
            step.clear_row(row)
        return step

    def prompts(self, num_positions: int) -> Prompts:
        """What is kept of the prompts of this run: no more than the rows themselves hold."""
        return Prompts(
            self._decoder,
            self._config,
            device=self.device,
            max_positions=self.num_rows * num_positions,
        )


class _Run:
    """State of one call of `Engine.stream`: running slots, lanes, and what the host knows."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self.engine = engine
        self.slots: list[_Slot] = []
        num_positions = max(request.num_positions for request in requests) + engine.is_static
        self._state = engine.decode_step(
            num_positions, max(request.grammar.max_ids for request in requests)
        )
        self._prompts = engine.prompts(num_positions)
        self._owner: list[_Slot | None] = [None] * engine.num_rows
        self._stale: set[int] = set()
        self._late: collections.deque[tuple[torch.Tensor, Any, list[_Slot]]] = collections.deque()

    def free_row(self, num_streams: int) -> int | None:
        """First row of as many adjacent free ones, None if there are not."""
        run_length = 0
        for row, owner in enumerate(self._owner):
            run_length = 0 if owner is not None else run_length + 1
            if run_length == num_streams:
                return row - num_streams + 1
        return None

    def admit(self, slot: _Slot) -> None:
        """Runs the request's prompts, all but their last id, into its rows."""
        grammar = slot.request.grammar
        table = None
        if grammar.stop_ids is not None:
            upcoming = [grammar.next(n, None) for n in range(grammar.max_ids)]
            codes = [self._code(slot, each) for each in upcoming if each is not None]
            table = torch.tensor(codes, dtype=torch.int64, device=self.engine.device)
        for row, stream in zip(slot.rows, slot.request.streams, strict=True):
            self._state.cache.fill(row, self._prompts.pieces(stream[:-1]))
            self._state.start_row(row, prompt=stream, table=table)
            self._owner[row] = slot
        self.slots.append(slot)
        if grammar.stop_ids is None:
            self._ask(slot)
        elif not slot.lanes:
            slot.has_ended = True

    def _code(self, slot: _Slot, upcoming: Forced | Choice) -> int:
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
                num_rows=self.engine.num_rows,
                device=self.engine.device,
                is_static=self.engine.is_static,
            )
        lane = lanes[key]
        if lane.code not in slot.members:
            params = SamplingParams.prepare(
                1,
                guidance_scale=request.guidance_weights or 1.0,
                **settings.given(),
                device=self.engine.device,
            )
            slot.members[lane.code] = Member(row=slot.row, seed=request.seed, params=params)
            self._stale.add(lane.code)
        slot.lanes.append(lane)
        return lane.code

    def _ask(self, slot: _Slot) -> None:
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
        """Blocks to attend to for the longest row; on CUDA one of few, as each has a graph."""
        num_blocks = -(-length // BLOCK)
        if self.engine.is_static:
            grain = max(_GRAPH_BLOCKS, 1 << max(num_blocks.bit_length() - 3, 0))
            num_blocks = -(-num_blocks // grain) * grain
        return min(num_blocks, self._state.cache.num_blocks)

    def _read(self, readers: list[_Slot]) -> None:
        """Looks at the ids of slots that may end, or go on otherwise, because of them."""
        if readers:
            ids, event = self._state.ids, None
            if self.engine.device.type == "cuda":
                ids = torch.empty_like(ids, device="cpu", pin_memory=True).copy_(
                    ids, non_blocking=True
                )
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
            elif self.engine.is_static:
                ids = ids.clone()
            self._late.append((ids, event, readers))
        # A grammar that asks for the last id has to wait for it.
        is_asked = any(slot.request.grammar.stop_ids is None for slot in readers)
        num_late = 1 if self.engine.is_static and readers and not is_asked else 0
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

    def ids(self, slot: _Slot) -> tuple[int, ...]:
        """What a slot has emitted, up to a stop id if there was one."""
        ids: list[int] = self._state.history[slot.row, : slot.num_emitted].tolist()
        stops = set(slot.request.grammar.stop_ids or ())
        if stops:
            end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
            ids = ids[: end + 1]
        return tuple(ids)

    def take(self, slot: _Slot, ids: tuple[int, ...]) -> Result:
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
