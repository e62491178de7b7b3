"""Several datasets read as one, parts of a dataset, and how files are reached, from Python."""

import gc
import pickle  # noqa: TID251  (pickling is what data loaders do to a dataset)
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mmfast.data import IndexedDataset, IndexedDatasetBuilder, MegatronOrder, pack
from mmfast.data.packing import packing_figures
from mmfast.data.splits import cut, parse_split
from mmfast.data.statistics import dataset_statistics
from mmfast.errors import CorruptDataError, VocabularyMismatchError

Documents = list[list[tuple[list[int], int]]]


def documents_from(first: int, num: int) -> Documents:
    """Documents of 0 to 2 sequences that are all different."""
    return [[([k, s, *range(k % 4)], s) for s in range(k % 3)] for k in range(first, first + num)]


def write(prefix: Path, documents: Documents, dtype: str = "int32", **options: object) -> None:
    with IndexedDatasetBuilder(prefix, dtype=dtype, multimodal=True, **options) as builder:  # type: ignore[arg-type]
        for document in documents:
            for ids, mode in document:
                builder.add_item(ids, mode)
            builder.end_document()


def read(dataset: IndexedDataset) -> Documents:
    return [[(s.ids.tolist(), s.mode) for s in document] for document in dataset.documents()]


@pytest.fixture
def shards(tmp_path: Path) -> tuple[list[Path], Documents]:
    parts = [documents_from(0, 5), [], documents_from(5, 1), documents_from(6, 7)]
    prefixes = [tmp_path / f"shard-{i}" for i in range(4)]
    for prefix, part in zip(prefixes, parts, strict=True):
        write(prefix, part)
    return prefixes, [document for part in parts for document in part]


def require_alike(dataset: IndexedDataset, documents: Documents) -> None:
    """Everything that a dataset tells, against its documents."""
    sequences = [sequence for document in documents for sequence in document]
    assert read(dataset) == documents
    assert (dataset.num_documents, len(dataset)) == (len(documents), len(sequences))
    assert [ids.tolist() for ids in dataset] == [ids for ids, _ in sequences]
    assert [dataset.mode(i) for i in range(len(dataset))] == [mode for _, mode in sequences]
    assert dataset.sequence_lengths.tolist() == [len(ids) for ids, _ in sequences]
    if sequences:
        assert dataset.sequence_modes is not None
        assert dataset.sequence_modes.tolist() == [mode for _, mode in sequences]
        assert dataset[-1].tolist() == sequences[-1][0]
        assert dataset.get(0, 1, 1).tolist() == sequences[0][0][1:2]
    assert np.diff(dataset.document_indices).tolist() == [len(d) for d in documents]
    flat = [i for ids, _ in sequences for i in ids]
    assert dataset.tokens.tolist() == flat
    assert dataset.num_tokens == len(flat)
    ids, offsets = dataset.read(range(len(documents)), unit="document")
    assert ids.tolist() == flat
    assert len(offsets) == len(documents) + 1
    assert dataset.read(range(len(sequences)))[0].tolist() == flat
    assert dataset.verify().tokens.get("text", 0) == sum(len(i) for i, m in sequences if m == 0)
    assert sum(share.num_tokens for share in dataset_statistics(dataset).shares) == len(flat)
    for bad in (len(sequences), -len(sequences) - 1):
        with pytest.raises(IndexError):
            dataset[bad]


@pytest.mark.parametrize("access", ["mmap", "pread"])
@pytest.mark.parametrize("max_open", [1, 256])
def test_several_prefixes_are_one_dataset(shards, access: str, max_open: int) -> None:
    prefixes, documents = shards
    dataset = IndexedDataset(prefixes, access=access, max_open=max_open)  # type: ignore[arg-type]
    require_alike(dataset, documents)
    assert dataset.access.startswith(access)
    assert "4 datasets" in repr(dataset)
    with pytest.raises(ValueError, match="no one prefix"):
        _ = dataset.prefix
    copy = pickle.loads(pickle.dumps(dataset))
    assert read(copy) == documents
    assert copy.fingerprint == dataset.fingerprint
    assert [shard.prefix for shard in dataset.shards()] == prefixes
    assert [shard.num_documents for shard in dataset.shards()] == [5, 0, 1, 7]


def test_a_pattern_stands_for_the_datasets_that_it_matches(shards, tmp_path: Path) -> None:
    prefixes, documents = shards
    assert read(IndexedDataset(tmp_path / "shard-*")) == documents
    assert read(IndexedDataset(str(tmp_path / "**" / "shard-[02]"))) == documents[:6]
    assert (
        read(IndexedDataset([prefixes[3], tmp_path / "shard-[02]"]))
        == documents[6:] + documents[:6]
    )
    write(tmp_path / "odd[1]", documents[:2])
    assert IndexedDataset(tmp_path / "odd[1]").num_documents == 2
    with pytest.raises(FileNotFoundError, match="pattern"):
        IndexedDataset(tmp_path / "none-*")
    with pytest.raises(FileNotFoundError):
        IndexedDataset([prefixes[0], tmp_path / "missing"])
    with pytest.raises(ValueError, match="no prefix"):
        IndexedDataset([])


def test_parts_are_datasets_without_a_copy(shards) -> None:
    prefixes, documents = shards
    dataset = IndexedDataset(prefixes)
    part = dataset.select(3, -2)
    require_alike(part, documents[3:-2])
    require_alike(part.select(2, 5), documents[5:8])
    require_alike(dataset.select(4, 2), [])
    assert np.shares_memory(part[0], dataset[int(dataset.document_indices[3])])
    assert "part of" in repr(part)
    assert read(pickle.loads(pickle.dumps(part.select(2, 5)))) == documents[5:8]
    assert part.fingerprint != dataset.fingerprint
    assert part.sidecar is None
    with pytest.raises(ValueError, match="ask each"):
        part.damaged_blocks()
    one = IndexedDataset(prefixes[3])
    require_alike(one.select(1, 4), documents[7:10])
    assert np.shares_memory(one.select(1, 4).document(0)[0].ids, one.tokens)


def test_a_seeded_split_shares_no_document_and_loses_none(shards, tmp_path: Path) -> None:
    prefixes, documents = shards
    dataset = IndexedDataset(prefixes)
    parts = dataset.split({"train": 0.7, "val": 0.3}, seed=3)
    assert {name: part.num_documents for name, part in parts.items()} == {"train": 9, "val": 4}
    found = [document for part in parts.values() for document in read(part)]
    assert found != documents
    assert sorted(found) == sorted(documents)
    for part in parts.values():
        require_alike(part, read(part))
    again = dataset.split({"train": 0.7, "val": 0.3}, seed=3)["val"]
    assert read(again) == read(parts["val"]) == read(pickle.loads(pickle.dumps(again)))
    assert again.fingerprint == parts["val"].fingerprint
    other = dataset.split({"train": 0.7, "val": 0.3}, seed=4)["val"]
    assert read(other) != read(again)
    assert other.fingerprint != again.fingerprint
    deeper = parts["train"].split({"a": 1, "b": 2}, seed=0)
    assert sorted(read(deeper["a"]) + read(deeper["b"])) == sorted(read(parts["train"]))
    with pytest.raises(ValueError, match="seed"):
        dataset.split({"a": 1}, seed=-1)


def test_a_split_without_a_seed_cuts_the_documents_as_they_lie(shards) -> None:
    prefixes, documents = shards
    parts = IndexedDataset(prefixes).split("8,1,1")
    assert list(parts) == ["train", "valid", "test"]
    assert [read(part) for part in parts.values()] == [
        documents[:10],
        documents[10:12],
        documents[12:],
    ]


# What megatron-core 0.16.1 gave: its split matrix of the string, times the number, rounded.
@pytest.mark.parametrize(
    ("split", "num_documents", "ends"),
    [
        ("969,30,1", 1_000, [969, 999, 1_000]),
        ("969,30,1", 5_000_001, [4_845_001, 4_995_001, 5_000_001]),
        ("98,2", 25, [24, 25, 25]),
        ("1,1", 5, [2, 5, 5]),
        ("1,1", 7, [4, 7, 7]),
        ("99.5, .5, 0", 1_001, [996, 1_001, 1_001]),
        ("0,1,0", 10, [0, 10, 10]),
        ("1,1,1", 10, [3, 7, 10]),
        ("100", 3, [3, 3, 3]),
    ],
)
def test_megatrons_split_string_cuts_where_megatron_core_cuts(
    split: str, num_documents: int, ends: list[int]
) -> None:
    ranges = cut(parse_split(split), num_documents)
    assert [end for _, end in ranges.values()] == ends
    assert [start for start, _ in ranges.values()] == [0, *ends[:-1]]


def test_parts_together_are_all_documents_for_any_weights() -> None:
    generator = np.random.default_rng(5)
    for _ in range(2_000):
        weights = {
            str(i): float(w) for i, w in enumerate(generator.random(generator.integers(1, 9)))
        }
        num_documents = int(generator.integers(0, 2**50))
        ranges = list(cut(weights, num_documents).values())
        assert (ranges[0][0], ranges[-1][1]) == (0, num_documents)
        assert all(start <= end for start, end in ranges)


@pytest.mark.parametrize("split", ["", "1,2,3,4", "a,b", "-1,2", "0,0,0", "1e3"])
def test_what_is_no_split_is_refused(split: str) -> None:
    with pytest.raises(ValueError, match=r"split|float"):
        cut(parse_split(split), 10)


@pytest.mark.parametrize("weights", [{}, {"a": -1, "b": 2}, {"a": float("nan")}, {"a": 0}])
def test_weights_that_divide_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        cut(weights, 10)


def test_dtypes_may_differ_and_ids_are_widened(tmp_path: Path) -> None:
    for name, dtype in (("a", "uint8"), ("b", "uint16"), ("c", "int32")):
        write(tmp_path / name, documents_from(2, 3), dtype)
    narrow = IndexedDataset([tmp_path / "a", tmp_path / "b"])
    assert narrow.dtype == np.uint16
    require_alike(narrow, documents_from(2, 3) * 2)
    wide = IndexedDataset([tmp_path / "a", tmp_path / "c"])
    assert wide.dtype == np.int32
    assert {ids.dtype for ids in wide} == {np.dtype(np.int32)}
    for array in wide:
        assert not array.flags.writeable


def test_datasets_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a", documents_from(2, 3), vocabulary_fingerprint="one")
    write(tmp_path / "b", documents_from(2, 3), vocabulary_fingerprint="two")
    with IndexedDatasetBuilder(tmp_path / "plain") as builder:
        builder.add_document([1], [1])
    with pytest.raises(VocabularyMismatchError, match=r"/b was written .* two, .*/a with one"):
        IndexedDataset([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match=r"/a has modes and .*/plain has none"):
        IndexedDataset([tmp_path / "plain", tmp_path / "a"])


def test_packing_and_megatrons_order_take_views(shards, tmp_path: Path) -> None:
    prefixes, _ = shards
    dataset = IndexedDataset(prefixes)
    assert packing_figures(dataset, 16).num_documents == 13
    assert len(pack(dataset.sequence_lengths, 16)) > 0
    with IndexedDatasetBuilder(tmp_path / "x") as builder:
        builder.add_documents(range(10), [4, 6])
    with IndexedDatasetBuilder(tmp_path / "y") as builder:
        builder.add_documents(range(10, 30), [5, 15])
    with IndexedDatasetBuilder(tmp_path / "xy") as builder:
        builder.add_documents(range(30), [4, 6, 5, 15])
    view, whole = IndexedDataset([tmp_path / "x", tmp_path / "y"]), IndexedDataset(tmp_path / "xy")
    orders = [MegatronOrder(d, sequence_length=7, seed=5) for d in (view, whole)]
    assert [s.tokens.tolist() for s in orders[0]] == [s.tokens.tolist() for s in orders[1]]


def test_arrays_of_a_view_outlive_it_and_the_shards_that_made_room(shards) -> None:
    prefixes, documents = shards
    dataset = IndexedDataset(prefixes, max_open=1)
    arrays = list(dataset)
    expected = [ids for document in documents for ids, _ in document]
    del dataset
    gc.collect()
    for prefix in prefixes:
        prefix.with_suffix(".bin").unlink()
    assert [array.tolist() for array in arrays] == expected


def test_pread_owns_its_memory_and_refuses_a_file_that_was_cut(tmp_path: Path) -> None:
    write(tmp_path / "a", documents_from(2, 3))
    dataset = IndexedDataset(tmp_path / "a", access="pread")
    assert dataset.access == "pread (asked for)"
    first = dataset[0]
    assert not first.flags.writeable
    (tmp_path / "a.bin").write_bytes(b"")
    assert first.tolist() == [2, 0, 0, 1]
    for reading in (lambda: dataset[0], lambda: dataset.read([1]), lambda: dataset.tokens):
        with pytest.raises(CorruptDataError, match="cut short after it was opened"):
            reading()
    with pytest.raises(ValueError, match="there are auto, mmap and pread"):
        IndexedDataset(tmp_path / "a", access="smoke")  # type: ignore[arg-type]


def test_a_loader_takes_several_prefixes_a_pattern_and_parts(shards, tmp_path: Path) -> None:
    from mmfast.data import Loader, Source
    from mmfast.objectives import NextToken

    prefixes, _ = shards

    def batches(source: object) -> list[list[int]]:
        loader = Loader(
            [Source(source, max_epochs=1)],  # type: ignore[arg-type]
            NextToken(),
            bin_tokens=16,
            global_batch_bins=2,
            window_documents=8,
        )
        found = [batch.input_ids.flatten().tolist() for batch in loader]
        state = loader.state_dict()
        loader.close()
        return [*found, [hash(state["fingerprint"])]]

    dataset = IndexedDataset(prefixes)
    expected = batches(dataset)
    assert len(expected) > 2
    assert batches(prefixes) == batches(tmp_path / "shard-*") == expected
    assert batches(IndexedDataset(prefixes, access="pread", max_open=1)) == expected
    part = dataset.split({"a": 1, "b": 1}, seed=1)["b"]
    ids = sorted(i for row in batches(part)[:-1] for i in row if i)
    assert ids == sorted(i for document in read(part) for ids, _ in document for i in ids if i)
    assert batches(part)[-1] != expected[-1]
    with pytest.raises(FileNotFoundError):
        batches(tmp_path / "missing")


def test_a_forked_process_opens_several_datasets_as_its_parent_did(shards) -> None:
    prefixes, _ = shards
    code = textwrap.dedent(
        """
        import os, signal, sys
        from mmfast.data import IndexedDataset
        dataset = IndexedDataset(sys.argv[1:])
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            again = IndexedDataset(sys.argv[1:])
            same = again.tokens.tolist() == dataset.tokens.tolist()
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, prefixes)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_local_disk_is_mapped_without_being_asked(tmp_path: Path) -> None:
    write(tmp_path / "a", documents_from(2, 3))
    assert IndexedDataset(tmp_path / "a").access.startswith("mmap (")


@pytest.mark.parametrize("access", ["mmap", "pread"])
def test_a_thousand_shards_are_read_with_few_open_files(tmp_path: Path, access: str) -> None:
    with IndexedDatasetBuilder(tmp_path / "first") as builder:
        builder.add_documents([0, 1, 2], [2, 1])
    index = (tmp_path / "first.idx").read_bytes()
    for i in range(1_100):
        (tmp_path / f"shard-{i:04}.idx").write_bytes(index)
        ids = np.arange(i, i + 3, dtype=np.int32)
        (tmp_path / f"shard-{i:04}.bin").write_bytes(ids.tobytes())
    code = textwrap.dedent(
        """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        import numpy as np
        from mmfast.data import IndexedDataset
        dataset = IndexedDataset(sys.argv[1], access=sys.argv[2], max_open=24)
        assert dataset.num_documents == 2_200, dataset
        order = np.random.default_rng(0).permutation(2_200)
        ids, offsets = dataset.read(order, unit="document")
        for place, document in enumerate(order.tolist()):
            shard, second = divmod(document, 2)
            expected = [shard + 2] if second else [shard, shard + 1]
            assert ids[offsets[place] : offsets[place + 1]].tolist() == expected
            assert dataset.document(document)[0].ids.tolist() == expected
        maps = open("/proc/self/maps").read()
        assert sum("shard-" in line for line in maps.splitlines()) <= 2 * 24
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "shard-*"), access],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
