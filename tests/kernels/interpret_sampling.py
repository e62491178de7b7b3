"""Runs the sampling kernels in Triton's interpreter on random configurations, against the torch reference.

A script, since the interpreter must be chosen before Triton is imported. Prints JSON: how many configurations and
rows ran, how many of the rows had more candidates than the buffer holds, and each configuration whose results differ.

    interpret_sampling.py range|bounded|masses|streaming FIRST END [LARGEST]
"""

import json
import math
import sys

import numpy as np
import torch

from mmfast.kernels.draw_rows import LaunchShape, Workspace, draw_rows
from mmfast.sampling import reference
from mmfast.sampling.inputs import DrawInputs, resolve
from mmfast.sampling.params import SamplingParams

WIDTHS = {
    "range": (1, 2, 31, 33, 64, 200, 700),
    "bounded": (33, 64, 200, 700),
    "masses": (33, 64, 200, 700),
    "streaming": (1, 2, 33, 64, 200),
}
WORKSPACE = Workspace()


class Choices:
    """Random choices of one configuration."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def one_of(self, *values):
        return values[self.rng.integers(len(values))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def per_row(self, num_rows: int, *values: float) -> torch.Tensor:
        return torch.from_numpy(self.rng.choice(np.array(values, dtype=np.float64), size=num_rows))

    def integers(self, low: int, end: int, shape) -> torch.Tensor:
        return torch.from_numpy(self.rng.integers(low, end, shape))

    def logits(self, num_rows: int, num_ids: int, dtype: torch.dtype) -> torch.Tensor:
        """[B, N], its rows further apart than they are long."""
        shape = (num_rows, num_ids + 3)
        values = torch.from_numpy(self.rng.standard_normal(shape)).to(torch.float32)
        values *= self.one_of(0.0, 0.5, 3.0, 3.0, 30.0)
        match self.one_of("smooth", "smooth", "tied", "holes", "infinite", "tiny", "sorted"):
            case "tied":
                values = values.round()
            case "holes":
                values[self.rng.random(shape) < 0.2] = -math.inf
                values[self.rng.random(shape) < 0.05] = math.nan
            case "infinite":
                values[0, self.rng.integers(num_ids)] = math.inf
                values[-1] = -math.inf
            case "tiny":
                values *= 1e-38
            case "sorted":
                values = values.sort(-1, descending=self.chance(0.5)).values
        return values.to(dtype)[:, :num_ids]

    def allowed(self, num_rows: int, num_ids: int):
        """Any of the forms that say which ids exist."""
        match self.one_of("all", "range", "ranges", "mask", "bits"):
            case "range":
                return (num_ids // 4, num_ids - num_ids // 5)
            case "ranges":
                low = self.integers(0, num_ids, num_rows)
                lengths = torch.from_numpy(self.rng.integers(1, num_ids - low.numpy() + 1))
                return torch.stack([low, low + lengths], dim=1)
            case "mask":
                return torch.from_numpy(self.rng.random((self.one_of(1, num_rows), num_ids)) < 0.6)
            case "bits":
                shape = (num_rows, -(-num_ids // 32))
                return self.integers(-(2**31), 2**31, shape).to(torch.int32)
        return None


def configuration(path: str, seed: int, largest: int) -> tuple[DrawInputs, LaunchShape]:
    """What to draw from, and how; splits, blocks and buffers small enough that all of them matter."""
    choices = Choices(seed)
    num_rows = choices.one_of(1, 1, 2)
    widths = [width for width in WIDTHS[path] if width <= largest]
    num_ids = (
        choices.one_of(*widths) if largest <= 2000 else choices.integers(1, largest, ()).item()
    )
    dtype = choices.one_of(torch.float32, torch.float16, torch.bfloat16)
    num_streams = choices.one_of(1, 1, 2, 3)
    is_guided = num_streams > 1 or choices.chance(0.7)
    streams = [choices.logits(num_rows, num_ids, dtype) for _ in range(num_streams)]
    uncond = choices.logits(num_rows, num_ids, choices.one_of(dtype, torch.float32))
    scales = [choices.per_row(num_rows, 0, 0, 1, 1, -1, 1.5, 3, 100) for _ in streams]
    is_contrastive = is_guided and choices.chance(0.3)
    is_penalised = choices.chance(0.3)
    ks = (1, 2, 5, 20) if path == "bounded" else (0, 0, 0, 1, 2, 5, 50, num_ids, num_ids + 9)
    has_rank = path != "masses" or choices.chance(0.5)
    params = SamplingParams.prepare(
        num_rows,
        guidance_scale=scales if is_guided else 1.0,
        temperature=choices.per_row(num_rows, 0, 1e-30, 0.1, 1, 1, 2, 1e4, math.inf),
        top_k=choices.per_row(num_rows, *ks) if has_rank and path != "masses" else 0,
        top_p=choices.per_row(num_rows, 0, 1e-7, 0.1, 0.5, 0.9, 0.999, 1, 2) if has_rank else 1.0,
        min_p=choices.per_row(num_rows, 0, 0, 0.01, 0.3, 1),
        contrastive_alpha=choices.per_row(num_rows, 0, 0.1, 0.5, 2) if is_contrastive else 0.0,
        contrastive_k=choices.per_row(num_rows, 1, 1, 2, 7),
        repetition_penalty=choices.per_row(num_rows, 1, 1.3, 0.5) if is_penalised else 1.0,
        order=[choices.one_of("hf", "emu3", "vllm", "fourm", "chameleon") for _ in range(num_rows)],
        ties=choices.one_of(None, "index", "keep"),
        top_p_rule=choices.one_of(None, "reach", "exclusive"),
        top_p_base=choices.one_of(None, None, "survivors", "full"),
        filter_temperature=choices.one_of(None, None, 0.5),
    )
    inputs = resolve(
        streams[0],
        uncond if is_guided else None,
        streams=streams[1:],
        params=params,
        seeds=choices.integers(-(2**63), 2**63 - 1, num_rows),
        steps=choices.integers(0, 2**40, num_rows),
        positions=choices.one_of(None, choices.integers(0, 2**32, num_rows)),
        num_draws=choices.one_of(1, 1, 3),
        allowed=choices.allowed(num_rows, num_ids),
        history=choices.integers(0, num_ids, (num_rows, 9)) if is_penalised else None,
        exempt=[(0, num_ids // 5)],
    )
    return inputs, launch_shape(path, choices, largest)


def launch_shape(path: str, choices: Choices, largest: int) -> LaunchShape:
    """A shape that forces the path."""
    if path == "range":
        return LaunchShape(num_splits=1)
    if path == "streaming":
        tile = choices.one_of(64, 256, 256) if largest <= 2000 else 4096
        return LaunchShape(num_splits=1, tile=tile, num_groups=32, max_candidates=1, max_range=0)
    if largest > 2000:
        return LaunchShape(num_splits=4, tile=1024, num_groups=512, max_candidates=512, max_range=0)
    return LaunchShape(
        num_splits=choices.one_of(1, 2, 4),
        tile=choices.one_of(64, 256, 256),
        num_groups=choices.one_of(32, 128),
        max_candidates=choices.one_of(16, 64, 256, 256),
        max_range=0,
    )


def differing(expected: reference.Draw, found: object) -> list[str]:
    """Names of the results that are not equal."""
    fields = reference.Draw._fields
    return [f for f in fields if not torch.equal(getattr(expected, f), getattr(found, f))]


def run(path: str, seed: int, largest: int) -> tuple[int, dict[str, object] | None]:
    inputs, shape = configuration(path, seed, largest)
    found = draw_rows(inputs, shape=shape, workspace=WORKSPACE)
    if fields := differing(reference.draw(inputs), found):
        return inputs.num_rows, {"seed": seed, "fields": fields, "shape": str(shape)}
    return inputs.num_rows, None


def main() -> None:
    path, first, end, *largest = sys.argv[1:]
    np.seterr(all="ignore")
    seeds = range(int(first), int(end))
    outcomes = [run(path, seed, int(largest[0]) if largest else 2000) for seed in seeds]
    json.dump(
        {
            "num_configurations": len(outcomes),
            "num_rows": sum(rows for rows, _ in outcomes),
            "different": [difference for _, difference in outcomes if difference],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
