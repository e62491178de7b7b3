"""The indexed dataset from Python: bytes on disk, views, misuse, killed writers, other processes."""

import gc
import itertools
import os
import pickle  # noqa: TID251  (pickling is what data loaders do to a dataset)
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfast.data import IndexedDataset, IndexedDatasetBuilder, merge_datasets, optimal_dtype
from mmfast.data.segment import NO_LOSS, Segment
from mmfast.errors import CorruptDataError, FormatVersionError, UsageError

CODES = {
    "uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8,
}  # fmt: skip

# Documents of (ids, mode) sequences.
Documents = list[list[tuple[list[int], int]]]
SMALL: Documents = [[([5, 6, 7], 0), ([100, 101], 1)], [], [([8], 0x41)]]


def described_bytes(documents: Documents, dtype: str, *, multimodal: bool) -> tuple[bytes, bytes]:
    """`.bin` and `.idx` as the format's table says, with struct and nothing of ours."""
    sequences = [sequence for document in documents for sequence in document]
    arrays = [np.array(ids, dtype=dtype) for ids, _ in sequences]
    boundaries = [0]
    for document in documents:
        boundaries.append(boundaries[-1] + len(document))
    offsets = np.cumsum([0] + [array.nbytes for array in arrays])[:-1]
    idx = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", CODES[dtype])
    idx += struct.pack("<QQ", len(sequences), len(boundaries))
    idx += struct.pack(f"<{len(sequences)}i", *[len(array) for array in arrays])
    idx += struct.pack(f"<{len(sequences)}q", *offsets.tolist())
    idx += struct.pack(f"<{len(boundaries)}q", *boundaries)
    if multimodal:
        idx += bytes(mode for _, mode in sequences)
    return b"".join(array.tobytes() for array in arrays), idx


def described_documents(prefix: Path, *, multimodal: bool) -> Documents:
    """The documents of a pair of files, read with struct and nothing of ours."""
    idx, bin_ = (prefix.with_suffix(suffix).read_bytes() for suffix in (".idx", ".bin"))
    assert idx[:9] == b"MMIDIDX\x00\x00"
    version, code, s, d = struct.unpack_from("<QBQQ", idx, 9)
    assert version == 1
    dtype = np.dtype(next(name for name, known in CODES.items() if known == code))
    lengths = struct.unpack_from(f"<{s}i", idx, 34)
    offsets = struct.unpack_from(f"<{s}q", idx, 34 + 4 * s)
    boundaries = struct.unpack_from(f"<{d}q", idx, 34 + 12 * s)
    modes = idx[34 + 12 * s + 8 * d :] if multimodal else bytes(s)
    assert len(modes) == s
    sequences = [
        (np.frombuffer(bin_, dtype, length, offset).tolist(), mode)
        for length, offset, mode in zip(lengths, offsets, modes, strict=True)
    ]
    return [sequences[a:b] for a, b in itertools.pairwise(boundaries)]


def write(
    prefix: Path, documents: Documents, dtype: str = "int32", *, multimodal: bool = True
) -> None:
    with IndexedDatasetBuilder(prefix, dtype=dtype, multimodal=multimodal) as builder:
        for document in documents:
            for ids, mode in document:
                builder.add_item(ids, mode)
            builder.end_document()


def read(prefix: Path) -> Documents:
    return [
        [(segment.ids.tolist(), segment.mode) for segment in document]
        for document in IndexedDataset(prefix).documents()
    ]


@st.composite
def datasets(draw: st.DrawFn) -> tuple[Documents, str, bool]:
    dtype = draw(st.sampled_from(["uint8", "int8", "int16", "int32", "int64", "uint16"]))
    multimodal = draw(st.booleans())
    info = np.iinfo(dtype)
    ids = st.lists(st.integers(int(info.min), int(info.max)), max_size=6)
    mode = st.integers(0, 255) if multimodal else st.just(0)
    documents = draw(st.lists(st.lists(st.tuples(ids, mode), max_size=3), max_size=6))
    return documents, dtype, multimodal


def test_100_sequences_of_int32_have_megatron_cores_header(tmp_path: Path) -> None:
    with IndexedDatasetBuilder(tmp_path / "a") as builder:
        for i in range(100):
            builder.add_item([i])
            builder.end_document()
    idx = (tmp_path / "a.idx").read_bytes()
    assert (
        idx[:34].hex()
        == "4d4d494449445800000100000000000000046400000000000000" + "6500000000000000"
    )
    assert len(idx) == 2042


@settings(max_examples=40, deadline=None)
@given(datasets())
def test_files_equal_those_that_the_description_gives(
    tmp_path_factory: pytest.TempPathFactory, dataset: tuple[Documents, str, bool]
) -> None:
    documents, dtype, multimodal = dataset
    prefix = tmp_path_factory.mktemp("d") / "a"
    write(prefix, documents, dtype, multimodal=multimodal)
    bin_, idx = described_bytes(documents, dtype, multimodal=multimodal)
    assert prefix.with_suffix(".bin").read_bytes() == bin_
    assert prefix.with_suffix(".idx").read_bytes() == idx
    assert read(prefix) == described_documents(prefix, multimodal=multimodal) == documents


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_are_stored_as_they_are(tmp_path: Path, dtype: str) -> None:
    values = np.array([1.5, -0.0, np.inf], dtype="float32")
    with IndexedDatasetBuilder(tmp_path / "a", dtype=dtype) as builder:
        builder.add_document(values, [2, 1])
        with pytest.raises((TypeError, ValueError)):
            builder.add_item([1, 2])
    expected = values.astype(dtype).tobytes()
    assert (tmp_path / "a.bin").read_bytes() == expected
    assert (tmp_path / "a.idx").read_bytes()[17] == CODES[dtype]
    assert IndexedDataset(tmp_path / "a")[0].dtype == dtype


def test_all_ways_of_adding_write_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "items", SMALL)
    with IndexedDatasetBuilder(tmp_path / "documents", multimodal=True) as builder:
        for document in SMALL:
            flat = [i for ids, _ in document for i in ids]
            builder.add_document(flat, [len(s[0]) for s in document], [s[1] for s in document])
    with IndexedDatasetBuilder(tmp_path / "batch", multimodal=True) as builder:
        builder.add_documents(
            np.array([5, 6, 7, 100, 101, 8]), [3, 2, 1], [2, 0, 1], modes=[0, 1, 0x41]
        )
    with IndexedDatasetBuilder(tmp_path / "index", multimodal=True) as builder:
        builder.add_index(tmp_path / "items")
    merge_datasets(tmp_path / "merged", [tmp_path / "items"])
    for name in ("documents", "batch", "index", "merged"):
        for suffix in (".bin", ".idx"):
            expected = (tmp_path / f"items{suffix}").read_bytes()
            assert (tmp_path / f"{name}{suffix}").read_bytes() == expected, name + suffix


@pytest.mark.parametrize("source", ["uint8", "int16", ">i4", "uint32", "int64", "uint64"])
def test_any_integer_array_of_any_shape_is_taken(tmp_path: Path, source: str) -> None:
    with IndexedDatasetBuilder(tmp_path / "a", dtype="uint16") as builder:
        builder.add_item(np.arange(12).reshape(3, 4).astype(source)[:, ::2])
        builder.end_document()
    assert IndexedDataset(tmp_path / "a")[0].tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("bad", [65_536, -1, 2**40, 2**63, 2**70])
def test_an_id_outside_the_dtype_is_an_error_and_never_wraps(tmp_path: Path, bad: int) -> None:
    with IndexedDatasetBuilder(tmp_path / "a", dtype="uint16") as builder:
        builder.add_document([1, 2], [2])
        with pytest.raises((ValueError, TypeError)):
            builder.add_item([3, bad])
        builder.end_document()
    assert read(tmp_path / "a") == [[([1, 2], 0)], []]


def test_the_error_names_document_and_position(tmp_path: Path) -> None:
    with IndexedDatasetBuilder(tmp_path / "a", dtype="uint16") as builder:
        builder.add_document([1], [1])
        builder.add_item([1, 2, 3])
        with pytest.raises(
            ValueError, match="token 70000 at position 4 of document 1 does not fit uint16"
        ):
            builder.add_item([4, 70_000])
        builder.abort()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.add_documents([1, 2], [3]), "lengths add up to 3"),
        (lambda b: b.add_documents([1, 2], [2], [2]), "do not add up"),
        (lambda b: b.add_documents([1, 2], [3, -1]), "-1 cannot be a sequence length"),
        (lambda b: b.add_document([1, 2], [2], [0, 0]), "1 sequences, but 2 modes"),
        (lambda b: b.add_item([1], mode=256), "modes must be 0..255"),
        (lambda b: b.add_item([1], mode=-1), "modes must be 0..255"),
        (lambda b: b.add_item([1], mode=1), "multimodal=True"),
        (lambda b: b.add_item([1.5]), "float64 do not go into"),
        (lambda b: b.add_item([True]), "bool do not go into"),
        (lambda b: b.add_item(["a"]), "do not go into"),
        (lambda b: b.add_document([1, 2], [1.0, 1.0]), "lengths must be integers"),
    ],
)
def test_misuse_is_explained_and_adds_nothing(tmp_path: Path, call, message: str) -> None:
    builder = IndexedDatasetBuilder(tmp_path / "a")
    with pytest.raises((ValueError, TypeError), match=message):
        call(builder)
    assert builder.written == (0, 0, 0)
    builder.abort()


def test_an_exception_in_the_block_aborts_and_keeps_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "a", SMALL)

    def interrupted() -> None:
        with IndexedDatasetBuilder(tmp_path / "a") as builder:
            builder.add_document([1], [1])
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert read(tmp_path / "a") == SMALL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.mmf"]


def test_an_unfinished_document_cannot_be_finalized(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="end_document"),
        IndexedDatasetBuilder(tmp_path / "a") as builder,
    ):
        builder.add_item([1])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="already finished or aborted"):
        builder.end_document()
    builder = IndexedDatasetBuilder(tmp_path / "a")
    builder.add_item([1])
    with pytest.raises(ValueError, match="end_document"):
        builder.finalize()
    builder.end_document()
    assert builder.finalize() == (1, 1, 1)


def test_an_unknown_dtype_and_a_file_name_for_a_prefix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the format has no dtype uint32"):
        IndexedDatasetBuilder(tmp_path / "a", dtype="uint32")
    with pytest.raises(ValueError, match=r"without \.bin or \.idx"):
        IndexedDatasetBuilder(tmp_path / "a.bin")


def test_a_second_builder_on_the_same_prefix_is_refused(tmp_path: Path) -> None:
    builder = IndexedDatasetBuilder(tmp_path / "a")
    with pytest.raises(UsageError, match="another writer"):
        IndexedDatasetBuilder(tmp_path / "a")
    builder.abort()
    write(tmp_path / "a", SMALL)


def test_indexing_follows_python(tmp_path: Path) -> None:
    write(tmp_path / "a", SMALL)
    dataset = IndexedDataset(tmp_path / "a")
    assert len(dataset) == 3
    assert dataset.num_documents == 3
    assert dataset.num_tokens == 6
    assert dataset.dtype == np.int32
    assert dataset.multimodal
    assert dataset[-1].tolist() == [8]
    assert [ids.tolist() for ids in dataset[1:]] == [[100, 101], [8]]
    assert [ids.tolist() for ids in dataset[::-2]] == [[8], [5, 6, 7]]
    assert [ids.tolist() for ids in dataset] == [ids.tolist() for ids in dataset[:]]
    assert dataset.get(0, 1).tolist() == [6, 7]
    assert dataset.get(0, 1, 1).tolist() == [6]
    assert dataset.get(0, 3).tolist() == []
    assert dataset.mode(-1) == 0x41
    assert dataset.tokens.tolist() == [5, 6, 7, 100, 101, 8]
    assert dataset.sequence_lengths.tolist() == [3, 2, 1]
    assert dataset.document_indices.tolist() == [0, 2, 2, 3]
    assert dataset.sequence_modes is not None
    assert dataset.sequence_modes.tolist() == [0, 1, 0x41]
    assert dataset.document(-2) == []
    assert "3 documents, 3 sequences, 6 ids of int32" in repr(dataset)
    for bad in (3, -4):
        with pytest.raises(IndexError):
            dataset[bad]
        with pytest.raises(IndexError):
            dataset.document(bad)
    for offset, length in ((4, None), (-1, None), (0, 4), (1, -1)):
        with pytest.raises(IndexError):
            dataset.get(0, offset, length)


def test_a_segment_tells_modality_and_loss() -> None:
    segment = Segment(np.array([1]), mode=1 | NO_LOSS)
    assert (segment.modality, segment.has_loss) == (1, False)
    assert Segment(np.array([1])).has_loss


def test_a_view_survives_its_dataset_its_files_and_cannot_be_written(tmp_path: Path) -> None:
    ids = np.arange(100_000, dtype=np.int32)
    write(tmp_path / "a", [[(ids.tolist(), 0)]])
    dataset = IndexedDataset(tmp_path / "a")
    view, part, everything = dataset[0], dataset.get(0, 70_000), dataset.tokens
    assert not view.flags.owndata
    assert np.shares_memory(view, everything)
    del dataset, everything
    gc.collect()
    for suffix in (".bin", ".idx"):
        (tmp_path / f"a{suffix}").unlink()
    np.testing.assert_array_equal(view, ids)
    np.testing.assert_array_equal(part, ids[70_000:])
    for array in (view, view.base):
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_a_rewritten_dataset_leaves_open_views_as_they_were(tmp_path: Path) -> None:
    write(tmp_path / "a", [[([1, 2, 3], 0)]])
    before = IndexedDataset(tmp_path / "a")
    write(tmp_path / "a", [[([7, 8, 9], 0)]])
    assert before[0].tolist() == [1, 2, 3]
    assert IndexedDataset(tmp_path / "a")[0].tolist() == [7, 8, 9]


def test_an_empty_dataset_opens(tmp_path: Path) -> None:
    with IndexedDatasetBuilder(tmp_path / "a", multimodal=True) as builder:
        assert builder.finalize() == (0, 0, 0)
    dataset = IndexedDataset(tmp_path / "a")
    assert (len(dataset), dataset.num_documents, dataset.num_tokens) == (0, 0, 0)
    assert dataset.tokens.tolist() == []
    assert list(dataset) == []
    assert dataset.verify() == (None, {}, {})
    merge_datasets(tmp_path / "b", [tmp_path / "a", tmp_path / "a"])
    assert len(IndexedDataset(tmp_path / "b")) == 0


def test_missing_and_damaged_files_raise_the_class_one_would_catch(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        IndexedDataset(tmp_path / "a")
    write(tmp_path / "a", SMALL)
    bin_ = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(bin_[:-1])
    with pytest.raises(CorruptDataError, match="cut short"):
        IndexedDataset(tmp_path / "a")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(FileNotFoundError):
        IndexedDataset(tmp_path / "a")
    idx = bytearray((tmp_path / "a.idx").read_bytes())
    idx[9] = 2
    (tmp_path / "a.bin").write_bytes(bin_)
    (tmp_path / "a.idx").write_bytes(idx)
    with pytest.raises(FormatVersionError, match="version 2"):
        IndexedDataset(tmp_path / "a")


def test_verify_counts_and_names_an_id_outside_the_vocabulary(tmp_path: Path) -> None:
    write(tmp_path / "a", SMALL)
    dataset = IndexedDataset(tmp_path / "a")
    read: list[int] = []
    found = dataset.verify(vocabulary_size=102, on_progress=read.append)
    assert sum(read) == dataset.num_tokens
    assert found == ((5, 101), {"text": 1, "image": 2}, {"text": 3, "image": 3})
    with pytest.raises(
        CorruptDataError, match=r"id 101 at position 1 of sequence 1 \(document 0\)"
    ):
        dataset.verify(vocabulary_size=101)


def test_merging_takes_the_given_order(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}", [[([i], 0)]])
    written = merge_datasets(tmp_path / "new" / "m", [tmp_path / str(i) for i in (2, 0, 1)])
    assert written == (3, 3, 3)
    assert read(tmp_path / "new" / "m") == [[([i], 0)] for i in (2, 0, 1)]


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(65_499, "uint16"), (65_500, "int32"), (None, "int32"), (200_000, "int32")],
)
def test_the_dtype_for_a_vocabulary_is_megatrons(size: int | None, dtype: str) -> None:
    assert optimal_dtype(size) == dtype


def test_pickling_opens_the_files_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a"), SMALL)
    dataset = IndexedDataset("a")
    pickled = pickle.dumps(dataset)
    monkeypatch.chdir("/")
    copy = pickle.loads(pickled)
    assert copy[0].tolist() == [5, 6, 7]
    assert not np.shares_memory(copy[0], dataset[0])
    assert copy.fingerprint == dataset.fingerprint


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_forked_process_reads_on_and_leaves_its_parents_builder_alone(tmp_path: Path) -> None:
    process = run_python(
        """
        import os, sys
        from mmfast.data import IndexedDataset, IndexedDatasetBuilder
        prefix = sys.argv[1]
        with IndexedDatasetBuilder(prefix) as builder:
            builder.add_document([1, 2, 3], [3])
        dataset = IndexedDataset(prefix)
        builder = IndexedDatasetBuilder(prefix)
        builder.add_document([4], [1])
        child = os.fork()
        if child == 0:
            right = dataset[0].tolist() == [1, 2, 3]
            del builder
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0
        builder.finalize()
        assert IndexedDataset(prefix)[0].tolist() == [4]
        """,
        tmp_path / "a",
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def test_a_killed_writer_leaves_the_old_dataset_and_its_prefix_free(tmp_path: Path) -> None:
    write(tmp_path / "a", SMALL)
    process = run_python(
        """
        import sys
        from mmfast.data import IndexedDatasetBuilder
        builder = IndexedDatasetBuilder(sys.argv[1])
        builder.add_documents(range(2_000_000), [2_000_000])
        print("written", flush=True)
        sys.stdin.read()
        """,
        tmp_path / "a",
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "written\n"
    assert (tmp_path / "a.bin.tmp").stat().st_size > 0
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert read(tmp_path / "a") == SMALL
    write(tmp_path / "a", [[([1], 0)]])
    assert read(tmp_path / "a") == [[([1], 0)]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.mmf"]


def test_a_merge_maps_one_part_at_a_time(tmp_path: Path) -> None:
    """Sixteen parts of 16 MiB, in a process that may map 128 MiB more and open 64 files."""
    with IndexedDatasetBuilder(tmp_path / "part-0", dtype="uint8") as builder:
        builder.add_documents(np.arange(1 << 24, dtype="uint8"), [1 << 23, 1 << 23])
    for number in range(1, 16):
        for end in (".bin", ".idx", ".mmf"):
            os.link(f"{tmp_path}/part-0{end}", f"{tmp_path}/part-{number}{end}")
    process = run_python(
        """
        import resource, sys
        from mmfast.data import merge_datasets
        prefixes = [f"{sys.argv[1]}/part-{number}" for number in range(16)]
        merge_datasets(f"{sys.argv[1]}/warm", prefixes[:1])
        with open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (128 << 20),) * 2)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        print(merge_datasets(f"{sys.argv[1]}/whole", prefixes).num_documents)
        """,
        tmp_path,
    )
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output.split()[-1:]) == (0, ["32"]), output
    assert IndexedDataset(tmp_path / "whole", verify="full")[31][-1] == 255


def test_datasets_need_no_torch() -> None:
    process = run_python(
        """
        import sys
        from mmfast.data import IndexedDataset, IndexedDatasetBuilder
        assert "torch" not in sys.modules
        """
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def test_cpu_tensors_are_taken(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with IndexedDatasetBuilder(tmp_path / "a") as builder:
        builder.add_item(torch.tensor([[1, 2], [3, 4]]))
        builder.end_document()
    assert IndexedDataset(tmp_path / "a")[0].tolist() == [1, 2, 3, 4]
