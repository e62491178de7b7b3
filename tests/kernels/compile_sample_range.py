"""Compiles every variant of `sample_range` for each architecture and prints what it needs as JSON.

A script, since a process that runs kernels in Triton's interpreter cannot compile any.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmfast.kernels import sample_range

POINTERS = {
    "tokens_ptr": "*i64",
    "num_kept_ptr": "*i64",
    "log2_probabilities_ptr": "*i64",
    "status_ptr": "*u8",
    "support_ptr": "*u8",
    "guidance_ptr": "*fp32",
    "bits_per_logit_ptr": "*fp32",
    "greedy_ptr": "*u8",
    "top_k_ptr": "*i64",
    "top_p_ptr": "*i64",
    "min_p_ptr": "*i64",
    "seeds_ptr": "*i64",
    "steps_ptr": "*i64",
}
SCALARS = {
    "logits_stride": "i64",
    "base_stride": "i64",
    "support_stride": "i64",
    "num_ids": "i32",
}


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, stack bytes and spill-capable local bytes, as `cuobjdump` reads them."""
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


def main() -> None:
    results = []
    for variant in sample_range.AOT_SIGNATURES:
        constants = {k: v for k, v in variant.items() if k.isupper()}
        data = {"logits_ptr": f"*{variant['dtype']}", "base_ptr": f"*{variant['dtype']}"}
        signature = {**POINTERS, **data, **SCALARS, **dict.fromkeys(constants, "constexpr")}
        kernel = sample_range._sample_range_kernel
        ordered = {name: signature[name] for name in kernel.arg_names}
        for capability in (80, 90, 100):
            compiled = triton.compile(
                ASTSource(kernel, ordered, constexprs=constants),
                target=GPUTarget("cuda", capability, 32),
                options={
                    "num_warps": sample_range.num_warps(variant["BLOCK"]),
                    "enable_fp_fusion": False,
                },
            )
            results.append(
                {
                    "name": variant["name"],
                    "capability": capability,
                    "shared_bytes": compiled.metadata.shared,
                    "num_fma_ptx": len(re.findall(r"\bfma\.", compiled.asm["ptx"])),
                    "num_ftz_ptx": compiled.asm["ptx"].count(".ftz"),
                    **resources(compiled.asm["cubin"]),
                }
            )
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
