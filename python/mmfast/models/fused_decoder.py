"""The decoder of a Llama-shaped model as one decoding step runs it: fewer, larger operations.

transformers' own layers take some sixty operations a layer for one token a row, and each costs more to
start than to do. Here query, key and value come from one product, gate and up from another, and the
norms and rotations are one operation each. The weights stay the model's: its projections become views
of the joined ones, so nothing is held twice and the model itself works on.

Llama, Mistral, Qwen2 and Emu3's text model have this shape. What a model really computes is compared on trial
ids before its fused form is used; any other model keeps its own forward.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmfast.models.decode_attention import CacheMasks, decode_attention


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Weights of one layer, projections joined along their outputs."""

    input_norm: tuple[torch.Tensor, float]
    qkv: tuple[torch.Tensor, torch.Tensor | None]
    output: nn.Linear
    post_norm: tuple[torch.Tensor, float]
    gate_up: tuple[torch.Tensor, torch.Tensor | None]
    down: nn.Linear
    scaling: float
    window: int | None


class FusedDecoder:
    """Decodes one token a row with a Llama-shaped model's weights; see `fuse_decoder`."""

    def __init__(self, decoder: Any) -> None:
        attention = decoder.layers[0].self_attn
        self._embed = decoder.embed_tokens
        self._rotary = decoder.rotary_emb
        self._norm = _norm(decoder.norm)
        self._activation = decoder.layers[0].mlp.act_fn
        self._head_dim = attention.head_dim
        self._num_heads = attention.q_proj.out_features // self._head_dim
        self._num_kv_heads = attention.k_proj.out_features // self._head_dim
        self._layers = [_fused_layer(layer) for layer in decoder.layers]

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, *, cache: Any, masks: CacheMasks
    ) -> torch.Tensor:
        """[R] ids at [R] positions to [R, D] hidden states; keys and values go into `cache`."""
        R = ids.shape[0]
        D, H, K = self._head_dim, self._num_heads, self._num_kv_heads
        x = self._embed(ids)
        cos, sin = self._rotary(x, positions[None])
        cos, sin = cos[0, :, None], sin[0, :, None]
        # The halves of a head are turned against each other: (a, b) -> (a cos - b sin, b cos + a sin).
        sin = torch.cat([-sin[..., : D // 2], sin[..., D // 2 :]], dim=-1)
        for layer_idx, layer in enumerate(self._layers):
            normed = F.rms_norm(x, x.shape[-1:], *layer.input_norm)
            heads = F.linear(normed, *layer.qkv).view(R, H + 2 * K, D)
            turning = heads[:, : H + K]
            turned = torch.addcmul(turning * cos, turning.roll(D // 2, -1), sin)
            keys, values = cache.update(turned[:, H:, None], heads[:, H + K :, None], layer_idx)
            mask = masks.of_layer(layer.window)
            attended = decode_attention(
                turned[:, :H, None], keys, values, mask=mask, scaling=layer.scaling
            )
            x = x + layer.output(attended.reshape(R, H * D))
            normed = F.rms_norm(x, x.shape[-1:], *layer.post_norm)
            gate, up = F.linear(normed, *layer.gate_up).chunk(2, dim=-1)
            x = x + layer.down(self._activation(gate) * up)
        return F.rms_norm(x, x.shape[-1:], *self._norm)


def fuse_decoder(decoder: Any) -> FusedDecoder | None:
    """The fused form of a transformers decoder, None if it is not of the known shape.

    Its projections are joined in memory: their parameters become views of larger ones.
    """
    try:
        layers = list(decoder.layers)
        known = bool(layers) and all(
            isinstance(module, nn.Linear)
            for layer in layers
            for module in (
                layer.self_attn.q_proj,
                layer.self_attn.k_proj,
                layer.self_attn.v_proj,
                layer.self_attn.o_proj,
                layer.mlp.gate_proj,
                layer.mlp.up_proj,
                layer.mlp.down_proj,
            )
        )
        children = {
            tuple(name for name, _ in layer.named_children() if name != "dropout")
            for layer in layers
        }
        parts = {tuple(name for name, _ in layer.self_attn.named_children()) for layer in layers}
        known &= children == {("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")}
        known &= parts == {("q_proj", "k_proj", "v_proj", "o_proj")}
        return FusedDecoder(decoder) if known else None
    except AttributeError:
        return None


def _fused_layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        input_norm=_norm(layer.input_layernorm),
        qkv=_joined(attention.q_proj, attention.k_proj, attention.v_proj),
        output=attention.o_proj,
        post_norm=_norm(layer.post_attention_layernorm),
        gate_up=_joined(mlp.gate_proj, mlp.up_proj),
        down=mlp.down_proj,
        scaling=attention.scaling,
        window=getattr(
            attention, "sliding_window", getattr(attention.config, "sliding_window", None)
        ),
    )


def _norm(norm: Any) -> tuple[torch.Tensor, float]:
    return norm.weight, float(norm.variance_epsilon)


def _joined(*projections: nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights (and biases) of several projections as one, of which theirs become views."""

    def join(name: str) -> torch.Tensor | None:
        parts = [getattr(projection, name) for projection in projections]
        if all(part is None for part in parts):
            return None
        sizes = [projection.out_features for projection in projections]
        first = parts[0]
        if _are_adjacent(parts):
            return torch.as_strided(
                first.detach(),
                (sum(sizes), *first.shape[1:]),
                first.stride(),
                first.storage_offset(),
            )
        whole = torch.cat([part.detach() for part in parts])
        start = 0
        for part, size in zip(parts, sizes, strict=True):
            part.data = whole[start : start + size]
            start += size
        return whole

    weight = join("weight")
    assert weight is not None
    return weight, join("bias")


def _are_adjacent(parts: list[torch.Tensor]) -> bool:
    """Whether the tensors lie one after another in one piece of memory, as after an earlier joining."""
    end = parts[0].data_ptr()
    storages = {part.untyped_storage().data_ptr() for part in parts}
    for part in parts:
        if part.data_ptr() != end or not part.is_contiguous():
            return False
        end += part.numel() * part.element_size()
    return len(storages) == 1
