"""Fixtures that several rooms' tests share."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as training exports it, with random weights: 8x8 grey images, 2x2 codes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mmfast.recipes.folder.documents import build_vocabulary
    from mmfast.tokenizers import train_text_tokenizer
    from mmfast.tokenizers.fsq import FsqConfig, FsqImageTokenizer

    folder = tmp_path_factory.mktemp("export") / "model"
    folder.mkdir()
    text = train_text_tokenizer(["a handwritten seven", "the digit two"], vocab_size=270)
    text.save(folder / "tokenizer.json")
    shape = FsqConfig(
        channels=1, image_height=8, image_width=8, fsq_levels=(4, 3), widths=(8, 8), num_blocks=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = FsqImageTokenizer(shape)
        tokenizer.save(folder / "image_tokenizer")
        vocabulary = build_vocabulary(
            text.size, num_codes=12, num_sentinels=2, text_fingerprint=text.fingerprint
        )
        vocabulary.save(folder)
        network = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary.size,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=48,
                initializer_range=0.3,
                bos_token_id=vocabulary["eos"],
                eos_token_id=vocabulary["eos"],
                pad_token_id=vocabulary["pad"],
            )
        )
    network.save_pretrained(folder)
    side = 8 // tokenizer.downsample
    recipe = {
        "format_version": 1,
        "recipe": "folder",
        "layout": "documents",
        "grid": [side, side],
        "image_size": 8,
        "image_tokenizer": {"path": "image_tokenizer", "fingerprint": tokenizer.fingerprint},
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder
