"""The sampler on the CPU: the native core draws what `reference.draw` defines, bit for bit.

Logits are seen where they lie, with any distance between rows. Rows are shared out over as many threads as
torch uses (`torch.set_num_threads`); their number changes no result.
"""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from mmfast._mmfast import draw_rows
from mmfast.sampling.params import SamplingParams
from mmfast.sampling.reference import Draw

_FORMATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def draw(
    conditions: Sequence[torch.Tensor],
    unconditional: torch.Tensor | None,
    params: SamplingParams,
    support: torch.Tensor | None,
    seeds: torch.Tensor,
    steps: torch.Tensor,
) -> Draw:
    """As `reference.draw`, for CPU tensors; streams of different dtypes are read as float32."""
    streams = (*conditions, *(() if unconditional is None else (unconditional,)))
    dtype = streams[0].dtype
    if any(stream.dtype != dtype for stream in streams):
        dtype = torch.float32
    drawn = draw_rows(
        [_array(stream, dtype) for stream in conditions],
        None if unconditional is None else _array(unconditional, dtype),
        None if support is None else support.contiguous().numpy(),
        number_format=_FORMATS[dtype],
        guidance=params.guidance.contiguous().reshape(-1).numpy(),
        bits_per_logit=params.bits_per_logit.numpy(),
        greedy=params.greedy.numpy(),
        top_k=params.top_k.numpy(),
        top_p=params.top_p.numpy(),
        min_p=params.min_p.numpy(),
        seeds=seeds.contiguous().numpy(),
        steps=steps.contiguous().numpy(),
        keep_ties=params.ties == "keep",
        min_p_first=params.order == "vllm",
        num_threads=torch.get_num_threads(),
    )
    return Draw(*map(torch.from_numpy, drawn))


def _array(logits: torch.Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    """[B, N] with contiguous rows; the 16-bit formats as their bits, since numpy lacks one of them."""
    logits = logits.detach().to(dtype)
    if logits.stride(-1) != 1 and logits.shape[-1] > 1:
        logits = logits.contiguous()
    return (logits if dtype == torch.float32 else logits.view(torch.uint16)).numpy()
