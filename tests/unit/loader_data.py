"""A small dataset of caption-image documents, and loaders over it, for the loader's tests."""

from pathlib import Path

import numpy as np
import torch

from mmfast.data import IndexedDatasetBuilder, Loader, Source
from mmfast.data.batch import TENSOR_FIELDS
from mmfast.objectives import Cm3
from mmfast.vocab import Vocabulary

VOCABULARY = Vocabulary.build(
    300,
    roles=["eos", "pad", "break", "eoss", *(f"mask_{i}" for i in range(4))],
    codes=[("image", 64)],
)
EOS, PAD, BREAK = VOCABULARY["eos"], VOCABULARY["pad"], VOCABULARY["break"]
NUM_DOCUMENTS = 200


def write_pairs(prefix: Path, num_documents: int = NUM_DOCUMENTS, seed: int = 0) -> Path:
    """Caption-image documents; the first caption id is the document's number."""
    rng = np.random.default_rng(seed)
    with IndexedDatasetBuilder(prefix, multimodal=True) as builder:
        for number in range(num_documents):
            caption = rng.integers(10, 200, size=rng.integers(0, 12)).tolist()
            builder.add_item([EOS, number, *caption, BREAK])
            builder.add_item(
                VOCABULARY.ids_from_codes("image", rng.integers(0, 64, size=16)), mode=1
            )
            builder.add_item([EOS])
            builder.end_document()
    VOCABULARY.save(prefix.parent)
    return prefix


def make_loader(prefix: Path, **settings) -> Loader:
    settings = {
        "bin_tokens": 128,
        "global_batch_bins": 5,
        "seed": 3,
        "window_documents": 70,
        **settings,
    }
    sources = settings.pop("sources", [Source(prefix)])
    return Loader(sources, settings.pop("objective", Cm3()), **settings)


def take(loader: Loader, num_batches: int) -> list:
    iterator = iter(loader)
    return [next(iterator) for _ in range(num_batches)]


def documents_of(batch) -> list[torch.Tensor]:
    return [
        batch.input_ids[row, batch.document_ids[row] == number]
        for row in range(batch.num_rows)
        for number in range(1, int(batch.document_ids[row].max()) + 1)
    ]


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSOR_FIELDS)
