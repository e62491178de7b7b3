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

__all__ = [
    "DecoderConfig",
    "attention_inputs",
    "build_decoder",
    "document_mask",
    "hf_config",
    "initialise",
    "load_exported",
    "parameter_count",
    "register_attention",
]
