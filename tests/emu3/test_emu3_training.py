"""Training on Emu3's data: NeMo's tokenizer block, and a model whose tokenizer is a program."""

import json
from pathlib import Path

import pytest
from examples.emu3.tiny_checkpoints import write_example, write_tiktoken

import mmfast
from mmfast.cli import main
from mmfast.errors import ConfigError, UsageError, VocabularyMismatchError
from mmfast.train import load_train_config
from mmfast.train.datasets import open_folder
from mmfast.vocab import Vocabulary

pytestmark = pytest.mark.xdist_group("emu3-training")
BLOCK = """
tokenizer:
  library: huggingface
  type: {type}
  model: null
  delimiter: null
  vocab_file: null
  merge_file: null
  sentencepiece_legacy: false
  trust_remote_code: true
model: {{preset: tiny}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NeMo's second example in small: Cosmos codes of 64x64 pixels, two steps of training."""
    out = tmp_path_factory.mktemp("pokemon")
    write_example(out / "raw")
    tokenizer = out / "raw/Cosmos-0.1-Tokenizer-DV8x16x16"
    commands = [
        ["prepare", "pokemon", "--dataset", out / "raw/photos", "--image_encoder", tokenizer,
         "--multimodal_tokenizer_path", out / "raw/Emu3-Gen", "--image_size", 64, "--output_prefix", out / "data/train"],
        ["train", "tiny", f"data.prefix={out / 'data/train'}", f"output={out / 'train'}", "train.steps=2",
         "objective.kind=next_token", "train.global_batch_bins=1", f"tokenizer.type={out / 'raw/Emu3-Gen'}",
         "model.hidden_size=32", "model.intermediate_size=64", "model.num_layers=1"],
    ]  # fmt: skip
    for command in commands:
        with pytest.raises(SystemExit) as ending:
            main([str(word) for word in command])
        assert ending.value.code in (0, None), command
    return out


def test_a_model_never_brings_a_program_along(run: Path) -> None:
    folder = run / "train/model"
    assert not list(folder.rglob("*.jit"))
    with pytest.raises(UsageError, match="--image-tokenizer"):
        mmfast.load(folder, device="cpu").draw(["a cat"])
    named = run / "raw/Cosmos-0.1-Tokenizer-DV8x16x16"
    (picture,) = mmfast.load(folder, device="cpu", image_tokenizer=named).draw(["a cat"], top_k=4)
    assert picture.size == (64, 64)
    other = mmfast.load(
        folder, device="cpu", image_tokenizer=run / "raw/Emu3-VisionTokenizer"
    )  # fmt: skip
    with pytest.raises(VocabularyMismatchError, match="not the tokenizer"):
        other.draw(["a cat"])


def test_the_grid_and_the_codes_are_cosmos_own(run: Path) -> None:
    model = mmfast.load(
        run / "train/model", device="cpu", image_tokenizer=run / "raw/Cosmos-0.1-Tokenizer-DV8x16x16"
    )  # fmt: skip
    request = model.drawing_request("a cat")
    v = Vocabulary.load(run / "data")
    assert (request.grammar.height, request.grammar.width) == (4, 4)
    assert request.grammar.max_ids == 16 + 2
    # Names beyond the 64,000 codes are never drawn.
    choice = request.grammar.next(0, None)
    assert choice.allowed.ranges == ((v.range("image").base, v.range("image").base + 64_000),)
    assert v.size == v.range("image").base + 65_000
    assert len(request.streams) == 1
    with pytest.raises(UsageError, match="trained to draw, not to answer"):
        model.answering_request(model.codes_from_images([model.draw(["a cat"])[0]])[0])


@pytest.mark.parametrize("name", ["Emu3-Gen", "BAAI/Emu3-Gen"])
def test_the_block_of_nemo_s_yaml_is_understood(run: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "nemo.yaml"
    folder = run / "raw" / name if "/" not in name else name
    path.write_text(BLOCK.format(type=folder))
    config = load_train_config(str(path), [f"data.prefix={run / 'data/train'}"])
    assert open_folder(config.data, config.tokenizer).path == run / "data"


def test_another_tokenizer_than_the_data_s_is_refused(run: Path, tmp_path: Path) -> None:
    file = write_tiktoken(tmp_path / "other")
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]))
    prefix = f"data.prefix={run / 'data/train'}"
    config = load_train_config("tiny", [prefix, f"tokenizer.type={tmp_path / 'other'}"])
    with pytest.raises(VocabularyMismatchError, match=r"text ids 266.*prepared with 267"):
        open_folder(config.data, config.tokenizer)
    file.unlink()
    (tmp_path / "other/tokenizer.json").write_bytes((run / "data/tokenizer.json").read_bytes())
    open_folder(config.data, config.tokenizer)
    document = json.loads((run / "data/tokenizer.json").read_text())
    document["normalizer"] = None
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(VocabularyMismatchError, match="fingerprint"):
        open_folder(config.data, config.tokenizer)
    with pytest.raises(ConfigError, match="library"):
        load_train_config("tiny", [prefix, "tokenizer.library=megatron"])
