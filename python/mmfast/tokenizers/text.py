"""Text to ids and back, by any tokenizer file of the Hugging Face `tokenizers` library.

`train_text_tokenizer` makes a byte-level BPE, which has an id for every byte and so gives back any
string exactly. An existing `tokenizer.json` plugs in unchanged. A caption that happens to spell one of
a tokenizer's special tokens is encoded as plain text: data cannot forge control tokens.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mmfast.errors import BadRecordError, CorruptDataError, UsageError
from mmfast.files import write_bytes

NUM_BYTES = 256
FEW_TEXTS = 64


class TextTokenizer:
    """A loaded tokenizer file.

    Attributes:
        size: ids are `[0, size)`.
        fingerprint: 16 hexadecimal digits of the file's bytes; copies of the file share it.
    """

    def __init__(self, file_bytes: bytes, *, name: str = "tokenizer") -> None:
        try:
            self._tokenizer = Tokenizer.from_str(file_bytes.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise CorruptDataError(f"{name} is not UTF-8: {error}") from error
        except Exception as error:
            # The library raises plain `Exception` for every fault in the file.
            raise CorruptDataError(f"{name} is not a tokenizer file: {error}") from error
        # Padding and truncation stored in the file belong to batches of sentences, not to documents.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self._file_bytes = file_bytes
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.size: int = max(ids, default=-1) + 1
        self.fingerprint: str = hashlib.sha256(file_bytes).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without tokens that a template would add.

        Raises:
            BadRecordError: reason `caption_not_unicode` for a lone surrogate, which no encoding of
                text can hold.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; faster than one by one."""
        for text in texts:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise BadRecordError(
                    "caption_not_unicode", f"text {text[:40]!r} holds a lone surrogate: {error}"
                ) from error
        # Handing a few texts to the library's threads costs 1.3 ms, encoding a caption some 20 us.
        if len(texts) < FEW_TEXTS:
            encodings = [self._tokenizer.encode(t, add_special_tokens=False) for t in texts]
        else:
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def encode_with_special_tokens(self, text: str) -> list[int]:
        """Ids of a text in which the file's special tokens may be spelled, as in a template of one's own.

        Never for captions or other data, which could forge control tokens with it.
        """
        self._tokenizer.encode_special_tokens = False
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        finally:
            self._tokenizer.encode_special_tokens = True

    def id_of(self, token: str) -> int | None:
        """Id of a token as the file spells it, special ones included; None if there is none."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD, ids without an entry are left out."""
        text: str = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
        return text

    def save(self, path: Path) -> None:
        """Writes the very bytes it was loaded from."""
        write_bytes(path, self._file_bytes)


def load_text_tokenizer(path: Path | str) -> TextTokenizer:
    """Loads a `tokenizer.json`, given the file or the folder it lies in.

    Raises:
        UsageError: there is no such file.
        CorruptDataError: it is not a tokenizer file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"there is no text tokenizer {path}; `mmfast tokenizer train-text` makes one"
        )
    return TextTokenizer(path.read_bytes(), name=str(path))


def train_text_tokenizer(texts: Iterable[str], *, vocab_size: int) -> TextTokenizer:
    """Trains a byte-level BPE on `texts`; the result has at most `vocab_size` ids.

    Texts that are not valid Unicode are passed over. The same texts in the same order give the same
    file.
    """
    if vocab_size < NUM_BYTES:
        raise UsageError(
            f"a byte-level vocabulary needs at least {NUM_BYTES} ids, not {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_valid(texts), trainer)
    return TextTokenizer(tokenizer.to_str(pretty=True).encode())


def _valid(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        if not any(0xD800 <= ord(character) <= 0xDFFF for character in text):
            yield text
