"""Writing and reading indexed datasets, beside numpy (the floor) and megatron-core (the peer)."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mmfast.data import IndexedDataset, IndexedDatasetBuilder

NUM_PER_DOCUMENT_CALLS = 20_000
NUM_RANDOM_READS = 20_000


@pytest.fixture
def folder(tmp_path: Path):
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.benchmark(group="write, batch call")
def test_write_numpy_tofile(benchmark, corpus, folder, rate) -> None:
    ids, _ = corpus
    rate(ids.nbytes, "B")
    benchmark.pedantic(lambda: ids.tofile(folder / "floor.bin"), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="write, batch call")
def test_write_mmfast(benchmark, corpus, folder, rate) -> None:
    ids, lengths = corpus
    rate(ids.nbytes, "B")
    # Like the floor, without the fsync of publishing; that is the disk's figure, not the writer's.
    open_builders = []

    def new_builder() -> tuple[tuple[IndexedDatasetBuilder], dict]:
        while open_builders:
            open_builders.pop().abort()
        open_builders.append(IndexedDatasetBuilder(folder / "ours", dtype="int32"))
        return (open_builders[0],), {}

    def write(builder: IndexedDatasetBuilder) -> None:
        builder.add_documents(ids, lengths)

    benchmark.pedantic(write, setup=new_builder, rounds=5, warmup_rounds=1)
    open_builders.pop().abort()


def pieces(corpus) -> list[np.ndarray]:
    ids, lengths = corpus
    ends = np.cumsum(lengths[:NUM_PER_DOCUMENT_CALLS])
    return np.split(ids[: ends[-1]], ends[:-1])


@pytest.mark.benchmark(group="write, a call per document")
def test_write_per_document_mmfast(benchmark, corpus, folder, rate) -> None:
    documents = pieces(corpus)
    rate(len(documents), "documents")

    def write() -> None:
        with IndexedDatasetBuilder(folder / "ours", dtype="int32") as builder:
            for document in documents:
                builder.add_document(document, [len(document)])

    benchmark.pedantic(write, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="write, a call per document")
def test_write_per_document_megatron(benchmark, corpus, folder, rate) -> None:
    peer = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    import torch

    documents = [torch.from_numpy(document.copy()) for document in pieces(corpus)]
    rate(len(documents), "documents")

    def write() -> None:
        builder = peer.IndexedDatasetBuilder(str(folder / "peer.bin"), dtype=np.int32)
        for document in documents:
            builder.add_document(document, [len(document)])
        builder.finalize(str(folder / "peer.idx"))

    benchmark.pedantic(write, rounds=5, warmup_rounds=1)


@pytest.fixture(scope="module")
def random_indices() -> list[int]:
    return np.random.default_rng(1).integers(0, 100_000, NUM_RANDOM_READS).tolist()


@pytest.mark.benchmark(group="read, random documents")
def test_read_mmfast(benchmark, dataset_prefix, random_indices, rate) -> None:
    dataset = IndexedDataset(dataset_prefix)
    rate(NUM_RANDOM_READS, "documents")
    benchmark.pedantic(
        lambda: sum(int(dataset[i][-1]) for i in random_indices), rounds=7, warmup_rounds=1
    )


@pytest.mark.benchmark(group="read, random documents")
def test_read_batched_mmfast(benchmark, dataset_prefix, random_indices, rate) -> None:
    """One call for every 64 documents, copied out; the cases beside it read one at a time in place."""
    dataset = IndexedDataset(dataset_prefix)
    batches = [random_indices[i : i + 64] for i in range(0, NUM_RANDOM_READS, 64)]
    out = np.empty(64 * 16_384, np.int32)
    rate(NUM_RANDOM_READS, "documents")
    benchmark.pedantic(
        lambda: sum(int(dataset.read(batch, out=out)[0][-1]) for batch in batches),
        rounds=7,
        warmup_rounds=1,
    )


@pytest.mark.benchmark(group="read, random documents")
def test_read_copied_megatron(benchmark, dataset_prefix, random_indices, rate) -> None:
    """megatron-core's documents copied out, as any batch needs them."""
    peer = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    dataset = peer.IndexedDataset(str(dataset_prefix))
    batches = [random_indices[i : i + 64] for i in range(0, NUM_RANDOM_READS, 64)]
    rate(NUM_RANDOM_READS, "documents")
    benchmark.pedantic(
        lambda: sum(int(np.concatenate([dataset[i] for i in b])[-1]) for b in batches),
        rounds=7,
        warmup_rounds=1,
    )


@pytest.mark.benchmark(group="read, random documents")
def test_read_megatron(benchmark, dataset_prefix, random_indices, rate) -> None:
    peer = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    dataset = peer.IndexedDataset(str(dataset_prefix))
    rate(NUM_RANDOM_READS, "documents")
    benchmark.pedantic(
        lambda: sum(int(dataset[i][-1]) for i in random_indices), rounds=7, warmup_rounds=1
    )


@pytest.mark.benchmark(group="open")
def test_open_mmfast(benchmark, dataset_prefix, rate) -> None:
    rate(1, "datasets")
    benchmark.pedantic(lambda: IndexedDataset(dataset_prefix), rounds=20, warmup_rounds=1)


@pytest.mark.benchmark(group="open")
def test_open_megatron(benchmark, dataset_prefix, rate) -> None:
    peer = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    rate(1, "datasets")
    benchmark.pedantic(lambda: peer.IndexedDataset(str(dataset_prefix)), rounds=20, warmup_rounds=1)
