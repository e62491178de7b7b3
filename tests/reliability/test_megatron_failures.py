"""What megatron-core 0.16.1 gets wrong without a word, or dies of, is an error here or works.

Each case was reproduced there with its `IndexedDataset` and `IndexedDatasetBuilder`; the docstrings say
what happened.
"""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmfast.data import IndexedDataset, IndexedDatasetBuilder
from mmfast.errors import CorruptDataError

DOCUMENTS = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]


def write(prefix: Path, documents: list[list[int]] = DOCUMENTS, dtype: str = "int32") -> None:
    with IndexedDatasetBuilder(prefix, dtype=dtype) as builder:
        for ids in documents:
            builder.add_document(ids, [len(ids)])


def without_sidecar(prefix: Path) -> None:
    """Leaves only what megatron-core's builder writes."""
    prefix.with_suffix(".mmf").unlink()


def test_an_array_outlives_its_dataset(tmp_path: Path) -> None:
    """Segmentation fault: the mapping was closed under the array."""
    write(tmp_path / "a", [list(range(100_000))])
    dataset = IndexedDataset(tmp_path / "a")
    ids = dataset[0]
    del dataset
    gc.collect()
    np.testing.assert_array_equal(ids, np.arange(100_000))


@pytest.mark.parametrize("has_sidecar", [True, False])
def test_a_truncated_bin_is_refused_at_once(tmp_path: Path, has_sidecar: bool) -> None:
    """Opened; past the end, `mmap=False` returned uninitialised memory as ids."""
    write(tmp_path / "a")
    if not has_sidecar:
        without_sidecar(tmp_path / "a")
    bin_path = tmp_path / "a.bin"
    bin_path.write_bytes(bin_path.read_bytes()[:18])
    with pytest.raises(CorruptDataError, match=r"a\.bin.*18 bytes.*cut short"):
        IndexedDataset(tmp_path / "a")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    """Returned silently."""
    write(tmp_path / "a")
    bin_path = tmp_path / "a.bin"
    damaged = bytearray(bin_path.read_bytes())
    damaged[17] ^= 4
    bin_path.write_bytes(damaged)
    with pytest.raises(CorruptDataError, match="block 0"):
        IndexedDataset(tmp_path / "a", verify="full")
    lazy = IndexedDataset(tmp_path / "a", verify="lazy")
    with pytest.raises(CorruptDataError, match="block 0"):
        lazy[1]


def test_a_rebuild_killed_before_it_is_final_leaves_the_old_documents(tmp_path: Path) -> None:
    """The old index was read with the new ids: wrong documents, no error."""
    write(tmp_path / "a")
    script = (
        "import os, signal, sys; from mmfast.data import IndexedDatasetBuilder;"
        "builder = IndexedDatasetBuilder(sys.argv[1], dtype='int32');"
        "builder.add_documents([9] * 9_000_000, [9_000_000]);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], check=False)
    assert done.returncode == -9
    found = IndexedDataset(tmp_path / "a", verify="full")
    assert [found[i].tolist() for i in range(3)] == DOCUMENTS


def test_ids_out_of_range_are_an_error(tmp_path: Path) -> None:
    """Stored as 4464 and 65535."""
    for bad in (70_000, -1):
        with (
            pytest.raises(ValueError, match=f"token {bad} at position 1 of document 0"),
            IndexedDatasetBuilder(tmp_path / "a", dtype="uint16") as builder,
        ):
            builder.add_document([3, bad], [2])
    assert list(tmp_path.iterdir()) == []


def test_an_empty_dataset_can_be_opened(tmp_path: Path) -> None:
    """An empty file cannot be mapped: ValueError."""
    write(tmp_path / "a", [])
    assert IndexedDataset(tmp_path / "a", verify="full").num_documents == 0


def test_the_modes_of_all_sequences_can_be_had(tmp_path: Path) -> None:
    """Always ValueError: the truth of an array was asked for."""
    with IndexedDatasetBuilder(tmp_path / "a", multimodal=True) as builder:
        builder.add_document([1, 2, 3], [1, 2], modes=[0, 1])
    modes = IndexedDataset(tmp_path / "a").sequence_modes
    assert modes is not None
    assert modes.tolist() == [0, 1]
