"""Emu3's image tokenizer as it is published, in either layout, as transformers' `Emu3VQVAE`.

    original  config.json with model_type `Emu3VisionVQ` (BAAI/Emu3-VisionTokenizer)
    -hf       config.json with model_type `emu3`, the tokenizer in `vq_config` (BAAI/Emu3-Chat-hf, -Gen-hf);
              of the weights only those of the tokenizer are read
    alone     config.json with model_type `emu3_vqgan`, as `Emu3VQVAE.save_pretrained` writes it

Weights are safetensors, whole or in shards; no remote code runs. Names of the original follow
baaivision/Emu3 `emu3/tokenizer/modeling_emu3visionvq.py`: there attention is made of 1x1 convolutions
with their norm inside, here of linear layers beside it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mmfast.errors import CorruptDataError, UsageError
from mmfast.files import read_json_object

ORIGINAL, CONDITIONAL, ALONE = "Emu3VisionVQ", "emu3", "emu3_vqgan"
MODEL_TYPES = (ORIGINAL, CONDITIONAL, ALONE)
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"

# Field names of the original configuration, and what transformers calls them.
_FIELD_OF_ORIGINAL = {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
    "codebook_size": "codebook_size",
    "embed_dim": "embed_dim",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "temporal_downsample_factor": "temporal_downsample_factor",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
}
_RENAMINGS = (
    (r"^encoder\.down\.", "encoder.down_block.down."),
    (r"^decoder\.up\.", "decoder.up_block.up."),
    (r"^(encoder|decoder)\.mid\.attn_1\.norm\.", r"\1.middle_block.attn_norm."),
    (r"^(encoder|decoder)\.mid\.", r"\1.middle_block."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"(\.attn\.\d+|\.attn_1)\.([qkv])\.", r"\1.\2_proj."),
    (r"(\.attn\.\d+|\.attn_1)\.proj_out\.", r"\1.out_proj."),
)


def load_emu3_vqvae(folder: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """The `Emu3VQVAE` in `folder`, of whichever layout, in eval mode on the CPU.

    Raises:
        UsageError: the folder holds another kind of model.
        CorruptDataError: weights are missing, damaged, or not those of the configuration.
    """
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    config_path = folder / "config.json"
    document = read_json_object(config_path)
    model_type = document.get("model_type")
    if model_type not in MODEL_TYPES:
        raise UsageError(
            f"{config_path}: model_type {model_type!r} is not an Emu3 image tokenizer; "
            f"known: {', '.join(MODEL_TYPES)}"
        )
    try:
        if model_type == ORIGINAL:
            settings = _settings_of_original(document)
            tensors = _read_tensors(folder, lambda name: name)
            tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
        elif model_type == CONDITIONAL:
            settings = document["vq_config"]
            tensors = _read_tensors(folder, _name_within_vqmodel)
        else:
            settings = document
            tensors = _read_tensors(folder, lambda name: name)
        network = Emu3VQVAE(Emu3VQVAEConfig(**settings))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(
            f"{config_path} does not describe the tokenizer: {error!r}"
        ) from error
    expected = network.state_dict()
    tensors = {
        name: tensor.reshape(expected[name].shape)
        if name in expected and tensor.numel() == expected[name].numel()
        else tensor
        for name, tensor in tensors.items()
    }
    try:
        network.load_state_dict(tensors, assign=False)
    except RuntimeError as error:
        raise CorruptDataError(
            f"{folder} does not hold the weights of its config.json: {error}"
        ) from error
    return network.to(dtype).eval()


def _settings_of_original(document: dict[str, Any]) -> dict[str, Any]:
    settings = {
        ours: document[theirs] for theirs, ours in _FIELD_OF_ORIGINAL.items() if theirs in document
    }
    # The original's attention is as wide as the level it stands in, always the last one.
    width = settings.get("base_channels", 256)
    multiplier = settings.get("channel_multiplier", (1, 2, 2, 4))[-1]
    return settings | {"hidden_size": width * multiplier}


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMINGS:
        name = re.sub(pattern, replacement, name)
    return name


def _name_within_vqmodel(name: str) -> str | None:
    """Name without the prefix that the whole model gives its tokenizer; None for all else."""
    match = re.match(r"^(?:model\.)?vqmodel\.(.*)$", name)
    return match.group(1) if match else None


def _read_tensors(folder: Path, rename: Callable[[str], str | None]) -> dict[str, torch.Tensor]:
    """Tensors whose name `rename` keeps, from one file or from shards that an index lists."""
    index_path = folder / INDEX_FILE
    if index_path.is_file():
        try:
            places = dict(read_json_object(index_path)["weight_map"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptDataError(f"{index_path} is not an index of shards: {error!r}") from error
        wanted = {name: file for name, file in places.items() if rename(name) is not None}
        files = sorted({str(file) for file in wanted.values()})
        if any(Path(file).name != file for file in files):
            raise CorruptDataError(f"{index_path} names files outside its folder")
    else:
        files = [WEIGHTS_FILE]
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 -- not a mapping
                    kept = rename(name)
                    if kept is not None:
                        tensors[kept] = shard.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CorruptDataError(f"cannot read the weights {folder / file}: {error}") from error
    return tensors


def preprocessor_settings(folder: Path) -> dict[str, Any]:
    """What `preprocessor_config.json` says, or nothing where it is missing.

    Raises:
        CorruptDataError: it asks for another normalisation than the tokenizer's 0.5 and 0.5; transformers'
            class default, CLIP's, is wrong for every published Emu3.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    settings = read_json_object(path)
    for name in ("image_mean", "image_std"):
        values = settings.get(name, [0.5] * 3)
        if values not in (0.5, [0.5, 0.5, 0.5]):
            raise CorruptDataError(
                f"{path}: {name} is {json.dumps(values)}, but Emu3's tokenizer was trained with 0.5; "
                "copy the file of the published checkpoint"
            )
    return settings
