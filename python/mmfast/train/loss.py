"""The training loss: Σ w·nll over the rows of a micro-batch, without ever holding all logits.

The sum is not divided here: the trainer knows Σ w of the whole global step before the first backward
and divides by it, so that a loss is the same however rows are spread over ranks and micro-batches.

Logits exist for a chunk of rows at a time. Their gradient is made in the forward, from the same logits,
and what is kept for the backward is the gradient of hidden states and of the output layer, the latter
summed in fp32 whatever the weights' type. Rows without weight cost nothing: `LabelGroup`s name the
others, and may limit them to a part of the vocabulary.

Legend: N tokens of a micro-batch, n of a group, D hidden width, V vocabulary, M modalities.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmfast.models.windows import sliding_window

# A modality is five bits; the first four have names, the others are a recipe's own.
NUM_MODALITIES = 32
# 64 MiB of fp32 logits at a time: large enough for full matrix speed, small beside the activations.
LOGITS_AT_ONCE = 1 << 24
# Rows of the output layer whose gradient is summed up at a time where that needs a copy.
HEAD_ROWS_AT_ONCE = 1 << 13


class LossSums(NamedTuple):
    """What a forward returns.

    Attributes:
        total: scalar Σ w·(nll + z_loss·logsumexp²), differentiable.
        by_modality: `[2, M]` fp64, detached: Σ w·nll, then Σ w, of each modality's target tokens.
    """

    total: Tensor
    by_modality: Tensor


class LabelGroup(NamedTuple):
    """Rows whose labels are scored among the same ids.

    Attributes:
        rows: int64 `[n]`, positions in the flattened micro-batch; None for all of them.
        first: first id that takes part in the softmax.
        end: id after the last; labels lie in `[first, end)`.
        soft_first: first id of an ordered range, of which all the labels are; meant for `soft_std > 0`.
        soft_end: id after its last.
        soft_std: 0 for ordinary labels. Else a label stands for a discretised Gaussian of this standard
            deviation, in ids, around it: being off by one is better than being off by ten (LITA's time
            tokens, Huang et al. 2024).
    """

    rows: Tensor | None
    first: int
    end: int
    soft_first: int = 0
    soft_end: int = 0
    soft_std: float = 0.0


class DecoderWithLoss(nn.Module):
    """A decoder and its loss as one module, so that the output layer is used inside its forward.

    FSDP gathers the root's parameters for the root's forward only; an output layer used outside it
    would be found sharded.
    """

    def __init__(self, decoder: Any, *, z_loss: float = 0.0) -> None:
        super().__init__()
        self.decoder = decoder
        self.z_loss = z_loss
        self.window = sliding_window(decoder.config)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        loss_weights: Tensor,
        label_modality: Tensor,
        groups: Sequence[LabelGroup],
        attention: dict[str, Any],
    ) -> LossSums:
        """Sums over a micro-batch.

        Args:
            input_ids: int64 `[B, L]`.
            position_ids: `[B, L]`, restarting in each document.
            labels: int64 `[B, L]`, the id that follows each input; any value where the weight is 0.
            loss_weights: fp32 `[B, L]`.
            label_modality: `[B, L]` integers in `[0, M)`, the modality of each label.
            groups: what `mmfast.train.labels.label_groups` returned for these rows.
            attention: what `mmfast.models.attention_inputs` returned.
        """
        hidden_bld = self.decoder.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **attention
        ).last_hidden_state
        head_vd = self.decoder.get_output_embeddings().weight
        weights = loss_weights.flatten()
        total, nll = weighted_nll(
            hidden_bld.flatten(0, 1),
            head_vd,
            labels.flatten(),
            weights,
            groups=groups,
            z_loss=self.z_loss,
        )
        with torch.no_grad():
            # fp64, so that a logged loss does not depend on how many rows were added up together.
            by_modality = torch.zeros(2, NUM_MODALITIES, device=nll.device, dtype=torch.float64)
            index = label_modality.flatten().long()
            by_modality[0].index_add_(0, index, (nll * weights).double())
            by_modality[1].index_add_(0, index, weights.double())
        return LossSums(total, by_modality)


def weighted_nll(
    hidden_nd: Tensor,
    head_vd: Tensor,
    labels_n: Tensor,
    weights_n: Tensor,
    *,
    groups: Sequence[LabelGroup] | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Linear layer and cross entropy at once, for the rows of all groups.

    Args:
        hidden_nd: `[N, D]`.
        head_vd: `[V, D]`, of the same type.
        labels_n: int64 `[N]`; any value where the weight is 0.
        weights_n: fp32 `[N]`.
        groups: disjoint rows and the ids they are scored among; None for all rows and all ids.
        z_loss: factor on logsumexp², which keeps logits near zero (PaLM, Chowdhery et al. 2022, §5).

    Returns:
        Σ w·(nll + z_loss·logsumexp²), a scalar differentiable once in `hidden_nd` and `head_vd`; and nll
        `[N]`, detached, 0 in rows of no group or without weight.
    """
    if groups is None:
        groups = [LabelGroup(None, 0, head_vd.shape[0])]
    apply: Callable[..., tuple[Tensor, Tensor]] = _WeightedNll.apply  # torch leaves it untyped
    return apply(hidden_nd, head_vd, labels_n, weights_n, groups, z_loss)


class _WeightedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        head_vd: Tensor,
        labels_n: Tensor,
        weights_n: Tensor,
        groups: Sequence[LabelGroup],
        z_loss: float,
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden_nd) if wants_hidden else None
        grad_head = torch.zeros_like(head_vd, dtype=torch.float32) if wants_head else None
        nll_n = torch.zeros_like(weights_n)
        total = torch.zeros((), dtype=torch.float32, device=hidden_nd.device)
        for group in groups:
            whole = group.rows is None
            num_rows = hidden_nd.shape[0] if group.rows is None else group.rows.shape[0]
            head = head_vd[group.first : group.end]
            rows_at_once = max(1, LOGITS_AT_ONCE // head.shape[0])
            for start in range(0, num_rows, rows_at_once):
                some: Any = slice(start, start + rows_at_once)
                if group.rows is not None:
                    some = group.rows[some]
                hidden = hidden_nd[some]
                chunk = _chunk(
                    hidden @ head.T,
                    labels_n[some],
                    weights_n[some],
                    group,
                    z_loss=z_loss,
                    wants_grad=wants_hidden or wants_head,
                )
                nll_n[some] = chunk.nll
                total += chunk.total
                if chunk.grad is None:
                    continue
                grad = chunk.grad.to(hidden.dtype)
                if grad_hidden is not None and whole:
                    torch.mm(grad, head, out=grad_hidden[some])
                elif grad_hidden is not None:
                    grad_hidden[some] = grad @ head
                if grad_head is not None:
                    _add_product(grad_head[group.first : group.end], grad, hidden)
                del chunk, grad  # before the next chunk's logits are made
        if grad_head is not None:
            grad_head = grad_head.to(head_vd.dtype)
        # Not `save_for_backward`: these are no inputs, and are given away in the backward.
        ctx.grads = (grad_hidden, grad_head)
        ctx.mark_non_differentiable(nll_n)
        return total, nll_n

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the loss gives its gradients away: its backward runs once")
        grads, ctx.grads = ctx.grads, None
        scaled = (None if grad is None else grad.mul_(grad_outputs[0]) for grad in grads)
        return (*scaled, None, None, None, None)


class _Chunk(NamedTuple):
    nll: Tensor  # fp32 [n], 0 without weight
    total: Tensor  # fp32 scalar
    grad: Tensor | None  # fp32 [n, end - first], of `total` in the logits


def _chunk(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    group: LabelGroup,
    *,
    z_loss: float,
    wants_grad: bool,
) -> _Chunk:
    """Loss and gradient of some rows' logits, which are overwritten where that is possible."""
    counted = weights > 0
    target = (labels - group.first).where(counted, 0)[:, None]
    logits = logits.float()
    lse = torch.logsumexp(logits, dim=-1)
    soft = None
    if group.soft_std > 0:
        soft = _soft_targets(labels, group)
        window = slice(group.soft_first - group.first, group.soft_end - group.first)
        nll = lse - (soft * logits[:, window]).sum(-1)
    else:
        nll = lse - logits.gather(1, target).squeeze(1)
    nll = nll.where(counted, 0.0)
    total = (nll * weights).sum()
    if z_loss:
        total = total + z_loss * (lse.square().where(counted, 0.0) * weights).sum()
    if not wants_grad:
        return _Chunk(nll, total, None)
    grad = logits.sub_(lse[:, None]).exp_()
    if z_loss:
        grad.mul_((1 + 2 * z_loss * lse)[:, None])
    if soft is not None:
        grad[:, window] -= soft
    else:
        grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
    return _Chunk(nll, total, grad.mul_(weights[:, None]))


def _soft_targets(labels: Tensor, group: LabelGroup) -> Tensor:
    """fp32 `[n, soft_end - soft_first]`: each label's Gaussian over the ordered ids."""
    ids = torch.arange(group.soft_first, group.soft_end, device=labels.device)
    distance = (ids - labels[:, None]).float() / group.soft_std
    return torch.softmax(-distance.square() / 2, dim=-1)


def _add_product(total_vd: Tensor, grad_nv: Tensor, hidden_nd: Tensor) -> None:
    """`total += gradᵀ · hidden` in fp32."""
    if grad_nv.dtype == torch.float32:
        total_vd.addmm_(grad_nv.T, hidden_nd)
        return
    # Half precision: the product in parts, so that its fp32 copy stays small.
    for first in range(0, total_vd.shape[0], HEAD_ROWS_AT_ONCE):
        part = slice(first, first + HEAD_ROWS_AT_ONCE)
        factor = grad_nv[:, part].T
        if grad_nv.is_cuda:
            total_vd[part] += torch.mm(factor, hidden_nd, out_dtype=torch.float32)
        else:
            total_vd[part] += factor.float() @ hidden_nd.float()
