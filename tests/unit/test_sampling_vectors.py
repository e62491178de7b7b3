"""The known answers of `docs/sampling_vectors.json`, from every backend that runs here."""

import inspect
import json
import math
import struct
from pathlib import Path

import pytest
import torch

from mmfast.sampling import SamplingParams, sample_prepared
from mmfast.sampling.orders import RULES

FILE = Path(__file__).parents[2] / "docs" / "sampling_vectors.json"
CASES = json.loads(FILE.read_text())["cases"]


def logits(bits: list[str]) -> torch.Tensor:
    values = [struct.unpack(">f", bytes.fromhex(word))[0] for word in bits]
    return torch.tensor([values], dtype=torch.float32)


@pytest.mark.parametrize("backend", ["torch", "rust"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_known_answer_is_given(case, backend):
    first, *others = map(logits, case["conditions"])
    allowed = tuple(case["allowed"]) if case["allowed"] else None
    if case["allowed_bits"]:
        allowed = torch.tensor(case["allowed_bits"], dtype=torch.int32)
    drawn = sample_prepared(
        first,
        logits(case["unconditional"]) if case["unconditional"] else None,
        params=SamplingParams.prepare(1, **case["parameters"]),
        seeds=torch.tensor([case["seed"]]),
        steps=torch.tensor([case["step"]]),
        positions=torch.tensor([case["position"]]),
        num_draws=len(case["tokens"]),
        streams=others,
        allowed=allowed,
        history=None if case["history"] is None else torch.tensor([case["history"]]),
        exempt=[tuple(ids) for ids in case["exempt"] or ()],
        backend=backend,
    )
    assert drawn.tokens[0].tolist() == case["tokens"]
    assert drawn.num_kept.item() == case["num_kept"]
    assert drawn.status.item() == case["status"]
    logprobs = torch.tensor(case["log2_probabilities"], dtype=torch.float64) * math.log(2) / 2**26
    if case["status"] & 4:
        logprobs = torch.full_like(logprobs, -math.inf)
    assert torch.equal(drawn.logprobs[0], logprobs.float())


def test_the_answers_cover_every_status_order_and_parameter():
    assert {bit for case in CASES for bit in (1, 2, 4) if case["status"] & bit} == {1, 2, 4}
    given = {name for case in CASES for name in case["parameters"]}
    known = set(inspect.signature(SamplingParams.prepare).parameters)
    # in log-probability space answers may differ between devices
    assert known - given == {"num_rows", "device", "penalty_space"}
    assert {case["parameters"].get("order") for case in CASES} == {None, *RULES}
    assert all(any(case[key] for case in CASES) for key in ("allowed_bits", "history", "exempt"))
