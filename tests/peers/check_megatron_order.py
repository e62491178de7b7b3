"""Holds our Megatron order against megatron-core's own `GPTDataset`: indices and samples.

Runs where megatron-core is installed and mmfast is not (`make peers`), on what `orders.py` has written.
Usage: `python tests/peers/check_megatron_order.py FOLDER`
"""

import json
import logging
import sys
import types
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of every optional accelerator that is not there
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

INDICES = ("document_index", "sample_index", "shuffle_index")
SAMPLE_PARTS = ("tokens", "labels", "loss_mask")


def peer_dataset(low_level: IndexedDataset, case: dict) -> GPTDataset:
    """megatron-core's dataset of a case, built without a cache."""
    tokenizer = types.SimpleNamespace(
        eod=-2, pad=-1, vocab_size=1_000, unique_identifiers={"class": "none"}
    )
    config = GPTDatasetConfig(
        random_seed=case["seed"],
        sequence_length=case["sequence_length"],
        split="1,0,0",
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        drop_last_partial_validation_sequence=case["drop_last"],
        add_extra_token_to_sequence=case["extra_token"],
    )
    indices = np.arange(*case["sequences"], dtype=np.int32)
    return GPTDataset(low_level, None, indices, case["num_samples"], Split[case["split"]], config)


def main() -> int:
    logging.disable(logging.WARNING)  # it warns that the indices are not cached
    folder = Path(sys.argv[1])
    cases = json.loads((folder / "cases.json").read_text())
    low_level = IndexedDataset(str(folder / "text"))
    failed = 0
    with np.load(folder / "orders.npz") as ours:
        for i, case in enumerate(cases):
            peer = peer_dataset(low_level, case)
            # Its cache holds the very mask that the first item edits: where that one is padded, every
            # later item loses the loss at those positions too.
            peer.masks_and_position_ids_are_cacheable = False
            found = []
            for name in INDICES:
                expected, array = getattr(peer, name), ours[f"{i} {name}"]
                if array.dtype != expected.dtype or not np.array_equal(array, expected):
                    found.append(name)
            for row, sample in enumerate(case["compared"]):
                item = peer[sample]
                for name in SAMPLE_PARTS:
                    if not np.array_equal(ours[f"{i} {name}"][row], item[name].numpy()):
                        found.append(f"{name} of sample {sample}")
            if found:
                failed += 1
                sys.stdout.write(f"DIFFERS {case}: {', '.join(found[:5])}\n")
    sys.stdout.write(
        f"megatron-core {version('megatron-core')} GPTDataset order: "
        f"{len(cases) - failed} passed, {failed} failed\n"
    )
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
