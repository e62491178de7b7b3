"""What a recipe and the engine agree on: a task in words and pictures, a request in ids, and back.

`Model` knows how to run requests, a recipe knows how its system was trained. Between them stand the two
tasks below and the protocol of what `RECIPE.open_generation(settings)` of a recipe gives (`GenerationRecipe`):

    picture   DrawingTask   -> drawing_request   -> Request -> ids -> grammar.codes_from_ids -> PNG
    text      AnsweringTask -> answering_request -> Request -> ids -> text_ids_from_result   -> text

A recipe forms prompts with `parts`: the model folder's vocabulary, tokenizers and `recipe.json`. What the
authors of a system publish as defaults stands in the recipe; a user's values replace single fields.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mmfast.generate.requests import Request, Result, SamplingSettings
from mmfast.tokenizers import ImageTokenizer, TextTokenizer
from mmfast.vocab import Vocabulary

Codes = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawingTask:
    """One picture to draw.

    Attributes:
        prompt: what it should show.
        negative_prompt: what it should not show; None takes the recipe's own unconditional form.
        ratio: width to height, e.g. `16:9`; None leaves it to `grid` or to the recipe.
        grid: rows and columns of codes; None leaves it to `ratio` or to the recipe.
        guidance_scale: 1 draws from the prompt alone.
        sampling: by modality, as the recipe's grammar names them.
        seed: of this picture.
    """

    prompt: str
    negative_prompt: str | None = None
    ratio: str | None = None
    grid: tuple[int, int] | None = None
    guidance_scale: float
    sampling: Mapping[str, SamplingSettings]
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnsweringTask:
    """One text to write about one or more pictures.

    Attributes:
        codes: of each picture, one array [h, w] for each level of the tokenizer.
        question: what is asked; None asks for a caption, in the recipe's words.
        max_ids: room for the text and its end.
        sampling: by modality, as the recipe's grammar names them.
        seed: of this text.
    """

    codes: Sequence[Sequence[Codes]]
    question: str | None = None
    max_ids: int
    sampling: Mapping[str, SamplingSettings]
    seed: int = 0


class Parts(Protocol):
    """What a recipe may use of the model's folder; tokenizers load when they are first asked for."""

    @property
    def folder(self) -> Path:
        """Where the model came from."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What the model's ids mean."""

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """`encode(text) -> ids`, `decode(ids) -> text`."""

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """Pictures to codes and back."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """`recipe.json`: the recipe's name, and what it noted when the data was prepared."""


class GenerationRecipe(Protocol):
    """What `open_generation(settings)` of `RECIPE` in `mmfast.recipes.<name>` gives: how to draw and to answer.

    `settings` is the content of `recipe.json`: defaults may depend on how the data was prepared.

    Attributes:
        name: as in `recipe.json`.
        drawing_sampling: published defaults of `drawing_request`, by modality.
        drawing_guidance: published guidance scale; 1 is none.
        answering_sampling: published defaults of `answering_request`, by modality.
        answering_max_ids: published room for an answer.
    """

    name: str
    drawing_sampling: Mapping[str, SamplingSettings]
    drawing_guidance: float
    answering_sampling: Mapping[str, SamplingSettings]
    answering_max_ids: int

    def drawing_request(self, task: DrawingTask, parts: Parts) -> Request:
        """The request that draws `task`; its grammar has `codes_from_ids`, as `ImageGrammar` has.

        With a guidance scale other than 1, the last stream is the unconditional one.

        Raises:
            UsageError: the vocabulary lacks a role, a ratio or grid is not possible.
        """

    def answering_request(self, task: AnsweringTask, parts: Parts) -> Request:
        """The request that writes `task`'s text.

        Raises:
            UsageError: the vocabulary lacks a role, or the pictures do not fit the form.
        """

    def text_ids_from_result(self, result: Result, parts: Parts) -> list[int]:
        """Text ids of an answer, without its end."""

    def pixels_from_image(self, image: Image.Image, parts: Parts) -> torch.Tensor:
        """A picture as the image tokenizer takes it, [C, H, W] in [-1, 1], sized as in training."""


class PublishedModel(Protocol):
    """A folder as a system's authors publish it, opened by `open_published` of its recipe.

    `RECIPE` of a recipe may have `open_published(folder, config) -> PublishedModel | None`: it is asked
    for folders without `vocabulary.json`, with the content of their `config.json`, and says None to
    what is not its own. Weights are loaded from safetensors, never by code from the folder.
    """

    @property
    def vocabulary(self) -> Vocabulary:
        """What the model's ids mean."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What `recipe.json` would say; at least `recipe`, the recipe's name."""

    def load_network(self, *, dtype: torch.dtype, attention: str) -> Any:
        """The transformers model, its attention implementation set to `attention`."""

    def load_text_tokenizer(self) -> TextTokenizer:
        """As `Parts.text_tokenizer`."""

    def load_image_tokenizer(self, device: str) -> ImageTokenizer:
        """As `Parts.image_tokenizer`."""
