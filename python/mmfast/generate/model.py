"""A trained model's folder as one object: `mmfast.load(folder).draw(["a red kite"])`.

The folder is a transformers export (config.json, safetensors) with `vocabulary.json`; for text and
images also `tokenizer.json`, `image_tokenizer/` and `recipe.json`, which names the recipe whose prompt
forms the model was trained with. Tokenizers load at their first use.
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mmfast.console import log, progress
from mmfast.errors import CorruptDataError, UsageError, VocabularyMismatchError
from mmfast.files import read_json_object
from mmfast.generate.engine import Engine
from mmfast.generate.requests import Request, Result, SamplingSettings
from mmfast.generate.sharing import run_shared
from mmfast.models import register_attention
from mmfast.registry import get_recipe
from mmfast.tokenizers import (
    ImageTokenizer,
    TextTokenizer,
    images_from_tensor,
    load_image_tokenizer,
    load_text_tokenizer,
)
from mmfast.vocab import FILE_NAME as VOCABULARY_FILE
from mmfast.vocab import Vocabulary

RECIPE_FILE = "recipe.json"
DEFAULT_NUM_ROWS = 32
# Images per call of the image tokenizer.
IMAGE_BATCH = 64


def load(
    folder: Path | str, *, device: str | None = None, dtype: torch.dtype | None = None
) -> "Model":
    """Loads a model folder.

    Args:
        folder: a training run's `model/`.
        device: `cuda` when there is one and nothing is said, else `cpu`.
        dtype: of the weights; bfloat16 on CUDA and float32 elsewhere when nothing is said.

    Raises:
        UsageError: not a model folder.
        CorruptDataError: damaged vocabulary.
        VocabularyMismatchError: vocabulary and weights differ in size.
    """
    folder = Path(folder)
    for name in ("config.json", VOCABULARY_FILE):
        if not (folder / name).is_file():
            raise UsageError(
                f"{folder} is not a model folder: it has no {name}; "
                "training writes one to <output>/model"
            )
    vocabulary = Vocabulary.load(folder)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype is None:
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        network = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=register_attention(), local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load the model in {folder}: {error}") from error
    finally:
        if had_bars:
            transformers_logging.enable_progress_bar()
    if network.config.vocab_size != vocabulary.size:
        raise VocabularyMismatchError(
            f"the model in {folder} has {network.config.vocab_size} ids, but its {VOCABULARY_FILE} "
            f"{vocabulary.size}; they do not belong together"
        )
    return Model(network.eval().to(device), vocabulary, folder=folder)


class Model:
    """A loaded model.

    Attributes:
        network: the transformers model.
        vocabulary: what its ids mean.
        folder: where it came from.
    """

    def __init__(self, network: Any, vocabulary: Vocabulary, *, folder: Path) -> None:
        self.network = network
        self.vocabulary = vocabulary
        self.folder = folder
        self._engines: dict[int, Engine] = {}

    def generate(
        self, requests: Sequence[Request], *, num_rows: int = DEFAULT_NUM_ROWS
    ) -> list[Result]:
        """Runs requests; under `torchrun` they are shared out, and every rank gets all results.

        Args:
            requests: in any number and of any kind.
            num_rows: rows of the engine's batch; more use the hardware better and take more memory.
                Part of what results depend on, in their last bits.

        Raises:
            UsageError: on every rank, for a request that does not fit the model or the rows.
        """
        self.check(requests, num_rows=num_rows)
        engine = self._engine(num_rows)

        def run(share: Sequence[Request]) -> list[Result]:
            with progress("generating", total=len(share), unit="requests") as job:
                return engine.run(share, progress=job)

        return run_shared(requests, run)

    def check(
        self,
        requests: Sequence[Request],
        *,
        num_rows: int = DEFAULT_NUM_ROWS,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Raises `UsageError` if `generate` could not run one; `numbers` name them in its text."""
        self._engine(num_rows).check(requests, numbers=numbers)

    def _engine(self, num_rows: int) -> Engine:
        if num_rows not in self._engines:
            self._engines = {num_rows: Engine(self.network, num_rows=num_rows)}
        return self._engines[num_rows]

    def draw(
        self,
        captions: Sequence[str],
        *,
        guidance_scale: float = 3.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        seed: int = 0,
        num_rows: int = DEFAULT_NUM_ROWS,
    ) -> list[Image.Image]:
        """An image for each caption, in order.

        Args:
            captions: texts.
            guidance_scale: 1 draws from the caption alone; above, away from the model without one.
            temperature: of the image ids, as in `mmfast.sampling.sample`.
            top_k: likewise.
            top_p: likewise.
            seed: image i is drawn with seed + i.
            num_rows: as in `generate`.

        Raises:
            UsageError: the model has no image range, recipe or tokenizer, or a caption is too long.
        """
        sampling = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p)
        requests = [
            self.drawing_request(
                caption, guidance_scale=guidance_scale, sampling=sampling, seed=seed + i
            )
            for i, caption in enumerate(captions)
        ]
        return self.images_from_results(self.generate(requests, num_rows=num_rows))

    def caption(
        self,
        images: Sequence[Image.Image],
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_ids: int = 64,
        seed: int = 0,
        num_rows: int = DEFAULT_NUM_ROWS,
    ) -> list[str]:
        """A caption for each image, in order.

        Args:
            images: Pillow images of any size; they are resized as in training.
            temperature: 0 takes the likeliest id each time.
            top_k: as in `mmfast.sampling.sample`.
            top_p: likewise.
            max_ids: room for a caption; a longer one is cut, with a warning.
            seed: caption i is drawn with seed + i.
            num_rows: as in `generate`.

        Raises:
            UsageError: the model has no image range, recipe or tokenizer.
        """
        sampling = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p)
        requests = [
            self.captioning_request(codes, sampling=sampling, max_ids=max_ids, seed=seed + i)
            for i, codes in enumerate(self.codes_from_images(images))
        ]
        return self.captions_from_results(self.generate(requests, num_rows=num_rows))

    def drawing_request(
        self, caption: str, *, guidance_scale: float, sampling: SamplingSettings, seed: int
    ) -> Request:
        """The recipe's text-to-image request for one caption."""
        self._require_images()
        request: Request = self.recipe.text_to_image(
            self.text_tokenizer.encode(caption),
            vocabulary=self.vocabulary,
            grid=self.grid,
            guidance_scale=guidance_scale,
            sampling=sampling,
            seed=seed,
        )
        return request

    def captioning_request(
        self,
        codes: npt.NDArray[np.int64],
        *,
        sampling: SamplingSettings,
        max_ids: int,
        seed: int,
    ) -> Request:
        """The recipe's image-to-text request for one image's codes [h, w]."""
        self._require_images()
        request: Request = self.recipe.image_to_text(
            codes, vocabulary=self.vocabulary, max_ids=max_ids, sampling=sampling, seed=seed
        )
        overrun = request.num_positions - self.network.config.max_position_embeddings
        if 0 < overrun < max_ids:
            # A caption may use what the context leaves; a prompt that leaves nothing is refused later.
            request = self.recipe.image_to_text(
                codes,
                vocabulary=self.vocabulary,
                max_ids=max_ids - overrun,
                sampling=sampling,
                seed=seed,
            )
        return request

    def codes_from_images(self, images: Iterable[Image.Image]) -> list[npt.NDArray[np.int64]]:
        """Codes [h, w] of each image, resized as in training; of `images`, one is held at a time."""
        self._require_images()
        size = self._recipe_settings.get("image_size") or self.image_tokenizer.image_size
        size = size if isinstance(size, int) else (int(size[0]), int(size[1]))
        codes: list[npt.NDArray[np.int64]] = []
        pixels = (self.image_tokenizer.preprocess(image, size) for image in images)
        while batch := list(itertools.islice(pixels, IMAGE_BATCH)):
            codes.extend(self.image_tokenizer.encode(torch.stack(batch))[0].cpu().numpy())
        if codes and codes[0].shape != self.grid:
            raise UsageError(
                f"the image tokenizer in {self.folder} gives {codes[0].shape} codes at size {size}, "
                f"but recipe.json says {self.grid}"
            )
        return codes

    def images_from_results(self, results: Sequence[Result]) -> list[Image.Image]:
        """Decodes the images of text-to-image results."""
        images: list[Image.Image] = []
        for start in range(0, len(results), IMAGE_BATCH):
            codes = np.stack(
                [
                    self.recipe.codes_from_result(
                        result, vocabulary=self.vocabulary, grid=self.grid
                    )
                    for result in results[start : start + IMAGE_BATCH]
                ]
            )
            pixels = self.image_tokenizer.decode([torch.from_numpy(codes)])
            images.extend(images_from_tensor(pixels))
        return images

    def captions_from_results(self, results: Sequence[Result]) -> list[str]:
        """Texts of image-to-text results."""
        num_cut = sum(result.finish == "length" for result in results)
        if num_cut:
            log(f"warning: {num_cut} of {len(results)} captions did not end and were cut")
        return [
            self.text_tokenizer.decode(
                self.recipe.text_ids_from_result(result, vocabulary=self.vocabulary)
            )
            for result in results
        ]

    @cached_property
    def text_tokenizer(self) -> TextTokenizer:
        """The text tokenizer in the folder, checked against the vocabulary."""
        tokenizer = load_text_tokenizer(self.folder / "tokenizer.json")
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
        path = self.folder / "image_tokenizer"
        tokenizer = load_image_tokenizer(path, device=str(self.network.device))
        expected = self._recipe_settings["image_tokenizer"]["fingerprint"]
        if tokenizer.fingerprint != expected:
            raise VocabularyMismatchError(
                f"{path} is not the tokenizer that the model was trained with: its fingerprint is "
                f"{tokenizer.fingerprint}, but {self.folder / RECIPE_FILE} says {expected}; copy the "
                "right one there"
            )
        num_codes = self.vocabulary.range("image").size
        if tokenizer.codebook_sizes[0] != num_codes:
            raise VocabularyMismatchError(
                f"{path} has {tokenizer.codebook_sizes[0]} codes, but the vocabulary's range `image` has {num_codes}"
            )
        return tokenizer

    @cached_property
    def recipe(self) -> Any:
        """The recipe that `recipe.json` names."""
        return get_recipe(str(self._recipe_settings["recipe"]))

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes that an image has."""
        height, width = self._recipe_settings["grid"]
        return int(height), int(width)

    @cached_property
    def _recipe_settings(self) -> dict[str, Any]:
        path = self.folder / RECIPE_FILE
        if not path.is_file():
            raise UsageError(
                f"{self.folder} has no {RECIPE_FILE}, which says how prompts are formed; "
                "data made by `mmfast prepare` carries one"
            )
        settings = read_json_object(path)
        try:
            height, width = settings["grid"]
            is_complete = int(height) > 0 and int(width) > 0 and bool(settings["recipe"])
            is_complete &= bool(settings["image_tokenizer"]["fingerprint"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptDataError(f"{path} is not a recipe description: {error!r}") from error
        if not is_complete:
            raise CorruptDataError(
                f"{path} has an empty grid, no recipe name or no fingerprint of the image tokenizer"
            )
        return settings

    def _require_images(self) -> None:
        names = [code_range.name for code_range in self.vocabulary.ranges]
        if "image" not in names:
            raise UsageError(
                f"the model in {self.folder} has no image ids: its vocabulary's code ranges are {names}"
            )
        # Loaded here, so that a wrong or damaged one is found before anything is generated.
        _ = self.image_tokenizer
