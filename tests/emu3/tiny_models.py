"""Tiny random stand-ins for Emu3's and Cosmos' published files, in their real layouts."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from examples.emu3.tiny_checkpoints import bundled_photos, save_cosmos, tiny_vqvae, write_tiktoken
from safetensors.torch import save_file

__all__ = ["bundled_photos", "save_cosmos", "tiny_vqvae", "write_tiktoken"]

# Names of transformers' tensors, turned back into those of the original repository.
_TO_ORIGINAL = (
    (r"\.down_block\.down\.", ".down."),
    (r"\.up_block\.up\.", ".up."),
    (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."),
    (r"\.middle_block\.", ".mid."),
    (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.out_proj\.", ".proj_out."),
)


def save_original_layout(network, folder: Path) -> None:
    """As BAAI/Emu3-VisionTokenizer: other names, attention as 1x1 convolutions."""
    folder.mkdir(parents=True)
    config = network.config
    document = {
        "architectures": ["Emu3VisionVQModel"],
        "auto_map": {"AutoModel": "modeling_emu3visionvq.Emu3VisionVQModel"},
        "model_type": "Emu3VisionVQ",
        "codebook_size": config.codebook_size,
        "embed_dim": 4, "z_channels": 4, "double_z": False, "in_channels": 3, "out_channels": 3,
        "temporal_downsample_factor": 4, "dropout": 0.0,
        "ch": config.base_channels, "ch_mult": list(config.channel_multiplier),
        "num_res_blocks": config.num_res_blocks, "attn_resolutions": list(config.attn_resolutions),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(document))
    settings = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "min_pixels": 512**2,
        "max_pixels": 1024**2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    tensors = {}
    for name, tensor in network.state_dict().items():
        original = name
        for pattern, replacement in _TO_ORIGINAL:
            original = re.sub(pattern, replacement, original)
        if re.search(r"attn[._][\d.]+(q|k|v|proj_out)\.weight", original):
            tensor = tensor[:, :, None, None]
        tensors[original] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors")


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def save_hf_model(folder: Path, *, codebook_size: int = 512) -> Path:
    """A tiny random `Emu3ForConditionalGeneration` as the -hf repositories lay it out."""
    from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3TextConfig

    from mmfast.recipes.emu3.vocabulary import SPLIT_PATTERN, special_token_names
    from mmfast.tokenizers.tiktoken import tokenizer_json_from_tiktoken

    file = write_tiktoken(folder / "tiktoken")
    names = [
        "<image>" if name == "<|extra_0|>" else name for name in special_token_names(codebook_size)
    ]
    content = tokenizer_json_from_tiktoken(
        file, pattern=SPLIT_PATTERN, special_tokens=names, normalize=True
    )
    file.unlink()
    file.parent.rmdir()
    (folder / "tokenizer.json").write_bytes(content)
    roles = {
        "bos_token": "<|extra_203|>", "eos_token": "<|extra_204|>", "pad_token": "<|endoftext|>",
        "image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>",
    }  # fmt: skip
    extra = {name: token for name, token in roles.items() if name[:3] not in ("bos", "eos", "pad")}
    tokenizer_config = {
        **{name: token for name, token in roles.items() if name not in extra},
        "extra_special_tokens": extra,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    ids = json.loads(content)
    vocabulary_map = {
        **ids["model"]["vocab"],
        **{t["content"]: t["id"] for t in ids["added_tokens"]},
    }
    network = tiny_vqvae(codebook_size=codebook_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Emu3ForConditionalGeneration(
            Emu3Config(
                vq_config=network.config.to_dict(),
                text_config=Emu3TextConfig(
                    vocab_size=len(vocabulary_map), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
                    pad_token_id=vocabulary_map["<|endoftext|>"], bos_token_id=vocabulary_map["<|extra_203|>"],
                    eos_token_id=vocabulary_map["<|extra_204|>"], initializer_range=0.1,
                ).to_dict(),
                vocabulary_map=vocabulary_map,
            )
        ).eval()  # fmt: skip
    model.model.vqmodel.load_state_dict(network.state_dict())
    model.save_pretrained(folder)
    settings = {
        "image_processor_type": "Emu3ImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "min_pixels": 2048, "max_pixels": 8192, "spatial_factor": 8,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_original_model(folder: Path) -> Path:
    """The same model as BAAI/Emu3-Gen and BAAI/Emu3-VisionTokenizer lay it out; real sizes of the vocabulary."""
    from transformers import Emu3ForCausalLM, Emu3TextConfig

    write_tiktoken(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        text = Emu3TextConfig(
            vocab_size=184_622, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=9216,
        )  # fmt: skip
        Emu3ForCausalLM(text).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"model_type": "Emu3", "rope_theta": rope["rope_theta"], "rope_scaling": None, "image_area": 262_144,
               "auto_map": {"AutoModelForCausalLM": "modeling_emu3.Emu3ForCausalLM"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder
