"""Going on in the middle of a stream: from a saved state to the first batch of 32 rows of 4,096 ids.

Each round goes to another place, so nothing is left over from the round before. `warm` has the loader
at hand and sets it to the state; `new` also makes loader and dataset, as a new process does. megatron-core
has no state to load: it makes its `GPTDataset`, from cached indices on disk or without, and leaves out
the samples that were consumed. MosaicML draws the order of the whole epoch again. Ours plans one window
again when documents are packed, and nothing when they are not.
"""

from itertools import count

import numpy as np
import pytest
import torch

from mmfast.data import Loader, Source
from mmfast.objectives import NextToken
from mmfast.vocab import Vocabulary

ROWS, LENGTH = 32, 4_096
# Window and row to go to: about 17,500 rows a window where documents are packed, else one.
PLACES = {
    "best_fit": [(7 * number % 97, 1_301 * number % 16_000) for number in range(1, 40)],
    "none": [(1_301 * number, 0) for number in range(1, 40)],
}
pytestmark = pytest.mark.benchmark(group="resume, to the first batch of 32 x 4,096")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.build(65_000, roles=("eos", "pad"))


def new_loader(prefix, vocabulary: Vocabulary, **options) -> Loader:
    return Loader(
        sources=[Source(prefix)],
        objective=NextToken(),
        vocabulary=vocabulary,
        bin_tokens=LENGTH,
        global_batch_bins=ROWS,
        overlong="truncate",
        prefetch_batches=0,
        **options,
    )


@pytest.mark.parametrize("kind", ["warm", "new"])
@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_resume_mmfast(measure, dataset_prefix, vocabulary, packing, kind) -> None:
    loader = new_loader(dataset_prefix, vocabulary, packing=packing)
    start = loader.state_dict()
    places = iter(PLACES[packing])

    def resume() -> None:
        window, row = next(places)
        chosen = loader
        if kind == "new":
            chosen = new_loader(dataset_prefix, vocabulary, packing=packing)
        chosen.load_state_dict(start | {"window": window, "bin": row})
        next(iter(chosen))

    words = {"best_fit": "packed", "none": "unpacked"}[packing]
    measure(f"mmfast Loader, {words}, {kind}", resume, 1, "resumes", rounds=15, warmup_rounds=2)


@pytest.mark.parametrize("indices", ["cached", "built"])
def test_resume_megatron(measure, gpt_dataset, dataset_prefix, tmp_path, indices) -> None:
    peer = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    num_rows = len(gpt_dataset(peer.IndexedDataset(str(dataset_prefix)), tmp_path / "cache"))
    numbers = count(1)

    def resume() -> None:
        number = next(numbers)
        folder = tmp_path / ("cache" if indices == "cached" else f"cache-{number}")
        dataset = gpt_dataset(peer.IndexedDataset(str(dataset_prefix)), folder)
        consumed = 1_301 * number % (num_rows - ROWS)
        samples = [dataset[i] for i in range(consumed, consumed + ROWS)]
        torch.utils.data.default_collate(samples)

    measure(f"megatron-core GPTDataset, indices {indices}, new", resume, 1, "resumes", rounds=9)


def test_resume_mosaicml(measure, mosaicml_rows) -> None:
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed")
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(local=str(mosaicml_rows), batch_size=ROWS, shuffle=True)
    numbers = count(1)

    def resume() -> None:
        dataset.load_state_dict(
            {
                "epoch": dataset.next_epoch,
                "sample_in_epoch": 1_301 * next(numbers) % (len(dataset) // ROWS) * ROWS,
                "num_canonical_nodes": 1,
                "shuffle_seed": 9_176,
                "initial_physical_nodes": 1,
            }
        )
        samples = iter(dataset)
        chosen = [np.frombuffer(next(samples)["ids"], np.int32) for _ in range(ROWS)]
        torch.from_numpy(np.stack(chosen).astype(np.int64))
        samples.close()

    contender = "mosaicml-streaming StreamingDataset, warm"
    measure(contender, resume, 1, "resumes", rounds=9)
