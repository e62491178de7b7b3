"""The sampler on the CPU: the native core draws what `reference.draw` defines, bit for bit.

Logits are seen where they lie, with any distance between rows. Rows, and the ids of a row where there are few
rows, are shared out over as many threads as torch uses (`torch.set_num_threads`); their number changes no
result.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch

from mmfast.sampling.inputs import DrawInputs
from mmfast.sampling.reference import Draw


def why_not(inputs: DrawInputs) -> str | None:
    """What keeps the native core from drawing from these inputs, None if nothing does."""
    if inputs.device.type != "cpu":
        return f"the Rust backend needs CPU tensors, found {inputs.device}"
    return None


def draw(inputs: DrawInputs) -> Draw:
    """As `reference.draw`, for CPU tensors; streams of different dtypes are read as float32."""
    found = _draw_rows()(_readable(inputs), torch.get_num_threads())
    return Draw(*map(torch.from_numpy, found))


@functools.cache
def _draw_rows() -> Callable[..., tuple[np.ndarray, ...]]:
    """The core's function: a machine without the native extension can run the other backends."""
    from mmfast._mmfast import draw_rows

    return draw_rows


def _readable(inputs: DrawInputs) -> DrawInputs:
    """The same with plain streams of one dtype, the ids of each row side by side."""
    base = inputs.unconditional
    streams = inputs.conditions if base is None else (*inputs.conditions, base)
    dtype = inputs.conditions[0].dtype
    if all(
        stream.dtype == dtype
        and stream.stride(1) == 1
        and type(stream) is torch.Tensor
        and not stream.is_neg()  # as `z.conj().imag` is, whose memory has the other sign
        for stream in streams
    ):
        return inputs
    if any(stream.dtype != dtype for stream in streams):
        dtype = torch.float32
    # what `detach` gives of a parameter is a plain tensor
    streams = tuple(stream.detach().resolve_neg().to(dtype).contiguous() for stream in streams)
    return dataclasses.replace(
        inputs,
        conditions=streams[: len(inputs.conditions)],
        unconditional=None if base is None else streams[-1],
    )
