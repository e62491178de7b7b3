"""Merging datasets: bytes a second of a few large ones, and memory for many small ones.

Ours takes over the checksums of the parts and checks each part as it opens it. Without publishing, both
leave the joined bytes in the page cache; megatron-core then writes its index, never with an fsync.
Memory is what a fresh process takes on top of what it held before the merge, at its peak.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmfast.data import IndexedDatasetBuilder, merge_datasets

NUM_PARTS = 8
NUM_PEER_SHARDS = 10
FEW = pytest.mark.benchmark(group="merge, 8 parts of 55 MB")
MANY = pytest.mark.benchmark(group="merge, 200 shards of 10,000 documents")

# A peak that the kernel keeps for the process, set back before the merge.
PEAK_OF_MERGE = """
import sys
from pathlib import Path

def kib(name):
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])

{setup}
output, prefixes = sys.argv[1], sys.argv[2:]
merge(output + "-warm", prefixes[:2])
Path("/proc/self/clear_refs").write_text("5")
before = kib("VmRSS")
merge(output, prefixes)
print(kib("VmHWM") - before)
"""
MERGE_WITH_MMFAST = """
from mmfast.data import merge_datasets as merge
"""
MERGE_WITH_MEGATRON = """
import numpy
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

def merge(output, prefixes):
    builder = IndexedDatasetBuilder(output + ".bin", dtype=numpy.int32)
    for prefix in prefixes:
        builder.add_index(prefix)
    builder.finalize(output + ".idx")
"""


@pytest.fixture
def folder(tmp_path: Path):
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="module")
def parts(corpus, tmp_path_factory) -> list[Path]:
    """The corpus in eight datasets."""
    ids, lengths = corpus
    folder = tmp_path_factory.mktemp("parts")
    prefixes, start = [], 0
    for number, part in enumerate(np.array_split(lengths, NUM_PARTS)):
        prefixes.append(folder / f"part-{number}")
        with IndexedDatasetBuilder(prefixes[-1], dtype="int32") as builder:
            builder.add_documents(ids[start : start + part.sum()], part)
        start += part.sum()
    return prefixes


@FEW
def test_merge_kernel(measure, corpus, parts, folder) -> None:
    """The floor: the kernel copies the files one after another."""

    def merge() -> None:
        with (folder / "floor.bin").open("wb") as output:
            for prefix in parts:
                with Path(f"{prefix}.bin").open("rb") as part:
                    left = os.fstat(part.fileno()).st_size
                    while left:
                        left -= os.copy_file_range(part.fileno(), output.fileno(), left)

    measure("copy_file_range", merge, corpus[0].nbytes, "B")


@FEW
def test_merge_mmfast(measure, corpus, parts, folder) -> None:
    builders: list[IndexedDatasetBuilder] = []

    def renew() -> None:
        while builders:
            builders.pop().abort()
        builders.append(IndexedDatasetBuilder(folder / "ours", dtype="int32"))

    def merge() -> None:
        for prefix in parts:
            builders[0].add_index(prefix)

    measure("mmfast add_index", merge, corpus[0].nbytes, "B", setup=renew)
    builders.pop().abort()


@FEW
def test_merge_mmfast_published(measure, corpus, parts, folder) -> None:
    measure(
        "mmfast merge_datasets, published (fsync)",
        lambda: merge_datasets(folder / "ours", parts),
        corpus[0].nbytes,
        "B",
    )


@FEW
def test_merge_megatron(measure, corpus, parts, folder) -> None:
    peer = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )

    def merge() -> None:
        builder = peer.IndexedDatasetBuilder(str(folder / "peer.bin"), dtype=np.int32)
        for prefix in parts:
            builder.add_index(str(prefix))
        builder.data_file.close()

    measure("megatron-core add_index", merge, corpus[0].nbytes, "B")


@MANY
def test_merge_many_mmfast(measure, shards, folder) -> None:
    peak = peak_kib(MERGE_WITH_MMFAST, folder, shards)
    measure(
        "mmfast merge_datasets, published (fsync)",
        lambda: merge_datasets(folder / "ours", shards),
        len(shards),
        "shards",
        kib_per_shard=peak / len(shards),
    )


@MANY
def test_merge_many_megatron(measure, shards, folder) -> None:
    """Ten of the shards: it collects garbage after each, which takes long beside a large heap."""
    some = shards[:NUM_PEER_SHARDS]
    peer = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )

    def merge() -> None:
        builder = peer.IndexedDatasetBuilder(str(folder / "peer.bin"), dtype=np.int32)
        for prefix in some:
            builder.add_index(str(prefix))
        builder.finalize(str(folder / "peer.idx"))

    measure(
        "megatron-core add_index, finalized (no fsync)",
        merge,
        len(some),
        "shards",
        kib_per_shard=peak_kib(MERGE_WITH_MEGATRON, folder, some) / len(some),
    )


def peak_kib(setup: str, folder: Path, shards: list[Path]) -> int:
    """KiB that a fresh process holds at the peak of a merge, on top of those before it."""
    command = [sys.executable, "-W", "ignore", "-c", PEAK_OF_MERGE.format(setup=setup)]
    arguments = [str(folder / "peak"), *map(str, shards)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)
