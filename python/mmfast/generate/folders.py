"""A model's folder: weights, vocabulary, tokenizers and recipe, loaded and checked against each other.

The folder is a transformers export (config.json, safetensors) with `vocabulary.json`; for text and
images also `tokenizer.json`, `image_tokenizer/` and `recipe.json`, which names the recipe whose prompt
forms the model was trained with. A folder without `vocabulary.json` is offered to the recipes, which
know what the authors of their systems publish; what none of them knows is a plain language model.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch

from mmfast.errors import CorruptDataError, UsageError, VocabularyMismatchError
from mmfast.files import read_json_object
from mmfast.generate.tasks import GenerationRecipe, PublishedModel
from mmfast.registry import get_recipe, recipe_names
from mmfast.tokenizers import (
    ImageTokenizer,
    TextTokenizer,
    load_image_tokenizer,
    load_text_tokenizer,
)
from mmfast.vocab import FILE_NAME as VOCABULARY_FILE
from mmfast.vocab import Vocabulary

RECIPE_FILE = "recipe.json"


class ModelParts:
    """What is in the folder beside the weights, each part loaded at its first use.

    Args:
        folder: the model's.
        device: where the image tokenizer runs.
        published: the folder as its recipe opened it, if it is as a system's authors publish it.
        image_tokenizer: folder that the user named in place of the model's own; may hold TorchScript.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        published: PublishedModel | None = None,
        image_tokenizer: Path | None = None,
    ) -> None:
        self.folder = folder
        self._device = device
        self._published = published
        self._image_tokenizer_path = image_tokenizer

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the model's ids mean."""
        if self._published is not None:
            return self._published.vocabulary
        if not (self.folder / VOCABULARY_FILE).is_file():
            raise UsageError(
                f"{self.folder} has no {VOCABULARY_FILE}, which says which ids are text and which are "
                "images, and no recipe knows a published folder like it; requests of ids still run "
                "(`model.generate`)"
            )
        return Vocabulary.load(self.folder)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """`recipe.json`, checked."""
        if self._published is not None:
            return self._published.settings
        path = self.folder / RECIPE_FILE
        if not path.is_file():
            raise UsageError(
                f"{self.folder} has no {RECIPE_FILE}, which says how prompts are formed; "
                "data made by `mmfast prepare` carries one"
            )
        settings = read_json_object(path)
        try:
            is_complete = bool(settings["recipe"])
            is_complete &= bool(settings["image_tokenizer"]["fingerprint"])
            if "grid" in settings:
                height, width = settings["grid"]
                is_complete &= int(height) > 0 and int(width) > 0
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptDataError(f"{path} is not a recipe description: {error!r}") from error
        if not is_complete:
            raise CorruptDataError(
                f"{path} has an empty grid, no recipe name or no fingerprint of the image tokenizer"
            )
        return settings

    @cached_property
    def recipe(self) -> GenerationRecipe:
        """The recipe that `recipe.json` names."""
        found = get_recipe(str(self.settings["recipe"]))
        recipe: GenerationRecipe = found.open_generation(self.settings)
        return recipe

    @cached_property
    def text_tokenizer(self) -> TextTokenizer:
        """The text tokenizer in the folder, checked against the vocabulary."""
        if self._published is not None:
            return self._published.load_text_tokenizer()
        tokenizer = load_text_tokenizer(self.folder / "tokenizer.json")
        if not (self.folder / VOCABULARY_FILE).is_file():
            return tokenizer
        expected = self.vocabulary.text_fingerprint
        if expected and tokenizer.fingerprint != expected:
            raise VocabularyMismatchError(
                f"{self.folder / 'tokenizer.json'} is not the tokenizer that {VOCABULARY_FILE} was "
                f"made with: fingerprint {tokenizer.fingerprint} against {expected}"
            )
        return tokenizer

    @cached_property
    def image_tokenizer(self) -> ImageTokenizer:
        """The image tokenizer in the folder, checked against the recipe and the vocabulary."""
        named = self._image_tokenizer_path
        if self._published is not None:
            if named is not None:
                return load_image_tokenizer(named, device=self._device, allow_torchscript=True)
            return self._published.load_image_tokenizer(self._device)
        path = self.folder / "image_tokenizer" if named is None else named
        trained = self.settings["image_tokenizer"]
        if named is None and not path.is_dir():
            raise UsageError(
                f"{self.folder} holds no image_tokenizer/; it was trained with {trained.get('path')}. Give that "
                "folder as --image-tokenizer (image_tokenizer= in Python), if you trust it"
            )
        tokenizer = load_image_tokenizer(
            path, device=self._device, allow_torchscript=named is not None
        )
        expected = trained["fingerprint"]
        if tokenizer.fingerprint != expected:
            raise VocabularyMismatchError(
                f"{path} is not the tokenizer that the model was trained with: its fingerprint is "
                f"{tokenizer.fingerprint}, but {self.folder / RECIPE_FILE} says {expected}; copy the "
                "right one there"
            )
        if tokenizer.levels == 1:
            num_codes = self.vocabulary.range("image").size
            if tokenizer.codebook_sizes[0] != num_codes:
                raise VocabularyMismatchError(
                    f"{path} has {tokenizer.codebook_sizes[0]} codes, but the vocabulary's range "
                    f"`image` has {num_codes}"
                )
        return tokenizer

    def require_images(self) -> None:
        """Raises if the model knows no images, or if what belongs to them is missing or damaged."""
        names = [code_range.name for code_range in self.vocabulary.ranges]
        if not names:
            raise UsageError(
                f"the model in {self.folder} has no image ids: its vocabulary has no code ranges"
            )
        # Loaded here, so that a wrong or damaged one is found before anything is generated.
        _ = self.image_tokenizer


def load_parts(
    folder: Path | str,
    *,
    device: str,
    dtype: torch.dtype,
    attention: str,
    image_tokenizer: Path | None = None,
) -> tuple[Any, ModelParts]:
    """The transformers model in `folder`, in eval mode on `device`, and what comes with it.

    Raises:
        UsageError: not a model folder.
        CorruptDataError: damaged vocabulary.
        VocabularyMismatchError: the vocabulary has ids that the weights lack.
    """
    folder = Path(folder)
    if folder.suffix == ".nemo":
        refuse_nemo_archive(str(folder))
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is not a model folder: it has no config.json; "
            "training writes one to <output>/model"
        )
    published = None
    if not (folder / VOCABULARY_FILE).is_file():
        published = _open_published(folder, read_json_object(folder / "config.json"))
    parts = ModelParts(folder, device=device, published=published, image_tokenizer=image_tokenizer)
    has_vocabulary = published is not None or (folder / VOCABULARY_FILE).is_file()
    # Before the weights, which take longer to load.
    vocabulary = parts.vocabulary if has_vocabulary else None
    network = _load_network(folder, published, dtype=dtype, attention=attention)
    size = network.config.get_text_config().vocab_size
    # Tables may have rows beyond it, which pad them to a round number; no request allows or holds their ids.
    if vocabulary is not None and size < vocabulary.size:
        raise VocabularyMismatchError(
            f"the model in {folder} has {size} ids, but its vocabulary {vocabulary.size}; "
            "they do not belong together"
        )
    return network.eval().to(device), parts


def refuse_nemo_archive(what: str) -> NoReturn:
    """Raises the `UsageError` that says what to do with a NeMo checkpoint."""
    raise UsageError(
        f"{what} names a NeMo checkpoint, which holds a pickled Megatron model; export it to a "
        "Hugging Face folder with NeMo's own converter (e.g. scripts/checkpoint_converters/"
        "convert_llama_nemo_to_hf.py) and give that folder as --model, its tokenizer files beside it"
    )


def _open_published(folder: Path, config: dict[str, Any]) -> PublishedModel | None:
    for name in recipe_names():
        open_published = getattr(get_recipe(name), "open_published", None)
        if open_published is not None:
            published: PublishedModel | None = open_published(folder, config)
            if published is not None:
                return published
    return None


def _load_network(
    folder: Path, published: PublishedModel | None, *, dtype: torch.dtype, attention: str
) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        if published is not None:
            return published.load_network(dtype=dtype, attention=attention)
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load the model in {folder}: {error}") from error
    finally:
        if had_bars:
            transformers_logging.enable_progress_bar()
