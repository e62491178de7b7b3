"""How much a training step computes, and what part of the hardware's peak that is.

A token costs 6 operations a weight that it is multiplied with (forward 2, backward 4; the output layer
counts, tables that are only looked up do not), and attention 12·L·d for each token it could see:

    full:    6·N + 12·L·d·S     every token counted as seeing all S of its document
    causal:  6·N +  6·L·d·S     half of that, which is what is computed

Published model FLOP utilisations (MFU) use the first, with S the sequence length (PaLM, Chowdhery et al.
2022, appendix B). With several documents a row, S is the length of a token's own document, Σ len² / Σ len
in the mean. A layer with a sliding window of W counts W (2 S − W) for S² where S is longer: twice the pairs that
causal attention has in it. Recomputed activations do not count.
"""

import dataclasses
from typing import Any

import torch

from mmfast.data import Batch
from mmfast.models.windows import sliding_window

# Dense bf16 peak in TFLOP/s from the makers' data sheets, by a part of the device's name; first match.
PEAK_TFLOPS = (
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H200", 989.0),
    ("GH200", 989.0),
    ("B200", 2250.0),
    ("B300", 2250.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("RTX 4090", 165.2),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a token costs in a model.

    Attributes:
        matrix_weights: weights that every token is multiplied with.
        attention_width: L·d, the sum over layers of the heads' widths.
        window: W of layers with a sliding window, None without such layers.
        windowed_share: the part of the layers that have it.
    """

    matrix_weights: int
    attention_width: int
    window: int | None = None
    windowed_share: float = 0.0

    def pairs(self, batch: Batch) -> float:
        """Σ len² over a batch's documents, padding left out, less what windows hide, as a mean of the layers."""
        starts, lengths = batch.cu_seqlens[:-1].long(), batch.cu_seqlens.diff().double()
        last = batch.document_ids.numel() - 1
        is_document = batch.document_ids.flatten()[starts.clamp(max=last)] > 0
        squares = lengths.square()
        if self.window is not None:
            seen = torch.where(
                lengths > self.window, self.window * (2 * lengths - self.window), squares
            )
            squares = torch.lerp(squares, seen, self.windowed_share)
        return float((squares * is_document).sum())

    def full(self, tokens: float, pairs: float) -> float:
        """Operations of a step by the full formula; `pairs` is that of its documents."""
        return 6.0 * self.matrix_weights * tokens + 12.0 * self.attention_width * pairs

    def causal(self, tokens: float, pairs: float) -> float:
        """The same by the causal formula."""
        return 6.0 * self.matrix_weights * tokens + 6.0 * self.attention_width * pairs


def step_cost(decoder: Any) -> StepCost:
    """Cost of a transformers decoder, from its shapes; sharded and meta ones are fine."""
    config = decoder.config
    head = decoder.get_output_embeddings().weight
    tables = {id(m.weight) for m in decoder.modules() if isinstance(m, torch.nn.Embedding)}
    matrices = sum(
        p.numel() for p in decoder.parameters() if p.ndim >= 2 and id(p) not in tables | {id(head)}
    )
    window = sliding_window(config)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return StepCost(
        matrix_weights=matrices + head.numel(),
        attention_width=config.num_hidden_layers * config.num_attention_heads * head_dim,
        window=window,
        windowed_share=0.0 if window is None else kinds.count("sliding_attention") / len(kinds),
    )


def peak_tflops(given: float, device: torch.device) -> float | None:
    """Peak of one device: `given` unless it is 0, else by the device's name; None for what is unknown."""
    if given:
        return given
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS if part in name), None)
