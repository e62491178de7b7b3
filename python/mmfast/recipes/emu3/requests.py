"""How Emu3's models draw and answer; prompts are in `prompts.py`.

    draw           [bos]caption[boi]90*90[img]          -> 90 rows of visual ids and eol, then eof eoi eos
    unconditional  the same with the negative prompt, or with no words
    answer         [bos]You are a helpful assistant. USER: IMAGE{question}. ASSISTANT:   -> text, ended by eos

Defaults are those of baaivision/Emu3 `image_generation.py`: guidance 3, top-k 2048 of the visual ids, temperature 1;
answers of at most 1,024 ids, the likeliest each time. What a model was trained with stands in `recipe.json`:

    image_form, generation_prompt   forms of `vocabulary.py` and `prompts.py`
    grid                            the one grid there is; without it any grid, by ratio from `image_area`
    question                        asked when none is given; null where the model cannot answer
    negative_prompt                 text of the unconditional stream; none is an empty one
    positive_suffix                 added to every caption
    null_prompt_prob                share of empty captions in training; 0 draws without guidance by default
"""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from mmfast.errors import UsageError
from mmfast.generate.grammar import ImageGrammar, TextGrammar
from mmfast.generate.requests import Request, Result, SamplingSettings
from mmfast.generate.tasks import AnsweringTask, DrawingTask, Parts
from mmfast.recipes.emu3.prompts import (
    generation_end,
    generation_start,
    grid_of_ratio,
    ids_before_image,
    understanding_end,
    understanding_start,
)
from mmfast.recipes.emu3.vocabulary import ImageForm, ids_after_image, image_ids
from mmfast.tokenizers.emu3 import Emu3ImageTokenizer, smart_size

IMAGE_AREA = 720 * 720
GUIDANCE = 3.0


class Emu3Generation:
    """The recipe's `GenerationRecipe`.

    Args:
        settings: `recipe.json`. A model that never saw an empty caption is not guided by default.
    """

    name = "emu3"
    drawing_sampling: Mapping[str, SamplingSettings] = {"image": SamplingSettings(top_k=2048)}
    answering_sampling: Mapping[str, SamplingSettings] = {"text": SamplingSettings(temperature=0.0)}
    answering_max_ids = 1024

    def __init__(self, settings: Mapping[str, Any]) -> None:
        is_guided = settings.get("null_prompt_prob", 1.0) > 0 or "negative_prompt" in settings
        self.drawing_guidance = GUIDANCE if is_guided else 1.0

    def drawing_request(self, task: DrawingTask, parts: Parts) -> Request:
        """Draws one image of the task's ratio or grid, 1:1 where it names none.

        Raises:
            UsageError: the model was trained to describe only, or draws one grid and another was asked
                for, or a ratio or grid is not possible.
        """
        settings = parts.settings
        prompt = settings.get("generation_prompt")
        if prompt is None:
            raise UsageError(
                f"the model in {parts.folder} was trained to describe images, not to draw"
            )
        form = _form(settings)
        grid = _grid_of(task, parts)
        captions = [task.prompt + settings.get("positive_suffix", "")]
        if task.guidance_scale != 1.0:
            negative = task.negative_prompt
            captions.append(settings.get("negative_prompt", "") if negative is None else negative)
        elif task.negative_prompt is not None:
            raise UsageError(
                "a negative prompt works through guidance; use a guidance scale above 1"
            )
        vocabulary = parts.vocabulary
        streams = [
            generation_start(
                caption, grid, parts.text_tokenizer, vocabulary, prompt=prompt, form=form
            )
            for caption in captions
        ]
        return Request(
            streams=tuple(map(tuple, streams)),
            guidance_weights=(task.guidance_scale,) if len(streams) > 1 else (),
            grammar=ImageGrammar(
                *grid,
                vocabulary.range("image"),
                end_of_row=vocabulary["eol"] if form == "rows" else None,
                closing=tuple(generation_end(vocabulary, form=form)),
            ),
            sampling=task.sampling,
            seed=task.seed,
        )

    def answering_request(self, task: AnsweringTask, parts: Parts) -> Request:
        """Answers the task's question, or the trained one, about its images in their order.

        Raises:
            UsageError: the model was trained to draw only, or there is no image.
        """
        settings = parts.settings
        question = settings.get("question")
        if question is None:
            raise UsageError(f"the model in {parts.folder} was trained to draw, not to answer")
        if not task.codes:
            raise UsageError("a question needs at least one image")
        form = _form(settings)
        text, vocabulary = parts.text_tokenizer, parts.vocabulary
        prompt: list[int] = []
        for (codes,) in task.codes:
            grid = (int(codes.shape[0]), int(codes.shape[1]))
            if prompt:
                prompt += [*ids_after_image(vocabulary, form=form)]
                prompt += ids_before_image(grid, text, vocabulary, form=form)
            else:
                prompt += understanding_start(grid, text, vocabulary, form=form)
            prompt += image_ids(codes, vocabulary, form=form).tolist()
        asked = question if task.question is None else task.question
        prompt += understanding_end(asked, None, text, vocabulary, form=form)
        return Request(
            streams=(tuple(prompt),),
            grammar=TextGrammar.of_vocabulary(
                vocabulary, stop_roles=("eos",), max_ids=task.max_ids
            ),
            sampling=task.sampling,
            seed=task.seed,
        )

    def text_ids_from_result(self, result: Result, parts: Parts) -> list[int]:
        """Text ids of an answer, without its end."""
        return [token for token in result.ids if token != parts.vocabulary["eos"]]

    def pixels_from_image(self, image: Image.Image, parts: Parts) -> torch.Tensor:
        """[3, H, W] in [-1, 1], of the size that the data was prepared with."""
        tokenizer = parts.image_tokenizer
        size = parts.settings.get("image_size")
        if size is not None:
            return tokenizer.preprocess(image, (int(size[0]), int(size[1])))
        if not isinstance(tokenizer, Emu3ImageTokenizer):
            return tokenizer.preprocess(image, tokenizer.image_size)
        least, most = parts.settings.get("area") or (tokenizer.min_pixels, tokenizer.max_pixels)
        fitting = smart_size(
            image.height,
            image.width,
            factor=tokenizer.downsample,
            min_pixels=int(least),
            max_pixels=int(most),
        )
        return tokenizer.preprocess(image, fitting)


def _form(settings: Mapping[str, Any]) -> ImageForm:
    form: ImageForm = settings.get("image_form", "rows")
    return form


def _grid_of(task: DrawingTask, parts: Parts) -> tuple[int, int]:
    """Rows and columns of codes to draw."""
    trained = parts.settings.get("grid")
    if trained is not None:
        only = (int(trained[0]), int(trained[1]))
        if task.ratio is not None or task.grid not in (None, only):
            raise UsageError(
                f"the model in {parts.folder} draws grids of {only[0]}x{only[1]} codes only; leave "
                "ratio and grid out"
            )
        return only
    if task.grid is not None:
        if task.ratio is not None:
            raise UsageError("give either a ratio or a grid")
        if min(task.grid) < 1:
            raise UsageError(f"a grid of {task.grid[0]}x{task.grid[1]} codes is empty")
        return task.grid
    area = int(parts.settings.get("image_area", IMAGE_AREA))
    try:
        return grid_of_ratio(
            task.ratio or "1:1", image_area=area, factor=parts.image_tokenizer.downsample
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
