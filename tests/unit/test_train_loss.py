"""The weighted loss against torch's own cross entropy, in one chunk and in many."""

import pytest
import torch
import torch.nn.functional as F

from mmfast.errors import ConfigError
from mmfast.train import loss as loss_module
from mmfast.train.config import LossConfig, load_train_config
from mmfast.train.labels import LabelRules
from mmfast.train.loss import LabelGroup, weighted_nll
from mmfast.vocab import Vocabulary

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


def gradients(total, *tensors):
    return torch.autograd.grad(total, tensors)


@pytest.mark.parametrize("rows_at_once", [3, 100])
def test_z_loss_adds_the_squared_logsumexp(monkeypatch, rows_at_once):
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", rows_at_once * V)
    hidden, head, labels, weights = inputs()
    expected, _ = reference(hidden, head, labels, weights)
    expected = expected + 0.3 * (weights * torch.logsumexp(hidden @ head.T, -1).square()).sum()
    total, nll = weighted_nll(hidden, head, labels, weights, z_loss=0.3)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(nll, reference(hidden, head, labels, weights)[1])
    torch.testing.assert_close(
        gradients(total, hidden, head), gradients(expected, hidden, head), rtol=1e-4, atol=1e-5
    )


def test_a_closed_range_is_scored_among_its_own_ids():
    hidden, head, labels, weights = inputs()
    inside = (labels >= 4) & (labels < 8) & (weights > 0)
    outside = ~inside & (weights > 0)
    logits = hidden @ head.T
    nll = torch.zeros(N)
    nll[inside] = F.cross_entropy(logits[inside, 4:8], labels[inside] - 4, reduction="none")
    nll[outside] = F.cross_entropy(logits[outside], labels[outside], reduction="none")
    expected = (nll * weights).sum()
    groups = [
        LabelGroup(inside.nonzero().flatten(), 4, 8),
        LabelGroup(outside.nonzero().flatten(), 0, V),
    ]
    total, found = weighted_nll(hidden, head, labels, weights, groups=groups)
    torch.testing.assert_close(found, nll.detach())
    torch.testing.assert_close(gradients(total, hidden, head), gradients(expected, hidden, head))


def test_soft_targets_follow_a_gaussian_over_the_ordered_ids():
    hidden, head, labels, weights = inputs()
    labels = labels.clamp(3, 9)
    ids = torch.arange(3, 10)
    target = torch.exp(-(ids - labels[:, None]).square() / (2 * 1.5**2))
    target = target / target.sum(-1, keepdim=True)
    logp = torch.log_softmax(hidden @ head.T, -1)
    expected = (-(target * logp[:, 3:10]).sum(-1) * weights).sum()
    group = LabelGroup(torch.arange(N), 0, V, soft_first=3, soft_end=10, soft_std=1.5)
    total, _ = weighted_nll(hidden, head, labels, weights, groups=[group])
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradients(total, hidden, head), gradients(expected, hidden, head))
    sharp, _ = weighted_nll(hidden, head, labels, weights, groups=[group._replace(soft_std=1e-3)])
    plain, _ = weighted_nll(hidden, head, labels, weights)
    torch.testing.assert_close(sharp, plain)


def test_a_second_backward_is_refused():
    hidden, head, labels, weights = inputs()
    total, _ = weighted_nll(hidden, head, labels, weights)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="runs once"):
        total.backward()


VOCABULARY = Vocabulary.build(
    20, roles=["eos", "time_0", "time_1", "time_2"], codes=[("image", 16)], multiple_of=1
)


def test_rules_name_every_row_with_weight_once():
    rules = LabelRules(
        LossConfig(closed_ranges=["image"], soft_std={"time": 1.0, "image": 2.0}), VOCABULARY
    )
    labels = torch.tensor([[3, 21, 24, 30, -100, 39, 20, 5]])
    weights = torch.tensor([[1.0, 0.5, 1, 1, 0, 1, 1, 0]])
    groups = rules.groups(labels, weights)
    assert [(g.rows.tolist(), *g[1:]) for g in groups] == [
        ([2, 3, 5], 24, 40, 24, 40, 2.0),
        ([1], 0, 40, 21, 24, 1.0),
        ([0, 6], 0, 40, 0, 0, 0.0),
    ]
    assert LabelRules(LossConfig(), VOCABULARY).groups(labels, torch.ones(1, 8)) == [
        LabelGroup(None, 0, 40)
    ]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            LossConfig(closed_ranges=["picture"]),
            "names ids 'picture', but the vocabulary has image",
        ),
        (LossConfig(modality_weights={"picture": 0.5}), "names modality 'picture'; there are text"),
    ],
)
def test_a_name_that_means_nothing_is_a_config_error(config, text):
    with pytest.raises(ConfigError, match=text):
        LabelRules(config, VOCABULARY)


def test_the_section_reads_from_arguments():
    config = load_train_config(
        "tiny",
        ["loss.modality_weights.image=0.5", "loss.closed_ranges=[image]", "loss.z_loss=1e-5"],
    )
    assert config.loss == LossConfig(
        modality_weights={"image": 0.5}, closed_ranges=["image"], z_loss=1e-5
    )
    with pytest.raises(ConfigError, match="z_loss"):
        load_train_config("tiny", ["loss.z_loss=-1"])
