"""The sampler on the CPU: the native core draws what `reference.draw` defines, bit for bit.

Logits are seen where they lie, with any distance between rows. Rows are shared out over as many threads as
torch uses (`torch.set_num_threads`); their number changes no result.
"""

from typing import Any

import numpy.typing as npt
import torch

from mmfast.sampling.inputs import DrawInputs
from mmfast.sampling.orders import RULE_KEEP_TIES, RULE_MIN_P_FIRST
from mmfast.sampling.reference import Draw

_FORMATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def why_not(inputs: DrawInputs) -> str | None:
    """What keeps the native core from drawing from these inputs, None if nothing does."""
    params = inputs.params
    if inputs.device.type != "cpu":
        return f"the Rust backend needs CPU tensors, found {inputs.device}"
    if params.uses_contrast or params.uses_penalty or params.filters_apart:
        return "the Rust backend has no contrast, penalty or filter temperature"
    if inputs.num_draws > 1 or inputs.positions is not None:
        return "the Rust backend draws one token a row, at position 0"
    if len(params.rule_sets) > 1 or params.rule_sets - {0, 1, 8, 9}:
        return "the Rust backend has one rule for ties and the place of min-p for all rows"
    return None


def draw(inputs: DrawInputs) -> Draw:
    """As `reference.draw`, for CPU tensors; streams of different dtypes are read as float32."""
    # imported here, so that a machine without the native extension can run the other backends
    from mmfast._mmfast import draw_rows

    params, support = inputs.params, inputs.support()
    base = inputs.unconditional
    streams = (*inputs.conditions, *(() if base is None else (base,)))
    dtype = streams[0].dtype
    if any(stream.dtype != dtype for stream in streams):
        dtype = torch.float32
    rules = min(params.rule_sets, default=0)
    tokens, num_kept, log2_probabilities, status = map(
        torch.from_numpy,
        draw_rows(
            [_array(stream, dtype) for stream in inputs.conditions],
            None if base is None else _array(base, dtype),
            None if support is None else support.contiguous().numpy(),
            number_format=_FORMATS[dtype],
            guidance=params.guidance.contiguous().reshape(-1).numpy(),
            bits_per_logit=params.bits_per_logit.numpy(),
            greedy=params.greedy.numpy(),
            top_k=params.top_k.numpy(),
            top_p=params.top_p.numpy(),
            min_p=params.min_p.numpy(),
            seeds=inputs.seeds.contiguous().numpy(),
            steps=inputs.steps.contiguous().numpy(),
            keep_ties=rules & RULE_KEEP_TIES != 0,
            min_p_first=rules & RULE_MIN_P_FIRST != 0,
            num_threads=torch.get_num_threads(),
        ),
    )
    return Draw(tokens[:, None], num_kept, log2_probabilities[:, None], status)


def _array(logits: torch.Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    """[B, N] with contiguous rows; the 16-bit formats as their bits, since numpy lacks one of them."""
    logits = logits.detach().to(dtype)
    if logits.stride(-1) != 1 and logits.shape[-1] > 1:
        logits = logits.contiguous()
    return (logits if dtype == torch.float32 else logits.view(torch.uint16)).numpy()
