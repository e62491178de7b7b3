"""NeMo's `tokenizer:` block of a training YAML, read to check the data against it.

A dataset of mmfast carries its tokenizer and vocabulary, so nothing is loaded from the block. Its `type`, where it
is a folder on this machine, must hold the tokenizer that the data was prepared with; a Hub name is noted and taken at
its word. `trust_remote_code` may stand there and does nothing: no remote code runs.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from mmfast.console import log
from mmfast.errors import VocabularyMismatchError
from mmfast.tokenizers.text import load_text_tokenizer
from mmfast.tokenizers.tiktoken import read_tiktoken_ranks
from mmfast.vocab import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerBlock:
    """The keys of NeMo's block; only `type` says anything here.

    Attributes:
        library: `huggingface`, as both of NeMo's examples have it.
        type: a folder with a tiktoken file or a tokenizer.json, or a Hub name; empty for no check.
        model, delimiter, vocab_file, merge_file, sentencepiece_legacy, trust_remote_code: read, not used.
    """

    library: Literal["huggingface"] = "huggingface"
    type: str = ""
    model: str | None = None
    delimiter: str | None = None
    vocab_file: str | None = None
    merge_file: str | None = None
    sentencepiece_legacy: bool = False
    trust_remote_code: bool = False


def check_tokenizer(block: TokenizerBlock, vocabulary: Vocabulary, *, dataset: Path) -> None:
    """Compares the block's folder with the vocabulary of the data in `dataset`.

    Raises:
        VocabularyMismatchError: the folder holds another tokenizer.
        UsageError, CorruptDataError: it holds none, or a damaged one.
    """
    if not block.type:
        return
    folder = Path(block.type)
    if not folder.is_dir():
        log(f"tokenizer.type {block.type}: no folder here; the tokenizer in {dataset} is used")
        return
    tiktoken = sorted(folder.glob("*.tiktoken"))
    if tiktoken:
        found, expected = str(len(read_tiktoken_ranks(tiktoken[0]))), str(vocabulary.text_size)
        what = "text ids"
    else:
        found, expected = load_text_tokenizer(folder).fingerprint, vocabulary.text_fingerprint
        what = "fingerprint"
    if found != expected:
        raise VocabularyMismatchError(
            f"tokenizer.type {folder} has {what} {found}, but the data in {dataset} was prepared with {expected}; "
            "prepare the data with this tokenizer, or name the one it was prepared with"
        )
