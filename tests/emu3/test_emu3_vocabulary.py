"""Emu3's ids: the published numbers by arithmetic, its byte-pair file, images as sequences and back."""

import base64
from pathlib import Path

import numpy as np
import pytest
from tests.emu3.tiny_models import write_tiktoken

from mmfast.errors import CorruptDataError, UsageError
from mmfast.recipes.emu3.prompts import (
    generation_end,
    generation_start,
    grid_of_ratio,
    understanding_end,
    understanding_start,
)
from mmfast.recipes.emu3.vocabulary import (
    NUM_COSMOS_CODES,
    NUM_COSMOS_NAMES,
    codes_from_image_ids,
    emu3_vocabulary,
    ids_from_template,
    image_ids,
    load_emu3_text_tokenizer,
    special_token_names,
    text_size_of,
)
from mmfast.tokenizers import TextTokenizer
from mmfast.tokenizers.tiktoken import tokenizer_json_from_tiktoken

# Facts of baaivision/Emu3 `tokenization_emu3.py` with its real files.
PUBLISHED = {
    "pad": 151643, "eol": 151846, "eof": 151847, "bos": 151849, "eos": 151850,
    "img": 151851, "boi": 151852, "eoi": 151853,
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return load_emu3_text_tokenizer(write_tiktoken(tmp_path_factory.mktemp("text")).parent)


def test_the_published_ids_come_out() -> None:
    vocabulary = emu3_vocabulary()
    assert vocabulary.size == 184_622
    assert dict(vocabulary.special) == PUBLISHED
    names = special_token_names()
    assert len(names) == 208 + 3 + 32_768
    for role, name in (
        ("eol", "<|extra_200|>"),
        ("eos", "<|extra_204|>"),
        ("boi", "<|image start|>"),
    ):
        assert 151_643 + names.index(name) == PUBLISHED[role]
    assert vocabulary.ids_from_codes("image", [0, 32_767]).tolist() == [151_854, 184_621]
    assert 151_643 + names.index("<|visual token 032767|>") == 184_621


def test_cosmos_has_more_names_than_codes() -> None:
    vocabulary = emu3_vocabulary(num_codes=NUM_COSMOS_CODES, num_names=NUM_COSMOS_NAMES)
    assert vocabulary.size == 216_854
    assert vocabulary.range("image").end == 151_854 + 64_000
    with pytest.raises(ValueError, match="64000 codes"):
        vocabulary.ids_from_codes("image", 64_000)


def test_the_file_s_pieces_come_out_in_its_ranks(text: TextTokenizer) -> None:
    assert text_size_of(text) < text.size == text_size_of(text) + 211 + 32_768
    # Digits and the star are pieces of their own.
    assert text.encode("90*90") == [ord(c) for c in "90*90"]
    the, ing = text.id_of("Ġthe"), text.id_of("ing")
    assert text.encode("seing the") == [ord("s"), ord("e"), ing, the]
    # A merge across the border of two pieces does not happen: ` a` and `re` in ` are`, but not in `a re`.
    assert text.encode("'re") == [ord("'"), text.id_of("re")]


def test_text_is_normalised_and_odd_bytes_are_replaced(text: TextTokenizer) -> None:
    assert text.encode("e\u0301") == text.encode("é") == [text.id_of("Ã©")]
    assert text.decode([0xE2, 0x82]) == "\ufffd"
    assert text.decode(text.encode("naïve 90*90\n\n  x")) == "naïve 90*90\n\n  x"


def test_special_strings_are_ids_in_templates_and_text_in_captions(text: TextTokenizer) -> None:
    vocabulary = emu3_vocabulary(text_size=text_size_of(text))
    spelled = "<|image start|>2*1<|image token|><|visual token 000007|><|extra_200|>"
    base = vocabulary.range("image").base
    expected = [vocabulary["boi"], *map(ord, "2*1"), vocabulary["img"], base + 7, vocabulary["eol"]]
    assert ids_from_template(text, spelled) == expected
    assert max(text.encode(spelled)) < text_size_of(text)
    with pytest.raises(UsageError, match="six digits"):
        ids_from_template(text, "<|visual token 7|>")


def test_spelling_out_visual_tokens_gives_the_ids_of_arithmetic(text: TextTokenizer) -> None:
    vocabulary = emu3_vocabulary(text_size=text_size_of(text))
    codes = np.random.default_rng(0).integers(0, 32_768, (64, 64))
    rows = [
        "".join(f"<|visual token {code:06d}|>" for code in row) + "<|extra_200|>" for row in codes
    ]
    assert ids_from_template(text, "".join(rows)) == image_ids(codes, vocabulary).tolist()


@pytest.mark.parametrize("grid", [(1, 1), (53, 79), (2, 5), (90, 90)])
def test_an_image_s_ids_and_its_codes_go_both_ways(grid: tuple[int, int]) -> None:
    vocabulary = emu3_vocabulary()
    codes = np.random.default_rng(1).integers(0, 32_768, grid)
    ids = image_ids(codes, vocabulary)
    assert len(ids) == grid[0] * (grid[1] + 1)
    assert ids[-1] == vocabulary["eol"]
    assert np.array_equal(codes_from_image_ids(ids, vocabulary), codes)
    followed = [*ids.tolist(), vocabulary["eof"], vocabulary["eoi"]]
    assert np.array_equal(codes_from_image_ids(followed, vocabulary, grid=grid), codes)
    flat = image_ids(codes, vocabulary, form="flat")
    assert np.array_equal(codes_from_image_ids(flat, vocabulary, grid=grid, form="flat"), codes)


def test_a_malformed_image_is_named_by_position() -> None:
    vocabulary = emu3_vocabulary()
    ids = image_ids(np.arange(6).reshape(2, 3), vocabulary)
    eol = vocabulary["eol"]
    for at, value, message in (
        (7, 5, "position 7: `eol` should end row 1"),
        (5, 42, "position 5 .row 1, column 1.: id 42"),
        (4, eol, "position 4"),
    ):
        broken = ids.copy()
        broken[at] = value
        with pytest.raises(CorruptDataError, match=message):
            codes_from_image_ids(broken, vocabulary, grid=(2, 3))
    with pytest.raises(CorruptDataError, match="8 ids, but there are 7"):
        codes_from_image_ids(ids[:-1], vocabulary, grid=(2, 3))
    with pytest.raises(CorruptDataError, match="first `eol` is missing"):
        codes_from_image_ids(ids[:3], vocabulary)


def test_prompts_are_the_published_text_between_ids(text: TextTokenizer) -> None:
    v = emu3_vocabulary(text_size=text_size_of(text))

    def template(string: str) -> list[int]:
        return ids_from_template(text, string)

    before = understanding_start((2, 3), text, v)
    assert before == template(
        "<|extra_203|>You are a helpful assistant. USER: <|image start|>2*3<|image token|>"
    )
    question = understanding_end("What is it", None, text, v)
    assert question == template("<|extra_201|><|image end|>What is it. ASSISTANT:")
    answered = understanding_end("Please describe the image", "a cat", text, v)
    assert answered == template(
        "<|extra_201|><|image end|>Please describe the image. ASSISTANT: a cat<|extra_204|>"
    )
    assert generation_start("a cat", (90, 90), text, v) == template(
        "<|extra_203|>a cat<|image start|>90*90<|image token|>"
    )
    assert generation_start("a {cat}", (32, 32), text, v, prompt="nemo", form="flat") == template(
        "<|extra_203|>You are a helpful assistant. Draw a picture for the caption given by the user. USER: a {cat}. "
        "ASSISTANT: <|image start|><|image token|>"
    )
    assert generation_end(v) == template("<|extra_201|><|image end|><|extra_204|>")
    assert generation_end(v, form="flat") == template("<|image end|><|extra_204|>")


@pytest.mark.parametrize(
    ("ratio", "area", "grid"),
    [
        ("1:1", 518400, (90, 90)), ("4:3", 518400, (78, 104)), ("3:4", 518400, (104, 78)),
        ("16:9", 518400, (68, 120)), ("9:16", 518400, (120, 68)), ("3:2", 518400, (73, 110)),
        ("1:1", 262144, (64, 64)), ("16:9", 262144, (48, 85)),
    ],
)  # fmt: skip
def test_ratios_give_the_published_grids(ratio: str, area: int, grid: tuple[int, int]) -> None:
    assert grid_of_ratio(ratio, image_area=area) == grid


@pytest.mark.parametrize("ratio", ["", "1", "0:1", "a:b", "1:1:1", "100000:1"])
def test_a_ratio_that_is_none_is_refused(ratio: str) -> None:
    with pytest.raises(ValueError, match="ratio"):
        grid_of_ratio(ratio)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines, "???? 267"], "is not `base64 rank`"),
        (lambda lines: [*lines, lines[0]], "there twice"),
        (lambda lines: [*lines, "YWJj 400"], "ranks are not"),
        (lambda lines: lines[1:], "ranks are not"),
        (lambda lines: [*lines[:-1], lines[-1].split()[0]], "is not `base64 rank`"),
    ],
)
def test_a_damaged_tiktoken_file_is_named(change, message: str, tmp_path: Path) -> None:
    path = write_tiktoken(tmp_path)
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(CorruptDataError, match=message):
        load_emu3_text_tokenizer(tmp_path)


def test_a_file_without_a_byte_or_with_a_special_token_in_it_is_refused(tmp_path: Path) -> None:
    path = write_tiktoken(tmp_path)
    lines = [line.split()[0] for line in path.read_text().splitlines()]
    lines[65] = base64.b64encode(b"zz").decode()
    path.write_text("".join(f"{line} {rank}\n" for rank, line in enumerate(lines)))
    with pytest.raises(CorruptDataError, match=r"no token for 1 bytes, e\.g\. 65"):
        load_emu3_text_tokenizer(tmp_path)
    path = write_tiktoken(tmp_path)
    with pytest.raises(CorruptDataError, match="also an ordinary token"):
        tokenizer_json_from_tiktoken(path, pattern=".", special_tokens=["a"], normalize=False)
    with pytest.raises(UsageError, match="no text tokenizer"):
        load_emu3_text_tokenizer(tmp_path / "absent")
