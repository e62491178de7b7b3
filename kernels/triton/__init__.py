"""Triton kernels, each with its torch reference; importable as `mmfast.kernels`.

Nothing here needs the native extension `mmfast._mmfast`, so a machine without it can run them. The
kernels' own modules import Triton; this one does not, so it can say what is missing.
"""

from importlib.util import find_spec

MAX_RANGE = 8192
"""Widest range of ids that one program holds in registers."""


def triton_available() -> bool:
    """Whether Triton can be imported; it comes with CUDA builds of torch."""
    return find_spec("triton") is not None
