"""Writes a dataset and, for many settings, the three indices of `MegatronOrder` over it.

`check_megatron_order.py` compares them with megatron-core's in an environment of its own. Usage:
`python tests/peers/orders.py FOLDER`.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np

from mmfast.data import IndexedDatasetBuilder, MegatronOrder

NUM_SEQUENCES = 300
LENGTHS = (7, 64)
SEEDS = (0, 1234, 2**32 - 1)
# Of one epoch: less than one, a short second epoch (shuffled on its own), a long one, several.
EPOCH_SHARES = (None, 0.5, 1.1, 1.9, 3.3, 3.95)
# Sequences `start..stop` of the training and the validation split.
SPLITS = {"train": (0, 290), "valid": (290, 300)}
NUM_COMPARED_SAMPLES = 20


def settings(lengths: np.ndarray) -> list[dict]:
    """Every combination, as the arguments of `MegatronOrder` and the name of the split."""
    found = []
    for split, length, share, seed, extra_token in itertools.product(
        SPLITS, LENGTHS, EPOCH_SHARES, SEEDS, (True, False)
    ):
        start, stop = SPLITS[split]
        per_epoch = (int(lengths[start:stop].sum()) - extra_token) // length
        found.append(
            {
                "split": split,
                "sequence_length": length,
                "num_samples": None if share is None else int(share * per_epoch),
                "seed": seed,
                "sequences": (start, stop),
                "extra_token": extra_token,
                # Megatron keeps a last partial sample in the validation split only, on request.
                "drop_last": split == "train",
            }
        )
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    lengths = generator.integers(0, 61, NUM_SEQUENCES)
    # A partial sample at the end of an empty sequence is an assertion in megatron-core.
    lengths[SPLITS["valid"][0] :] += 1
    with IndexedDatasetBuilder(folder / "text", dtype="int32") as builder:
        builder.add_documents(generator.integers(0, 1_000, lengths.sum()), lengths)
    arrays = {}
    cases = settings(lengths)
    for i, case in enumerate(cases):
        order = MegatronOrder(folder / "text", **{k: v for k, v in case.items() if k != "split"})
        arrays[f"{i} document_index"] = order.document_index
        arrays[f"{i} sample_index"] = order.sample_index
        arrays[f"{i} shuffle_index"] = order.shuffle_index
        # The first samples and the last, which may be a padded one.
        compared = sorted({*range(min(NUM_COMPARED_SAMPLES, len(order))), len(order) - 1})
        for name in ("tokens", "labels", "loss_mask"):
            arrays[f"{i} {name}"] = np.stack([getattr(order[k], name) for k in compared])
        case["compared"] = compared
    np.savez(folder / "orders.npz", **arrays)
    (folder / "cases.json").write_text(json.dumps(cases))


if __name__ == "__main__":
    main()
