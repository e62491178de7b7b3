"""The corpus as each peer stores it: whole documents, and rows of 4,096 ids cut from them back to back.

Every peer gets the settings that are fastest for it among the reasonable ones: no compression, 64 MiB
shards, ids as plain bytes where it has no cheaper way.
"""

import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROW = 4_096
NUM_SHARDS, SHARD_DOCUMENTS, SHARD_LENGTH = 200, 10_000, 16


@pytest.fixture(scope="session")
def rows(corpus) -> np.ndarray:
    """The corpus cut into rows, int32 `[N, 4096]`; a view."""
    ids, _ = corpus
    return ids[: len(ids) // ROW * ROW].reshape(-1, ROW)


@pytest.fixture(scope="session")
def shards(corpus, tmp_path_factory) -> list[Path]:
    """200 datasets of 10,000 documents of 16 ids."""
    from mmfast.data import IndexedDatasetBuilder

    ids, _ = corpus
    folder = tmp_path_factory.mktemp("shards")
    lengths = np.full(SHARD_DOCUMENTS, SHARD_LENGTH)
    prefixes = [folder / f"shard-{number:03}" for number in range(NUM_SHARDS)]
    for number, prefix in enumerate(prefixes):
        with IndexedDatasetBuilder(prefix, dtype="int32") as builder:
            builder.add_documents(ids[number * lengths.sum() :][: lengths.sum()], lengths)
    return prefixes


@pytest.fixture(scope="session")
def megatron_dataset(dataset_prefix):
    """megatron-core's reader on the files that ours reads."""
    peer = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    return peer.IndexedDataset(str(dataset_prefix))


@pytest.fixture(scope="session")
def gpt_dataset() -> Callable:
    """`gpt_dataset(low_level, cache)`: megatron-core's samples of 4,096 ids, shuffled, over all documents.

    Without masks that nobody asked for; its indices are kept in the folder `cache`.
    """
    peer = pytest.importorskip(
        "megatron.core.datasets.gpt_dataset", reason="megatron-core is not installed"
    )
    from megatron.core.datasets.utils import Split

    def make(low_level, cache: Path):
        config = peer.GPTDatasetConfig(
            random_seed=1,
            sequence_length=ROW,
            split="1,0,0",
            path_to_cache=str(cache),
            tokenizer=types.SimpleNamespace(
                eod=-2, pad=-1, vocab_size=65_000, unique_identifiers={"class": "none"}
            ),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        indices = np.arange(len(low_level), dtype=np.int32)
        return peer.GPTDataset(low_level, None, indices, None, Split.train, config)

    return make


@pytest.fixture(scope="session")
def arrow_documents(corpus, tmp_path_factory):
    """A Hugging Face dataset of lists of int32, mapped from an Arrow file, batches of 1,000."""
    ids, lengths = corpus
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))
    return _arrow_dataset(column, tmp_path_factory.mktemp("arrow") / "documents.arrow")


@pytest.fixture(scope="session")
def arrow_rows(rows, tmp_path_factory):
    """A Hugging Face dataset of fixed-size lists."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), ROW)
    return _arrow_dataset(column, tmp_path_factory.mktemp("arrow") / "rows.arrow")


def _arrow_dataset(column, path: Path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    import pyarrow as pa

    table = pa.table({"ids": column})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1_000)
    return datasets.Dataset.from_file(str(path))


@pytest.fixture(scope="session")
def mosaicml_documents(documents, tmp_path_factory) -> Path:
    return _mosaicml_folder(documents, tmp_path_factory.mktemp("mds") / "documents")


@pytest.fixture(scope="session")
def mosaicml_rows(rows, tmp_path_factory) -> Path:
    return _mosaicml_folder(rows, tmp_path_factory.mktemp("mds") / "rows")


def _mosaicml_folder(samples, folder: Path) -> Path:
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed")
    streaming.base.util.clean_stale_shared_memory()
    with streaming.MDSWriter(columns={"ids": "bytes"}, out=str(folder)) as writer:
        for sample in samples:
            writer.write({"ids": sample.tobytes()})
    return folder


@pytest.fixture(scope="session")
def litdata_documents(documents, tmp_path_factory) -> Path:
    """A fifth of the documents, one an item."""
    folder = tmp_path_factory.mktemp("litdata") / "documents"
    return _litdata_folder(documents[:20_000], folder)


@pytest.fixture(scope="session")
def litdata_tokens(rows, tmp_path_factory) -> Path:
    """The rows for its `TokensLoader`."""
    pytest.importorskip("litdata", reason="litdata is not installed")
    from litdata import TokensLoader

    return _litdata_folder(rows, tmp_path_factory.mktemp("litdata") / "tokens", TokensLoader())


def _litdata_folder(samples, folder: Path, item_loader=None) -> Path:
    writer_module = pytest.importorskip(
        "litdata.streaming.writer", reason="litdata is not installed"
    )
    import torch

    writer = writer_module.BinaryWriter(str(folder), chunk_bytes="64MB", item_loader=item_loader)
    for index, sample in enumerate(samples):
        writer.add_item(index, torch.from_numpy(sample))
    writer.done()
    writer.merge()
    return folder
