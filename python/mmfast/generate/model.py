"""A trained model's folder as one object: `mmfast.load(folder).draw(["a red kite"])`.

`Model` runs requests of ids, and turns tasks (captions, questions about pictures) into requests and
results back into pictures and text, in the words of the folder's recipe. What is in a folder is in
`folders.py`, how recipe and model meet in `tasks.py`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmfast.console import log, progress
from mmfast.errors import UsageError
from mmfast.generate.candidates import Scorer, best_candidates, mean_logprob, with_candidates
from mmfast.generate.engine import Engine
from mmfast.generate.folders import ModelParts, load_parts
from mmfast.generate.grammar import AllowedIds, PictureGrammar, TextGrammar
from mmfast.generate.requests import Request, Result, SamplingSettings
from mmfast.generate.sharing import run_shared
from mmfast.generate.tasks import AnsweringTask, Codes, DrawingTask
from mmfast.models import register_attention
from mmfast.tokenizers import images_from_tensor
from mmfast.vocab import Vocabulary

DEFAULT_NUM_ROWS = 32
# Images per call of the image tokenizer.
IMAGE_BATCH = 64


def load(
    folder: Path | str,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    image_tokenizer: Path | str | None = None,
    compiled: bool = False,
) -> "Model":
    """Loads a model folder: of mmfast, as a system's authors publish it, or any causal language model.

        >>> model = mmfast.load("out/demo/train/model")  # doctest: +SKIP
        >>> model.draw(["a handwritten seven"])[0].save("seven.png")  # doctest: +SKIP

    Args:
        folder: a training run's `model/`, or a folder with transformers' config.json and safetensors.
        device: `cuda` when there is one and nothing is said, else `cpu`.
        dtype: of the weights; bfloat16 on CUDA and float32 elsewhere when nothing is said.
        image_tokenizer: folder of the image tokenizer, where it is not in the model's. Only here may it hold
            TorchScript (Cosmos), which can run code.
        compiled: on CPU, generate with a compiled step: see `Engine`.

    Raises:
        UsageError: not a model folder.
        CorruptDataError: damaged vocabulary.
        VocabularyMismatchError: the vocabulary has ids that the weights lack.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype is None:
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    return Model(
        *load_parts(
            folder,
            device=device,
            dtype=dtype,
            attention=register_attention(),
            image_tokenizer=None if image_tokenizer is None else Path(image_tokenizer),
        ),
        compiled=compiled,
    )


class Model:
    """A loaded model.

    Attributes:
        network: the transformers model.
        parts: what else is in its folder: vocabulary, tokenizers, recipe.
        compiled: whether its engines compile their steps.
    """

    def __init__(self, network: Any, parts: ModelParts, *, compiled: bool = False) -> None:
        self.network = network
        self.parts = parts
        self.compiled = compiled
        self._engines: dict[int, Engine] = {}

    @property
    def folder(self) -> Path:
        """Where it came from."""
        return self.parts.folder

    @property
    def vocabulary(self) -> Vocabulary:
        """What its ids mean."""
        return self.parts.vocabulary

    @property
    def max_positions(self) -> int:
        """Ids that its context holds."""
        return int(self.network.config.get_text_config().max_position_embeddings)

    def save_network(self, folder: Path | str) -> None:
        """Writes the language model alone, e.g. of published weights, for `model.from=FOLDER` in training."""
        # transformers would go back to the names of the files that it was read from.
        self.network.save_pretrained(folder, save_original_format=False)

    def generate(
        self,
        requests: Sequence[Request],
        *,
        num_candidates: int = 1,
        scorer: Scorer = mean_logprob,
        num_rows: int = DEFAULT_NUM_ROWS,
    ) -> list[Result]:
        """Runs requests; under `torchrun` they are shared out, and every rank gets all results.

        Args:
            requests: in any number and of any kind.
            num_candidates: results drawn for each request, of which the best is kept.
            scorer: `scorer(request number, result)` says how good one is; see `candidates.py`.
            num_rows: rows of the engine's batch; more use the hardware better and take more memory.
                Part of what results depend on, in their last bits.

        Raises:
            UsageError: on every rank, for a request that does not fit the model or the rows.
        """
        self.check(requests, num_rows=num_rows)
        engine = self._engine(num_rows)
        if num_candidates != 1:
            requests = with_candidates(requests, num_candidates)

        def run(share: Sequence[Request]) -> list[Result]:
            num_ids = sum(request.grammar.max_ids for request in share)
            with progress("generating", total=num_ids, unit="ids") as job:
                return engine.run(share, progress=job)

        results = run_shared(requests, run)
        if num_candidates == 1:
            return results
        return best_candidates(results, num_candidates, scorer)

    def stream_images(
        self,
        requests: Sequence[Request],
        *,
        every: int = 64,
        num_rows: int = DEFAULT_NUM_ROWS,
    ) -> Iterator[tuple[int, Image.Image, bool]]:
        """Draws and shows pictures in the making: request number, picture, whether it is finished.

        What is not drawn yet is grey.

        Args:
            requests: of drawings, see `drawing_request`.
            every: ids between two pictures of a request.
            num_rows: as in `generate`.
        """
        for partial in self._engine(num_rows).stream(requests, every=every):
            grammar = requests[partial.request_idx].grammar
            if not isinstance(grammar, PictureGrammar):
                raise UsageError(f"{type(grammar).__name__} holds no picture to show")
            grids = grammar.codes_from_ids(partial.ids)
            (image,) = self.images_from_codes([[np.maximum(grid, 0) for grid in grids]])
            image.paste(128 if image.mode == "L" else (128,) * 3, mask=_undrawn(grids[-1], image))
            yield partial.request_idx, image, partial.result is not None

    def complete(
        self,
        prompts: Sequence[str],
        *,
        max_ids: int = 128,
        seed: int = 0,
        num_rows: int = DEFAULT_NUM_ROWS,
        **sampling: Any,
    ) -> list[str]:
        """Goes on with texts, as any language model with a `tokenizer.json` can.

        Args:
            prompts: texts, none empty.
            max_ids: room for what follows.
            seed: text i is drawn with seed + i.
            num_rows: as in `generate`.
            sampling: fields of `SamplingSettings`, e.g. `temperature=0.0`.
        """
        eos = self.network.generation_config.eos_token_id
        stop_ids = tuple(eos) if isinstance(eos, list) else (eos,)
        if None in stop_ids:
            raise UsageError(f"the model in {self.folder} names no eos_token_id to end texts with")
        size = self.network.config.get_text_config().vocab_size
        grammar = TextGrammar(text=AllowedIds(((0, size),)), stop_ids=stop_ids, max_ids=max_ids)
        tokenizer = self.parts.text_tokenizer
        requests = [
            Request(
                streams=(tuple(tokenizer.encode(prompt)),),
                grammar=grammar,
                sampling=_with_fields({"text": SamplingSettings()}, sampling),
                seed=seed + i,
            )
            for i, prompt in enumerate(prompts)
        ]
        results = self.generate(requests, num_rows=num_rows)
        return [
            tokenizer.decode([token for token in result.ids if token not in stop_ids])
            for result in results
        ]

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
            self._engines = {
                num_rows: Engine(self.network, num_rows=num_rows, compiled=self.compiled)
            }
        return self._engines[num_rows]

    def draw(
        self,
        captions: Sequence[str],
        *,
        negative_prompt: str | None = None,
        ratio: str | None = None,
        grid: tuple[int, int] | None = None,
        guidance_scale: float | None = None,
        num_candidates: int = 1,
        scorer: Callable[[str, Image.Image], float] | None = None,
        seed: int = 0,
        num_rows: int = DEFAULT_NUM_ROWS,
        **sampling: Any,
    ) -> list[Image.Image]:
        """An image for each caption, in order.

        Args:
            captions: texts.
            negative_prompt: what guidance leads away from; the recipe's own when None.
            ratio: width to height, e.g. `16:9`, where the recipe knows more than one.
            grid: rows and columns of codes in place of a ratio.
            guidance_scale: 1 draws from the caption alone; above, away from the model without one.
            num_candidates: images drawn for each caption, of which the best is kept.
            scorer: `scorer(caption, image)` says how good one is; None takes the model's own mean
                log-probability.
            seed: image i is drawn with seed + i.
            num_rows: as in `generate`.
            sampling: fields of `SamplingSettings`, e.g. `top_k=2048`, in place of the recipe's.

        Raises:
            UsageError: the model has no image range, recipe or tokenizer, or a caption is too long.
        """
        settings = self.drawing_sampling(sampling)
        requests = [
            self.drawing_request(
                caption,
                negative_prompt=negative_prompt,
                ratio=ratio,
                grid=grid,
                guidance_scale=guidance_scale,
                sampling=settings,
                seed=seed + i,
            )
            for i, caption in enumerate(captions)
        ]

        def score(request_idx: int, result: Result) -> float:
            if scorer is None:
                return mean_logprob(request_idx, result)
            (image,) = self.images_from_results([requests[request_idx]], [result])
            return scorer(captions[request_idx], image)

        results = self.generate(
            requests, num_candidates=num_candidates, scorer=score, num_rows=num_rows
        )
        return self.images_from_results(requests, results)

    def caption(
        self,
        images: Sequence[Image.Image],
        *,
        question: str | None = None,
        max_ids: int | None = None,
        seed: int = 0,
        num_rows: int = DEFAULT_NUM_ROWS,
        **sampling: Any,
    ) -> list[str]:
        """A caption for each image, or an answer to one question about each, in order.

        Args:
            images: Pillow images of any size; they are resized as in training.
            question: asked about every image; None asks for a caption.
            max_ids: room for a text, the recipe's when None; a longer one is cut, with a warning.
            seed: text i is drawn with seed + i.
            num_rows: as in `generate`.
            sampling: fields of `SamplingSettings`, e.g. `temperature=0.7`, in place of the recipe's.

        Raises:
            UsageError: the model has no image range, recipe or tokenizer.
        """
        settings = self.answering_sampling(sampling)
        requests = [
            self.answering_request(
                codes, question=question, sampling=settings, max_ids=max_ids, seed=seed + i
            )
            for i, codes in enumerate(self.codes_from_images(images))
        ]
        return self.texts_from_results(self.generate(requests, num_rows=num_rows))

    def drawing_sampling(self, given: Mapping[str, Any]) -> dict[str, SamplingSettings]:
        """The recipe's sampling of pictures with the fields in `given` replaced."""
        return _with_fields(self.parts.recipe.drawing_sampling, given)

    def answering_sampling(self, given: Mapping[str, Any]) -> dict[str, SamplingSettings]:
        """The recipe's sampling of texts with the fields in `given` replaced."""
        return _with_fields(self.parts.recipe.answering_sampling, given)

    def drawing_request(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        ratio: str | None = None,
        grid: tuple[int, int] | None = None,
        guidance_scale: float | None = None,
        sampling: Mapping[str, SamplingSettings] | None = None,
        seed: int = 0,
    ) -> Request:
        """The recipe's request for one picture; what is None is as the recipe has it."""
        self.parts.require_images()
        recipe = self.parts.recipe
        task = DrawingTask(
            prompt=prompt,
            negative_prompt=negative_prompt,
            ratio=ratio,
            grid=grid,
            guidance_scale=recipe.drawing_guidance if guidance_scale is None else guidance_scale,
            sampling=recipe.drawing_sampling if sampling is None else sampling,
            seed=seed,
        )
        return recipe.drawing_request(task, self.parts)

    def answering_request(
        self,
        *images: Sequence[Codes],
        question: str | None = None,
        sampling: Mapping[str, SamplingSettings] | None = None,
        max_ids: int | None = None,
        seed: int = 0,
    ) -> Request:
        """The recipe's request for a text about images, each an array [h, w] a level."""
        self.parts.require_images()
        recipe = self.parts.recipe
        task = AnsweringTask(
            codes=images,
            question=question,
            max_ids=recipe.answering_max_ids if max_ids is None else max_ids,
            sampling=recipe.answering_sampling if sampling is None else sampling,
            seed=seed,
        )
        request = recipe.answering_request(task, self.parts)
        overrun = request.num_positions - self.max_positions
        if 0 < overrun < task.max_ids:
            # A text may use what the context leaves; a prompt that leaves nothing is refused later.
            task = dataclasses.replace(task, max_ids=task.max_ids - overrun)
            request = recipe.answering_request(task, self.parts)
        return request

    def codes_from_images(self, images: Iterable[Image.Image]) -> list[list[Codes]]:
        """Codes of each image, one [h, w] a level; of `images`, one is held at a time."""
        self.parts.require_images()
        codes: list[list[Codes]] = []
        pixels = (self.parts.recipe.pixels_from_image(image, self.parts) for image in images)
        while batch := list(itertools.islice(pixels, IMAGE_BATCH)):
            for _, group in itertools.groupby(batch, key=lambda each: each.shape):
                levels = self.parts.image_tokenizer.encode(torch.stack(list(group)))
                codes.extend(
                    list(grids) for grids in zip(*(x.cpu().numpy() for x in levels), strict=True)
                )
        return codes

    def images_from_results(
        self, requests: Sequence[Request], results: Sequence[Result]
    ) -> list[Image.Image]:
        """Decodes what drawing requests gave."""
        codes = []
        for request, result in zip(requests, results, strict=True):
            if not isinstance(request.grammar, PictureGrammar):
                raise UsageError(f"{type(request.grammar).__name__} holds no picture to decode")
            codes.append(request.grammar.codes_from_ids(result.ids))
        return self.images_from_codes(codes)

    def images_from_codes(self, codes: Sequence[Sequence[Codes]]) -> list[Image.Image]:
        """Decodes images, each an array [h, w] a level; neighbours of one size go together."""
        images: list[Image.Image] = []
        for _, same in itertools.groupby(codes, key=lambda grids: [grid.shape for grid in grids]):
            alike = list(same)
            for start in range(0, len(alike), IMAGE_BATCH):
                batch = alike[start : start + IMAGE_BATCH]
                levels = [torch.from_numpy(np.stack(grids)) for grids in zip(*batch, strict=True)]
                images.extend(images_from_tensor(self.parts.image_tokenizer.decode(levels)))
        return images

    def texts_from_results(self, results: Sequence[Result]) -> list[str]:
        """Texts that answering requests gave."""
        num_cut = sum(result.finish == "length" for result in results)
        if num_cut:
            log(f"warning: {num_cut} of {len(results)} texts did not end and were cut")
        recipe, tokenizer = self.parts.recipe, self.parts.text_tokenizer
        return [
            tokenizer.decode(recipe.text_ids_from_result(result, self.parts)).strip()
            for result in results
        ]


def _undrawn(grid: Codes, image: Image.Image) -> Image.Image:
    """Mask of the pixels whose codes are -1, those not drawn yet."""
    mask = Image.fromarray(np.where(grid < 0, np.uint8(255), np.uint8(0)))
    return mask.resize(image.size, Image.Resampling.NEAREST)


def _with_fields(
    settings: Mapping[str, SamplingSettings], given: Mapping[str, Any]
) -> dict[str, SamplingSettings]:
    """Settings with fields replaced: `top_k` in all modalities, `text.top_k` in one."""
    known = {field.name for field in dataclasses.fields(SamplingSettings)}
    replaced = dict(settings)
    for key, value in given.items():
        modality, _, name = key.rpartition(".")
        if name not in known or modality not in {"", *settings}:
            raise UsageError(
                f"unknown sampling setting {key}; there are {', '.join(sorted(known))}, for all "
                f"modalities or one of {', '.join(settings)} (e.g. {next(iter(settings))}.top_k)"
            )
        for chosen in [modality] if modality else settings:
            replaced[chosen] = dataclasses.replace(replaced[chosen], **{name: value})
    return replaced
