"""Prompt forms of the folder recipe: draw from a caption, caption an image.

They follow from its documents, `eos TEXT break IMAGE eos`, under the CM3 objective, as in CM3Leon
(arXiv 2309.02591, section 2 and 3.1):

    draw           eos TEXT break                        -> image codes
    unconditional  eos mask_0 break                      -> the same codes, for guidance
    caption        eos mask_0 break IMAGE eos mask_0     -> text, ended by eoss
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmfast.errors import UsageError
from mmfast.generate.grammar import ImageGrammar, TextGrammar
from mmfast.generate.requests import Request, Result, SamplingSettings
from mmfast.vocab import Vocabulary


def text_to_image(
    caption_ids: Sequence[int],
    *,
    vocabulary: Vocabulary,
    grid: tuple[int, int],
    guidance_scale: float = 3.0,
    sampling: SamplingSettings | None = None,
    seed: int = 0,
) -> Request:
    """Draws one image of grid (h, w).

    Args:
        caption_ids: text ids of the caption.
        vocabulary: the model's.
        grid: rows and columns of codes.
        guidance_scale: 1 leaves the unconditional stream out.
        sampling: of the codes; temperature 1 and top-p 0.9 when None.
        seed: of this image.

    Raises:
        UsageError: guidance with a vocabulary that has no sentinel to stand for a missing caption.
    """
    eos, separator = vocabulary["eos"], vocabulary["break"]
    streams = [(eos, *caption_ids, separator)]
    if guidance_scale != 1.0:
        if "mask_0" not in vocabulary:
            raise UsageError(
                "guidance needs the unconditional prompt `eos mask_0 break`, but the vocabulary has "
                "no `mask_0`; use guidance scale 1"
            )
        streams.append((eos, vocabulary["mask_0"], separator))
    height, width = grid
    return Request(
        streams=tuple(streams),
        guidance_weights=(guidance_scale,) if len(streams) > 1 else (),
        grammar=ImageGrammar(height, width, vocabulary.range("image")),
        sampling={"image": sampling or SamplingSettings(top_p=0.9)},
        seed=seed,
    )


def image_to_text(
    codes: npt.NDArray[np.int64],
    *,
    vocabulary: Vocabulary,
    max_ids: int = 64,
    sampling: SamplingSettings | None = None,
    seed: int = 0,
) -> Request:
    """Captions one image.

    Args:
        codes: [h, w] codes of the image.
        vocabulary: the model's.
        max_ids: room for the caption and its end.
        sampling: of the text; greedy when None.
        seed: of this caption.

    Raises:
        UsageError: the vocabulary lacks the roles of an infilling prompt.
    """
    missing = [role for role in ("mask_0", "eoss") if role not in vocabulary]
    if missing:
        raise UsageError(
            f"captioning infills the text with `mask_0` and `eoss`; the vocabulary lacks {missing}"
        )
    eos, mask, separator = vocabulary["eos"], vocabulary["mask_0"], vocabulary["break"]
    image_ids = vocabulary.ids_from_codes("image", codes).flatten().tolist()
    return Request(
        streams=((eos, mask, separator, *image_ids, eos, mask),),
        grammar=TextGrammar.of_vocabulary(vocabulary, stop_roles=("eoss",), max_ids=max_ids),
        sampling={"text": sampling or SamplingSettings(temperature=0.0)},
        seed=seed,
    )


def codes_from_result(
    result: Result, *, vocabulary: Vocabulary, grid: tuple[int, int]
) -> npt.NDArray[np.int64]:
    """Codes [h, w] of a drawn image."""
    return vocabulary.codes_from_ids("image", np.array(result.ids)).reshape(grid)


def text_ids_from_result(result: Result, *, vocabulary: Vocabulary) -> list[int]:
    """Text ids of a caption, without its end."""
    return [token for token in result.ids if token != vocabulary["eoss"]]
