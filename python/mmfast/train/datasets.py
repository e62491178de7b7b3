"""Opens what a run trains on: checks that its datasets belong together, then makes loaders."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmfast.data import Batch, Loader, Source
from mmfast.distributed import rank, world_size
from mmfast.errors import CorruptDataError, UsageError, VocabularyMismatchError
from mmfast.files import read_json_object
from mmfast.tokenizers.protocol import CONFIG_FILE, read_tokenizer_config
from mmfast.train.config import (
    DataConfig,
    ObjectiveConfig,
    SourceConfig,
    TrainConfig,
    ValidationTask,
)
from mmfast.train.tokenizer_block import TokenizerBlock, check_tokenizer
from mmfast.vocab import Vocabulary

RECIPE_FILE = "recipe.json"
TOKENIZER_FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFolder:
    """What lies beside a dataset and goes into the exported model.

    Attributes:
        path: the folder.
        vocabulary: its ids.
        recipe: content of `recipe.json`, None without one.
    """

    path: Path
    vocabulary: Vocabulary
    recipe: dict[str, Any] | None

    @property
    def text_tokenizer(self) -> Path | None:
        """The text tokenizer's file, None without one."""
        file = self.path / TOKENIZER_FILE
        return file if file.is_file() else None

    @property
    def image_tokenizer(self) -> Path | None:
        """The image tokenizer's folder, None when the recipe names none or it is not there.

        A relative path is tried beside the dataset first, then from the current folder.
        """
        named = ((self.recipe or {}).get("image_tokenizer") or {}).get("path")
        if not named:
            return None
        return next((p for p in (self.path / named, Path(named)) if p.is_dir()), None)


def require_image_tokenizer(dataset: DatasetFolder) -> None:
    """Refuses an image tokenizer that was retrained or replaced since the dataset was prepared.

    One that is not there is no error here: training needs none.

    Raises:
        VocabularyMismatchError: its codes are not those of the dataset.
    """
    expected = ((dataset.recipe or {}).get("image_tokenizer") or {}).get("fingerprint")
    if dataset.image_tokenizer is None or expected is None:
        return
    if not (dataset.image_tokenizer / CONFIG_FILE).is_file():
        return
    # A folder as its authors publish it notes none; it is checked where the tokenizer is loaded.
    found = read_tokenizer_config(dataset.image_tokenizer).get("fingerprint")
    if found not in (None, expected):
        raise VocabularyMismatchError(
            f"the image tokenizer {dataset.image_tokenizer} has fingerprint {found}, but the dataset in "
            f"{dataset.path} was prepared with {expected}: its codes mean other pictures. Put the former "
            "tokenizer back, or prepare the dataset again."
        )


def open_folder(data: DataConfig, tokenizer: TokenizerBlock | None = None) -> DatasetFolder:
    """The first source's folder, after checking that every other dataset of the run agrees with it.

    Raises:
        UsageError: no dataset is named, or a file is missing.
        VocabularyMismatchError: two datasets number their ids differently, or the image tokenizer is
            not the one that a dataset was prepared with.
        CorruptDataError: a file is damaged, or two datasets were made by different recipes.
    """
    prefixes = [Path(source.prefix) for source in sources_of(data)]
    prefixes += [Path(source.prefix) for source in validations(data).values()]
    first = _read_folder(prefixes[0])
    for prefix in prefixes[1:]:
        other = _read_folder(prefix)
        here, there = f"dataset {prefixes[0]}", f"dataset {prefix}"
        first.vocabulary.require_same(other.vocabulary, here=here, there=there)
        if _comparable(first.recipe) != _comparable(other.recipe):
            raise CorruptDataError(
                f"the {RECIPE_FILE} of {here} differs from that of {there}; datasets of one run must "
                "come from the same recipe, layout, grid and image tokenizer"
            )
    if tokenizer is not None:
        check_tokenizer(tokenizer, first.vocabulary, dataset=first.path)
    return first


def sources_of(data: DataConfig) -> list[SourceConfig]:
    """The blend to train on; `UsageError` when none is named."""
    sources = list(data.sources) or [SourceConfig(prefix=data.prefix)]
    if not all(source.prefix for source in sources):
        raise UsageError("no dataset is named: give data.prefix=PATH (the path without .bin)")
    return sources


def validations(data: DataConfig) -> dict[str, ValidationTask]:
    """What is validated, by name; the name of plain validation is empty.

    Raises:
        UsageError: a task has no dataset, or two share a name.
    """
    tasks: dict[str, ValidationTask] = {}
    if data.validation_prefix:
        tasks[""] = ValidationTask(name="plain", prefix=data.validation_prefix)
    for task in data.validation_tasks:
        prefix = task.prefix or data.validation_prefix
        if not prefix or task.name in tasks:
            what = (
                "no dataset: give it a prefix, or data.validation_prefix"
                if not prefix
                else "a name twice"
            )
            raise UsageError(f"the task {task.name!r} of data.validation_tasks has {what}")
        tasks[task.name] = dataclasses.replace(task, prefix=prefix)
    return tasks


def open_loader(config: TrainConfig, vocabulary: Vocabulary) -> Loader:
    """This rank's share of the training stream."""
    return _loader(config, config.objective, vocabulary, sources_of(config.data))


def open_validation_loader(
    config: TrainConfig, task: ValidationTask, vocabulary: Vocabulary
) -> Loader:
    """This rank's share of a held-out stream, always from its beginning."""
    objective = config.objective if task.objective is None else task.objective
    return _loader(config, objective, vocabulary, [SourceConfig(prefix=task.prefix)])


def next_batch(batches: Iterator[Batch]) -> Batch | None:
    """The next batch, None at the stream's end.

    Raises:
        UsageError: a document does not fit the row or the model, as the loader's text says.
    """
    try:
        return next(batches, None)
    except ValueError as error:
        text = str(error).replace("max_document_tokens", "model.context_length")
        raise UsageError(f"cannot make the next batch: {text}") from error


def _loader(
    config: TrainConfig,
    objective: ObjectiveConfig,
    vocabulary: Vocabulary,
    sources: list[SourceConfig],
) -> Loader:
    try:
        return Loader(
            [Source(s.prefix, weight=s.weight, max_epochs=s.max_epochs) for s in sources],
            objective.objective,
            vocabulary,
            bin_tokens=config.data.bin_tokens,
            max_document_tokens=config.model.context_length,
            global_batch_bins=config.train.global_batch_bins,
            seed=config.seed,
            window_documents=config.data.window_documents,
            overlong=config.data.overlong,
            rank=rank(),
            world_size=world_size(),
        )
    except ValueError as error:
        raise UsageError(f"cannot read {_names(sources)} as configured: {error}") from error


def _names(sources: list[SourceConfig]) -> str:
    return ", ".join(source.prefix for source in sources)


def _read_folder(prefix: Path) -> DatasetFolder:
    folder = prefix.parent
    for suffix in (".bin", ".idx"):
        if not prefix.with_name(prefix.name + suffix).is_file():
            raise UsageError(
                f"there is no dataset {prefix}: {prefix.name}{suffix} is missing in {folder}. "
                "`mmfast prepare` writes one."
            )
    try:
        vocabulary = Vocabulary.load(folder)
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} has no vocabulary.json, which says what the ids of dataset {prefix} mean"
        ) from error
    recipe_path = folder / RECIPE_FILE
    recipe = None
    if recipe_path.is_file():
        recipe = read_json_object(recipe_path)
        if not isinstance(recipe.get("image_tokenizer") or {}, dict):
            raise CorruptDataError(f"{recipe_path}: `image_tokenizer` is not an object")
    dataset = DatasetFolder(path=folder, vocabulary=vocabulary, recipe=recipe)
    require_image_tokenizer(dataset)
    return dataset


def _comparable(recipe: dict[str, Any] | None) -> dict[str, Any] | None:
    """A recipe without the path of its image tokenizer, which may differ between machines."""
    if recipe is None:
        return None
    tokenizer = dict(recipe.get("image_tokenizer") or {})
    tokenizer.pop("path", None)
    return {**recipe, "image_tokenizer": tokenizer}
