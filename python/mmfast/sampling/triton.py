"""The sampler on CUDA: fused kernels draw what `reference.draw` defines, bit for bit.

`why_not` says what the kernels cannot take; `draw` hands over what they can.
"""

import os
from collections.abc import Sequence

import torch

from mmfast.sampling.params import SamplingParams
from mmfast.sampling.reference import Draw


def why_not(conditions: Sequence[torch.Tensor]) -> str | None:
    """What keeps the kernels from drawing from these logits, None if nothing does."""
    from mmfast.kernels import MAX_RANGE

    width = conditions[0].shape[-1]
    if len(conditions) > 1:
        return "the Triton kernel mixes one conditional stream"
    if width > MAX_RANGE:
        return f"the Triton kernel reads at most {MAX_RANGE} allowed ids, not {width}"
    if not (conditions[0].is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return "the Triton kernel needs CUDA tensors (or TRITON_INTERPRET=1)"
    return None


def draw(
    conditions: Sequence[torch.Tensor],
    unconditional: torch.Tensor | None,
    params: SamplingParams,
    support: torch.Tensor | None,
    seeds: torch.Tensor,
    steps: torch.Tensor,
) -> Draw:
    """As `reference.draw`, for logits that `why_not` has nothing against."""
    from mmfast.kernels.sample_range import sample_range

    return Draw(
        *sample_range(
            conditions[0],
            unconditional,
            support=support,
            guidance=params.guidance[0],
            bits_per_logit=params.bits_per_logit,
            greedy=params.greedy,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seeds=seeds,
            steps=steps,
            keep_ties=params.ties == "keep",
            min_p_first=params.order == "vllm",
        )
    )
