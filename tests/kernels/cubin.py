"""What a compiled kernel needs, read with the `cuobjdump` that comes with Triton."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, stack bytes, spill-capable local bytes, and fused and flushing instructions."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run(
            [str(tool), "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return {
        "registers": int(found["REG"]),
        "stack_bytes": int(found["STACK"]),
        "local_bytes": int(found["LOCAL"]),
        "num_fused": len(re.findall(r"\bFFMA\b", sass)),
        "num_flushing": len(re.findall(r"\bF\w+\.FTZ\b", sass)),
    }
