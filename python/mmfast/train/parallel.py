"""Spreads a decoder over processes with FSDP2, in every world size, one included.

Around each block, from the inside out: recomputation of activations, compilation, sharding. Gradients
are summed over ranks, never averaged: the loss is divided by the global Σ w before the backward, so that
ranks with more or fewer counted tokens weigh what they should.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from mmfast.errors import UsageError
from mmfast.train.config import ParallelConfig
from mmfast.train.loss import DecoderWithLoss

REPLICATE, SHARD = "replicate", "shard"


def shard_model(model: DecoderWithLoss, config: ParallelConfig, *, device: torch.device) -> None:
    """Shards `model` in place, on whatever device its parameters are (meta included).

    Raises:
        UsageError: `replicate` does not divide the number of processes.
    """
    mesh = device_mesh(config, device_type=device.type)
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype(config),
        reduce_dtype=getattr(torch, config.reduce_dtype),
        # Loss weights are fp32 inputs of the root, and stay it.
        cast_forward_inputs=False,
    )
    blocks = decoder_blocks(model.decoder)
    for block in blocks:
        if config.activation_checkpointing != "none":
            recompute(block, selective=config.activation_checkpointing == "selective")
        if config.compile:
            block.compile(fullgraph=True)
    if config.wrap == "block":
        for block in blocks:
            fully_shard(
                block,
                mesh=mesh,
                mp_policy=policy,
                reshard_after_forward=config.reshard_after_forward,
            )
        prefetch(blocks, ahead=config.prefetch)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo cannot multiply while it sums, which torch would otherwise ask of it.
            module.set_force_sum_reduction_for_comms(True)


def device_mesh(config: ParallelConfig, *, device_type: str) -> DeviceMesh:
    """`[shard]`, or `[replicate, shard]` when there are several copies (HSDP)."""
    num_ranks = torch.distributed.get_world_size()
    if num_ranks % config.replicate:
        raise UsageError(
            f"parallel.replicate is {config.replicate}, which does not divide the {num_ranks} processes; "
            "it is the number of copies of the model, usually one a machine"
        )
    shards = num_ranks // config.replicate
    if config.replicate == 1:
        return init_device_mesh(device_type, (shards,), mesh_dim_names=(SHARD,))
    return init_device_mesh(
        device_type, (config.replicate, shards), mesh_dim_names=(REPLICATE, SHARD)
    )


def prefetch(blocks: Sequence[nn.Module], *, ahead: int) -> None:
    """Lets each block's forward and backward gather the weights of the next ones, `ahead` many.

    0 leaves it to torch, which gathers one block ahead in the backward only as the CPU gets there.
    """
    if ahead == 0:
        return
    for place, block in enumerate(blocks):
        assert isinstance(block, FSDPModule)
        block.set_modules_to_forward_prefetch(_sharded(blocks[place + 1 : place + 1 + ahead]))
        before = blocks[max(0, place - ahead) : place]
        block.set_modules_to_backward_prefetch(_sharded(before[::-1]))


def _sharded(blocks: Sequence[nn.Module]) -> list[FSDPModule]:
    return [block for block in blocks if isinstance(block, FSDPModule)]


def recompute(block: nn.Module, *, selective: bool) -> None:
    """Lets a block's backward compute its activations anew instead of keeping them.

    `selective` keeps the results of matrix products and attention, which are dear to compute and few,
    and computes everything else anew.
    """
    forward: Callable[..., Any] = block.forward
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)

    def forward_again(*args: Any, **kwargs: Any) -> Any:
        if not block.training:
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, **options, **kwargs)

    block.forward = forward_again


def _policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = operation in _kept_operations()
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _kept_operations() -> frozenset[Any]:
    """Matrix products and attention, as far as this torch has them."""
    names = (
        "aten.mm.default",
        "aten.addmm.default",
        "aten.bmm.default",
        "aten._scaled_dot_product_flash_attention.default",
        "aten._scaled_dot_product_efficient_attention.default",
        "aten._scaled_dot_product_cudnn_attention.default",
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._flash_attention_forward.default",
        "torch_attn._varlen_attn.default",
    )
    found = []
    for name in names:
        operation: Any = torch.ops
        for part in name.split("."):
            operation = getattr(operation, part, None)
        if operation is not None:
            found.append(operation)
    return frozenset(found)


def set_gradient_sync(model: nn.Module, *, enabled: bool) -> None:
    """Whether the next backward is a step's last, which sums gradients over ranks and frees weights.

    The others neither talk about gradients nor give up weights that the next forward would have to
    gather again.
    """
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(enabled)
    model.set_is_last_backward(enabled)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_backward(enabled, recurse=False)


def compute_dtype(config: ParallelConfig) -> torch.dtype:
    """Type of weights and activations in forward and backward."""
    dtype: torch.dtype = getattr(torch, config.param_dtype)
    return dtype


def decoder_blocks(decoder: Any) -> list[nn.Module]:
    """The repeated blocks of a transformers decoder, by the class names it declares itself."""
    names = set(decoder._no_split_modules or ())
    return [module for module in decoder.modules() if type(module).__name__ in names]


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; a plain one as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
