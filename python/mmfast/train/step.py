"""Forward and backward of one rank's rows of a global batch, in micro-batches.

Gradients are those of Σ w·nll / Σ w over the whole global batch: each rank divides by the global Σ w
and FSDP sums over ranks, once, in the last micro-batch's backward.
"""

import torch
from torch import Tensor

from mmfast.data import Batch
from mmfast.models import attention_inputs
from mmfast.train.config import TrainConfig
from mmfast.train.labels import LabelRules, label_modality, to_device
from mmfast.train.loss import NUM_MODALITIES, DecoderWithLoss, LossSums
from mmfast.train.parallel import compute_dtype, set_gradient_sync


def backward_batch(
    model: DecoderWithLoss,
    batch: Batch,
    *,
    weight_sum: float,
    rules: LabelRules,
    config: TrainConfig,
    device: torch.device,
) -> Tensor:
    """Adds a batch's gradients to the parameters.

    Args:
        model: sharded.
        batch: this rank's rows, on the CPU.
        weight_sum: Σ w over the rows of all ranks.
        rules: which labels are scored among which ids.
        config: micro-batch size and types.
        device: where the model is.

    Returns:
        `[2, M]` fp64: this rank's Σ w·nll and Σ w by modality.
    """
    num_rows = batch.input_ids.shape[0]
    micro_rows = config.train.micro_batch_bins or num_rows
    totals = torch.zeros(2, NUM_MODALITIES, dtype=torch.float64, device=device)
    for first in range(0, num_rows, micro_rows):
        set_gradient_sync(model, enabled=first + micro_rows >= num_rows)
        rows = slice(first, first + micro_rows)
        sums = forward_rows(model, batch, rows, rules=rules, config=config, device=device)
        torch.autograd.backward(sums.total / max(weight_sum, 1e-30))
        totals += sums.by_modality
    return totals


def forward_rows(
    model: DecoderWithLoss,
    batch: Batch,
    rows: slice,
    *,
    rules: LabelRules,
    config: TrainConfig,
    device: torch.device,
) -> LossSums:
    """Loss sums of some rows."""
    labels, weights = batch.labels[rows], batch.loss_weights[rows]
    attention = attention_inputs(
        batch.document_ids[rows],
        device=device,
        dtype=compute_dtype(config.parallel),
        window=model.window,
    )
    tensors = (
        batch.input_ids[rows],
        batch.position_ids[rows],
        labels,
        weights,
        label_modality(batch.modality_ids[rows]),
    )
    sums: LossSums = model(
        *(t.to(device, non_blocking=True) for t in tensors),
        to_device(rules.groups(labels, weights), device),
        attention,
    )
    return sums
