"""Compiles every variant of the decoding kernels for each architecture and prints what it needs as JSON.

A script, since a process that runs kernels in Triton's interpreter cannot compile any.
"""

import json

import triton
from cubin import resources
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmfast.kernels import decode_attention

FLOATS = ("top_ptr", "total_ptr", "output_ptr", "mask_ptr")


def signature(names: list[str], dtype: str, constants: dict[str, int]) -> dict[str, str]:
    """Types of a kernel's arguments, in their order."""

    def type_of(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in FLOATS:
            return "*fp32"
        if name.endswith("_ptr"):
            return f"*{dtype}"
        return "fp32" if name == "scaling" else "i32"

    return {name: type_of(name) for name in names}


def main() -> None:
    results = []
    for variant in decode_attention.AOT_SIGNATURES:
        width = variant["WIDTH"]
        known = {
            "GROUPS": variant["GROUPS"],
            "WIDTH": width,
            "PADDED_WIDTH": triton.next_power_of_2(width),
            "BLOCK": decode_attention.BLOCK,
        }
        for kernel, warps in (
            (decode_attention._attend_to_block_kernel, decode_attention.num_warps(width)),
            (decode_attention._add_blocks_kernel, 1),
        ):
            constants = {name: known[name] for name in kernel.arg_names if name in known}
            for capability in (80, 90, 100):
                compiled = triton.compile(
                    ASTSource(
                        kernel,
                        signature(kernel.arg_names, variant["dtype"], constants),
                        constexprs=constants,
                    ),
                    target=GPUTarget("cuda", capability, 32),
                    options={"num_warps": warps},
                )
                results.append(
                    {
                        "name": f"{kernel.fn.__name__} {variant['name']}",
                        "capability": capability,
                        "shared_bytes": compiled.metadata.shared,
                        **resources(compiled.asm["cubin"]),
                    }
                )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
