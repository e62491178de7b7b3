"""Writing documents: many in one call, and a call a document.

All contenders leave the bytes in the page cache; what the disk takes is shown by the cases that publish.
Ours makes checksums while it copies and checks every id against the dtype; of the peers only
MosaicML's writer makes checksums (xxh64, asked for). megatron-core, MosaicML and LitData know no batch
call; their loops get a fifth of the documents and are compared by rate.

megatron-core's signature asks for tensors; arrays work too and are faster; its own preprocessing gives
lists. All are shown, and ours is given the same.
"""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmfast.data import IndexedDatasetBuilder

FEWER_DOCUMENTS, FEWEST_DOCUMENTS = 20_000, 2_000
BATCH = pytest.mark.benchmark(group="write, batch call")
PER_DOCUMENT = pytest.mark.benchmark(group="write, a call a document")


@pytest.fixture
def folder(tmp_path: Path):
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def unpublished(folder: Path):
    """`unpublished()`: a new builder each time; the one before is aborted, outside the measured time."""
    builders: list[IndexedDatasetBuilder] = []

    def renew() -> None:
        while builders:
            builders.pop().abort()
        builders.append(IndexedDatasetBuilder(folder / "ours", dtype="int32"))

    yield renew, builders
    while builders:
        builders.pop().abort()


@pytest.fixture(scope="module")
def as_given(documents) -> Callable[[str], list]:
    """A fifth of the documents as `"arrays"` or `"tensors"`, a fiftieth as `"lists"`."""

    def convert(kind: str) -> list:
        if kind == "lists":
            return [document.tolist() for document in documents[:FEWEST_DOCUMENTS]]
        if kind == "arrays":
            return documents[:FEWER_DOCUMENTS]
        import torch

        return [torch.from_numpy(document) for document in documents[:FEWER_DOCUMENTS]]

    return convert


@BATCH
def test_batch_numpy(measure, corpus, folder) -> None:
    ids, _ = corpus
    measure("numpy tofile", lambda: ids.tofile(folder / "floor.bin"), ids.nbytes, "B", rounds=15)


@BATCH
def test_batch_mmfast(measure, corpus, unpublished) -> None:
    ids, lengths = corpus
    renew, builders = unpublished
    measure(
        "mmfast add_documents",
        lambda: builders[0].add_documents(ids, lengths),
        ids.nbytes,
        "B",
        setup=renew,
        rounds=15,
    )


@BATCH
def test_batch_mmfast_arrow(measure, corpus, unpublished) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    ids, lengths = corpus
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    documents = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))
    renew, builders = unpublished
    measure(
        "mmfast add_documents, an Arrow array",
        lambda: builders[0].add_documents(documents),
        ids.nbytes,
        "B",
        setup=renew,
    )


@BATCH
@pytest.mark.parametrize("journaled", [False, True], ids=["", "journaled"])
def test_batch_mmfast_published(measure, corpus, folder, journaled) -> None:
    """A journal acknowledges documents every 64 MiB, with an fsync."""
    ids, lengths = corpus

    def write() -> None:
        with IndexedDatasetBuilder(folder / "ours", dtype="int32", resume=journaled) as builder:
            builder.add_documents(ids, lengths)

    words = "journaled, published" if journaled else "published"
    measure(f"mmfast add_documents, {words} (fsync)", write, ids.nbytes, "B")


@BATCH
def test_batch_pyarrow(measure, corpus, folder) -> None:
    """Record batches of 1,000 documents that refer to the ids in place, as an IPC stream."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    ids, lengths = corpus
    values = pa.array(ids)
    schema = pa.schema([("ids", pa.list_(pa.int32()))])
    options = pa.ipc.IpcWriteOptions(use_threads=False)

    def write() -> None:
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        with (
            pa.OSFile(str(folder / "peer.arrow"), "wb") as file,
            pa.ipc.new_stream(file, schema, options=options) as writer,
        ):
            for start in range(0, len(lengths), 1_000):
                part = ends[start : start + 1_001]
                column = pa.ListArray.from_arrays(
                    pa.array((part - part[0]).astype(np.int32)),
                    values.slice(part[0], part[-1] - part[0]),
                )
                writer.write_batch(pa.record_batch([column], schema=schema))

    measure("pyarrow stream, 1,000 a batch", write, ids.nbytes, "B")


@BATCH
@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_batch_megatron(measure, as_given, folder, kind) -> None:
    peer = megatron()
    given = as_given(kind)
    num_bytes = sum(document.nbytes for document in given)

    def write() -> None:
        builder = peer.IndexedDatasetBuilder(str(folder / "peer.bin"), dtype=np.int32)
        for document in given:
            builder.add_document(document, [len(document)])
        builder.data_file.close()

    measure(f"megatron-core add_document, {kind}", write, num_bytes, "B")


@BATCH
def test_batch_mosaicml(measure, documents, folder) -> None:
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed")
    given = documents[:FEWER_DOCUMENTS]

    def write() -> None:
        with streaming.MDSWriter(
            columns={"ids": "bytes"}, out=str(folder / "mds"), hashes=["xxh64"]
        ) as writer:
            for document in given:
                writer.write({"ids": document.tobytes()})

    measure(
        "mosaicml-streaming MDSWriter, xxh64",
        write,
        sum(document.nbytes for document in given),
        "B",
        setup=lambda: shutil.rmtree(folder / "mds", ignore_errors=True),
    )


@BATCH
def test_batch_litdata(measure, documents, folder) -> None:
    """Its `BinaryWriter`, which `optimize` runs in worker processes, called directly."""
    writer_module = pytest.importorskip(
        "litdata.streaming.writer", reason="litdata is not installed"
    )
    import torch
    from litdata import TokensLoader

    given = [torch.from_numpy(document) for document in documents[:FEWER_DOCUMENTS]]
    folders = itertools.count()

    def write() -> None:
        writer = writer_module.BinaryWriter(
            str(folder / f"litdata-{next(folders)}"),
            chunk_bytes="64MB",
            item_loader=TokensLoader(),
        )
        for index, document in enumerate(given):
            writer.add_item(index, document)
        writer.done()
        writer.merge()

    measure("litdata BinaryWriter, tokens", write, sum(d.nbytes for d in given), "B")


@PER_DOCUMENT
@pytest.mark.parametrize("kind", ["tensors", "arrays", "lists"])
def test_per_document_mmfast(measure, as_given, unpublished, kind) -> None:
    given = as_given(kind)
    renew, builders = unpublished

    def write() -> None:
        add_document = builders[0].add_document
        for document in given:
            add_document(document, [len(document)])

    measure(f"mmfast add_document, {kind}", write, len(given), "documents", setup=renew, rounds=7)


@PER_DOCUMENT
def test_per_document_mmfast_published(measure, as_given, folder) -> None:
    given = as_given("arrays")

    def write() -> None:
        with IndexedDatasetBuilder(folder / "ours", dtype="int32") as builder:
            for document in given:
                builder.add_document(document, [len(document)])

    measure("mmfast add_document, arrays, published (fsync)", write, len(given), "documents")


@PER_DOCUMENT
@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_per_document_mmfast_items(measure, as_given, unpublished, kind) -> None:
    given = as_given(kind)
    renew, builders = unpublished

    def write() -> None:
        builder = builders[0]
        for document in given:
            builder.add_item(document)
            builder.end_document()

    contender = f"mmfast add_item + end_document, {kind}"
    measure(contender, write, len(given), "documents", setup=renew)


@PER_DOCUMENT
@pytest.mark.parametrize("kind", ["tensors", "arrays", "lists"])
def test_per_document_megatron(measure, as_given, folder, kind) -> None:
    peer = megatron()
    given = as_given(kind)

    def write() -> None:
        builder = peer.IndexedDatasetBuilder(str(folder / "peer.bin"), dtype=np.int32)
        for document in given:
            builder.add_document(document, [len(document)])
        builder.data_file.close()

    measure(f"megatron-core add_document, {kind}", write, len(given), "documents", rounds=7)


@PER_DOCUMENT
def test_per_document_megatron_finalized(measure, as_given, folder) -> None:
    peer = megatron()
    given = as_given("arrays")

    def write() -> None:
        builder = peer.IndexedDatasetBuilder(str(folder / "peer.bin"), dtype=np.int32)
        for document in given:
            builder.add_document(document, [len(document)])
        builder.finalize(str(folder / "peer.idx"))

    contender = "megatron-core add_document, arrays, finalized (no fsync)"
    measure(contender, write, len(given), "documents")


@PER_DOCUMENT
def test_per_document_megatron_items(measure, as_given, folder) -> None:
    peer = megatron()
    given = as_given("tensors")

    def write() -> None:
        builder = peer.IndexedDatasetBuilder(str(folder / "peer.bin"), dtype=np.int32)
        for document in given:
            builder.add_item(document)
            builder.end_document()
        builder.data_file.close()

    measure("megatron-core add_item + end_document, tensors", write, len(given), "documents")


def megatron():
    return pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
