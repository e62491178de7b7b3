"""Turns requests into ids: a fixed number of rows that each take one token a step.

A request holds as many adjacent rows as it has streams. Its prompts, all but their last id, are run
alone in pieces of fixed shape (`prompts.py`) and copied into its rows; from then on every step feeds one
id to every row (`step.py`), and rows without a request run a dummy. So what a request gets depends on the
request and on the number of rows R, never on its neighbours, on the order of arrival or on how many
requests there are.

A step: feed ids, evaluate the language-model head on the ranges that grammars allow (all rows, only
those ids), draw once per request, note the ids; a finished request's rows go to the next one at once
(`running.py`).
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from mmfast.console import Progress
from mmfast.errors import UsageError
from mmfast.generate.cache import RowCache
from mmfast.generate.prompts import Prompts
from mmfast.generate.requests import Partial, Request, Result
from mmfast.generate.running import Run, Slot
from mmfast.generate.step import DecodeStep
from mmfast.models.decode_attention import BLOCK, CacheMasks, cache_masks
from mmfast.models.fused_decoder import FusedDecoder, fuse_decoder
from mmfast.models.windows import sliding_window

_LANES_KEPT = 64


class Engine:
    """Generates with one causal language model on one device.

    Args:
        model: a transformers causal language model with attention `"mmfast"`, in eval mode.
        num_rows: R. Results may differ in their last bits between different R.
        static: keep every tensor of a step in its place, and read stop ids one step late; None does
            it on CUDA, where steps are also captured as graphs. Results are the same.
        fuse: decode in fewer, larger operations where the model has the shape for it
            (`mmfast.models.fused_decoder`); its projections become views of joined ones.
        compiled: on CPU, run the decoder of a step through `torch.compile`, which needs a C++ compiler. It
            takes some ten seconds at the first step and each time the cache in use doubles, so it is for long
            jobs. Results equal those of the plain step up to rounding.

    Raises:
        UsageError: no rows, a model whose layers, rotations or logits generation does not know, or `compiled`
            on CUDA.
    """

    def __init__(
        self,
        model: Any,
        *,
        num_rows: int,
        static: bool | None = None,
        fuse: bool = True,
        compiled: bool = False,
    ) -> None:
        if num_rows < 1:
            raise UsageError(f"the engine needs at least one row, not {num_rows}")
        self.num_rows = num_rows
        self._model = model
        self._config = model.config.get_text_config()
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()
        self.device: torch.device = self._head.weight.device
        if compiled and self.device.type == "cuda":
            raise UsageError("compiled=True is for CPU; on CUDA steps are captured as graphs")
        self._is_compiled = compiled
        self.is_static = self.device.type == "cuda" if static is None else static
        self._max_positions = int(self._config.max_position_embeddings)
        window = sliding_window(self._config)
        self._window = window if (window or 0) < self._max_positions else None
        self._step: DecodeStep | None = None
        self._is_running = False
        self._check_layers()
        self._check_head()
        self._decode: Callable[..., torch.Tensor] = self._decode_plain
        fused = fuse_decoder(self._decoder) if fuse else None
        if fused is not None and self._agree(fused, self._decode_plain):
            self._decode = fused
        if compiled:
            self._decode = torch.compile(self._decode, dynamic=False)

    def run(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Result]:
        """Runs all requests; results in their order.

        Args:
            requests: what to generate.
            progress: told of ids as they come, of `num_ids` in all; shows how many requests are done.

        Raises:
            UsageError: a request that does not fit the model's context or the rows.
        """
        results: dict[int, Result] = {}
        for partial in self._stream(requests, BLOCK, progress, shows_ids=False):
            if partial.result is not None:
                results[partial.request_idx] = partial.result
        return [results[request_idx] for request_idx in range(len(requests))]

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
            UsageError: a request that does not fit the model's context or the rows, or an earlier
                stream that has not come to its end.
        """
        if every < 1:
            raise UsageError(f"ids can be looked at after every 1 or more, not {every}")
        yield from self._stream(requests, every, progress, shows_ids=True)

    @torch.inference_mode()
    def _stream(
        self,
        requests: Sequence[Request],
        every: int,
        progress: Progress | None,
        *,
        shows_ids: bool,
    ) -> Iterator[Partial]:
        """As `stream`; without `shows_ids` only results carry ids, and nothing waits for the others."""
        self.check(requests)
        if not requests:
            return
        if self._is_running:
            raise UsageError(
                "an earlier stream of this engine has not come to its end; finish or close it first"
            )
        self._is_running = True
        try:
            yield from self._run(requests, every, progress, shows_ids=shows_ids)
        finally:
            self._is_running = False

    def _run(
        self,
        requests: Sequence[Request],
        every: int,
        progress: Progress | None,
        *,
        shows_ids: bool,
    ) -> Iterator[Partial]:
        state = self.decode_step(requests)
        # No more is kept of prompts than the rows themselves hold.
        prompts = self.prompts(self.num_rows * state.cache.num_blocks * BLOCK)
        run = Run(state, prompts, is_static=self.is_static, is_compiled=self._is_compiled)
        waiting = collections.deque(enumerate(requests))
        num_done = 0
        while waiting or run.slots:
            while waiting and (row := run.free_row(len(waiting[0][1].streams))) is not None:
                run.admit(Slot(*waiting.popleft(), row=row))
            run.step()
            for slot in list(run.slots):
                is_due = slot.num_emitted - slot.num_told >= every
                if not slot.has_ended and not is_due:
                    continue
                ids = run.ids(slot) if shows_ids or slot.has_ended else ()
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
        """A row must not depend on its neighbours."""
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
        masks: CacheMasks,
    ) -> torch.Tensor:
        """[R] ids at [R] positions to [R, D] hidden states, by the model's own forward."""
        hidden: torch.Tensor = self._decoder(
            input_ids=ids[:, None],
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
            cache_mask=masks,
        ).last_hidden_state[:, 0]
        return hidden

    @torch.inference_mode()
    def _agree(self, fused: FusedDecoder, plain: Callable[..., torch.Tensor]) -> bool:
        """Whether both give the same hidden states of a few ids, up to rounding."""
        rows = torch.arange(2, device=self.device)
        hidden = []
        for decode in (fused, plain):
            # behind a window's length its mask shows
            first = self._window or 0
            num_blocks = first // BLOCK + 2
            cache = RowCache(
                self._config.num_hidden_layers, num_rows=2, num_positions=num_blocks * BLOCK
            )
            for place in range(4):
                positions = torch.full((2,), first + place, device=self.device)
                cache.set_positions(positions, rows)
                ids = (2 * place + rows) % self._head.weight.shape[0]
                masks = cache_masks(positions, num_blocks, self._window)
                states = decode(ids, positions, cache=cache, masks=masks).float()
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

    def decode_step(self, requests: Sequence[Request]) -> DecodeStep:
        """A cleared step with room for them: the last one, and what it captured, if it has it."""
        num_positions = max(request.num_positions for request in requests)
        max_ids = max(request.grammar.max_ids for request in requests)
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
                window=self._window,
                max_ids=max_ids,
                device=self.device,
                use_graphs=self.is_static and self.device.type == "cuda",
            )
        for row in range(self.num_rows):
            step.clear_row(row)
        return step

    def prompts(self, num_positions: int) -> Prompts:
        """Runs prompts and keeps what they have in common, up to so many positions."""
        return Prompts(self._decoder, device=self.device, max_positions=num_positions)
