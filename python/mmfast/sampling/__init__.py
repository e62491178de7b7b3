"""Exact, batch-invariant sampling from logits: guidance, contrast, penalty, filters and the draw in one call.

`sample(logits, uncond, guidance_scale=3.0, top_p=0.9, seeds=…, steps=…)` works inside any loop; loops
that draw often prepare a `SamplingParams` once and call `sample_prepared`. `SampleProcessor` draws inside
Hugging Face `generate`, `multinomial` in loops around `torch.multinomial`.
"""

from mmfast.sampling.adapters import SampleProcessor
from mmfast.sampling.bitmap import add_to_history, history_bitmap, pack_mask
from mmfast.sampling.orders import nested_guidance
from mmfast.sampling.params import SamplingParams
from mmfast.sampling.reference import STATUS_EMPTY, STATUS_EXCLUDED, STATUS_INFINITE
from mmfast.sampling.sampler import SampleOutput, sample, sample_prepared
from mmfast.sampling.torch_multinomial import RowGenerator, multinomial

__all__ = [
    "STATUS_EMPTY",
    "STATUS_EXCLUDED",
    "STATUS_INFINITE",
    "RowGenerator",
    "SampleOutput",
    "SampleProcessor",
    "SamplingParams",
    "add_to_history",
    "history_bitmap",
    "multinomial",
    "nested_guidance",
    "pack_mask",
    "sample",
    "sample_prepared",
]
