"""The sampler inside Hugging Face `generate`: a logits processor that draws.

Shapes: B requests, S conditional streams, R rows of the model's batch (B, or (S + 1) B with guidance), L ids
read so far, V vocabulary ids.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch

from mmfast.sampling.bitmap import IdSet
from mmfast.sampling.inputs import Allowed, row_integers
from mmfast.sampling.params import SamplingParams
from mmfast.sampling.sampler import Backend, SampleOutput, sample_prepared

Pairs = Literal["halves", "alternating"]


class SampleProcessor:
    """A logits processor that makes `generate()` of any transformers causal model draw through `sample`.

    Each step's scores come back with the drawn token alone, so `generate` takes it whether it samples or
    not. Leave its own sampling off (`do_sample=False`, one beam, no temperature or top-k): what they would
    do is done here, and a request's tokens depend on its seed and logits, not on its batch.

    With `pairs` half of the batch are unconditional prompts, and both rows of a pair get the same token: one
    forward pass a step, where transformers' own guidance runs two, or draws each row for itself. With a tuple
    of guidance scales (`nested_guidance` for Chameleon's three streams) the batch holds as many conditional
    streams and, last, the unconditional one.

        >>> prompts = tokenizer(
        ...     [*texts, *[""] * len(texts)], padding=True, return_tensors="pt"
        ... )  # doctest: +SKIP
        >>> processor = SampleProcessor(  # doctest: +SKIP
        ...     prompt_length=prompts.input_ids.shape[1],
        ...     seeds=torch.arange(len(texts)),
        ...     pairs="halves",
        ...     guidance_scale=3.0,
        ...     top_k=2048,
        ...     allowed=(32_000, 64_768),
        ... )
        >>> ids = model.generate(
        ...     **prompts, do_sample=False, logits_processor=[processor]
        ... )  # doctest: +SKIP

    Args:
        prompt_length: tokens of the (padded) prompts, `input_ids.shape[1]`: where step 0 is. 0 with
            `inputs_embeds`.
        seeds: 64-bit seed of each request, int64 [B], or one for all.
        pairs: where the unconditional rows are: `halves` (row i + B belongs to row i), `alternating` (odd
            rows belong to the even ones before them), or None for no guidance.
        allowed: ids that may be drawn, as in `sample`, or a function that says so for each step: it gets
            the requests' ids int64 [B, L], prompts included.
        exempt: ids that a `repetition_penalty` spares, as in `sample`. It counts all ids that a
            request's conditional row has read, prompt and padding included, as transformers' does.
        backend: as in `sample`.
        **parameters: those of `SamplingParams.prepare`: `guidance_scale temperature top_k top_p min_p
            contrastive_alpha contrastive_k repetition_penalty order ties …`, scalars or [B].

    Attributes:
        last: what the last step drew, a `SampleOutput` of B rows, None before.

    Raises:
        ValueError: parameters or rows that do not fit together; the former as soon as they are given.
    """

    def __init__(
        self,
        *,
        prompt_length: int,
        seeds: int | torch.Tensor,
        pairs: Pairs | None = None,
        allowed: Allowed | Callable[[torch.Tensor], Allowed] | None = None,
        exempt: IdSet = (),
        backend: Backend = "auto",
        **parameters: Any,
    ) -> None:
        if pairs not in (None, "halves", "alternating"):
            raise ValueError(f"pairs is {pairs!r}; it must be 'halves', 'alternating' or None")
        self.prompt_length = prompt_length
        self.seeds = seeds
        self.pairs = pairs
        self.allowed = allowed
        self.exempt = exempt
        self.backend = backend
        self.parameters = parameters
        self.last: SampleOutput | None = None
        self._prepared: SamplingParams | None = None
        if isinstance(seeds, torch.Tensor):
            self._params_of(len(seeds), seeds.device)
        elif not any(isinstance(value, torch.Tensor) for value in parameters.values()):
            self._params_of(1, torch.device("cpu"))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [R, V] in which only the drawn token of each row is above -inf."""
        step = input_ids.shape[1] - self.prompt_length
        if step < 0:
            raise ValueError(
                f"the model reads {input_ids.shape[1]} ids, fewer than prompt_length {self.prompt_length}"
            )
        cond, *others = self._streams(scores)
        uncond = others.pop() if others else None
        ids = self._streams(input_ids)[0]
        num_rows = cond.shape[0]
        params = self._params_of(num_rows, scores.device)
        self.last = sample_prepared(
            cond,
            uncond,
            params=params,
            seeds=_rows_of(self.seeds, num_rows, scores.device),
            steps=torch.full((num_rows,), step, device=scores.device),
            streams=others,
            allowed=self.allowed(ids) if callable(self.allowed) else self.allowed,
            history=ids if params.uses_penalty else None,
            exempt=self.exempt,
            backend=self.backend,
        )
        tokens = self.last.tokens
        if self.pairs == "halves":
            tokens = tokens.repeat(self._num_parts)
        elif self.pairs == "alternating":
            tokens = tokens.repeat_interleave(self._num_parts)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)

    @property
    def _num_parts(self) -> int:
        """Rows of the model's batch that serve one request."""
        if self.pairs is None:
            return 1
        scales = self.parameters.get("guidance_scale")
        return 1 + (len(scales) if isinstance(scales, tuple | list) else 1)

    def _streams(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """One tensor [B, ...] for each stream, the unconditional one last."""
        num_parts = self._num_parts
        if rows.shape[0] % num_parts:
            what = "pairs" if num_parts == 2 else f"groups of {num_parts}"
            raise ValueError(
                f"{rows.shape[0]} rows are not {what}; give each prompt an unconditional one"
            )
        if self.pairs == "alternating":
            return [rows[part::num_parts] for part in range(num_parts)]
        return list(rows.chunk(num_parts))

    def _params_of(self, num_rows: int, device: torch.device) -> SamplingParams:
        params = self._prepared
        if params is None or params.num_rows != num_rows or params.guidance.device != device:
            params = SamplingParams.prepare(num_rows, device=device, **self.parameters)
            if params.needs_unconditional and self.pairs is None:
                raise ValueError(
                    "guidance and contrast need unconditional rows: say where they are with `pairs`"
                )
            self._prepared = params
        return params


def _rows_of(seeds: int | torch.Tensor, num_rows: int, device: torch.device) -> torch.Tensor:
    if isinstance(seeds, torch.Tensor):
        if seeds.shape != (num_rows,):
            raise ValueError(f"{num_rows} requests need as many seeds, found {tuple(seeds.shape)}")
        seeds = seeds.to(torch.int64)
    return row_integers(seeds, num_rows, "seeds", device)
