"""Schedule, gradient norm, clipping, and steps that must be skipped."""

import itertools
import math

import pytest
import torch
from torch import nn

from mmfast.train.config import OptimizerConfig, ScheduleConfig
from mmfast.train.optimizer import build_optimizer, clipped_step, gradient_norm, learning_rate


def rates(num_steps=100, **settings):
    config = ScheduleConfig(**settings)
    return [
        learning_rate(step, num_steps=num_steps, config=config, peak=2.0)
        for step in range(num_steps)
    ]


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_the_rate_rises_linearly_to_the_peak(kind):
    found = rates(kind=kind, warmup_steps=10)
    assert found[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert max(found) == pytest.approx(2.0)


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_the_last_step_has_the_final_ratio(kind):
    found = rates(kind=kind, warmup_steps=10, final_ratio=0.1)
    assert found[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(found[10:]))


def test_wsd_stays_at_the_peak_until_its_decay():
    found = rates(kind="wsd", warmup_steps=10, decay_fraction=0.3)
    assert set(found[10:70]) == {2.0}
    assert found[75] < 2.0


def test_cosine_is_half_way_down_in_the_middle():
    found = rates(num_steps=101, kind="cosine", warmup_steps=0, final_ratio=0.0)
    assert found[50] == pytest.approx(1.0)


def parameters_with_gradients(*gradients):
    model = nn.ParameterList([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))])
    for parameter, value in zip(model, gradients, strict=True):
        parameter.grad = torch.full_like(parameter, value)
    return model


def test_decay_applies_to_matrices_only():
    optimizer = build_optimizer(parameters_with_gradients(0, 0), OptimizerConfig(weight_decay=0.3))
    decays = {group["params"][0].ndim: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {2: 0.3, 1: 0.0}


def test_patterns_spare_parameters_their_decay():
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("positions", "table")})
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.3, undecayed=["positions.*"]))
    decay_of = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found = {name: decay_of[id(parameter)] for name, parameter in model.named_parameters()}
    assert found == {"positions.weight": 0.0, "table.weight": 0.3}


def test_clipping_equals_torch_on_scaled_gradients():
    ours, theirs = parameters_with_gradients(3.0, -4.0), parameters_with_gradients(3.0, -4.0)
    config = OptimizerConfig(learning_rate=0.1, eps=0.5)  # a large eps makes the scale visible
    optimizer, reference = build_optimizer(ours, config), build_optimizer(theirs, config)
    norm = gradient_norm(list(ours))
    assert norm.item() == pytest.approx(math.sqrt(4 * 9 + 2 * 16))
    assert clipped_step(optimizer, norm, max_norm=1.0).item() == 0
    nn.utils.clip_grad_norm_(theirs, 1.0)
    reference.step()
    torch.testing.assert_close(list(ours), list(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_with_bad_gradients_changes_nothing_and_is_counted(bad):
    model = parameters_with_gradients(1.0, 1.0)
    optimizer = build_optimizer(model, OptimizerConfig())
    clipped_step(optimizer, gradient_norm(list(model)), max_norm=1.0)
    before = [parameter.detach().clone() for parameter in model]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in model]
    model[0].grad[0, 0] = bad
    skipped = clipped_step(optimizer, gradient_norm(list(model)), max_norm=1.0)
    assert skipped.item() == 1
    assert all(torch.equal(a, b) for a, b in zip(before, model, strict=True))
    assert all(
        torch.equal(a, optimizer.state[p]["exp_avg"]) for a, p in zip(moments, model, strict=True)
    )
    assert [optimizer.state[p]["step"].item() for p in model] == [1, 1]
