"""The sampler on the CPU: the native core draws what `reference.draw` defines, bit for bit.

Logits are seen where they lie, with any distance between rows. Rows, and the ids of a row where there are few
rows, are shared out over as many threads as torch uses (`torch.set_num_threads`); their number changes no
result.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mmfast.sampling.bitmap import Bits
from mmfast.sampling.inputs import DrawInputs
from mmfast.sampling.reference import Draw

_FORMATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def why_not(inputs: DrawInputs) -> str | None:
    """What keeps the native core from drawing from these inputs, None if nothing does."""
    if inputs.device.type != "cpu":
        return f"the Rust backend needs CPU tensors, found {inputs.device}"
    return None


def draw(inputs: DrawInputs) -> Draw:
    """As `reference.draw`, for CPU tensors; streams of different dtypes are read as float32."""
    # imported here, so that a machine without the native extension can run the other backends
    from mmfast._mmfast import draw_rows

    params, base = inputs.params, inputs.unconditional
    dtype = inputs.conditions[0].dtype
    if any(stream.dtype != dtype for stream in (*inputs.conditions, base) if stream is not None):
        dtype = torch.float32
    shape = (inputs.num_rows, inputs.num_draws)
    tokens, num_kept, log2_probabilities, status = map(
        torch.from_numpy,
        draw_rows(
            [_logits(stream, dtype) for stream in inputs.conditions],
            None if base is None else _logits(base, dtype),
            number_format=_FORMATS[dtype],
            first_id=inputs.first_id,
            ranges=_flat(inputs.ranges),
            mask=None if inputs.mask is None else inputs.mask.contiguous().numpy(),
            bits=_words(inputs.bits),
            history=_words(inputs.history),
            guidance=_flat(params.guidance),
            bits_per_logit=_flat(params.bits_per_logit),
            filter_bits_per_logit=_flat(params.filter_bits_per_logit),
            greedy=_flat(params.greedy),
            top_k=_flat(params.top_k),
            top_p=_flat(params.top_p),
            min_p=_flat(params.min_p),
            contrastive_k=_flat(params.contrastive_k),
            contrastive_log_alpha=_flat(params.contrastive_log_alpha),
            repetition_penalty=_flat(params.repetition_penalty),
            offsets=_flat(inputs.offsets),
            rules=_flat(params.rules),
            seeds=_flat(inputs.seeds),
            steps=_flat(inputs.steps),
            positions=_flat(inputs.positions),
            num_draws=inputs.num_draws,
            num_threads=torch.get_num_threads(),
        ),
    )
    return Draw(tokens.reshape(shape), num_kept, log2_probabilities.reshape(shape), status)


def _logits(logits: torch.Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    """[B, N] with contiguous rows; the 16-bit formats as their bits, since numpy lacks one of them."""
    logits = logits.detach().to(dtype)
    if logits.stride(-1) != 1 and logits.shape[-1] > 1:
        logits = logits.contiguous()
    return (logits if dtype == torch.float32 else logits.view(torch.uint16)).numpy()


def _flat(values: torch.Tensor | None) -> Any:
    """One value after another, as an array; what is not there stays so."""
    return None if values is None else values.contiguous().reshape(-1).numpy()


def _words(bits: Bits | None) -> Any:
    return None if bits is None else bits.words.contiguous().numpy().view(np.uint32)
