"""Fine-tuning: starts from any model folder, chosen parameters and rows, adapters that are merged."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from mmfast.errors import ConfigError, UsageError
from mmfast.models import DecoderConfig, add_adapters, build_decoder, initialise, merged
from mmfast.models.pretrained import grown_table, load_pretrained
from mmfast.train import load_train_config, train
from mmfast.vocab import Vocabulary

pytestmark = pytest.mark.distributed
OLD_ROWS = 20  # the text ids of the dataset's vocabulary
TEXT_SHAPE = {
    "vocab_size": OLD_ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """A tiny language model that knows the dataset's 20 text ids and nothing else."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text") / "model"
    LlamaForCausalLM(LlamaConfig(**TEXT_SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture
def run(tiny_model, dataset, tmp_path):
    """A function that trains four steps and returns the exported weights."""

    def trained(*overrides):
        arguments = [*tiny_model, f"data.prefix={dataset}", f"output={tmp_path / 'run'}"]
        train(load_train_config("tiny", [*arguments, "train.steps=4", *overrides]))
        return load_file(tmp_path / "run" / "model" / "model.safetensors")

    return trained


def test_a_text_model_learns_images_with_its_old_rows_untouched(run, text_model, tmp_path):
    before = load_file(text_model / "model.safetensors")
    after = run(
        f"model.from={text_model}",
        "train.trainable=['*embed_tokens*', 'lm_head*']",
        "train.trainable_rows=[new]",
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert loaded.config.vocab_size == 64  # 42 ids, rounded up
    for name, weight in before.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(after[name][:OLD_ROWS], weight), name
            assert after[name].shape[0] == 64
        else:
            assert torch.equal(after[name], weight), name
    fresh = build_decoder(
        DecoderConfig(architecture="pretrained", init_from=str(text_model)),
        Vocabulary.load(tmp_path / "run" / "model"),
    )
    fresh.to_empty(device="cpu")
    load_pretrained(fresh, text_model, embedding_init="mean_covariance", seed=0)
    started = fresh.get_output_embeddings().weight
    assert not torch.equal(after["lm_head.weight"][OLD_ROWS:], started[OLD_ROWS:])


def test_two_processes_each_keep_to_their_part_of_the_rows(launch, dataset, text_model, tmp_path):
    before = load_file(text_model / "model.safetensors")
    image = Vocabulary.load(dataset.parent).range("image")
    overrides = [
        f"output={tmp_path / 'run'}",
        "train.steps=3",
        f"model.init_from={text_model}",
        "model.architecture=pretrained",
        "model.embedding_init=mean",
        "train.trainable=['*embed_tokens*', 'lm_head*']",
        "train.trainable_rows=[image]",
    ]
    codes, logged = launch(world_size=2, overrides=overrides)
    assert codes == [0, 0], logged
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, weight in before.items():
        assert torch.equal(after[name][: len(weight)], weight), name
    head = after["lm_head.weight"]
    mean = before["lm_head.weight"].mean(0)
    changed = (head[OLD_ROWS:] != mean).any(1).nonzero().flatten() + OLD_ROWS
    assert changed.tolist() == list(range(image.base, image.end))


def test_the_image_rows_of_the_head_are_trained_alone(run, dataset, tmp_path):
    untrained = run("train.steps=1", "optimizer.learning_rate=1e-30")
    shutil.move(tmp_path / "run", tmp_path / "untrained")
    image = Vocabulary.load(dataset.parent).range("image")
    trained = run("train.trainable=['*lm_head*']", "train.trainable_rows=[image]")
    changed = (trained["lm_head.weight"] != untrained["lm_head.weight"]).any(1)
    assert changed.nonzero().flatten().tolist() == list(range(image.base, image.end))
    others = [name for name in untrained if name != "lm_head.weight"]
    assert all(torch.equal(trained[name], untrained[name]) for name in others)


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_adapters_are_trained_and_merged(run, tmp_path, architecture):
    base = run(
        "train.steps=1", "optimizer.learning_rate=1e-30", f"model.architecture={architecture}"
    )
    shutil.move(tmp_path / "run", tmp_path / "base")
    tuned = run(
        "lora.rank=2",
        f"model.architecture={architecture}",
        f"model.init_from={tmp_path / 'base' / 'model'}",
        "train.checkpoint_every=2",
        "optimizer.learning_rate=1e-2",
    )
    assert list(tuned) == list(base), "an export has no adapters"
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    attention = {name for name in base if "attn" in name and "norm" not in name}
    assert changed == attention
    # Going on from a checkpoint finds the adapters again.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-4")
    again = run(
        "lora.rank=2",
        f"model.architecture={architecture}",
        f"model.init_from={tmp_path / 'base' / 'model'}",
        "train.checkpoint_every=2",
        "optimizer.learning_rate=1e-2",
    )
    assert all(torch.equal(again[name], tuned[name]) for name in tuned)


def test_merged_weights_compute_what_adapters_compute():
    vocabulary = Vocabulary.build(60, roles=["eos"])
    config = DecoderConfig(hidden_size=32, intermediate_size=64, num_layers=2)
    adapted, plain = (build_decoder(config, vocabulary) for _ in range(2))
    add_adapters(adapted, rank=3, alpha=6.0, targets=["*_proj"])
    adapted.to_empty(device="cpu")
    initialise(adapted, config, seed=1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    plain.to_empty(device="cpu")
    initialise(plain, config, seed=1)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = plain(ids, use_cache=False).logits
        plain.load_state_dict(merged(adapted.state_dict(), scale=2.0))
        after, expected = (m(ids, use_cache=False).logits for m in (plain, adapted))
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    assert (before - expected).abs().max() > 1e-2


@pytest.mark.parametrize("how", ["mean", "mean_covariance", "normal"])
def test_a_grown_table_keeps_its_rows_and_draws_the_new_ones(how):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator)
    old = 3.0 + torch.randn(4_000, 6, generator=generator) @ mix
    grown = grown_table(old, 24_000, how=how, std=0.5, generator=generator)
    new = grown[4_000:]
    assert torch.equal(grown[:4_000], old)
    if how == "normal":
        torch.testing.assert_close(new.std(0), torch.full((6,), 0.5), rtol=0.05, atol=0)
        assert new.mean(0).abs().max() < 0.05
        return
    torch.testing.assert_close(new.mean(0), old.mean(0), rtol=0, atol=0.1)
    if how == "mean_covariance":
        spread = torch.cov(old.T)
        torch.testing.assert_close(torch.cov(new.T), spread, rtol=0.1, atol=0.05 * spread.max())
    else:
        assert new.std(0).max() < 1e-4


def test_a_model_with_a_sliding_window_is_trained_within_it(run, tmp_path):
    torch.manual_seed(0)
    shape = TEXT_SHAPE | {"sliding_window": 5, "initializer_range": 0.2}
    MistralForCausalLM(MistralConfig(**shape)).save_pretrained(tmp_path / "mistral")
    MistralForCausalLM(MistralConfig(**shape | {"sliding_window": None})).save_pretrained(
        tmp_path / "unlimited"
    )
    shutil.copy(tmp_path / "mistral/model.safetensors", tmp_path / "unlimited")
    losses = []
    for name in ("mistral", "unlimited"):
        run(f"model.from={tmp_path / name}")
        lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if '"loss"' in line])
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
        assert exported.config.sliding_window == (5 if name == "mistral" else None)
        shutil.rmtree(tmp_path / "run")
    assert len(losses[0]) == len(losses[1]) > 0
    assert abs(losses[0][0] - losses[1][0]) > 1e-3


def test_what_cannot_be_tuned_is_said(run, tmp_path):
    for overrides, kind, text in [
        (["train.trainable=['*nothing*']"], ConfigError, "no parameter matches '\\*nothing\\*'"),
        (["train.trainable_rows=[new]"], ConfigError, "starts from no model"),
        (["train.trainable_rows=[picture]"], ConfigError, "names ids 'picture'"),
        (["lora.rank=2", "lora.targets=[gate]"], ConfigError, "match no layer; the model has"),
        (["model.from=/nowhere"], UsageError, "/nowhere is not an exported model"),
        (["model.architecture=pretrained"], ConfigError, "needs model.init_from"),
    ]:
        with pytest.raises(kind, match=text):
            run(*overrides)
    Gemma2Config(max_position_embeddings=64).save_pretrained(tmp_path / "gemma2")
    with pytest.raises(UsageError, match="soft-capped attention"):
        run(f"model.from={tmp_path / 'gemma2'}")
