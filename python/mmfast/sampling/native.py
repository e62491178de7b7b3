"""The sampler on the CPU: the native core draws what `reference.draw` defines, bit for bit.

All that follows a draw is done in the core too, since each of torch's calls on a few numbers takes microseconds.

Logits are seen where they lie, with any distance between rows. Rows, and the ids of a row where there are few
rows, are shared out over as many threads as torch uses (`torch.set_num_threads`); their number changes no
result.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch

from mmfast.sampling.inputs import DrawInputs


def why_not(inputs: DrawInputs) -> str | None:
    """What keeps the native core from drawing from these inputs, None if nothing does."""
    if not inputs.conditions[0].is_cpu:
        return f"the Rust backend needs CPU tensors, found {inputs.device}"
    return None


def draw(inputs: DrawInputs, *, is_single: bool) -> tuple[torch.Tensor, ...]:
    """What `SampleOutput` holds; streams of different dtypes are read as float32.

    Args:
        inputs: tensors on the CPU.
        is_single: whether tokens and log-probabilities are [B], for one draw a row, instead of [B, D].
    """
    draw_rows, num_threads = _draw_rows(), torch.get_num_threads()
    found = None if _has_negated(inputs) else draw_rows(inputs, num_threads, is_single)
    if found is None:
        found = draw_rows(_readable(inputs), num_threads, is_single)
    if found is None:
        raise ValueError(
            "logits cannot be read: they must be torch.Tensors with numbers of their own"
        )
    return tuple(map(torch.from_numpy, found))


@functools.cache
def _draw_rows() -> Callable[..., tuple[np.ndarray, ...] | None]:
    """The core's function; a machine without the native extension can run the other backends."""
    from mmfast._mmfast import draw_rows

    return draw_rows


def _has_negated(inputs: DrawInputs) -> bool:
    """Whether a stream is like `z.conj().imag`, whose memory has the other sign, unknown to DLPack."""
    base = inputs.unconditional
    return any(stream.is_neg() for stream in inputs.conditions) or (
        base is not None and base.is_neg()
    )


def _readable(inputs: DrawInputs) -> DrawInputs:
    """The same with plain streams of one dtype, the ids of each row side by side."""
    base = inputs.unconditional
    streams = inputs.conditions if base is None else (*inputs.conditions, base)
    dtype = inputs.conditions[0].dtype
    if any(stream.dtype != dtype for stream in streams):
        dtype = torch.float32
    # what `detach` gives of a parameter is a plain tensor
    streams = tuple(
        # a copy in any case: memory that torch was given, by `frombuffer` say, need not be aligned
        stream.detach().resolve_neg().to(dtype).clone(memory_format=torch.contiguous_format)
        for stream in streams
    )
    return inputs._replace(
        conditions=streams[: len(inputs.conditions)],
        unconditional=None if base is None else streams[-1],
    )
