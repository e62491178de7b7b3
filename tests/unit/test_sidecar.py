"""The sidecar from Python: what it tells, what each level of verification finds, what a merge keeps."""

import pickle  # noqa: TID251  (pickling is what data loaders do to a dataset)
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmfast.data import IndexedDataset, IndexedDatasetBuilder, merge_datasets
from mmfast.errors import CorruptDataError, VocabularyMismatchError

BLOCK_IDS = (1 << 20) // 4


def write(prefix: Path, lengths: list[int], **notes: object) -> None:
    """Documents of one sequence each, of these lengths."""
    with IndexedDatasetBuilder(prefix, **notes) as builder:  # type: ignore[arg-type]
        builder.add_documents(np.arange(sum(lengths), dtype=np.int32), lengths)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def test_the_sidecar_tells_what_its_producer_told(tmp_path: Path) -> None:
    provenance = {"recipe": "folder", "größe": [1, None, 0.5]}
    write(tmp_path / "a", [3, 2], vocabulary_fingerprint="abc", provenance=provenance)
    sidecar = IndexedDataset(tmp_path / "a").sidecar
    assert sidecar is not None
    assert sidecar.provenance == provenance
    assert sidecar.vocabulary_fingerprint == "abc"
    assert sidecar.writer.startswith("mmfast ")
    assert sidecar.num_blocks == 1
    assert len(sidecar.fingerprint) == 32
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "b", [1], provenance={"x": float("nan")})


def test_a_pair_without_sidecar_is_a_dataset_without_checksums(tmp_path: Path) -> None:
    write(tmp_path / "a", [3, 2])
    (tmp_path / "a.mmf").unlink()
    dataset = IndexedDataset(tmp_path / "a")
    assert dataset.sidecar is None
    assert dataset.verify().id_range == (0, 4)
    with pytest.raises(ValueError, match="no checksums"):
        dataset.check("full")
    with pytest.raises(ValueError, match="no checksums"):
        dataset.damaged_blocks()
    for level in ("lazy", "full"):
        with pytest.raises(ValueError, match="no checksums"):
            IndexedDataset(tmp_path / "a", verify=level)
    merge_datasets(tmp_path / "a", [tmp_path / "a"])
    assert IndexedDataset(tmp_path / "a", verify="full").sidecar is not None


def test_each_level_finds_what_it_promises(tmp_path: Path) -> None:
    # The middle document lies on both blocks.
    write(tmp_path / "a", [BLOCK_IDS - 1, 2, 10])
    flip(tmp_path / "a.bin", (1 << 20) + 30)
    for level in ("none", "index"):
        assert IndexedDataset(tmp_path / "a", verify=level)[2].shape == (10,)
    with pytest.raises(CorruptDataError, match=r"block 1 \(bytes 1048576\.\.1048620\)"):
        IndexedDataset(tmp_path / "a", verify="full")
    lazy = IndexedDataset(tmp_path / "a", verify="lazy")
    assert lazy[0].shape == lazy.read([0])[0].shape == (BLOCK_IDS - 1,)
    for reading in (
        lambda: lazy[1],
        lambda: lazy[2],
        lambda: lazy.get(1, 1, 1),
        lambda: lazy.document(1),
        lambda: lazy.read([0, 2]),
        lambda: lazy.tokens,
        lambda: list(lazy),
    ):
        with pytest.raises(CorruptDataError, match="documents 1 to 2"):
            reading()
    (found,) = IndexedDataset(tmp_path / "a").damaged_blocks()
    assert found[:3] == (1, (1 << 20, (1 << 20) + 44), (1, 3))
    with pytest.raises(CorruptDataError, match="block 1"):
        IndexedDataset(tmp_path / "a").verify()
    IndexedDataset(tmp_path / "a").verify(level="index")
    flip(tmp_path / "a.mmf", 60)
    with pytest.raises(CorruptDataError, match=r"a\.mmf.*damaged"):
        IndexedDataset(tmp_path / "a")
    assert IndexedDataset(tmp_path / "a", verify="none").sidecar is None
    with pytest.raises(ValueError, match="there are none, index, lazy and full"):
        IndexedDataset(tmp_path / "a", verify="some")  # type: ignore[arg-type]


def test_a_pair_written_anew_by_another_program_is_told_from_its_old_sidecar(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a", [3, 2])
    write(tmp_path / "b", [2, 3])
    for suffix in (".bin", ".idx"):
        shutil.copy(tmp_path / f"b{suffix}", tmp_path / f"a{suffix}")
    with pytest.raises(CorruptDataError, match=r"does not belong.*remove the \.mmf"):
        IndexedDataset(tmp_path / "a")


def test_a_copy_sent_to_another_process_is_verified_alike(tmp_path: Path) -> None:
    write(tmp_path / "a", [3, 2])
    lazy = IndexedDataset(tmp_path / "a", verify="lazy")
    flip(tmp_path / "a.bin", 0)
    with pytest.raises(CorruptDataError, match="block 0"):
        pickle.loads(pickle.dumps(lazy))[0]


def test_a_merge_keeps_provenance_and_refuses_two_vocabularies(tmp_path: Path) -> None:
    write(tmp_path / "a", [3], vocabulary_fingerprint="x", provenance={"from": "a"})
    write(tmp_path / "b", [2], vocabulary_fingerprint="x")
    write(tmp_path / "c", [2], vocabulary_fingerprint="y")
    merge_datasets(tmp_path / "ab", [tmp_path / "a", tmp_path / "b"])
    merged = IndexedDataset(tmp_path / "ab", verify="full").sidecar
    assert merged is not None
    assert merged.vocabulary_fingerprint == "x"
    assert [part["name"] for part in merged.provenance["merged"]] == ["a", "b"]
    assert merged.provenance["merged"][0]["provenance"] == {"from": "a"}
    with pytest.raises(VocabularyMismatchError, match="vocabulary y"):
        merge_datasets(tmp_path / "ab", [tmp_path / "a", tmp_path / "c"])
    assert IndexedDataset(tmp_path / "ab").num_documents == 2
