"""What a compiled kernel needs and is made of, read with the `cuobjdump` that comes with Triton.

A correctly rounded division, `div.rn.f32`, becomes a check of its operands, FCHK, and fused multiply-adds. Operands
that fail the check go to a routine of the CUDA toolkit, which ptxas puts behind the kernel under a name of its own.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import triton

# HFMA2 of zeros puts a constant into a register
_FUSED = re.compile(r"U?[FD]FMA|HFMA2\S* (?!R\d+, -RZ, RZ,)")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S.*?);", re.MULTILINE)
_ROUTINE = re.compile(
    r"^ *0x\w+ +(0x\w+) +(0x\w+) .*\$__cuda_sm\w+_div_rn_noftz_f32_slowpath$", re.M
)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes that they may spill to, and instructions that do not round each operation.

    Fused and flushing instructions are those of the kernel itself, FCHK among them as `num_divisions`; the fused ones
    of the toolkit's division are `num_fused_in_routine`.
    """
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", "-elf", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    routines = [(int(at, 16), int(size, 16)) for at, size in _ROUTINE.findall(text)]
    own, routine = [], []
    for address, instruction in _INSTRUCTION.findall(text):
        is_own = not any(0 <= int(address, 16) - at < size for at, size in routines)
        (own if is_own else routine).append(instruction)
    return {
        "registers": int(found["REG"]),
        "stack_bytes": int(found["STACK"]),
        "local_bytes": int(found["LOCAL"]),
        "num_divisions": sum(text.startswith("FCHK") for text in own),
        "num_fused": _num_fused(own),
        "num_fused_in_routine": _num_fused(routine),
        "num_flushing": sum(".FTZ" in text for text in own),
    }


def _num_fused(instructions: list[str]) -> int:
    return sum(_FUSED.match(text) is not None for text in instructions)
