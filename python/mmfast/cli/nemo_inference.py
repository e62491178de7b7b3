"""Reads the inference configurations of NeMo's multimodal autoregressive examples.

Their two YAML files (`megatron_mm_ar_inference_image_generation.yaml` and `..._vision_understanding.yaml`
in `examples/multimodal_autoregressive/conf`) are understood key by key; what has no meaning here is named
on stderr, so that nothing is dropped in silence. Command-line options win over the file.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmfast.console import log
from mmfast.errors import CorruptDataError, UsageError
from mmfast.generate.folders import refuse_nemo_archive
from mmfast.generate.requests import Request

_SAMPLING = ("top_k", "top_p", "temperature")
# Said by the recipe (BOS, end of sequence), by the model's grammar, or of no use here.
_WITHOUT_MEANING = (
    "trainer",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "pipeline_model_parallel_split_rank",
    "inference.add_BOS",
    "inference.all_probs",
    "inference.compute_logprob",
    "inference.end_strings",
    "inference.min_tokens_to_generate",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NemoInference:
    """What a NeMo inference configuration asks for.

    Attributes:
        sampling: fields of `SamplingSettings`.
        repetition_penalty: 1 is none.
        max_ids: `tokens_to_generate`.
        captions: prompts of pictures to draw.
        images: pictures to describe.
        output: folder for pictures.
    """

    sampling: Mapping[str, float]
    repetition_penalty: float
    max_ids: int | None
    captions: tuple[str, ...]
    images: tuple[Path, ...]
    output: Path | None


def read_nemo_inference(path: Path) -> NemoInference:
    """The configuration in a YAML file.

    Raises:
        UsageError: there is no such file, it names a NeMo checkpoint, or a value is of the wrong type.
        CorruptDataError: the file is not YAML.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # whatever the YAML reader raises
        raise CorruptDataError(f"{path} is not a YAML configuration: {error}") from error
    if not isinstance(content, dict):
        raise CorruptDataError(f"{path} holds no configuration")
    flat = {str(key): value for key, value in content.items() if key != "inference"}
    inference = content.get("inference") or {}
    if not isinstance(inference, dict):
        raise UsageError(f"{path}: `inference` should hold settings, found {inference!r}")
    flat |= {f"inference.{key}": value for key, value in inference.items()}
    for key in ("gpt_model_file", "checkpoint_dir", "checkpoint_name", "hparams_file"):
        if flat.pop(key, None):
            refuse_nemo_archive(f"{path}: `{key}`")
    for key in _WITHOUT_MEANING:
        flat.pop(key, None)

    def number(key: str, kind: type) -> Any:
        value = flat.pop(key, None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError(f"{path}: `{key}` should be a number, found {value!r}")
        return None if value is None else kind(value)

    def texts(key: str) -> tuple[str, ...]:
        value = flat.pop(key, None) or []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise UsageError(f"{path}: `{key}` should be a list of texts, found {value!r}")
        return tuple(value)

    sampling = {
        name: value
        for name in _SAMPLING
        if (value := number(f"inference.{name}", float)) is not None
    }
    if flat.pop("inference.greedy", False):
        sampling = {"temperature": 0.0}
    output, encoder = flat.pop("images_output_path", None), flat.pop("image_encoder", None)
    if encoder is not None:
        # It may hold TorchScript, which runs only where it is named on the command line.
        log(
            f"{path}: `image_encoder` {encoder} is not loaded; without --image-tokenizer FOLDER the model's own "
            "tokenizer draws"
        )
    config = NemoInference(
        sampling=sampling,
        repetition_penalty=number("inference.repetition_penalty", float) or 1.0,
        max_ids=number("inference.tokens_to_generate", int),
        captions=texts("captions"),
        images=tuple(map(Path, texts("images_path"))),
        output=None if output is None else Path(str(output)),
    )
    if flat:
        log(f"warning: {path}: not understood, and not used: {', '.join(sorted(flat))}")
    return config


def warn_of_pictures(config: NemoInference, request: Request) -> None:
    """Says what of the configuration would have spoiled pictures, and is not done."""
    needed = request.grammar.max_ids
    if config.max_ids is not None and config.max_ids < needed:
        log(
            f"warning: tokens_to_generate is {config.max_ids}, but a picture takes {needed} ids; "
            "pictures are drawn whole"
        )
    if config.repetition_penalty != 1.0:
        log(
            f"warning: repetition_penalty {config.repetition_penalty:g} is left out: it would punish "
            "codes that a picture has to repeat; --sampling repetition_penalty=... applies one"
        )
