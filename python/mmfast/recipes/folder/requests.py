"""Prompt forms of the folder recipe: draw from a caption, caption an image.

They follow from its documents, `eos TEXT break IMAGE eos`, under the CM3 objective, as in CM3Leon
(arXiv 2309.02591, section 2 and 3.1):

    draw           eos TEXT break                        -> image codes
    unconditional  eos mask_0 break                      -> the same codes, for guidance
    caption        eos mask_0 break IMAGE eos mask_0     -> text, ended by eoss

A negative prompt takes the place of `mask_0` in the unconditional form.
"""

from collections.abc import Mapping

import torch
from PIL import Image

from mmfast.errors import UsageError
from mmfast.generate.grammar import ImageGrammar, TextGrammar
from mmfast.generate.requests import Request, Result, SamplingSettings
from mmfast.generate.tasks import AnsweringTask, DrawingTask, Parts


class FolderGeneration:
    """The recipe's `GenerationRecipe`."""

    name = "folder"
    drawing_sampling: Mapping[str, SamplingSettings] = {"image": SamplingSettings(top_p=0.9)}
    drawing_guidance = 3.0
    answering_sampling: Mapping[str, SamplingSettings] = {"text": SamplingSettings(temperature=0.0)}
    answering_max_ids = 64

    def drawing_request(self, task: DrawingTask, parts: Parts) -> Request:
        """Draws one image of the grid that the model was trained with.

        Raises:
            UsageError: another grid, or guidance with a vocabulary that has no sentinel to stand for a
                missing caption.
        """
        vocabulary = parts.vocabulary
        grid = _trained_grid(parts)
        if task.ratio is not None or task.grid not in (None, grid):
            raise UsageError(
                f"the model in {parts.folder} draws grids of {grid[0]}x{grid[1]} codes only; leave "
                "ratio and grid out"
            )
        eos, separator = vocabulary["eos"], vocabulary["break"]
        streams = [(eos, *parts.text_tokenizer.encode(task.prompt), separator)]
        if task.guidance_scale != 1.0:
            if task.negative_prompt is not None:
                missing = parts.text_tokenizer.encode(task.negative_prompt)
            elif "mask_0" in vocabulary:
                missing = [vocabulary["mask_0"]]
            else:
                raise UsageError(
                    "guidance needs the unconditional prompt `eos mask_0 break`, but the vocabulary has "
                    "no `mask_0`; use guidance scale 1"
                )
            streams.append((eos, *missing, separator))
        elif task.negative_prompt is not None:
            raise UsageError(
                "a negative prompt works through guidance; use a guidance scale above 1"
            )
        return Request(
            streams=tuple(streams),
            guidance_weights=(task.guidance_scale,) if len(streams) > 1 else (),
            grammar=ImageGrammar(*grid, vocabulary.range("image")),
            sampling=task.sampling,
            seed=task.seed,
        )

    def answering_request(self, task: AnsweringTask, parts: Parts) -> Request:
        """Captions one image.

        Raises:
            UsageError: a question, several images, another grid than in training, or a vocabulary that
                lacks the roles of an infilling prompt.
        """
        vocabulary = parts.vocabulary
        missing = [role for role in ("mask_0", "eoss") if role not in vocabulary]
        if missing:
            raise UsageError(
                f"captioning infills the text with `mask_0` and `eoss`; the vocabulary lacks {missing}"
            )
        if task.question is not None or len(task.codes) != 1:
            raise UsageError(
                f"the model in {parts.folder} was trained to caption one image; it takes no question"
            )
        ((codes,),) = task.codes
        if codes.shape != _trained_grid(parts):
            raise UsageError(
                f"the image tokenizer in {parts.folder} gives {codes.shape} codes, but recipe.json says "
                f"{_trained_grid(parts)}"
            )
        eos, mask, separator = vocabulary["eos"], vocabulary["mask_0"], vocabulary["break"]
        image_ids = vocabulary.ids_from_codes("image", codes).flatten().tolist()
        return Request(
            streams=((eos, mask, separator, *image_ids, eos, mask),),
            grammar=TextGrammar.of_vocabulary(
                vocabulary, stop_roles=("eoss",), max_ids=task.max_ids
            ),
            sampling=task.sampling,
            seed=task.seed,
        )

    def text_ids_from_result(self, result: Result, parts: Parts) -> list[int]:
        """Text ids of a caption, without its end."""
        return [token for token in result.ids if token != parts.vocabulary["eoss"]]

    def pixels_from_image(self, image: Image.Image, parts: Parts) -> torch.Tensor:
        """[C, H, W] in [-1, 1], of the size that the data was prepared with."""
        size = parts.settings.get("image_size") or parts.image_tokenizer.image_size
        size = size if isinstance(size, int) else (int(size[0]), int(size[1]))
        return parts.image_tokenizer.preprocess(image, size)


def _trained_grid(parts: Parts) -> tuple[int, int]:
    height, width = parts.settings["grid"]
    return int(height), int(width)
