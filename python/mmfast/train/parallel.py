"""Spreads a decoder over processes with FSDP2, in every world size, one included.

Gradients are summed over ranks, never averaged: the loss is divided by the global Σ w before the
backward, so that ranks with more or fewer counted tokens weigh what they should.
"""

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from mmfast.train.config import ParallelConfig
from mmfast.train.loss import DecoderWithLoss


def shard_model(model: DecoderWithLoss, config: ParallelConfig, *, device: torch.device) -> None:
    """Shards `model` in place, on whatever device its parameters are (meta included)."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype(config), reduce_dtype=getattr(torch, config.reduce_dtype)
    )
    if config.activation_checkpointing:
        model.decoder.gradient_checkpointing_enable({"use_reentrant": False})
    if config.wrap == "block":
        for block in decoder_blocks(model.decoder):
            fully_shard(
                block,
                mesh=mesh,
                mp_policy=policy,
                reshard_after_forward=config.reshard_after_forward,
            )
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo cannot multiply while it sums, which torch would otherwise ask of it.
            module.set_force_sum_reduction_for_comms(True)


def set_gradient_sync(model: torch.nn.Module, *, enabled: bool) -> None:
    """Whether the next backward sums gradients over ranks; off for all but the last micro-batch."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(enabled)
    model.set_is_last_backward(enabled)


def compute_dtype(config: ParallelConfig) -> torch.dtype:
    """Type of weights and activations in forward and backward."""
    dtype: torch.dtype = getattr(torch, config.param_dtype)
    return dtype


def decoder_blocks(decoder: Any) -> list[torch.nn.Module]:
    """The repeated blocks of a transformers decoder, by the class names it declares itself."""
    names = set(decoder._no_split_modules)
    return [module for module in decoder.modules() if type(module).__name__ in names]
