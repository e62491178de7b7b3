"""The known answers of `docs/sampling_vectors.json`, from every backend that runs here."""

import json
import math
import struct
from pathlib import Path

import pytest
import torch

from mmfast.sampling import SamplingParams, sample_prepared

FILE = Path(__file__).parents[2] / "docs" / "sampling_vectors.json"
CASES = json.loads(FILE.read_text())["cases"]


def logits(bits: list[str]) -> torch.Tensor:
    values = [struct.unpack(">f", bytes.fromhex(word))[0] for word in bits]
    return torch.tensor([values], dtype=torch.float32)


@pytest.mark.parametrize("backend", ["torch", "rust"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_known_answer_is_given(case, backend):
    first, *others = map(logits, case["conditions"])
    drawn = sample_prepared(
        first,
        logits(case["unconditional"]) if case["unconditional"] else None,
        params=SamplingParams.prepare(1, **case["parameters"]),
        seeds=torch.tensor([case["seed"]]),
        steps=torch.tensor([case["step"]]),
        streams=others,
        allowed=tuple(case["allowed"]) if case["allowed"] else None,
        backend=backend,
    )
    assert drawn.tokens.item() == case["token"]
    assert drawn.num_kept.item() == case["num_kept"]
    assert drawn.status.item() == case["status"]
    logprob = -math.inf
    if not case["status"] & 4:
        logprob = torch.tensor(case["log2_probability"] * math.log(2) / 2**26).float().item()
    assert drawn.logprobs.item() == logprob


def test_the_answers_cover_every_status_and_both_orders():
    assert {bit for case in CASES for bit in (1, 2, 4) if case["status"] & bit} == {1, 2, 4}
    assert any(case["parameters"].get("order") == "vllm" for case in CASES)
