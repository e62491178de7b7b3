"""What a builder takes for ids, lengths and modes: the quick way and the thorough one must not differ."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from mmfast.data import IndexedDataset, IndexedDatasetBuilder

IDS = [[1, 2, 3], [], [40_000], [5, 6]]
FLAT = [i for ids in IDS for i in ids]
LENGTHS = [len(ids) for ids in IDS]
DTYPES = ["uint16", "int32", "int64"]


def written(folder: Path, dtype: str, call) -> tuple[bytes, bytes]:
    with IndexedDatasetBuilder(folder / "a", dtype=dtype, multimodal=True) as builder:
        call(builder)
        builder.end_document()
    return (folder / "a.bin").read_bytes(), (folder / "a.idx").read_bytes()


def sources() -> dict[str, object]:
    """The same ids in every form that a caller may have them in."""
    strided = np.zeros((len(FLAT), 2), "int32")
    strided[:, 0] = FLAT
    misaligned = np.frombuffer(b"?" + np.array(FLAT, "int32").tobytes(), "int32", offset=1)
    return {
        "list": FLAT,
        "tuple": tuple(FLAT),
        "uint16": np.array(FLAT, "uint16"),
        "int32": np.array(FLAT, "int32"),
        "uint32": np.array(FLAT, "uint32"),
        "int64": np.array(FLAT, "int64"),
        "uint64": np.array(FLAT, "uint64"),
        "big-endian": np.array(FLAT, ">i4"),
        "strided": strided[:, 0],
        "misaligned": misaligned,
        "read-only": np.frombuffer(np.array(FLAT, "int64").tobytes(), "int64"),
        "two-dimensional": np.array(FLAT, "int32").reshape(2, 3),
        "column by column": np.asfortranarray(np.array(FLAT, "int32").reshape(2, 3)),
        "list of numpy integers": list(np.array(FLAT, "int32")),
        "list of lists": [FLAT[:3], FLAT[3:]],
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", sources())
def test_every_form_of_ids_writes_the_same_bytes(tmp_path: Path, dtype: str, form: str) -> None:
    ids = sources()[form]
    expected = written(
        tmp_path, dtype, lambda builder: builder.add_document(np.array(FLAT, dtype), [6], [3])
    )
    for call in (
        lambda builder: builder.add_document(ids, [6], [3]),
        lambda builder: builder.add_documents(ids, [6], modes=[3]),
        lambda builder: (builder.add_item(ids, 3), builder.end_document()),
    ):
        assert written(tmp_path, dtype, call) == expected


@pytest.mark.parametrize(
    ("lengths", "modes"),
    list(
        itertools.product(
            (
                LENGTHS,
                tuple(LENGTHS),
                np.array(LENGTHS),
                np.array(LENGTHS, "int32"),
                np.array([LENGTHS, LENGTHS]).T[:, 0],
            ),
            ([0, 1, 2, 255], (0, 1, 2, 255), np.array([0, 1, 2, 255], "uint8"), None),
        )
    ),
)
def test_every_form_of_lengths_and_modes_writes_the_same_bytes(
    tmp_path: Path, lengths: object, modes: object
) -> None:
    ids = np.array(FLAT, "int32")
    expected = written(
        tmp_path,
        "int32",
        lambda builder: builder.add_documents(
            ids, LENGTHS, [4], None if modes is None else [0, 1, 2, 255]
        ),
    )
    found = written(tmp_path, "int32", lambda builder: builder.add_document(ids, lengths, modes))
    assert found == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1, 70_000], [2]), ValueError, "token 70000 at position 1 of document 0"),
        ((np.array([1, -1], "int32"), [2]), ValueError, "token -1 at position 1"),
        (([2**63], [1]), ValueError, "9223372036854775808 does not fit"),
        (([True, False], [2]), TypeError, "values of bool"),
        (([1.0, 2.0], [2]), TypeError, "values of float64"),
        ((np.array([1.0]), [1]), TypeError, "values of float64"),
        (([1, 2], [3]), ValueError, "2 ids, but the lengths add up to 3"),
        (([1, 2], [-1, 3]), ValueError, "-1 cannot be a sequence length"),
        (([1, 2], [True, True]), TypeError, "lengths must be integers, not bool"),
        (([1, 2], [2.0]), TypeError, "lengths must be integers, not float64"),
        (([1, 2], [2], [256]), ValueError, r"modes must be 0\.\.255"),
        (([1, 2], [2], [-1]), ValueError, r"modes must be 0\.\.255"),
        (([1, 2], [2], [0, 0]), ValueError, "1 sequences, but 2 modes"),
        (([1, 2], [2], [1.0]), TypeError, "modes must be integers"),
    ],
)
def test_what_cannot_be_added_is_told_and_nothing_is(
    tmp_path: Path, arguments, error: type[Exception], message: str
) -> None:
    with IndexedDatasetBuilder(tmp_path / "a", dtype="uint16", multimodal=True) as builder:
        with pytest.raises(error, match=message):
            builder.add_document(*arguments)
        assert builder.written == (0, 0, 0)
        builder.add_document([7], [1])
    assert IndexedDataset(tmp_path / "a").document(0)[0].ids.tolist() == [7]


@pytest.mark.parametrize("mode", [-1, 256, 1.0, True])
def test_a_mode_is_a_byte(tmp_path: Path, mode: object) -> None:
    with IndexedDatasetBuilder(tmp_path / "a", multimodal=True) as builder:
        with pytest.raises((ValueError, TypeError), match="modes must be"):
            builder.add_item([1], mode)
        builder.add_item([1], np.int64(3))
        builder.end_document()
    assert IndexedDataset(tmp_path / "a").document(0)[0].mode == 3


def test_tensors_are_taken_where_they_are(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with IndexedDatasetBuilder(tmp_path / "a", multimodal=True) as builder:
        for dtype in (torch.int32, torch.int64, torch.uint8, torch.int16):
            builder.add_document(torch.tensor([1, 2, 3], dtype=dtype), [2, 1], torch.tensor([1, 2]))
        builder.add_document(torch.arange(6).reshape(2, 3).T, torch.tensor([6]))
        builder.add_documents(torch.arange(3, dtype=torch.int32), torch.tensor([1, 2]))
        with pytest.raises(TypeError, match="float32"):
            builder.add_item(torch.tensor([1.0]))
        with pytest.raises((TypeError, RuntimeError), match="meta"):
            builder.add_item(torch.zeros(3, dtype=torch.int32, device="meta"))
    dataset = IndexedDataset(tmp_path / "a")
    assert [ids.tolist() for ids in dataset] == [[1, 2], [3]] * 4 + [[0, 3, 1, 4, 2, 5]] + [
        [0],
        [1, 2],
    ]


def arrow_arrays(pa) -> dict[str, object]:
    whole = pa.array([[9], *IDS, [9, 9]], pa.large_list(pa.int32()))
    return {
        "list": pa.array(IDS, pa.list_(pa.int64())),
        "large list": pa.array(IDS, pa.large_list(pa.uint16())),
        "a slice of another": whole[1:-1],
        "chunked": pa.chunked_array([IDS[:1], IDS[1:], []], pa.list_(pa.int32())),
        "another library's": type(
            "Foreign", (), {"__arrow_c_array__": whole[1:-1].__arrow_c_array__}
        )(),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "form", ["list", "large list", "a slice of another", "chunked", "another library's"]
)
def test_each_row_of_an_arrow_array_is_a_document(tmp_path: Path, dtype: str, form: str) -> None:
    pa = pytest.importorskip("pyarrow")
    with IndexedDatasetBuilder(tmp_path / "a", dtype=dtype, multimodal=True) as builder:
        builder.add_documents(arrow_arrays(pa)[form], modes=[0, 1, 2, 3])
        builder.add_documents(pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)))
    documents = list(IndexedDataset(tmp_path / "a").documents())
    assert [[s.ids.tolist() for s in document] for document in documents] == [
        [ids] for ids in [*IDS, [1, 2], [3, 4]]
    ]
    assert [s.mode for document in documents for s in document] == [0, 1, 2, 3, 0, 0]


def test_a_row_of_lists_is_a_document_of_several_sequences(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    documents = [[[1, 2], [3]], [], [[], [4]]]
    with IndexedDatasetBuilder(tmp_path / "a") as builder:
        builder.add_documents(
            pa.array([[[0]], *documents], pa.list_(pa.large_list(pa.int32())))[1:]
        )
    found = IndexedDataset(tmp_path / "a").documents()
    assert [[s.ids.tolist() for s in document] for document in found] == documents


def test_a_null_in_an_arrow_array_is_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    with IndexedDatasetBuilder(tmp_path / "a") as builder:
        for rows, message in [
            ([[1], None, [2]], "row 1 of the Arrow array is null"),
            ([[1], [2, 3], [4, None]], "row 2 of the Arrow array holds a null"),
        ]:
            for array in (
                pa.array(rows, pa.list_(pa.int32())),
                pa.array([[7], *rows], pa.large_list(pa.int32()))[1:],
                pa.chunked_array([rows[:1], rows[1:]], pa.list_(pa.int32())),
            ):
                with pytest.raises(ValueError, match=message):
                    builder.add_documents(array)
        with pytest.raises(ValueError, match="row 1 of the Arrow array holds a null"):
            builder.add_documents(pa.array([[[1]], [[1], None]], pa.list_(pa.list_(pa.int32()))))
        for bad in (pa.array([1, 2]), pa.array([["a"]]), pa.array([[1.5]])):
            with pytest.raises(TypeError):
                builder.add_documents(bad)
        with pytest.raises(TypeError, match="lengths are missing"):
            builder.add_documents([1, 2])
        with pytest.raises(TypeError, match="lists of lists"):
            builder.add_documents(pa.array([[1]]), document_lengths=[1])
        with pytest.raises(ValueError, match="1 sequences, but 2 modes"):
            builder.add_documents(pa.array([[1]]), modes=[0, 0])
        assert builder.written == (0, 0, 0)


def tensors() -> dict[str, object]:
    """The ids in every tensor that may hold them."""
    torch = pytest.importorskip("torch")
    flat = torch.tensor(FLAT)
    return {
        "int64": flat,
        "int32": flat.to(torch.int32),
        "uint16": flat.to(torch.uint16),
        "two-dimensional": flat.to(torch.int32).reshape(2, 3),
        "transposed": flat.reshape(2, 3).T.contiguous().T,
        "strided": torch.stack([flat, flat * 0], dim=1)[:, 0],
        "from the middle": torch.cat([flat * 0, flat, flat * 0])[len(FLAT) : 2 * len(FLAT)],
        "a parameter": torch.nn.Parameter(flat, requires_grad=False),
        "misaligned": torch.from_numpy(
            np.frombuffer(bytearray(b"?" + np.array(FLAT, "int32").tobytes()), "int32", offset=1)
        ),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", tensors())
def test_every_tensor_writes_the_same_bytes(tmp_path: Path, dtype: str, form: str) -> None:
    expected = written(
        tmp_path, dtype, lambda builder: builder.add_document(np.array(FLAT, dtype), [6], [3])
    )
    for call in (
        lambda builder: builder.add_document(tensors()[form], [6], [3]),
        lambda builder: (builder.add_item(tensors()[form], 3), builder.end_document()),
    ):
        assert written(tmp_path, dtype, call) == expected


@pytest.mark.parametrize("length", [0, 1, 16_384, 16_385, 100_000])
@pytest.mark.parametrize("name", ["int32", "int64"])
def test_a_tensor_of_any_length_is_read_back(tmp_path: Path, length: int, name: str) -> None:
    torch = pytest.importorskip("torch")
    ids = torch.arange(length, dtype=getattr(torch, name))
    with IndexedDatasetBuilder(tmp_path / "a", dtype="int32") as builder:
        builder.add_document(ids, [length])
    assert IndexedDataset(tmp_path / "a")[0].tolist() == list(range(length))


def test_tensors_that_hold_no_ids_of_the_dataset_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with IndexedDatasetBuilder(tmp_path / "a", dtype="uint16") as builder:
        with pytest.raises(ValueError, match="70000"):
            builder.add_document(torch.tensor([1, 70_000]), [2])
        for bad, error in (
            (torch.tensor([0.5]), TypeError),
            (torch.tensor([1], device="meta"), (TypeError, RuntimeError, NotImplementedError)),
            (torch.tensor([1]).to_sparse(), (TypeError, RuntimeError)),
            (torch.tensor([True]), TypeError),
        ):
            with pytest.raises(error):
                builder.add_document(bad, [1])
        builder.add_document(torch.tensor([1, 2]), [2])
    assert IndexedDataset(tmp_path / "a")[0].tolist() == [1, 2]
