"""The sampler on CUDA: fused kernels draw what `reference.draw` defines, bit for bit.

`why_not` says what the kernels cannot take; `draw` hands over what they can.
"""

import os

from mmfast.sampling.inputs import DrawInputs
from mmfast.sampling.orders import RULE_KEEP_TIES, RULE_MIN_P_FIRST
from mmfast.sampling.reference import Draw


def why_not(inputs: DrawInputs) -> str | None:
    """What keeps the kernels from drawing from these inputs, None if nothing does."""
    from mmfast.kernels import MAX_RANGE

    params = inputs.params
    if len(inputs.conditions) > 1:
        return "the Triton kernel mixes one conditional stream"
    if inputs.num_ids > MAX_RANGE:
        return f"the Triton kernel reads at most {MAX_RANGE} allowed ids, not {inputs.num_ids}"
    if params.uses_contrast or params.uses_penalty or params.filters_apart:
        return "the Triton kernel has no contrast, penalty or filter temperature"
    if inputs.num_draws > 1 or inputs.positions is not None:
        return "the Triton kernel draws one token a row, at position 0"
    if len(params.rule_sets) > 1 or params.rule_sets - {0, 1, 8, 9}:
        return "the Triton kernel has one rule for ties and the place of min-p for all rows"
    if not (inputs.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
        return "the Triton kernel needs CUDA tensors (or TRITON_INTERPRET=1)"
    return None


def draw(inputs: DrawInputs) -> Draw:
    """As `reference.draw`, for inputs that `why_not` has nothing against."""
    from mmfast.kernels.sample_range import sample_range

    params = inputs.params
    rules = min(params.rule_sets, default=0)
    tokens, num_kept, log2_probabilities, status = sample_range(
        inputs.conditions[0],
        inputs.unconditional,
        support=inputs.support(),
        guidance=params.guidance[0],
        bits_per_logit=params.bits_per_logit,
        greedy=params.greedy,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seeds=inputs.seeds,
        steps=inputs.steps,
        keep_ties=rules & RULE_KEEP_TIES != 0,
        min_p_first=rules & RULE_MIN_P_FIRST != 0,
    )
    return Draw(tokens[:, None], num_kept, log2_probabilities[:, None], status)
