"""The training loss: Σ w·nll over the rows of a micro-batch, without ever holding all logits.

The sum is not divided here: the trainer knows Σ w of the whole global step before the first backward
and divides by it, so that a loss is the same however rows are spread over ranks and micro-batches.

Legend: N tokens of a micro-batch, D hidden width, V vocabulary, M modalities.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# A modality is five bits; the first four have names, the others are a recipe's own.
NUM_MODALITIES = 32
# 64 MiB of fp32 logits at a time: large enough for full matrix speed, small beside the activations.
LOGITS_AT_ONCE = 1 << 24


class LossSums(NamedTuple):
    """What a forward returns.

    Attributes:
        total: scalar Σ w·nll, differentiable.
        by_modality: `[2, M]` fp64, detached: Σ w·nll, then Σ w, of each modality's target tokens.
    """

    total: Tensor
    by_modality: Tensor


class DecoderWithLoss(nn.Module):
    """A decoder and its loss as one module, so that the output layer is used inside its forward.

    FSDP gathers the root's parameters for the root's forward only; an output layer used outside it
    would be found sharded.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        loss_weights: Tensor,
        label_modality: Tensor,
        attention: dict[str, Any],
    ) -> LossSums:
        """Sums over a micro-batch.

        Args:
            input_ids: int64 `[B, L]`.
            position_ids: `[B, L]`, restarting in each document.
            labels: int64 `[B, L]`, the id that follows each input; any value where the weight is 0.
            loss_weights: fp32 `[B, L]`.
            label_modality: `[B, L]` integers in `[0, M)`, the modality of each label.
            attention: what `mmfast.models.attention_inputs` returned.
        """
        hidden_bld = self.decoder.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **attention
        ).last_hidden_state
        head_vd = self.decoder.get_output_embeddings().weight
        weights = loss_weights.flatten()
        total, nll = weighted_nll(hidden_bld.flatten(0, 1), head_vd, labels.flatten(), weights)
        with torch.no_grad():
            # fp64, so that a logged loss does not depend on how many rows were added up together.
            by_modality = torch.zeros(2, NUM_MODALITIES, device=nll.device, dtype=torch.float64)
            index = label_modality.flatten().long()
            by_modality[0].index_add_(0, index, (nll * weights).double())
            by_modality[1].index_add_(0, index, weights.double())
        return LossSums(total, by_modality)


def weighted_nll(
    hidden_nd: Tensor, head_vd: Tensor, labels_n: Tensor, weights_n: Tensor
) -> tuple[Tensor, Tensor]:
    """Σ w·nll (scalar, differentiable in hidden and head) and nll `[N]` (detached, 0 where w is 0).

    Softmax and sums are fp32 whatever the inputs' type. The gradient is made in the forward,
    chunk by chunk, from the same logits.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _WeightedNll.apply  # torch leaves it untyped
    return apply(hidden_nd, head_vd, labels_n, weights_n)


class _WeightedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_nd: Tensor, head_vd: Tensor, labels_n: Tensor, weights_n: Tensor
    ) -> tuple[Tensor, Tensor]:
        N, V = hidden_nd.shape[0], head_vd.shape[0]
        rows_at_once = max(1, LOGITS_AT_ONCE // V)
        wants_grad = any(ctx.needs_input_grad[:2])
        counted = weights_n > 0
        target_n = labels_n.where(counted, 0)
        nll = torch.empty(N, dtype=torch.float32, device=hidden_nd.device)
        grad_hidden = torch.empty_like(hidden_nd) if wants_grad else None
        grad_head = torch.zeros_like(head_vd, dtype=torch.float32) if wants_grad else None
        for first in range(0, N, rows_at_once):
            chunk = slice(first, first + rows_at_once)
            h, t, w = hidden_nd[chunk], target_n[chunk, None], weights_n[chunk, None]
            logp = torch.log_softmax(h @ head_vd.T, dim=-1, dtype=torch.float32)
            nll[chunk] = -logp.gather(1, t).squeeze(1)
            if grad_hidden is not None and grad_head is not None:
                grad = logp.exp_()
                grad.scatter_add_(1, t, grad.new_full(t.shape, -1.0))
                grad = grad.mul_(w).to(hidden_nd.dtype)
                grad_hidden[chunk] = grad @ head_vd
                grad_head += grad.T @ h
        nll = nll.where(counted, 0.0)
        if grad_hidden is not None and grad_head is not None:
            ctx.save_for_backward(grad_hidden, grad_head.to(head_vd.dtype))
        ctx.mark_non_differentiable(nll)
        return (nll * weights_n).sum(), nll

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_hidden * scale, grad_head * scale, None, None
