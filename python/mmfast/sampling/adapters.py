"""The sampler inside other people's loops: Hugging Face `generate`, and loops over `torch.multinomial`.

Shapes: B requests, R rows of the model's batch (B, or 2B with guidance), V vocabulary ids.
"""

from typing import Any, Literal

import torch

from mmfast.sampling.inputs import Allowed, row_integers
from mmfast.sampling.params import SamplingParams
from mmfast.sampling.sampler import Backend, SampleOutput, sample, sample_prepared

Pairs = Literal["halves", "alternating"]


class SampleProcessor:
    """A logits processor that makes `generate()` of any transformers causal model draw through `sample`.

    Each step's scores come back with the drawn token alone, so `generate` takes it whether it samples or
    not. Leave its own sampling off (`do_sample=False`, one beam, no temperature or top-k): what they would
    do is done here, and a request's tokens depend on its seed and logits, not on its batch.

    With `pairs` half of the batch are unconditional prompts, and both rows of a pair get the same token: one
    forward pass a step, where transformers' own guidance runs two, or draws each row for itself.

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
        prompt_length: tokens of the (padded) prompts, `input_ids.shape[1]`: where step 0 is.
        seeds: 64-bit seed of each request, int64 [B], or one for all.
        pairs: where the unconditional rows are: `halves` (row i + B belongs to row i), `alternating` (odd
            rows belong to the even ones before them), or None for no guidance.
        allowed: ids that may be drawn, as in `sample`.
        backend: as in `sample`.
        **parameters: `guidance_scale temperature top_k top_p min_p order ties` of `sample`, scalars or [B].

    Attributes:
        last: what the last step drew, a `SampleOutput` of B rows, None before.
    """

    def __init__(
        self,
        *,
        prompt_length: int,
        seeds: int | torch.Tensor,
        pairs: Pairs | None = None,
        allowed: Allowed | None = None,
        backend: Backend = "auto",
        **parameters: Any,
    ) -> None:
        if pairs not in (None, "halves", "alternating"):
            raise ValueError(f"pairs is {pairs!r}; it must be 'halves', 'alternating' or None")
        if pairs is None and parameters.get("guidance_scale", 1.0) != 1.0:
            raise ValueError("a guidance_scale needs unconditional rows: say where with `pairs`")
        self.prompt_length = prompt_length
        self.seeds = seeds
        self.pairs = pairs
        self.allowed = allowed
        self.backend = backend
        self.parameters = parameters
        self.last: SampleOutput | None = None
        self._prepared: SamplingParams | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [R, V] in which only the drawn token of each row is above -inf."""
        step = input_ids.shape[1] - self.prompt_length
        if step < 0:
            raise ValueError(
                f"the model reads {input_ids.shape[1]} ids, fewer than prompt_length {self.prompt_length}"
            )
        cond, uncond = self._streams(scores)
        num_rows = cond.shape[0]
        params = self._prepared
        if params is None or params.num_rows != num_rows:
            params = SamplingParams.prepare(num_rows, device=scores.device, **self.parameters)
            self._prepared = params
        self.last = sample_prepared(
            cond,
            uncond,
            params=params,
            seeds=_rows_of(self.seeds, num_rows, scores.device),
            steps=torch.full((num_rows,), step, device=scores.device),
            allowed=self.allowed,
            backend=self.backend,
        )
        tokens = self.last.tokens
        if self.pairs == "halves":
            tokens = tokens.repeat(2)
        elif self.pairs == "alternating":
            tokens = tokens.repeat_interleave(2)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)

    def _streams(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.pairs is None:
            return scores, None
        if scores.shape[0] % 2:
            raise ValueError(
                f"{scores.shape[0]} rows are not pairs; give each prompt an unconditional one"
            )
        if self.pairs == "alternating":
            return scores[0::2], scores[1::2]
        cond, uncond = scores.chunk(2)
        return cond, uncond


def multinomial(
    probabilities: torch.Tensor, *, seeds: int | torch.Tensor, steps: int | torch.Tensor
) -> torch.Tensor:
    """What a loop over `torch.multinomial(probabilities, 1)` does, exactly and the same in any batch.

        >>> multinomial(torch.tensor([[0.0, 1.0, 0.0]]), seeds=1, steps=0)
        tensor([[1]])

    Args:
        probabilities: [B, V], not negative; they need not sum to 1.
        seeds: 64-bit seed of each row, int64 [B], or one for all.
        steps: which draw of the row's request this is, int64 [B] or one number.

    Returns:
        int64 [B, 1].

    Raises:
        ValueError: a row has a negative entry, or none above 0.
    """
    if (probabilities < 0).any() or not (probabilities > 0).any(-1).all():
        raise ValueError("each row of probabilities needs an entry above 0, and none below")
    drawn = sample(probabilities.float().log(), seeds=seeds, steps=steps)
    return drawn.tokens[:, None]


def _rows_of(seeds: int | torch.Tensor, num_rows: int, device: torch.device) -> torch.Tensor:
    if isinstance(seeds, torch.Tensor):
        if seeds.shape != (num_rows,):
            raise ValueError(f"{num_rows} requests need as many seeds, found {tuple(seeds.shape)}")
        seeds = seeds.to(torch.int64)
    return row_integers(seeds, num_rows, "seeds", device)
