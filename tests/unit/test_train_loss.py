"""The weighted loss against torch's own cross entropy, in one chunk and in many."""

import pytest
import torch
import torch.nn.functional as F

from mmfast.train import loss as loss_module
from mmfast.train.loss import weighted_nll

N, D, V = 13, 8, 11


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, V, (N,), generator=generator)
    weights = torch.rand(N, generator=generator)
    labels[[2, 12]], weights[[2, 12]] = -100, 0.0
    return hidden, head, labels, weights


def reference(hidden, head, labels, weights):
    logits = (hidden @ head.T).float()
    nll = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    return (nll * weights).sum(), nll


@pytest.mark.parametrize("rows_at_once", [1, 5, N, 100])
def test_value_and_gradients_are_those_of_cross_entropy(monkeypatch, rows_at_once):
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", rows_at_once * V)
    hidden, head, labels, weights = inputs()
    expected, expected_nll = reference(hidden, head, labels, weights)
    expected_grads = torch.autograd.grad(expected / 3.0, (hidden, head))
    total, nll = weighted_nll(hidden, head, labels, weights)
    grads = torch.autograd.grad(total / 3.0, (hidden, head))
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(nll, expected_nll)
    torch.testing.assert_close(grads, expected_grads)


def test_half_precision_keeps_its_types_and_sums_in_fp32():
    hidden, head, labels, weights = inputs(torch.bfloat16)
    expected, _ = reference(hidden, head, labels, weights)
    total, nll = weighted_nll(hidden, head, labels, weights)
    grads = torch.autograd.grad(total, (hidden, head))
    assert (total.dtype, nll.dtype) == (torch.float32, torch.float32)
    assert {grad.dtype for grad in grads} == {torch.bfloat16}
    torch.testing.assert_close(total, expected)


def test_no_gradient_is_made_when_none_is_wanted():
    hidden, head, labels, weights = inputs()
    with torch.no_grad():
        total, _ = weighted_nll(hidden, head, labels, weights)
    assert not total.requires_grad
    torch.testing.assert_close(total, reference(hidden, head, labels, weights)[0].detach())


def test_rows_without_weight_never_matter():
    hidden, head, labels, weights = inputs()
    with torch.no_grad():
        before, _ = weighted_nll(hidden, head, labels, weights)
        hidden[2] = 1e4
        after, _ = weighted_nll(hidden, head, labels, weights)
    assert torch.equal(before, after)
