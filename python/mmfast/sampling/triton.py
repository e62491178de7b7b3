"""The sampler on CUDA: fused kernels draw what `reference.draw` defines, bit for bit.

`why_not` says what the kernels cannot take; `draw` hands over what they can.
"""

import os

from mmfast.sampling.inputs import DrawInputs
from mmfast.sampling.reference import Draw


def why_not(inputs: DrawInputs) -> str | None:
    """What keeps the kernels from drawing from these inputs, None if nothing does."""
    if not (inputs.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
        return "the Triton kernels need CUDA tensors (or TRITON_INTERPRET=1)"
    return None


def draw(inputs: DrawInputs) -> Draw:
    """As `reference.draw`, for inputs that `why_not` has nothing against."""
    from mmfast.kernels.draw_rows import draw_rows

    drawn = draw_rows(inputs)
    return Draw(drawn.tokens, drawn.num_kept, drawn.log2_probabilities, drawn.status)
