"""Loop bounds in the interpreter of Triton 3.6, which numpy 2.4 no longer lets it read; later versions do without."""

from typing import Any

import triton
from triton.runtime import interpreter


def repair_loop_bounds() -> None:
    """Makes `range` over a run-time value work in Triton 3.6's interpreter; nothing for other versions."""
    if not triton.__version__.startswith("3.6."):
        return
    patch = interpreter._patch_lang_tensor

    def patch_and_repair(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_repair
