"""AdamW over sharded parameters, gradient norm and clipping without a host sync, and the schedule.

A step whose gradients are not finite is skipped on the device: the fused kernel leaves weights and
moments alone when it is told so by a flag, the mechanism that torch's own gradient scaler uses.
"""

import fnmatch
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmfast.errors import ConfigError
from mmfast.train.config import OptimizerConfig, ScheduleConfig
from mmfast.train.parallel import local_part


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, undecayed: Collection[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """Fused AdamW over what is trained.

    Args:
        model: sharded or not.
        config: `undecayed` holds patterns of names.
        undecayed: further parameters without weight decay; vectors have none in any case.

    Raises:
        ConfigError: nothing is trained.
    """
    spared = {id(parameter) for parameter in undecayed}
    groups: dict[float, list[nn.Parameter]] = {config.weight_decay: [], 0.0: []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_spared = (
            parameter.ndim < 2
            or id(parameter) in spared
            or any(fnmatch.fnmatchcase(name, pattern) for pattern in config.undecayed)
        )
        groups[0.0 if is_spared else config.weight_decay].append(parameter)
    if not any(groups.values()):
        raise ConfigError("nothing is trained: see train.trainable and lora.rank")
    return torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for decay, group in groups.items() if group],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def learning_rate(step: int, *, num_steps: int, config: ScheduleConfig, peak: float) -> float:
    """Learning rate of step `step`, counted from 0; a pure function, so a resume needs no state."""
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return peak
    first = config.warmup_steps
    if config.kind == "wsd":
        first = max(first, num_steps - round(config.decay_fraction * num_steps))
    # The last step, `num_steps - 1`, is the first with exactly the final ratio.
    progress = min(1.0, max(0.0, (step - first) / max(1, num_steps - 1 - first)))
    fall = (1 - math.cos(math.pi * progress)) / 2 if config.kind == "cosine" else progress
    return peak * (1 - (1 - config.final_ratio) * fall)


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Global L2 norm of all gradients, fp32 scalar on their device, the same on every rank.

    Works on the local shards with one collective: the squares of the ranks that share a copy of the
    model add up.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([local_part(g) for g in gradients]).float()
    group = shard_group(gradients)
    if group is not None and group.size() > 1:
        square = norm.square()
        dist.all_reduce(square, group=group)
        norm = square.sqrt()
    return norm


def shard_group(tensors: Sequence[Tensor]) -> dist.ProcessGroup | None:
    """The ranks over which tensors are spread, None for plain ones."""
    from torch.distributed.tensor import DTensor

    for tensor in tensors:
        if isinstance(tensor, DTensor):
            # The last dimension of the mesh is the one that shards; one before it holds copies.
            return tensor.device_mesh.get_group(tensor.device_mesh.ndim - 1)
    return None


def clipped_step(optimizer: torch.optim.AdamW, norm: Tensor, *, max_norm: float) -> Tensor:
    """One update with gradients scaled down to `max_norm` (0: as they are).

    Args:
        optimizer: fused AdamW whose parameters have gradients.
        norm: their global norm.
        max_norm: upper limit.

    Returns:
        1.0 on the gradients' device when the step was skipped because `norm` is not finite, else 0.
    """
    skipped = (~norm.isfinite()).float()
    fused: Any = optimizer  # the two attributes are read by the fused kernel, but not declared
    fused.found_inf = skipped
    fused.grad_scale = (norm / max_norm).clamp(min=1.0) if max_norm else None
    optimizer.step()
    return skipped
