"""Turns requests into ids: a fixed number of rows that each take one token a step.

A request holds as many adjacent rows as it has streams. Its prompts, all but their last id, are run
alone at their own shape and copied into its rows; from then on every step feeds one id to every row, and
rows without a request run a dummy. So what a request gets depends on the request and on the number of
rows R, never on its neighbours, on the order of arrival or on how many requests there are.

A step: feed ids, evaluate the language-model head on the ranges that grammars allow (all rows, only
those ids), draw once per request, note the ids; a finished request's rows go to the next one at once.
"""

import collections
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from mmfast.console import Progress
from mmfast.errors import UsageError
from mmfast.generate.cache import RowCache
from mmfast.generate.grammar import AllowedIds, Choice, Forced
from mmfast.generate.requests import Request, Result, SamplingSettings
from mmfast.sampling import SamplingParams, sample_prepared

_NUM_PROMPTS_KEPT = 32
_DUMMY_ID = 0
_NO_SETTINGS = SamplingSettings()


@dataclasses.dataclass(eq=False)
class _Slot:
    """A running request and its rows [row, row + number of streams)."""

    request_idx: int
    request: Request
    row: int
    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    status: int = 0
    prepared: dict[str, SamplingParams] = dataclasses.field(default_factory=dict)

    @property
    def last_id(self) -> int | None:
        return self.ids[-1] if self.ids else None

    def params(self, modality: str, device: torch.device) -> SamplingParams:
        if modality not in self.prepared:
            settings = self.request.sampling.get(modality, _NO_SETTINGS)
            self.prepared[modality] = SamplingParams.prepare(
                1,
                guidance_scale=self.request.guidance_weights or 1.0,
                **dataclasses.asdict(settings),
                device=device,
            )
        return self.prepared[modality]


@dataclasses.dataclass(frozen=True)
class _Group:
    """Slots that draw together: same number of streams, same allowed ids; tensors are [slots]."""

    params: SamplingParams
    seeds: torch.Tensor
    rows: tuple[torch.Tensor, ...]


class Engine:
    """Generates with one causal language model on one device.

    Args:
        model: a transformers causal language model with attention `"mmfast"`, in eval mode.
        num_rows: R. Results may differ in their last bits between different R.
    """

    def __init__(self, model: Any, *, num_rows: int) -> None:
        if num_rows < 1:
            raise UsageError(f"the engine needs at least one row, not {num_rows}")
        self.num_rows = num_rows
        self._model = model
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()
        self._device: torch.device = self._head.weight.device
        self._max_positions = int(model.config.max_position_embeddings)
        self._check_head()

    @torch.inference_mode()
    def run(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Result]:
        """Runs all requests; results in their order.

        Args:
            requests: what to generate.
            progress: told of each finished request, with the rate in ids per second.

        Raises:
            UsageError: a request that does not fit the model's context or the rows.
        """
        self.check(requests)
        if not requests:
            return []
        run = _Run(self, max(request.num_positions for request in requests))
        waiting = collections.deque(enumerate(requests))
        results: dict[int, Result] = {}
        started, num_ids = time.monotonic(), 0
        while waiting or run.slots:
            while waiting and (row := run.free_row(len(waiting[0][1].streams))) is not None:
                run.admit(_Slot(*waiting.popleft(), row=row))
            run.step()
            for slot in run.take_finished():
                is_complete = slot.request.grammar.is_complete(len(slot.ids), slot.last_id)
                results[slot.request_idx] = Result(
                    ids=tuple(slot.ids),
                    logprobs=tuple(slot.logprobs),
                    finish="complete" if is_complete else "length",
                    status=slot.status,
                )
                num_ids += len(slot.ids)
                if progress is not None:
                    rate = num_ids / max(time.monotonic() - started, 1e-9)
                    progress.advance(1, ids_per_sec=round(rate, 1))
        return [results[request_idx] for request_idx in range(len(requests))]

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

    def _check_head(self) -> None:
        """The head is evaluated in slices, so it must be a plain product; scaled logits are not."""
        vocab_size = self._head.weight.shape[0]
        # Several ids, since a padding id has an embedding of zeros and would show nothing.
        ids = torch.arange(min(vocab_size, 8), device=self._device)[None]
        with torch.inference_mode():
            whole = self._model(input_ids=ids, use_cache=False).logits[0].float()
            hidden = self._decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
            sliced = self.logits(hidden, 0, vocab_size).float()
        if (whole - sliced).abs().max() > 1e-2 * sliced.abs().max():
            raise UsageError(
                f"{type(self._model).__name__} changes its logits after the head (scaling or "
                "capping), which generation does not support yet"
            )

    def logits(self, hidden: torch.Tensor, low: int, high: int) -> torch.Tensor:
        """[R, D] hidden states to [R, high - low] logits of those ids only."""
        bias = self._head.bias
        return F.linear(
            hidden, self._head.weight[low:high], None if bias is None else bias[low:high]
        )


class _Run:
    """State of one call of `Engine.run`: cache, rows and running slots."""

    def __init__(self, engine: Engine, num_positions: int) -> None:
        self.engine = engine
        self.device = engine._device
        self.slots: list[_Slot] = []
        self._cache = RowCache(
            engine._model.config.num_hidden_layers,
            num_rows=engine.num_rows,
            num_positions=num_positions,
        )
        self._owner: list[_Slot | None] = [None] * engine.num_rows
        self._ids = [_DUMMY_ID] * engine.num_rows
        self._positions = [0] * engine.num_rows
        self._prompts: collections.OrderedDict[tuple[int, ...], DynamicCache | None] = (
            collections.OrderedDict()
        )
        self._groups: dict[tuple[Any, ...], _Group] = {}
        self._masks: dict[AllowedIds, torch.Tensor | None] = {}

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
        for row, stream in enumerate(slot.request.streams, start=slot.row):
            self._cache.fill(row, self._prefill(stream[:-1]))
            self._owner[row] = slot
            self._ids[row] = stream[-1]
            self._positions[row] = len(stream) - 1
        self.slots.append(slot)
        self._groups.clear()

    def _prefill(self, prompt: tuple[int, ...]) -> DynamicCache | None:
        """Keys and values of a prompt; those of recent prompts are kept, many are asked for again."""
        if prompt in self._prompts:
            self._prompts.move_to_end(prompt)
            return self._prompts[prompt]
        states = None
        if prompt:
            states = DynamicCache(config=self.engine._model.config)
            ids = torch.tensor([prompt], device=self.device)
            positions = torch.arange(len(prompt), device=self.device)[None]
            self.engine._decoder(
                input_ids=ids, position_ids=positions, past_key_values=states, use_cache=True
            )
        self._prompts[prompt] = states
        if len(self._prompts) > _NUM_PROMPTS_KEPT:
            self._prompts.popitem(last=False)
        return states

    def step(self) -> None:
        """Feeds one id to every row and lets every slot emit its next one, if it has one."""
        nexts = [
            (slot, slot.request.grammar.next(len(slot.ids), slot.last_id)) for slot in self.slots
        ]
        if any(upcoming is not None for _, upcoming in nexts):
            self._emit(nexts, self._feed())

    def _feed(self) -> torch.Tensor:
        """[R, D] hidden states after each row's pending id."""
        positions = torch.tensor(self._positions, device=self.device)
        self._cache.set_positions(positions)
        hidden: torch.Tensor = self.engine._decoder(
            input_ids=torch.tensor(self._ids, device=self.device)[:, None],
            position_ids=positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
            cache_positions=positions,
            cache_length=max(self._positions) + 1,
        ).last_hidden_state[:, 0]
        return hidden

    def _emit(
        self, nexts: Sequence[tuple[_Slot, Forced | Choice | None]], hidden: torch.Tensor
    ) -> None:
        drawing: dict[tuple[AllowedIds, int], list[tuple[_Slot, str]]] = {}
        for slot, upcoming in nexts:
            if isinstance(upcoming, Forced):
                self._advance(slot, upcoming.token, 0.0, 0)
            elif isinstance(upcoming, Choice):
                key = (upcoming.allowed, len(slot.request.streams))
                drawing.setdefault(key, []).append((slot, upcoming.modality))
        logits_of: dict[AllowedIds, torch.Tensor] = {}
        for (allowed, _), members in drawing.items():
            if allowed not in logits_of:
                logits_of[allowed] = self.engine.logits(hidden, allowed.low, allowed.high)
            self._draw(allowed, members, logits_of[allowed])

    def _draw(
        self, allowed: AllowedIds, members: Sequence[tuple[_Slot, str]], logits: torch.Tensor
    ) -> None:
        """One id for each of `members`, from the logits [R, allowed] of all rows."""
        group = self._group(members)
        streams = [logits[rows] for rows in group.rows]
        steps = torch.tensor([len(slot.ids) for slot, _ in members], device=self.device)
        drawn = sample_prepared(
            streams[0],
            streams[-1] if len(streams) > 1 else None,
            streams=streams[1:-1],
            params=group.params,
            seeds=group.seeds,
            steps=steps,
            allowed=self._mask(allowed),
        )
        for (slot, _), token, logprob, status in zip(
            members,
            (drawn.tokens + allowed.low).tolist(),
            drawn.logprobs.tolist(),
            drawn.status.tolist(),
            strict=True,
        ):
            self._advance(slot, token, logprob, status)

    def _group(self, members: Sequence[tuple[_Slot, str]]) -> _Group:
        """Parameters of slots that draw together, kept while the same ones do."""
        key = tuple((slot.request_idx, modality) for slot, modality in members)
        if key not in self._groups:
            num_streams = len(members[0][0].request.streams)
            first_rows = torch.tensor([slot.row for slot, _ in members], device=self.device)
            seeds = [(slot.request.seed + (1 << 63)) % (1 << 64) - (1 << 63) for slot, _ in members]
            self._groups[key] = _Group(
                params=SamplingParams.concatenate(
                    [slot.params(modality, self.device) for slot, modality in members]
                ),
                seeds=torch.tensor(seeds, device=self.device),
                rows=tuple(first_rows + stream for stream in range(num_streams)),
            )
        return self._groups[key]

    def _mask(self, allowed: AllowedIds) -> torch.Tensor | None:
        """Which ids of the sliced head may be drawn, None when all may."""
        if allowed not in self._masks:
            mask = None
            if len(allowed.ranges) > 1:
                mask = torch.zeros(allowed.high - allowed.low, dtype=torch.bool, device=self.device)
                for low, high in allowed.ranges:
                    mask[low - allowed.low : high - allowed.low] = True
            self._masks[allowed] = mask
        return self._masks[allowed]

    def _advance(self, slot: _Slot, token: int, logprob: float, status: int) -> None:
        slot.ids.append(token)
        slot.logprobs.append(logprob)
        slot.status |= status
        for row in range(slot.row, slot.row + len(slot.request.streams)):
            self._ids[row] = token
            self._positions[row] += 1

    def take_finished(self) -> list[_Slot]:
        """Slots whose grammar has ended; their rows are free and run dummies again."""
        finished = [
            slot
            for slot in self.slots
            if slot.request.grammar.next(len(slot.ids), slot.last_id) is None
        ]
        for slot in finished:
            self.slots.remove(slot)
            for row in range(slot.row, slot.row + len(slot.request.streams)):
                self._owner[row] = None
                self._ids[row] = _DUMMY_ID
                self._positions[row] = 0
        if finished:
            self._groups.clear()
        return finished
