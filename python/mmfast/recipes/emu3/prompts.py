"""The prompts of Emu3 and of NeMo's two examples, as ids, byte for byte.

    understanding  [bos]You are a helpful assistant. USER: IMAGE{question}. ASSISTANT: {answer}[eos]
    emu3           [bos]{caption}[boi]90*90[img] ROWS [eof][eoi][eos]
    nemo           [bos]You are a helpful assistant. Draw a picture for the caption given by the user. USER:
                   {caption}. ASSISTANT: [boi][img] CODES [eoi][eos]

Special tokens are ids, never text: a caption that spells one stays text. Facts: baaivision/Emu3
`emu3/mllm/processing_emu3.py`, NVIDIA/NeMo `multimodal_autoregressive/data/` (the seed's README has the same).
"""

from typing import Literal

from mmfast.recipes.emu3.vocabulary import ImageForm, grid_text, ids_after_image
from mmfast.tokenizers import TextTokenizer
from mmfast.vocab import Vocabulary

GenerationPrompt = Literal["emu3", "nemo"]

SYSTEM = "You are a helpful assistant. USER: "
NEMO_DRAW = (
    "You are a helpful assistant. Draw a picture for the caption given by the user. "
    "USER: {caption}. ASSISTANT: "
)
QUESTION = "Please describe the image"
# What the published demonstrations add to a caption, and guide away from.
POSITIVE_SUFFIX = " masterpiece, film grained, best quality."
NEGATIVE_PROMPT = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst "
    "quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)


def ids_before_image(
    grid: tuple[int, int], text: TextTokenizer, vocabulary: Vocabulary, *, form: ImageForm = "rows"
) -> list[int]:
    """`boi`, the grid's text where the form has it, `img`."""
    size = text.encode(grid_text(grid)) if form == "rows" else []
    return [vocabulary["boi"], *size, vocabulary["img"]]


def understanding_start(
    grid: tuple[int, int], text: TextTokenizer, vocabulary: Vocabulary, *, form: ImageForm = "rows"
) -> list[int]:
    """Ids up to the image."""
    before = ids_before_image(grid, text, vocabulary, form=form)
    return [vocabulary["bos"], *text.encode(SYSTEM), *before]


def understanding_end(
    question: str,
    answer: str | None,
    text: TextTokenizer,
    vocabulary: Vocabulary,
    *,
    form: ImageForm = "rows",
) -> list[int]:
    """Ids after the image: a prompt to go on from without an answer, else up to `eos`."""
    after = ids_after_image(vocabulary, form=form)
    if answer is None:
        return [*after, *text.encode(f"{question}. ASSISTANT:")]
    return [*after, *text.encode(f"{question}. ASSISTANT: {answer}"), vocabulary["eos"]]


def generation_start(
    caption: str,
    grid: tuple[int, int],
    text: TextTokenizer,
    vocabulary: Vocabulary,
    *,
    prompt: GenerationPrompt = "emu3",
    form: ImageForm = "rows",
) -> list[int]:
    """Ids up to the image's first visual id."""
    words = caption if prompt == "emu3" else NEMO_DRAW.format_map({"caption": caption})
    before = ids_before_image(grid, text, vocabulary, form=form)
    return [vocabulary["bos"], *text.encode(words), *before]


def generation_end(vocabulary: Vocabulary, *, form: ImageForm = "rows") -> list[int]:
    """Ids after the image."""
    return [*ids_after_image(vocabulary, form=form), vocabulary["eos"]]


def grid_of_ratio(ratio: str, *, image_area: int = 720 * 720, factor: int = 8) -> tuple[int, int]:
    """(height, width) of the grid for a ratio `width:height`, as Emu3's processor rounds it.

    Raises:
        ValueError: not two positive numbers.
    """
    try:
        width, height = (int(part) for part in ratio.split(":"))
    except ValueError as error:
        raise ValueError(f"ratio {ratio!r} is not `width:height`, e.g. 16:9") from error
    if width < 1 or height < 1 or image_area < factor * factor:
        raise ValueError(f"ratio {ratio!r} of {image_area} pixels is empty")
    scale = (image_area / (width * height)) ** 0.5
    grid = (round(height * scale / factor), round(width * scale / factor))
    if min(grid) < 1:
        raise ValueError(f"ratio {ratio!r} of {image_area} pixels leaves a side without a code")
    return grid
