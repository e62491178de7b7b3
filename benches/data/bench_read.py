"""Reading documents at random places.

Every contender reads the same ids and gives the last one of each document or batch to Python. `batched`
and `copied` end with ids of 32 documents back to back in one array, as a batch needs them; `in place`
looks at one document at a time and copies nothing. LitData has a fifth of the documents. Without a map,
as on network file systems, ours keeps the file open and megatron-core opens it for each read.
"""

import numpy as np
import pytest

from mmfast.data import IndexedDataset

NUM_READS = 20_000
NUM_SLOW_READS = 2_000
BATCH = 32
READ = pytest.mark.benchmark(group="read, random documents")
UNMAPPED = pytest.mark.benchmark(group="read, random documents, no map")


@pytest.fixture(scope="module")
def indices() -> list[int]:
    return np.random.default_rng(1).integers(0, 100_000, NUM_READS).tolist()


@pytest.fixture(scope="module")
def batches(indices) -> list[list[int]]:
    return [indices[i : i + BATCH] for i in range(0, NUM_READS, BATCH)]


@READ
def test_read_mmfast_batched(measure, dataset_prefix, batches) -> None:
    dataset = IndexedDataset(dataset_prefix)
    out = np.empty(BATCH * 16_384, np.int32)

    def read() -> int:
        return sum(int(dataset.read(batch, out=out)[0][-1]) for batch in batches)

    measure("mmfast read, batched by 32", read, NUM_READS, "documents", rounds=7)


@READ
def test_read_mmfast(measure, dataset_prefix, indices) -> None:
    dataset = IndexedDataset(dataset_prefix)

    def read() -> int:
        return sum(int(dataset[i][-1]) for i in indices)

    measure("mmfast ds[i], in place", read, NUM_READS, "documents", rounds=7)


@READ
def test_read_megatron(measure, megatron_dataset, indices) -> None:
    def read() -> int:
        return sum(int(megatron_dataset[i][-1]) for i in indices)

    measure("megatron-core ds[i], in place", read, NUM_READS, "documents", rounds=7)


@READ
def test_read_megatron_copied(measure, megatron_dataset, batches) -> None:
    def read() -> int:
        return sum(int(np.concatenate([megatron_dataset[i] for i in b])[-1]) for b in batches)

    measure("megatron-core ds[i], copied by 32", read, NUM_READS, "documents", rounds=7)


@READ
def test_read_datasets(measure, arrow_documents, indices) -> None:
    dataset = arrow_documents.with_format("numpy")
    chosen = indices[:NUM_SLOW_READS]

    def read() -> int:
        return sum(int(dataset[i]["ids"][-1]) for i in chosen)

    measure("datasets ds[i], numpy", read, len(chosen), "documents")


@READ
def test_read_datasets_batched(measure, arrow_documents, batches) -> None:
    dataset = arrow_documents.with_format("numpy")
    chosen = batches[: NUM_SLOW_READS // BATCH]

    def read() -> int:
        return sum(int(np.concatenate(list(dataset[batch]["ids"]))[-1]) for batch in chosen)

    contender = "datasets ds[indices], numpy, by 32"
    measure(contender, read, len(chosen) * BATCH, "documents")


@READ
def test_read_datasets_arrow(measure, arrow_documents, batches) -> None:
    """Its fastest way: Arrow's own gather, and the values as an array without a copy."""
    dataset = arrow_documents.with_format("arrow")

    def read() -> int:
        total = 0
        for batch in batches:
            column = dataset[batch]["ids"].combine_chunks()
            total += int(column.flatten().to_numpy()[-1])
        return total

    measure("datasets ds[indices], arrow, by 32", read, NUM_READS, "documents")


@READ
def test_read_mosaicml(measure, mosaicml_documents, indices) -> None:
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed")
    dataset = streaming.StreamingDataset(local=str(mosaicml_documents), batch_size=1)
    chosen = indices[:NUM_SLOW_READS]

    def read() -> int:
        return sum(int(np.frombuffer(dataset[i]["ids"], np.int32)[-1]) for i in chosen)

    measure("mosaicml-streaming ds[i]", read, len(chosen), "documents")


@READ
def test_read_litdata(measure, litdata_documents, indices) -> None:
    litdata = pytest.importorskip("litdata", reason="litdata is not installed")
    dataset = litdata.StreamingDataset(str(litdata_documents))
    chosen = [i % len(dataset) for i in indices[:NUM_SLOW_READS]]

    def read() -> int:
        return sum(int(dataset[i][-1]) for i in chosen)

    measure("litdata ds[i]", read, len(chosen), "documents")


@UNMAPPED
def test_read_unmapped_mmfast(measure, dataset_prefix, batches) -> None:
    dataset = IndexedDataset(dataset_prefix, access="pread")
    out = np.empty(BATCH * 16_384, np.int32)

    def read() -> int:
        return sum(int(dataset.read(batch, out=out)[0][-1]) for batch in batches)

    measure('mmfast access="pread", batched by 32', read, NUM_READS, "documents", rounds=7)


@UNMAPPED
def test_read_unmapped_megatron(measure, dataset_prefix, indices) -> None:
    peer = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    dataset = peer.IndexedDataset(str(dataset_prefix), mmap=False)

    def read() -> int:
        return sum(int(dataset[i][-1]) for i in indices)

    measure("megatron-core mmap=False, ds[i]", read, NUM_READS, "documents", rounds=7)
