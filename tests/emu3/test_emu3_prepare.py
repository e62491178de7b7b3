"""`mmfast prepare coyo | pokemon | emu3`: documents byte for byte, every file accounted for."""

import io
import json
import pickle  # noqa: TID251 -- writes what the restricted reader is given
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.emu3.tiny_models import bundled_photos, save_cosmos, tiny_vqvae, write_tiktoken
from typer.testing import CliRunner

from mmfast.cli.prepare import app
from mmfast.data import IndexedDataset
from mmfast.errors import BadRecordError, UsageError
from mmfast.prepare.restricted_pickle import read_restricted_pickle
from mmfast.recipes.emu3.options import Emu3PrepareOptions
from mmfast.recipes.emu3.vocabulary import codes_from_image_ids, ids_from_template, image_ids
from mmfast.tokenizers import load_image_tokenizer, load_text_tokenizer, open_image
from mmfast.tokenizers.emu3 import Emu3ImageTokenizer
from mmfast.tokenizers.fsq import FsqConfig, FsqImageTokenizer
from mmfast.vocab import Vocabulary

pytestmark = pytest.mark.xdist_group("emu3-prepare")
PHOTOS = ("astronaut.png", "chelsea.png", "china.jpg", "coffee.png", "rocket.jpg", "camera.png")
AREA = ["--min-pixels", "2048", "--max-pixels", "4096", "--encode-batch", "2"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tokenizers, and photographs as .jpg with captions as .pkl, as NeMo's script wants them."""
    root = tmp_path_factory.mktemp("raw")
    write_tiktoken(root / "text")
    Emu3ImageTokenizer(tiny_vqvae()).save(root / "vision")
    save_cosmos(root / "Cosmos-Tokenizer-DV8x16x16")
    (root / "images").mkdir()
    (root / "captions").mkdir()
    for name in PHOTOS:
        image = open_image(bundled_photos()[name])
        image.thumbnail((128, 128))
        image.save(root / "images" / f"{Path(name).stem}.jpg")
        write_pickle(root / "captions" / f"{Path(name).stem}.pkl", f"a photo of {Path(name).stem}")
    return root


def write_pickle(path: Path, caption: object) -> None:
    path.write_bytes(pickle.dumps({"captions": {"llava": caption, "alt": "x"}, "size": [1, 2.5]}))


def prepare(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    raised = done.exception if not isinstance(done.exception, SystemExit) else None
    if code == 0:
        assert raised is None, raised
        assert done.exit_code == 0, done.output
    else:
        assert raised is not None or done.exit_code == code
    return done.output + (str(raised) if raised else "")


def coyo(raw: Path, output: Path, *more: object, code: int = 0) -> str:
    return prepare(
        "coyo", "--input_image_dir", raw / "images", "--input_captions_dir", raw / "captions",
        "--output_prefix", output, "--vision_tokenizer", raw / "vision", "--text_tokenizer", raw / "text",
        *AREA, "--device", "cpu", *more, code=code,
    )  # fmt: skip


def document_ids(prefix: Path, number: int) -> list[int]:
    segments = IndexedDataset(prefix).document(number)
    return np.concatenate([segment.ids for segment in segments]).tolist()


def test_coyo_documents_are_the_reference_s_prompt(raw: Path, tmp_path: Path) -> None:
    coyo(
        raw,
        tmp_path / "data/train",
        "--chunk_size",
        64,
        "--dataset_impl",
        "mmap",
        "--resize_image",
        "True",
    )
    dataset, vocabulary = (
        IndexedDataset(tmp_path / "data/train"),
        Vocabulary.load(tmp_path / "data"),
    )
    text = load_text_tokenizer(tmp_path / "data")
    tokenizer = load_image_tokenizer(raw / "vision")
    tokenizer.min_pixels, tokenizer.max_pixels = 2048, 4096
    names = sorted(Path(name).stem for name in PHOTOS)
    assert dataset.num_documents == len(names)
    for number, name in enumerate(names):
        (codes,) = tokenizer.encode(
            tokenizer.preprocess(open_image(raw / "images" / f"{name}.jpg"))[None]
        )
        height, width = codes.shape[1:]
        rows = [
            "".join(f"<|visual token {c:06d}|>" for c in row) + "<|extra_200|>" for row in codes[0]
        ]
        expected = (
            f"<|extra_203|>You are a helpful assistant. USER: <|image start|>{height}*{width}<|image token|>"
            f"{''.join(rows)}<|extra_201|><|image end|>Please describe the image. ASSISTANT: a photo of {name}"
            "<|extra_204|>"
        )
        assert document_ids(tmp_path / "data/train", number) == ids_from_template(text, expected)
        before, image, after = dataset.document(number)
        assert [segment.mode for segment in (before, image, after)] == [0, 1, 0]
        assert np.array_equal(codes_from_image_ids(image.ids, vocabulary), codes[0].numpy())
    sizes = {
        tuple(codes_from_image_ids(dataset.document(k)[1].ids, vocabulary).shape) for k in range(6)
    }
    assert len(sizes) == 2


def test_every_file_of_a_coyo_job_is_accounted_for(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "images", tmp_path / "images")
    shutil.copytree(raw / "captions", tmp_path / "captions")
    images, captions = tmp_path / "images", tmp_path / "captions"
    (images / "torn.jpg").write_bytes((images / "china.jpg").read_bytes()[:400])
    write_pickle(captions / "torn.pkl", "torn")
    Image.new("RGB", (60, 10)).save(images / "wide.jpg")
    write_pickle(captions / "wide.pkl", "wide")
    shutil.copy(images / "china.jpg", images / "mute.jpg")
    shutil.copy(images / "china.jpg", images / "evil.jpg")
    (captions / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    shutil.copy(images / "china.jpg", images / "null.jpg")
    write_pickle(captions / "null.pkl", None)
    shutil.copy(images / "china.jpg", images / "words.jpg")
    (captions / "words.txt").write_text("from a text file\n")
    Image.open(images / "china.jpg").convert("CMYK").save(images / "ink.jpg")
    (captions / "ink.json").write_text(json.dumps({"captions": {"llava": "in ink"}}))
    output = coyo(
        Path(raw), tmp_path / "data/train", "--input_image_dir", images, "--input_captions_dir", captions,
        "--max_bad_fraction", 0.6, "--gray", "skip",
    )  # fmt: skip
    report = json.loads((tmp_path / "data/train.prepare.json").read_text())
    assert report["skipped"] == {
        "pickle_refused": 2, "image_corrupt": 1, "image_aspect": 1, "caption_missing": 1, "image_gray": 1,
    }  # fmt: skip
    assert report["records"] == len(list(images.iterdir())) == 13
    assert report["documents"] == report["used"] == 7
    assert "records/s" in output
    assert not Path("evil-ran").exists()
    assert any("evil.pkl" in text for text in report["examples"]["pickle_refused"])


class Evil:
    """Touches a file when a real unpickler loads it."""

    def __reduce__(self):
        return Path("evil-ran").touch, ()


def test_captions_in_one_file_give_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="parquet input needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet input needs pyarrow")
    coyo(raw, tmp_path / "pickles/train", "--layout", "single")
    names = sorted(Path(name).stem for name in PHOTOS)
    records = [
        {"image": f"{name}.jpg", "captions": {"llava": f"a photo of {name}"}} for name in names
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "captions.parquet")
    for file in ("captions.jsonl", "captions.parquet"):
        output = tmp_path / file.replace(".", "-") / "train"
        coyo(raw, output, "--layout", "single", "--input_captions_dir", tmp_path / file)
        for suffix in (".bin", ".idx"):
            assert (
                output.with_suffix(suffix).read_bytes()
                == (tmp_path / f"pickles/train{suffix}").read_bytes()
            )


def test_the_index_is_the_published_layout_of_int32(raw: Path, tmp_path: Path) -> None:
    """Read by a reader of its own, from the format's description."""
    coyo(raw, tmp_path / "data/train", "--layout", "single")
    content = (tmp_path / "data/train.idx").read_bytes()
    assert content[:9] == b"MMIDIDX\0\0"
    version = int(np.frombuffer(content, "<u8", 1, 9)[0])
    dtype_code = content[17]
    num_sizes, num_documents = np.frombuffer(content, "<u8", 2, 18).tolist()
    sizes = np.frombuffer(content, "<i4", num_sizes, 34)
    pointers = np.frombuffer(content, "<i8", num_sizes, 34 + 4 * num_sizes)
    documents = np.frombuffer(content, "<i8", num_documents, 34 + 12 * num_sizes)
    assert len(content) == 34 + 12 * num_sizes + 8 * num_documents
    assert (version, dtype_code, num_sizes, num_documents) == (1, 4, 6, 7)
    assert documents.tolist() == list(range(7))
    tokens = np.fromfile(tmp_path / "data/train.bin", "<i4")
    for number in range(6):
        start = int(pointers[number]) // 4
        assert tokens[start : start + sizes[number]].tolist() == document_ids(
            tmp_path / "data/train", number
        )


def test_pokemon_documents_are_the_reference_s_prompt(raw: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="parquet input needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet input needs pyarrow")
    names = sorted(Path(name).stem for name in PHOTOS)
    rows = []
    for name in names:
        image = io.BytesIO()
        Image.open(raw / "images" / f"{name}.jpg").convert("RGB").save(image, format="PNG")
        rows.append(
            {"image": {"bytes": image.getvalue(), "path": None}, "text": f"a drawing of {name}"}
        )
    (tmp_path / "set/data").mkdir(parents=True)
    for part, some in enumerate((rows[:4], rows[4:])):
        parquet.write_table(pa.Table.from_pylist(some), tmp_path / f"set/data/train-{part}.parquet")
    encoder = raw / "Cosmos-Tokenizer-DV8x16x16"
    prepare(
        "pokemon", "--dataset", tmp_path / "set", "--image_encoder", encoder,
        "--multimodal_tokenizer_path", raw / "text", "--output_prefix", tmp_path / "data/train", "--device", "cpu",
    )  # fmt: skip
    text, vocabulary = load_text_tokenizer(tmp_path / "data"), Vocabulary.load(tmp_path / "data")
    assert vocabulary.range("image").size == 64_000
    assert vocabulary.size == vocabulary.range("image").base + 65_000
    tokenizer = load_image_tokenizer(encoder, allow_torchscript=True)
    for number, name in enumerate(names):
        picture = Image.open(raw / "images" / f"{name}.jpg").convert("RGB")
        (codes,) = tokenizer.encode(tokenizer.preprocess(picture, 512)[None])
        assert codes.shape == (1, 32, 32)
        visual = "".join(f"<|visual token {code:06d}|>" for code in codes.flatten())
        expected = (
            "<|extra_203|>You are a helpful assistant. Draw a picture for the caption given by the user. USER: "
            f"a drawing of {name}. ASSISTANT: <|image start|><|image token|>{visual}<|image end|><|extra_204|>"
        )
        assert document_ids(tmp_path / "data/train", number) == ids_from_template(text, expected)


def test_own_images_become_documents_to_draw_and_to_describe(raw: Path, tmp_path: Path) -> None:
    FsqImageTokenizer(FsqConfig(image_height=32, image_width=32, widths=(8, 16))).save(
        tmp_path / "fsq"
    )
    for name in PHOTOS:
        stem = Path(name).stem
        (tmp_path / f"captions/{stem}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"captions/{stem}.txt").write_text(f"a photo of {stem}\nthe {stem}\n")
    prepare(
        "emu3", "--images", raw / "images", "--captions", tmp_path / "captions", "--image-tokenizer",
        tmp_path / "fsq", "--text-tokenizer", raw / "text", "--output", tmp_path / "data/train", "--loss", "answer",
        "--null-prompt-prob", 0.4, "--device", "cpu",
    )  # fmt: skip
    dataset, v = IndexedDataset(tmp_path / "data/train"), Vocabulary.load(tmp_path / "data")
    text = load_text_tokenizer(tmp_path / "data")
    assert dataset.num_documents == len(PHOTOS) * 2 * 2
    num_empty = 0
    for number in range(0, dataset.num_documents, 2):
        before, image, after = dataset.document(number)
        assert [s.mode for s in (before, image, after)] == [0x40, 1, 0]
        assert after.ids.tolist() == [v["eof"], v["eoi"], v["eos"]]
        caption = text.decode(before.ids[1 : before.ids.tolist().index(v["boi"])])
        num_empty += caption == ""
        before, same, question, answer = dataset.document(number + 1)
        assert [s.mode for s in (before, same, question, answer)] == [0x40, 0x41, 0x40, 0]
        assert np.array_equal(image.ids, same.ids)
        assert text.decode(question.ids[2:]) == "Please describe the image. ASSISTANT:"
        assert answer.ids[-1] == v["eos"]
        described = text.decode(answer.ids[:-1])
        assert described.startswith((" a photo of ", " the "))
        assert caption in ("", described[1:])
        assert np.array_equal(image_ids(codes_from_image_ids(image.ids, v), v), image.ids)
    assert 0 < num_empty < len(PHOTOS) * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_impl", "lazy"], "leave it at mmap"),
        (["--spatial_factor", "16"], "codes 8 pixels"),
        (["--min_pixels", "5000"], "above --max-pixels"),
        (["--input_captions_dir", "absent.jsonl"], "no caption file"),
        (["--text_tokenizer", "absent"], "no text tokenizer"),
    ],
)
def test_wrong_flags_are_explained(raw: Path, tmp_path: Path, arguments, message: str) -> None:
    assert message in coyo(raw, tmp_path / "train", *arguments, code=2)


def test_data_that_is_not_here_is_explained(raw: Path, tmp_path: Path) -> None:
    common = ["--multimodal_tokenizer_path", raw / "text", "--output", tmp_path / "train"]
    cosmos = raw / "Cosmos-Tokenizer-DV8x16x16"
    assert "hf download" in prepare(
        "pokemon", "--dataset", "reach-vb/pokemon-blip-captions", "--image_encoder", cosmos, *common, code=2
    )  # fmt: skip
    assert "encoder.jit" in prepare(
        "pokemon", "--dataset", raw / "images", "--image_encoder", "Cosmos-Tokenizer-DV8x16x16", *common, code=2
    )  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol_are_read(protocol: int) -> None:
    shared = "said twice"
    value = {
        "captions": {"llava": "a çat", "more": [shared, shared, {"n": -3, "big": 10**30, "f": 1.5e-3}]},
        "sizes": list(range(2000)), "empty": [[], {}], 7: 70_000, "long" * 100: 300,
    }  # fmt: skip
    assert read_restricted_pickle(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(Evil()), "pickle_refused"),
        (pickle.dumps(print), "pickle_refused"),
        (pickle.dumps({"a": b"bytes"}), "pickle_refused"),
        (pickle.dumps({"a": (1, 2)}), "pickle_refused"),
        (pickle.dumps({"a": True}), "pickle_refused"),
        (pickle.dumps({"a": True}, protocol=0), "pickle_refused"),
        (pickle.dumps({"a": {1}}), "pickle_refused"),
        (b"cos\nsystem\n(S'true'\ntR.", "pickle_refused"),
        (pickle.dumps({"a": [1]})[:-3], "record_broken"),
        (b"", "record_broken"),
        (b"(.", "record_broken"),
        (b"(]a.", "record_broken"),
        (b"]]].", "record_broken"),
        (b"}K\x01s.", "record_broken"),
        (b"h\x05.", "record_broken"),
        (b"}]K\x01s.", "record_broken"),
        (b"\x8d" + b"\xff" * 8 + b"abc.", "record_broken"),
        (b"(" * 100_000 + b".", "record_broken"),
        (b"N.", "pickle_refused"),
    ],
)
def test_anything_else_in_a_pickle_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        read_restricted_pickle(content)
    assert caught.value.reason == reason
    assert not Path("evil-ran").exists()


def test_mutated_pickles_give_plain_data_or_a_reason() -> None:
    rng = np.random.default_rng(0)
    seed = pickle.dumps({"captions": {"llava": "a cat", "n": [1, 2.0, "x"]}})
    num_read, reasons = 0, set()
    for _ in range(3000):
        content = bytearray(seed)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            content[at] = rng.integers(256)
        try:
            read_restricted_pickle(bytes(content))
            num_read += 1
        except BadRecordError as error:
            reasons.add(error.reason)
    assert reasons == {"pickle_refused", "record_broken"}
    assert 0 < num_read < 3000
    with pytest.raises(BadRecordError, match="over"):
        read_restricted_pickle(bytes(17 * 1024 * 1024))


def test_grids_are_refused_where_a_size_does_not_fit(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="either --images or --tars"):
        Emu3PrepareOptions(image_tokenizer=raw, text_tokenizer=raw)
    message = prepare(
        "emu3", "--images", raw / "images", "--image-tokenizer", raw / "vision", "--text-tokenizer", raw / "text",
        "--output", tmp_path / "train", "--image-size", 100, code=2,
    )  # fmt: skip
    assert "not a multiple of the tokenizer's factor 8" in message
