"""Low-rank adapters (LoRA, Hu et al. 2021): a frozen linear layer and a small trained product beside it.

`W·x` becomes `W·x + (alpha / rank)·up·down·x`. The layer keeps its class's name for `weight`, so weights are
loaded and saved as without adapters, and `merged` folds the product into them.

Legend: R rank, I inputs, O outputs of a layer.
"""

import fnmatch
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfast.errors import ConfigError

UP, DOWN = "lora_up", "lora_down"


class LoraLinear(nn.Linear):
    """A linear layer with an adapter; takes over the weights of the layer it stands for."""

    def __init__(self, layer: nn.Linear, *, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = scale
        device, dtype = layer.weight.device, layer.weight.dtype
        self.lora_down = nn.Parameter(
            torch.empty(rank, self.in_features, device=device, dtype=dtype)
        )
        self.lora_up = nn.Parameter(
            torch.empty(self.out_features, rank, device=device, dtype=dtype)
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- the name that torch gives it
        """`[…, I]` to `[…, O]`."""
        adapted = F.linear(F.linear(input, self.lora_down), self.lora_up)
        return F.linear(input, self.weight, self.bias) + self.scale * adapted


def add_adapters(model: nn.Module, *, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Puts an adapter beside every linear layer whose name, or its last part, matches a pattern.

    Raises:
        ConfigError: no layer matches.
    """
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    chosen = [
        (name, layer)
        for name, layer in linear
        if any(fnmatch.fnmatchcase(n, t) for t in targets for n in (name, name.rpartition(".")[2]))
    ]
    if not chosen:
        ends = sorted({name.rpartition(".")[2] for name, _ in linear})
        raise ConfigError(
            f"lora.targets {list(targets)} match no layer; the model has {', '.join(ends)}"
        )
    for name, layer in chosen:
        parent, _, child = name.rpartition(".")
        adapted = LoraLinear(layer, rank=rank, scale=alpha / rank)
        setattr(model.get_submodule(parent), child, adapted)


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's part."""
    return name.endswith((UP, DOWN))


def merged(weights: Mapping[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """The weights of a model without adapters that computes what `weights` compute with them."""
    result = {name: w for name, w in weights.items() if not is_adapter(name)}
    for name, up in weights.items():
        if name.endswith(UP):
            layer = name.removesuffix(UP)
            down = weights[layer + DOWN]
            weight = result[f"{layer}weight"]
            product = scale * (up.float() @ down.float())
            result[f"{layer}weight"] = (weight.float() + product).to(weight.dtype)
    return result
