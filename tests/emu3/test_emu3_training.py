"""Training on Emu3's data: NeMo's tokenizer block, and a model whose tokenizer is a program."""

import json
from pathlib import Path

import pytest
import torch
from examples.emu3.tiny_checkpoints import write_example, write_tiktoken
from tests.emu3.tiny_models import save_hf_model, save_original_model

import mmfast
from mmfast.cli import main
from mmfast.errors import ConfigError, UsageError, VocabularyMismatchError
from mmfast.models.pretrained import pretrained_config
from mmfast.train import load_train_config
from mmfast.train.datasets import open_folder
from mmfast.train.describe import describe_run
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

# What makes a preset for GPUs small enough to run here.
ON_CPU = ["model.hidden_size=32", "model.intermediate_size=64", "model.num_layers=1", "model.num_heads=2",
          "model.num_kv_heads=1", "parallel.param_dtype=float32", "parallel.compile=false", "data.bin_tokens=512"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NeMo's examples in small: the data of both, and two steps on Cosmos codes of 64x64 pixels."""
    out = tmp_path_factory.mktemp("pokemon")
    write_example(out / "raw")
    tokenizer = out / "raw/Cosmos-0.1-Tokenizer-DV8x16x16"
    commands = [
        ["prepare", "pokemon", "--dataset", out / "raw/photos", "--image_encoder", tokenizer,
         "--multimodal_tokenizer_path", out / "raw/Emu3-Gen", "--image_size", 64, "--output_prefix", out / "data/train"],
        ["prepare", "coyo", "--input_image_dir", out / "raw/photos", "--input_captions_dir", out / "raw/captions",
         "--vision_tokenizer", out / "raw/Emu3-VisionTokenizer", "--text_tokenizer", out / "raw/Emu3-Gen",
         "--min_pixels", 4096, "--max_pixels", 8192, "--output_prefix", out / "coyo/train"],
        ["train", "pokemon", f"data.prefix={out / 'data/train'}", f"output={out / 'train'}", "train.steps=2",
         "train.global_batch_bins=1", f"tokenizer.type={out / 'raw/Emu3-Gen'}", *ON_CPU],
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


@pytest.mark.parametrize(
    ("preset", "longest"),
    [
        # 1024x1024 pixels at an aspect of 5, and what Emu3's context leaves of it beyond 720x720.
        pytest.param("coyo", 16_384 + 286 + 1_500, id="coyo"),
        # 512x512 pixels as 8x8 blocks, and a long caption.
        pytest.param("pokemon", 4_096 + 300, id="pokemon"),
    ],
)
def test_the_presets_of_both_tasks_hold_their_longest_documents(preset: str, longest: int) -> None:
    config = load_train_config(preset, [])
    assert longest <= config.data.bin_tokens <= config.model.context_length
    assert config.objective.kind == "next_token"
    assert config.tokenizer.type == ("BAAI/Emu3-Gen" if preset == "coyo" else "")


def test_the_presets_of_both_tasks_start_on_the_data_of_their_preparation(run: Path) -> None:
    losses = [
        json.loads(line)["loss"] for line in (run / "train/metrics.jsonl").read_text().splitlines()
    ]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    config = load_train_config("coyo", [f"data.prefix={run / 'coyo/train'}", *ON_CPU])
    report = describe_run(config)
    assert "type: BAAI/Emu3-Gen" in report
    assert "You are a helpful assistant. USER: " in report
    assert "Please describe the image. ASSISTANT: " in report


@pytest.mark.parametrize("layout", ["original", "hf"])
def test_training_goes_on_from_published_weights(
    run: Path, layout: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    published = tmp_path / "published"
    published.mkdir()
    save_hf_model(published) if layout == "hf" else save_original_model(published)
    capfd.readouterr()
    model = mmfast.load(published, device="cpu")
    assert "UNEXPECTED" not in capfd.readouterr().err
    with pytest.raises(
        UsageError, match="save_network" if layout == "hf" else "transformers cannot"
    ):
        pretrained_config(published, model.vocabulary, rows_multiple_of=1)
    model.save_network(tmp_path / "language")
    settings = [
        f"model.from={tmp_path / 'language'}", f"data.prefix={run / 'coyo/train'}", f"output={tmp_path / 'run'}",
        "train.steps=1", "train.global_batch_bins=1", "data.bin_tokens=512", "schedule.warmup_steps=0",
        "optimizer.learning_rate=1e-30", "model.context_length=512", "parallel.param_dtype=float32", "parallel.compile=false",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ending:
        main(["train", "coyo", *settings])
    assert ending.value.code in (0, None)
    trained = mmfast.load(tmp_path / "run/model", device="cpu").network
    ids = torch.arange(200)[None]
    with torch.inference_mode():
        before, after = (each(input_ids=ids).logits for each in (model.network, trained))
    # A step of no size changes nothing, and ids keep the rows that they had; new ones are beyond them.
    assert after.shape[-1] >= max(before.shape[-1], Vocabulary.load(run / "coyo").size)
    assert torch.allclose(after[..., : before.shape[-1]], before, atol=1e-5)
