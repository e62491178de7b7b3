"""Runs `sample_range` in Triton's interpreter on random configurations, against the torch reference.

A script, since the interpreter must be chosen before Triton is imported. Prints JSON: how many
configurations and rows ran, and each configuration whose results differ.
"""

import json
import math
import sys

import numpy as np
import torch

from mmfast.sampling import SampleOutput, sample

FIELDS = ("tokens", "num_kept", "logprobs", "status")


def pick(rng: np.random.Generator, values: list[float], rows: int) -> torch.Tensor:
    return torch.from_numpy(rng.choice(np.array(values, dtype=np.float64), size=rows))


def logits_of(rng: np.random.Generator, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    spread = rng.choice([0.0, 0.5, 3.0, 30.0])
    values = torch.from_numpy(rng.standard_normal((rows, width)) * spread).to(torch.float32)
    kind = rng.integers(6)
    if kind == 0:
        values = values.round()  # many ties
    elif kind == 1:
        values[rng.random((rows, width)) < 0.2] = -math.inf
        values[rng.random((rows, width)) < 0.05] = math.nan
    elif kind == 2:
        values[0, rng.integers(width)] = math.inf
        values[-1] = -math.inf
    elif kind == 3:
        values = values * 1e-38  # subnormals
    return values.to(dtype)


def run(index: int) -> tuple[int, dict[str, object] | None]:
    rng = np.random.default_rng(index)
    rows, width = int(rng.integers(1, 4)), int(rng.choice([1, 2, 31, 33, 64, 200, 700]))
    dtype = [torch.float32, torch.float16, torch.bfloat16][rng.integers(3)]
    is_guided, has_mask = bool(rng.random() < 0.7), bool(rng.random() < 0.3)
    logits = logits_of(rng, rows, width + 3, dtype)
    uncond = logits_of(rng, rows, width + 3, dtype) if is_guided else None
    arguments = {
        "guidance_scale": pick(rng, [0, 1, -1, 1.5, 3, 100], rows) if is_guided else 1.0,
        "temperature": pick(rng, [0, 1e-30, 0.1, 1, 1, 2, 1e4, math.inf], rows),
        "top_k": pick(rng, [0, 1, 2, 5, 50, width, width + 9], rows),
        "top_p": pick(rng, [0, 1e-7, 0.1, 0.5, 0.9, 0.999, 1, 2], rows),
        "min_p": pick(rng, [0, 0, 0.01, 0.3, 1], rows),
        "seeds": torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, rows)),
        "steps": torch.from_numpy(rng.integers(0, 2**40, rows)),
        "order": str(rng.choice(["hf", "vllm"])),
        "ties": str(rng.choice(["index", "keep"])),
        "allowed": torch.from_numpy(rng.random((rows, width + 3)) < 0.6)
        if has_mask
        else (1, width + 1),
    }
    expected = sample(logits, uncond, backend="torch", **arguments)
    found = sample(logits, uncond, backend="triton", **arguments)
    if differ := [f for f in FIELDS if not same(expected, found, f)]:
        return rows, {"index": index, "fields": differ, "arguments": str(arguments)}
    return rows, None


def same(expected: SampleOutput, found: SampleOutput, field: str) -> bool:
    return torch.equal(getattr(expected, field), getattr(found, field))


def main() -> None:
    num_configurations = int(sys.argv[1])
    np.seterr(all="ignore")
    outcomes = [run(index) for index in range(num_configurations)]
    json.dump(
        {
            "num_configurations": num_configurations,
            "num_rows": sum(rows for rows, _ in outcomes),
            "different": [difference for _, difference in outcomes if difference],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
