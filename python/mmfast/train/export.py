"""Writes a trained model as a folder that others can open: safetensors and JSON, no pickle.

The folder holds what transformers expects (`config.json`, `generation_config.json`,
`model.safetensors`) and what makes it a multimodal model: `vocabulary.json`, `tokenizer.json`,
`recipe.json` and `image_tokenizer/`. It is written beside its place and moved there as a whole.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from mmfast.console import log
from mmfast.distributed import rank
from mmfast.errors import CheckpointError
from mmfast.files import write_json
from mmfast.models.decoder import DecoderConfig, build_decoder
from mmfast.models.lora import merged
from mmfast.tokenizers.protocol import is_torchscript_folder
from mmfast.train.agreement import together
from mmfast.train.datasets import (
    RECIPE_FILE,
    TOKENIZER_FILE,
    DatasetFolder,
    require_image_tokenizer,
)

IMAGE_TOKENIZER_FOLDER = "image_tokenizer"


def export_model(
    decoder: Any,
    folder: Path,
    *,
    config: DecoderConfig,
    dataset: DatasetFolder,
    dtype: torch.dtype = torch.float32,
    lora_scale: float = 0.0,
) -> None:
    """Gathers the weights on rank 0 and writes `folder`, replacing an earlier export.

    What rank 0 cannot write, or may not, ends all ranks.

    Args:
        decoder: the trained model, sharded or not; every rank must call.
        folder: where the export goes.
        config: the model's shape.
        dataset: source of vocabulary, tokenizers and recipe.
        dtype: type of the written weights.
        lora_scale: of adapters, which are merged into the weights.

    Raises:
        VocabularyMismatchError: the image tokenizer is no longer the one that the data was made with.
        CheckpointError: the folder cannot be written; an earlier export is untouched.
    """
    weights = get_model_state_dict(
        decoder, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    with together():
        if rank() == 0:
            weights = merged(weights, scale=lora_scale)
            require_image_tokenizer(dataset)
            temporary = folder.with_name(folder.name + ".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            with _removed_if_cut_short(temporary, folder):
                temporary.mkdir(parents=True)
                _write_weights(weights, temporary, config=config, dataset=dataset, dtype=dtype)
                _write_companions(dataset, temporary)
            previous = folder.with_name(folder.name + ".old")
            shutil.rmtree(previous, ignore_errors=True)
            if folder.exists():
                folder.rename(previous)
            temporary.rename(folder)
            shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def _removed_if_cut_short(temporary: Path, folder: Path) -> Iterator[None]:
    """Turns what a full disk and its like raise into an error that says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the exported model {folder}: {error}. Free some space, or see to that, then start "
            "the same command again: it goes on from the newest whole checkpoint, which is untouched."
        ) from error


def _write_weights(
    weights: dict[str, Any],
    folder: Path,
    *,
    config: DecoderConfig,
    dataset: DatasetFolder,
    dtype: torch.dtype,
) -> None:
    # FSDP renames the classes it wraps, and gathers a tied table twice; a fresh model of the same
    # shape has the right class name in its configuration and ties the two again.
    model = build_decoder(config, dataset.vocabulary)
    model.load_state_dict({name: w.to(dtype) for name, w in weights.items()}, assign=True)
    model.config.dtype = dtype
    model.tie_weights()
    with _no_progress_bar():
        model.save_pretrained(folder)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keeps transformers from drawing a bar for the one file it writes."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _write_companions(dataset: DatasetFolder, folder: Path) -> None:
    dataset.vocabulary.save(folder)
    if dataset.text_tokenizer is not None:
        shutil.copyfile(dataset.text_tokenizer, folder / TOKENIZER_FILE)
    if dataset.recipe is None:
        return
    recipe = dict(dataset.recipe)
    source = dataset.image_tokenizer
    if source is not None and is_torchscript_folder(source):
        # Programs stay where the user put them: a model folder must be safe to load.
        recipe["image_tokenizer"] = {**recipe["image_tokenizer"], "path": str(source.resolve())}
    elif source is not None:
        shutil.copytree(source, folder / IMAGE_TOKENIZER_FOLDER)
        recipe["image_tokenizer"] = {**recipe["image_tokenizer"], "path": IMAGE_TOKENIZER_FOLDER}
    elif recipe.get("image_tokenizer"):
        log(
            f"warning: the image tokenizer {recipe['image_tokenizer'].get('path')!r} named by "
            f"{dataset.path / RECIPE_FILE} was not found; copy it to "
            f"{folder.name.removesuffix('.tmp')}/{IMAGE_TOKENIZER_FOLDER} before drawing images"
        )
    write_json(folder / RECIPE_FILE, recipe)
