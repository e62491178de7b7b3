"""Where a row of documents is cut into parts such as train, valid and test.

The rule is megatron-core's (`NVIDIA/Megatron-LM`, `megatron/core/datasets/blended_megatron_dataset_config.py`
and `blended_megatron_dataset_builder.py`): weights are normalised, summed from the first to the last, and
each sum times the number of documents is rounded, halves to even. So the same string cuts at the same
documents as there.
"""

import itertools
import re
from collections.abc import Mapping

import numpy as np

MEGATRON_PARTS = ("train", "valid", "test")


def parse_split(split: str) -> dict[str, float]:
    """Weights of a string such as `969,30,1`: of train, valid and test; those left out are 0.

    Raises:
        ValueError: not one to three numbers.
    """
    numbers = re.findall(r"[.0-9]+", split)
    if not 1 <= len(numbers) <= len(MEGATRON_PARTS) or re.search(r"[^.0-9,;:/\s]", split):
        raise ValueError(
            f"a split is one to three weights such as '969,30,1' (train, valid, test), found {split!r}"
        )
    weights = [float(number) for number in numbers]
    weights += [0.0] * (len(MEGATRON_PARTS) - len(weights))
    return dict(zip(MEGATRON_PARTS, weights, strict=True))


def cut(weights: Mapping[str, float], num_documents: int) -> dict[str, tuple[int, int]]:
    """Range of documents of each part, in the order of the weights; together they are all documents.

    Raises:
        ValueError: no weight, a negative one or not a number, or all are 0.
    """
    values = np.array(list(weights.values()), dtype=np.float64)
    if not (values.size and np.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise ValueError(
            f"a split needs weights of at least 0, not all of them 0; found {dict(weights)}"
        )
    shares = (values / values.sum()).tolist()
    sums = itertools.accumulate(shares, initial=0.0)
    ends = [round(total * float(num_documents)) for total in sums]
    # The last sum may be a hair below 1; with very many documents that is one too few.
    ends = [min(end, num_documents) for end in ends]
    last = max(i for i, share in enumerate(shares) if share > 0)
    ends[last + 1 :] = [num_documents] * (len(ends) - last - 1)
    return dict(zip(weights, itertools.pairwise(ends), strict=True))
