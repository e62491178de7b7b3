"""Decoders on transformers classes, with attention that never crosses documents."""

from mmfast.models.attention import attention_inputs, document_mask, register_attention
from mmfast.models.decoder import (
    DecoderConfig,
    build_decoder,
    hf_config,
    initialise,
    load_exported,
    parameter_count,
)
from mmfast.models.lora import add_adapters, merged
from mmfast.models.pretrained import load_pretrained, num_pretrained_rows

__all__ = [
    "DecoderConfig",
    "add_adapters",
    "attention_inputs",
    "build_decoder",
    "document_mask",
    "hf_config",
    "initialise",
    "load_exported",
    "load_pretrained",
    "merged",
    "num_pretrained_rows",
    "parameter_count",
    "register_attention",
]
