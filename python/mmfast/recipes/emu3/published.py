"""Emu3's folders as their authors publish them, opened without their remote code.

    original  BAAI/Emu3-Gen, -Chat, -Stage1: emu3.tiktoken, safetensors; the image tokenizer is a repository of its
              own, BAAI/Emu3-VisionTokenizer, and goes into the folder as `image_tokenizer/`
    -hf       BAAI/Emu3-Gen-hf, -Chat-hf: tokenizer.json, language model and image tokenizer in one set of weights

Of the -hf weights only the language model is read here; `tokenizers/emu3_weights.py` reads the rest.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mmfast.errors import CorruptDataError, UsageError
from mmfast.recipes.emu3.prompts import NEGATIVE_PROMPT, POSITIVE_SUFFIX, QUESTION
from mmfast.recipes.emu3.requests import IMAGE_AREA
from mmfast.recipes.emu3.vocabulary import (
    NUM_CODES,
    NUM_TEXT_IDS,
    TIKTOKEN_FILE,
    emu3_vocabulary,
    load_emu3_text_tokenizer,
)
from mmfast.tokenizers import ImageTokenizer, TextTokenizer, load_image_tokenizer
from mmfast.vocab import Vocabulary

ORIGINAL, CONDITIONAL = "Emu3", "emu3"
VISION_REPOSITORY = "BAAI/Emu3-VisionTokenizer"
# Names of language model tensors in -hf files, of old and new make, and in `LlamaForCausalLM`.
_KEY_MAPPING = {
    r"^text_model\.model\.": "model.",
    r"^text_model\.lm_head\.": "lm_head.",
    r"^model\.text_model\.": "model.",
}


class PublishedEmu3:
    """One published folder; see `mmfast.generate.tasks.PublishedModel`."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._config = folder, config
        self._is_original = config.get("model_type") == ORIGINAL

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The ids of Emu3; of -hf folders checked against the names in their configuration."""
        if self._is_original:
            return emu3_vocabulary()
        names = self._config.get("vocabulary_map") or {}
        codebook = (self._config.get("vq_config") or {}).get("codebook_size", NUM_CODES)
        vocabulary = emu3_vocabulary(
            text_size=names.get("<|endoftext|>", NUM_TEXT_IDS), num_codes=codebook
        )
        expected = {"<|extra_200|>": "eol", "<|extra_201|>": "eof", "<|image token|>": "img"}
        for name, role in expected.items():
            if name in names and names[name] != vocabulary[role]:
                raise CorruptDataError(
                    f"{self._folder / 'config.json'}: {name} has id {names[name]}, expected {vocabulary[role]}"
                )
        return vocabulary

    @property
    def settings(self) -> Mapping[str, Any]:
        """What `recipe.json` would say: published prompts, area and negative prompt."""
        return {
            "recipe": "emu3",
            "image_form": "rows",
            "generation_prompt": "emu3",
            "question": QUESTION,
            "image_area": self._config.get("image_area", IMAGE_AREA),
            "positive_suffix": POSITIVE_SUFFIX,
            "negative_prompt": NEGATIVE_PROMPT,
        }

    def load_network(self, *, dtype: torch.dtype, attention: str) -> Any:
        """The language model as a Llama, which it is but for the dropout of its training.

        Unlike `Emu3ForCausalLM`, transformers' automatic classes know it: what `save_pretrained` writes of it is a
        folder that training goes on from.
        """
        from transformers import Emu3TextConfig, LlamaConfig, LlamaForCausalLM
        from transformers.utils import logging

        if self._is_original:
            fields = dict(self._config)
            theta = fields.pop("rope_theta", 1_000_000.0)
            for name in ("auto_map", "model_type", "architectures", "rope_scaling", "torch_dtype"):
                fields.pop(name, None)
            fields["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
        else:
            fields = dict(self._config["text_config"])
            fields.pop("model_type", None)
        try:
            complete = Emu3TextConfig(**fields).to_dict()
            for name in ("model_type", "architectures", "attention_dropout"):
                complete.pop(name, None)
            config = LlamaConfig(**complete)
        except (TypeError, ValueError) as error:
            raise CorruptDataError(
                f"{self._folder / 'config.json'} does not describe Emu3: {error}"
            ) from error
        verbosity = logging.get_verbosity()
        # It would list every weight of the image tokenizer as unexpected.
        logging.set_verbosity_error()
        try:
            network, found = LlamaForCausalLM.from_pretrained(
                self._folder,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                key_mapping=_KEY_MAPPING,
                local_files_only=True,
                output_loading_info=True,
            )
        finally:
            logging.set_verbosity(verbosity)
        if found["missing_keys"]:
            some = ", ".join(sorted(found["missing_keys"])[:3])
            raise CorruptDataError(
                f"{self._folder} lacks {len(found['missing_keys'])} weights of the language model, e.g. {some}"
            )
        return network

    def load_text_tokenizer(self) -> TextTokenizer:
        """The byte-pair encoding, from emu3.tiktoken or as transformers' `AutoTokenizer` has it."""
        if any((self._folder / name).is_file() for name in (TIKTOKEN_FILE, "tokenizer.json")):
            return load_emu3_text_tokenizer(self._folder)
        if not (self._folder / "vocab.json").is_file():
            raise UsageError(f"{self._folder} holds neither {TIKTOKEN_FILE} nor a tokenizer.json")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        return TextTokenizer(tokenizer.backend_tokenizer.to_str().encode(), name=str(self._folder))

    def load_image_tokenizer(self, device: str) -> ImageTokenizer:
        """The one within the weights, else the one in `image_tokenizer/`."""
        if not self._is_original:
            return load_image_tokenizer(self._folder, device=device)
        folder = self._folder / "image_tokenizer"
        if not folder.is_dir():
            raise UsageError(
                f"{self._folder} comes without its image tokenizer; fetch it once: "
                f"hf download {VISION_REPOSITORY} --local-dir {folder}"
            )
        return load_image_tokenizer(folder, device=device)


def open_published(folder: Path, config: Mapping[str, Any]) -> PublishedEmu3 | None:
    """The folder if its configuration is Emu3's, else None."""
    is_hf = config.get("model_type") == CONDITIONAL and "vq_config" in config
    is_original = config.get("model_type") == ORIGINAL
    return PublishedEmu3(folder, config) if is_hf or is_original else None
