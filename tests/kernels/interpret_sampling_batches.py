"""Draws the same rows in other batches and with other launch shapes in Triton's interpreter, and compares.

No row may notice its neighbours, its place, or how the work is shared out: not even where a batch takes other
kernels because of them. A script, as `interpret_sampling.py` is one. Prints JSON: how many rows were drawn over
again, how many different tokens they are, and each batch and shape whose results differ.

    interpret_sampling_batches.py
"""

import json
import sys
from typing import NamedTuple

import numpy as np
import torch
from interpret_sampling import WORKSPACE, Choices, differing

from mmfast.kernels.draw_rows import LaunchShape, draw_rows
from mmfast.sampling import reference
from mmfast.sampling.inputs import DrawInputs, resolve
from mmfast.sampling.params import SamplingParams

NUM_ROWS = 4
NUM_IDS = 200

KINDS = ("top-k", "top-p", "neither")
BATCHES = {
    "permuted": [2, 0, 3, 1],
    "alone": [0],
    "twice": [1, 1],
}


class Rows(NamedTuple):
    """What rows are drawn from: B rows of V ids.

    Attributes:
        logits: [B, V].
        uncond: [B, V].
        history: [B, 9] ids.
        allowed: [B, V] bool.
        seeds: [B].
        steps: [B].
        positions: [B].
        parameters: of `SamplingParams.prepare`, B numbers or names each.
    """

    logits: torch.Tensor
    uncond: torch.Tensor
    history: torch.Tensor
    allowed: torch.Tensor
    seeds: torch.Tensor
    steps: torch.Tensor
    positions: torch.Tensor
    parameters: dict[str, list]

    def inputs(self, chosen: list[int]) -> DrawInputs:
        """A batch of these rows, whose parameters know of no others."""
        params = SamplingParams.prepare(
            len(chosen),
            **{name: row_values(values, chosen) for name, values in self.parameters.items()},
        )
        return resolve(
            self.logits[chosen],
            self.uncond[chosen],
            streams=[],
            params=params,
            seeds=self.seeds[chosen],
            steps=self.steps[chosen],
            positions=self.positions[chosen],
            num_draws=2,
            allowed=self.allowed[chosen],
            history=self.history[chosen],
            exempt=[(0, 40)],
        )


def row_values(values: list, chosen: list[int]) -> list[str] | torch.Tensor:
    """Those of the chosen rows, as `SamplingParams.prepare` takes them."""
    of_rows = [values[row] for row in chosen]
    return of_rows if isinstance(values[0], str) else torch.tensor(of_rows)


def rows_of(filters: str) -> Rows:
    """Rows that differ in everything; with `top-k`, `top-p` (some with a top-k as well) or `neither`."""
    choices = Choices(KINDS.index(filters))
    parameters: dict[str, list] = {
        "guidance_scale": [3.0, 1.0, -1.0, 1.5],
        "temperature": [2.0, 0.7, 1.0, 0.0],
        "min_p": [0.0, 0.001, 0.0, 0.01],
        "repetition_penalty": [1.3, 1.0, 0.5, 1.0],
        "order": ["hf", "vllm", "fourm", "chameleon"],
    }
    match filters:
        case "top-k":
            parameters |= {"top_k": [40, 5, 120, 9], "top_p": [0.9, 1.0, 0.99, 1.0]}
        case "top-p":
            parameters |= {"top_k": [0, 5, 0, 9], "top_p": [0.9, 1.0, 0.99, 1.0]}
            parameters["top_p_base"] = ["survivors", "full", "full", "survivors"]
        case "neither":
            parameters |= {"contrastive_alpha": [0.0, 0.0, 0.1, 0.0], "contrastive_k": [1, 1, 2, 1]}
    logits, uncond = (choices.logits(NUM_ROWS, NUM_IDS, torch.bfloat16) for _ in range(2))
    return Rows(
        logits,
        uncond,
        history=choices.integers(0, NUM_IDS, (NUM_ROWS, 9)),
        allowed=torch.from_numpy(choices.rng.random((NUM_ROWS, NUM_IDS)) < 0.8),
        seeds=choices.integers(-(2**63), 2**63 - 1, NUM_ROWS),
        steps=choices.integers(0, 2**40, NUM_ROWS),
        positions=choices.integers(0, 2**32, NUM_ROWS),
        parameters=parameters,
    )


def shapes() -> dict[str, LaunchShape]:
    """One for every path, and one for every number of splits."""
    whole = {"num_groups": 64, "max_range": 0}
    return {
        "one read": LaunchShape(num_splits=1),
        "1 split": LaunchShape(num_splits=1, tile=256, max_candidates=256, **whole),
        "2 splits": LaunchShape(num_splits=2, tile=128, max_candidates=256, **whole),
        "4 splits": LaunchShape(num_splits=4, tile=64, max_candidates=256, **whole),
        "streaming": LaunchShape(num_splits=1, tile=256, max_candidates=1, **whole),
    }


def main() -> None:
    np.seterr(all="ignore")
    num_rows, different, tokens = 0, [], set()
    for kind in KINDS:
        rows = rows_of(kind)
        expected = reference.draw(rows.inputs(list(range(NUM_ROWS))))
        tokens |= set(expected.tokens.flatten().tolist())
        for shape_name, shape in shapes().items():
            for batch_name, chosen in BATCHES.items():
                found = draw_rows(rows.inputs(chosen), shape=shape, workspace=WORKSPACE)
                num_rows += len(chosen)
                wanted = reference.Draw(*(values[chosen] for values in expected))
                if fields := differing(wanted, found):
                    different.append([kind, shape_name, batch_name, fields])
    json.dump({"num_rows": num_rows, "num_tokens": len(tokens), "different": different}, sys.stdout)


if __name__ == "__main__":
    main()
