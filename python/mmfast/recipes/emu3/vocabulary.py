"""Emu3's ids by arithmetic, and images as the sequences its models read and write.

    text ids 0..151642 · 208 special tokens · image token, image start, image end · visual tokens

    rows     [boi] "90*90" [img] · 90 rows of 90 visual ids, each ended by [eol] · [eof] [eoi]
    flat     [boi] [img] · visual ids · [eoi]                 (NeMo's form for Cosmos: one fixed grid)

With another number of text ids or codes (a tokenizer of one's own) the order is the same. Facts: baaivision/Emu3
`emu3/mllm/tokenization_emu3.py`, `processing_emu3.py`; NVIDIA/NeMo `nemo/collections/multimodal_autoregressive/`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from mmfast.errors import CorruptDataError, UsageError
from mmfast.tokenizers.text import TextTokenizer, load_text_tokenizer
from mmfast.tokenizers.tiktoken import tokenizer_json_from_tiktoken
from mmfast.vocab import CodeRange, Vocabulary

NUM_TEXT_IDS = 151_643
NUM_CODES = 32_768
NUM_EXTRAS = 205
# The tokenizer folder of NeMo names 65,000 visual tokens; FSQ has 64,000 codes, the rest stands for nothing.
NUM_COSMOS_NAMES, NUM_COSMOS_CODES = 65_000, 64_000
TIKTOKEN_FILE = "emu3.tiktoken"
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMES_BEFORE_EXTRAS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_IMAGE_NAMES = ("<|image token|>", "<|image start|>", "<|image end|>")
_NAME_OF_ROLE = {
    "pad": "<|endoftext|>",
    "eol": "<|extra_200|>",
    "eof": "<|extra_201|>",
    "bos": "<|extra_203|>",
    "eos": "<|extra_204|>",
    "img": "<|image token|>",
    "boi": "<|image start|>",
    "eoi": "<|image end|>",
}
_PLACES = {
    name: place
    for place, name in enumerate(
        (*_NAMES_BEFORE_EXTRAS, *(f"<|extra_{i}|>" for i in range(NUM_EXTRAS)), *_IMAGE_NAMES)
    )
}

ImageForm = Literal["rows", "flat"]
Ids = npt.NDArray[np.int64]


def emu3_vocabulary(
    *,
    text_size: int = NUM_TEXT_IDS,
    num_codes: int = NUM_CODES,
    num_names: int | None = None,
    text_fingerprint: str = "",
) -> Vocabulary:
    """The ids of Emu3, 184,622 by default.

    Args:
        text_size: ids of the byte-pair encoding.
        num_codes: codes of the image tokenizer.
        num_names: visual tokens that have an id, where they are more than there are codes.
        text_fingerprint: of the text tokenizer's file.
    """
    base = text_size + len(_PLACES)
    return Vocabulary(
        size=base + (num_codes if num_names is None else num_names),
        text_size=text_size,
        special={role: text_size + _PLACES[name] for role, name in _NAME_OF_ROLE.items()},
        ranges=(CodeRange(name="image", base=base, size=num_codes),),
        text_fingerprint=text_fingerprint,
    )


def special_token_names(num_visual: int = NUM_CODES) -> list[str]:
    """Every token after the byte-pair encoding, in the order of ids."""
    return [*_PLACES, *(f"<|visual token {k:06d}|>" for k in range(num_visual))]


def load_emu3_text_tokenizer(path: Path) -> TextTokenizer:
    """Emu3's byte-pair encoding, from a folder or file of any published layout.

    `emu3.tiktoken` (BAAI/Emu3-Gen, -Chat, -Stage1, NeMo's tokenizer folder) is converted; a `tokenizer.json` (the
    -hf repositories, our own) is taken as it is. Text is brought to NFC first. A caption that spells a special
    token is encoded as plain text; `TextTokenizer.encode_with_special_tokens` reads them as the reference does.

    Raises:
        UsageError: neither is there.
        CorruptDataError: a damaged file.
    """
    file = path / TIKTOKEN_FILE if path.is_dir() else path
    if file.suffix != ".tiktoken" or not file.is_file():
        return load_text_tokenizer(path)
    content = tokenizer_json_from_tiktoken(
        file, pattern=SPLIT_PATTERN, special_tokens=special_token_names(), normalize=True
    )
    return TextTokenizer(content, name=str(file))


def ids_from_template(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids of a text in which special tokens are spelled, as the published code reads every text.

    For templates of one's own and for comparing; the slow way for images. Never for captions.

    Raises:
        UsageError: a visual token that is not spelled with six digits: it would become eight ids of text.
    """
    wrong = re.search(r"<\|visual token (?!\d{6}\|>)[^>]*>?", text)
    if wrong:
        raise UsageError(
            f"{wrong.group()!r} at character {wrong.start()} is no visual token; they are spelled with six digits, "
            "e.g. <|visual token 000007|>"
        )
    return tokenizer.encode_with_special_tokens(text)


def text_size_of(tokenizer: TextTokenizer) -> int:
    """Ids of the byte-pair encoding alone: Emu3's files count its special tokens too."""
    first = tokenizer.id_of(_NAMES_BEFORE_EXTRAS[0])
    return tokenizer.size if first is None else first


def grid_text(grid: tuple[int, int]) -> str:
    """`90*90`: height by width of the grid, as prompts spell it."""
    return f"{grid[0]}*{grid[1]}"


def image_ids(codes: npt.ArrayLike, vocabulary: Vocabulary, *, form: ImageForm = "rows") -> Ids:
    """Ids of codes `[h, w]` as they stand between `img` and what ends the image; no strings are built.

    In the form `rows` each row, the last one too, is ended by `eol`: h * (w + 1) ids.
    """
    visual = vocabulary.ids_from_codes("image", codes)
    if visual.ndim != 2 or visual.size == 0:
        raise ValueError(f"codes must be [h, w] with nothing empty, not {list(visual.shape)}")
    if form == "flat":
        return visual.reshape(-1)
    height, width = visual.shape
    rows = np.full((height, width + 1), vocabulary["eol"], dtype=np.int64)
    rows[:, :width] = visual
    return rows.reshape(-1)


def ids_after_image(vocabulary: Vocabulary, *, form: ImageForm = "rows") -> list[int]:
    """What ends an image."""
    return [vocabulary["eof"], vocabulary["eoi"]] if form == "rows" else [vocabulary["eoi"]]


def codes_from_image_ids(
    ids: Sequence[int] | npt.NDArray[np.int64],
    vocabulary: Vocabulary,
    *,
    grid: tuple[int, int] | None = None,
    form: ImageForm = "rows",
) -> Ids:
    """Codes `[h, w]` of the ids after `img`; what follows the image is left alone.

    Args:
        ids: from the first visual id on.
        vocabulary: of these ids.
        grid: the grid that must come out; may be left out for rows, whose `eol`s tell it.
        form: as in `image_ids`.

    Raises:
        CorruptDataError: a missing or misplaced `eol`, a wrong number of ids, or an id that is no visual
            one; the text names the position, counted from 0.
    """
    array = np.asarray(ids, dtype=np.int64)
    code_range = vocabulary.range("image")
    if form == "flat":
        if grid is None:
            raise UsageError("an image without rows needs its grid")
        height, width = grid
        length = height * width
    else:
        eol = vocabulary["eol"]
        ends = np.flatnonzero(array == eol)
        if len(ends) == 0 or ends[0] == 0:
            raise CorruptDataError("the image's ids hold no row: the first `eol` is missing")
        width = int(ends[0]) if grid is None else grid[1]
        height = len(ends) if grid is None else grid[0]
        length = height * (width + 1)
    body = array[:length]
    if len(body) < length:
        raise CorruptDataError(
            f"an image of {height}x{width} has {length} ids, but there are {len(body)}"
        )
    if form == "rows":
        rows = body.reshape(height, width + 1)
        missing = np.flatnonzero(rows[:, width] != vocabulary["eol"])
        if len(missing):
            at = int(missing[0]) * (width + 1) + width
            raise CorruptDataError(
                f"position {at}: `eol` should end row {missing[0]} of {height}x{width}, found id {body[at]}"
            )
        visual = rows[:, :width]
    else:
        visual = body.reshape(height, width)
    foreign = np.argwhere((visual < code_range.base) | (visual >= code_range.end))
    if len(foreign):
        y, x = (int(i) for i in foreign[0])
        at = y * (width + (form == "rows")) + x
        raise CorruptDataError(
            f"position {at} (row {y}, column {x}): id {visual[y, x]} is no visual id "
            f"({code_range.base}..{code_range.end - 1})"
        )
    return visual - code_range.base
