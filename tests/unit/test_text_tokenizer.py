"""The text tokenizer: exact round trips, repeatable training, foreign files, forged control tokens."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mmfast.errors import BadRecordError, CorruptDataError, UsageError
from mmfast.tokenizers import TextTokenizer, load_text_tokenizer, train_text_tokenizer

TEXTS = ["a handwritten seven", "the digit nine", "somebody wrote the number two"] * 4
TOKENIZER = train_text_tokenizer(TEXTS, vocab_size=320)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_exactly(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= i < TOKENIZER.size for i in ids)


def test_training_repeats_and_keeps_to_the_size() -> None:
    again = train_text_tokenizer(TEXTS, vocab_size=320)
    assert again.fingerprint == TOKENIZER.fingerprint
    assert TOKENIZER.size <= 320
    assert len(TOKENIZER.encode("handwritten")) < len("handwritten")
    with pytest.raises(UsageError, match="256"):
        train_text_tokenizer(TEXTS, vocab_size=255)


def test_a_saved_file_keeps_its_fingerprint(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_text_tokenizer(path).fingerprint == TOKENIZER.fingerprint


def test_lone_surrogates_are_a_bad_record() -> None:
    with pytest.raises(BadRecordError) as caught:
        TOKENIZER.encode("a \ud800 b")
    assert caught.value.reason == "caption_not_unicode"
    assert train_text_tokenizer([*TEXTS, "\ud800"], vocab_size=320).size == TOKENIZER.size


def test_captions_cannot_forge_special_tokens() -> None:
    inner = Tokenizer.from_str(TOKENIZER._file_bytes.decode())
    inner.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    plugged = TextTokenizer(inner.to_str().encode())
    assert plugged.size == TOKENIZER.size + 1
    ids = plugged.encode("end <|endoftext|> here")
    assert plugged.size - 1 not in ids
    assert plugged.decode(ids) == "end <|endoftext|> here"


def test_size_covers_the_largest_id_of_a_vocabulary_with_holes() -> None:
    inner = Tokenizer(models.WordLevel({"a": 0, "b": 7, "?": 3}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.enable_truncation(1)
    inner.enable_padding(length=9)
    plugged = TextTokenizer(inner.to_str().encode())
    assert plugged.size == 8
    assert plugged.encode("a b zebra") == [0, 7, 3]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0", "model": 3}'])
def test_a_file_that_is_no_tokenizer_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match="tokenizer"):
        load_text_tokenizer(path)
    with pytest.raises(UsageError, match="train-text"):
        load_text_tokenizer(tmp_path / "absent.json")
