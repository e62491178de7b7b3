"""Text tokenizers in tiktoken's file format, as `tokenizer.json` files, without running foreign code.

A tiktoken file has a line `base64(token bytes) rank` for each token; what surrounds it (how text is split,
what the special tokens are called) stands in the model's remote code, and here in the caller's. tiktoken
merges the neighbours whose union has the lowest rank; the `tokenizers` library does the same when it is
given every split of a token into two tokens as a merge, in the order of the token's rank, and takes whole
pieces that are tokens as they are. Facts: openai/tiktoken `_educational.py` and `load.py`.
"""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mmfast.errors import CorruptDataError, UsageError

MAX_FILE_BYTES = 256 * 1024 * 1024


def read_tiktoken_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes to rank of a tiktoken file.

    Raises:
        UsageError: there is no such file.
        CorruptDataError: a line that is no token and rank, a token twice, ranks that are not 0, 1, 2, …
            in some order, or a byte without a token.
    """
    if not path.is_file():
        raise UsageError(f"there is no tiktoken file {path}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CorruptDataError(f"{path} is over {MAX_FILE_BYTES:,} bytes; not a tiktoken file")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            value = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CorruptDataError(
                f"{path}:{number} is not `base64 rank`: {line[:60]!r} ({error})"
            ) from error
        if not token or token in ranks:
            raise CorruptDataError(f"{path}:{number}: token {token!r} is empty or there twice")
        ranks[token] = value
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CorruptDataError(f"{path}: its {len(ranks)} ranks are not 0..{len(ranks) - 1}")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CorruptDataError(f"{path} has no token for {len(missing)} bytes, e.g. {missing[0]}")
    return ranks


def tokenizer_json_from_tiktoken(
    path: Path, *, pattern: str, special_tokens: Sequence[str], normalize: bool
) -> bytes:
    """A `tokenizer.json` that encodes as tiktoken does.

    Args:
        path: the tiktoken file.
        pattern: regular expression (Oniguruma) of the pieces that text is split into.
        special_tokens: in the order of their ids, which follow the ranks.
        normalize: whether text is brought to Unicode's form NFC first.

    Raises:
        UsageError, CorruptDataError: as `read_tiktoken_ranks`.
    """
    ranks = read_tiktoken_ranks(path)
    names = _byte_names()
    spelled = {token: "".join(names[byte] for byte in token) for token in ranks}
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [
            (ranks[token[:i]], ranks[token[i:]], token[:i], token[i:])
            for i in range(1, len(token))
            if token[:i] in ranks and token[i:] in ranks
        ]
        merges += [(spelled[left], spelled[right]) for _, _, left, right in sorted(splits)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    if normalize:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(name, special=True, normalized=False) for name in special_tokens]
    tokenizer.add_special_tokens(added)
    expected = len(ranks) + len(special_tokens)
    if tokenizer.get_vocab_size(with_added_tokens=True) != expected:
        raise CorruptDataError(f"{path}: a special token is also an ordinary token of the file")
    return tokenizer.to_str().encode("utf-8")


def _byte_names() -> list[str]:
    """The printable character that the byte-level alphabet of GPT-2 gives to each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in names:
            names[byte] = chr(256 + len(names) - len(printable))
    return [names[byte] for byte in range(256)]
