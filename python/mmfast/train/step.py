"""Forward and backward of one rank's rows of a global batch, in micro-batches.

Gradients are those of Σ w·nll / Σ w over the whole global batch: each rank divides by the global Σ w
and FSDP sums over ranks, once, in the last micro-batch's backward.
"""

import torch
from torch import Tensor

from mmfast.data import Batch
from mmfast.models import attention_inputs
from mmfast.train.config import TrainConfig
from mmfast.train.loss import NUM_MODALITIES, DecoderWithLoss, LossSums
from mmfast.train.parallel import compute_dtype, set_gradient_sync

MODALITY_BITS = 0x1F


def backward_batch(
    model: DecoderWithLoss,
    batch: Batch,
    *,
    weight_sum: float,
    config: TrainConfig,
    device: torch.device,
) -> Tensor:
    """Adds a batch's gradients to the parameters.

    Args:
        model: sharded.
        batch: this rank's rows, on the CPU.
        weight_sum: Σ w over the rows of all ranks.
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
        sums = forward_rows(model, batch, rows, config=config, device=device)
        torch.autograd.backward(sums.total / max(weight_sum, 1e-30))
        totals += sums.by_modality
    return totals


def forward_rows(
    model: DecoderWithLoss, batch: Batch, rows: slice, *, config: TrainConfig, device: torch.device
) -> LossSums:
    """Loss sums of some rows."""
    modality = batch.modality_ids[rows] & MODALITY_BITS
    # A label is the next token, and so is its modality; the last of a row is never a label.
    label_modality = torch.cat([modality[:, 1:], modality[:, -1:]], dim=1)
    attention = attention_inputs(
        batch.document_ids[rows], device=device, dtype=compute_dtype(config.parallel)
    )
    tensors = (
        batch.input_ids[rows],
        batch.position_ids[rows],
        batch.labels[rows],
        batch.loss_weights[rows],
        label_modality,
    )
    sums: LossSums = model(*(t.to(device, non_blocking=True) for t in tensors), attention)
    return sums
