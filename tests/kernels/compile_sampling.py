"""Compiles every sampling kernel for each architecture and prints what it needs as JSON.

What is compiled is what `draw_rows` would launch, with its specialisations. A script, since a process that runs
kernels in Triton's interpreter cannot compile any. Kernels of divisions alone come first: what those are made of is
all that a repetition penalty may add.

    compile_sampling.py [--every-variant] CAPABILITY...
"""

import argparse
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from cubin import resources
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver

from mmfast.kernels.draw_rows import Launch, LaunchShape, plan
from mmfast.sampling.inputs import DrawInputs, resolve
from mmfast.sampling.params import SamplingParams

NUM_PROCESSORS = 132
VOCABULARY = 184_622
NUM_DIVISIONS = (1, 2, 7)


class AbsentDevice:
    """As much of a CUDA driver as the compiler asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class Variant(NamedTuple):
    """A batch whose launches are compiled."""

    name: str
    inputs: DrawInputs
    shape: LaunchShape


def inputs_of(
    num_rows: int,
    num_ids: int,
    dtype: torch.dtype,
    *,
    num_streams: int = 1,
    everything: bool = False,
    **parameters,
) -> DrawInputs:
    """Inputs of that shape; `everything` has each thing that a kernel can look at."""
    streams = [torch.empty(num_rows, num_ids, dtype=dtype) for _ in range(num_streams)]
    is_guided = "guidance_scale" in parameters
    zeros = torch.zeros(num_rows, dtype=torch.int64)
    words = torch.zeros(num_rows, -(-num_ids // 32), dtype=torch.int32)
    if everything:
        parameters |= {
            "contrastive_alpha": 0.1,
            "repetition_penalty": 1.2,
            "filter_temperature": 1.0,
        }
    params = SamplingParams.prepare(num_rows, temperature=0.7, **parameters)
    return resolve(
        streams[0],
        torch.empty_like(streams[0]) if is_guided else None,
        streams=streams[1:],
        params=params,
        seeds=zeros,
        steps=zeros,
        positions=zeros,
        num_draws=3 if everything else 1,
        allowed=words if everything else None,
        history=words if everything else None,
        exempt=(),
    )


def variants(*, is_full: bool) -> list[Variant]:
    """Batches as they are common, and all kernels with everything to look at if `is_full`."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    guided = {"guidance_scale": 3.0, "top_k": 2048, "top_p": 0.9}
    three = {"num_streams": 3, "guidance_scale": (1.0, 2.0, -1.0), "everything": True}
    batches = {
        "whole, bf16, guided, k 2048": inputs_of(64, VOCABULARY, bf16, **guided),
        "whole, fp16, k 4096": inputs_of(1, VOCABULARY, fp16, top_k=4096),
        "whole, bf16, everything": inputs_of(8, VOCABULARY, bf16, top_k=2048, **three),
        "whole, bf16, guided, p alone": inputs_of(
            8, VOCABULARY, bf16, guidance_scale=3.0, top_p=0.9
        ),
        "whole, bf16, guided, no filter": inputs_of(8, VOCABULARY, bf16, guidance_scale=3.0),
        "range 8192, bf16, guided": inputs_of(64, 8192, bf16, **guided),
        "range 200, fp32, plain": inputs_of(8, 200, fp32),
        "range 2000, fp16, everything": inputs_of(8, 2000, fp16, **three),
    }
    return [
        Variant(
            name,
            inputs,
            LaunchShape.of(
                inputs.num_rows, inputs.num_ids, inputs.params.top_k_bound, NUM_PROCESSORS
            ),
        )
        for name, inputs in batches.items()
        if is_full or "guided" in name
    ]


def launches(*, is_full: bool) -> Iterator[tuple[str, Launch]]:
    """Names of the variants and what each launches."""
    for variant in variants(is_full=is_full):
        for launch in plan(variant.inputs, shape=variant.shape)[1]:
            yield variant.name, launch


@triton.jit
def divisions_kernel(x_ptr, y_ptr, COUNT: tl.constexpr):
    """Divides COUNT times and does nothing else."""
    for i in tl.static_range(COUNT):
        at = i * 32 + tl.arange(0, 32)
        tl.store(x_ptr + at, tl.div_rn(tl.load(x_ptr + at), tl.load(y_ptr + at)))


def compile_divisions(count: int, capability: int) -> Any:
    """The kernel of that many divisions."""
    source = ASTSource(
        divisions_kernel,
        {"x_ptr": "*fp32", "y_ptr": "*fp32", "COUNT": "constexpr"},
        constexprs={"COUNT": count},
    )
    options = {"num_warps": 1, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def row(kernel: str, variant: str, capability: int, compiled: Any) -> dict[str, Any]:
    """What is recorded of a compiled kernel."""
    ptx = compiled.asm["ptx"]
    return {
        "kernel": kernel,
        "variant": variant,
        "capability": capability,
        "num_warps": compiled.metadata.num_warps,
        "shared_bytes": compiled.metadata.shared,
        "num_fused_ptx": len(re.findall(r"\bfma\.", ptx)),
        "num_divisions_ptx": ptx.count("div.rn.f32"),
        "num_flushing_ptx": ptx.count(".ftz"),
        **resources(compiled.asm["cubin"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every-variant", action="store_true", help="on all, not on 90 alone")
    parser.add_argument("capabilities", type=int, nargs="+")
    arguments = parser.parse_args()
    rows = []
    for capability in arguments.capabilities:
        driver.set_active(AbsentDevice(capability))
        for count in NUM_DIVISIONS:
            compiled = compile_divisions(count, capability)
            rows.append(row("divisions_kernel", f"divisions: {count}", capability, compiled))
        is_full = arguments.every_variant or capability == 90
        for variant, launch in launches(is_full=is_full):
            name = launch.kernel.fn.__name__
            rows.append(row(name, variant, capability, launch.compile()))
    text = ",\n".join(map(json.dumps, rows))
    print(f'{{"triton": "{triton.__version__}", "kernels": [\n{text}\n]}}')


if __name__ == "__main__":
    main()
