"""Published samplers as sets of rules: order and temperature of the filters, and who stays at their edges.

`order=` of `sample` picks a set; each rule is a parameter of its own too. What the names stand for:

- `hf`: transformers' logits processors; temperature, top-k, top-p, min-p. Their top-k keeps ties, which the
  package's default does not: `ties="keep"` for theirs.
- `emu3`: baaivision/Emu3, which runs those processors on log-probabilities, with their ties.
- `vllm`: vLLM V1; greedy below temperature 1e-5, min-p before top-k.
- `fourm`: apple/ml-4m `fourm/models/generate.py`; filters see temperature 1 and only the draw the real one,
  an id stays while the mass before it is at most p, top-p 0 is off.
- `chameleon`: facebookresearch/chameleon, which runs transformers' processors after its mask.
"""

import dataclasses
import math
from typing import Literal

Order = Literal["hf", "emu3", "vllm", "fourm", "chameleon"]
Ties = Literal["index", "keep"]
TopPRule = Literal["reach", "exclusive"]
TopPBase = Literal["survivors", "full"]
PenaltySpace = Literal["logits", "logprobs"]

RULE_KEEP_TIES = 1
"""Top-k keeps every id whose logit equals the k-th's."""
RULE_EXCLUSIVE = 2
"""Top-p keeps an id while the mass before it is at most p's share, not only below it."""
RULE_FULL_MASS = 4
"""Top-p's share is of the mass that top-k has not cut yet."""
RULE_MIN_P_FIRST = 8
"""Min-p comes before top-k and top-p."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """One sampler's rules.

    Attributes:
        ties: what top-k does with ids equal to the k-th.
        top_p_rule: which id is the first that top-p drops.
        top_p_base: whether top-p's share is of what top-k left, or of all.
        penalty_space: what the repetition penalty scales.
        min_p_first: min-p before top-k and top-p.
        filter_temperature: that of the filters; None is the draw's.
        greedy_below: a temperature below this takes the largest logit.
        zero_top_p_is_off: top-p 0 keeps all instead of one.
    """

    ties: Ties = "keep"
    top_p_rule: TopPRule = "reach"
    top_p_base: TopPBase = "survivors"
    penalty_space: PenaltySpace = "logits"
    min_p_first: bool = False
    filter_temperature: float | None = None
    greedy_below: float = 0.0
    zero_top_p_is_off: bool = False


RULES: dict[str, Rules] = {
    "hf": Rules(ties="index"),
    "emu3": Rules(penalty_space="logprobs"),
    "vllm": Rules(ties="index", min_p_first=True, greedy_below=1e-5),
    "fourm": Rules(
        top_p_rule="exclusive",
        filter_temperature=1.0,
        # its test is "within 1e-10 of 0", both ends included
        greedy_below=math.nextafter(1e-10, 1.0),
        zero_top_p_is_off=True,
    ),
    "chameleon": Rules(),
}


def nested_guidance(*scales: float) -> tuple[float, ...]:
    """Weights of streams that are guided one from the other, least conditioned first.

    u + g_1 (c_1 - u) + g_2 (c_2 - c_1) + ... is u + w_1 (c_1 - u) + w_2 (c_2 - u) + ... with
    w_i = g_i - g_(i+1). Chameleon and InstructPix2Pix guide the full context from the image alone, and that from
    nothing: `sample(image_only, uncond, streams=[full], guidance_scale=nested_guidance(1.2, 3.0))` is
    u + 1.2 (i - u) + 3.0 (f - i).

        >>> nested_guidance(1.5, 4.0)
        (-2.5, 4.0)
    """
    return tuple(
        scale - following for scale, following in zip(scales, (*scales[1:], 0.0), strict=True)
    )
