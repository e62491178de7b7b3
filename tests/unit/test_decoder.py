"""Decoders take their ids from the vocabulary and their weights from (seed, parameter name)."""

import dataclasses

import pytest
import torch

from mmfast.config import load_config, preset_names
from mmfast.errors import ConfigError, UsageError
from mmfast.models import DecoderConfig, build_decoder, hf_config, initialise, parameter_count
from mmfast.models.decoder import PRESET_PACKAGE
from mmfast.vocab import Vocabulary

VOCABULARY = Vocabulary.build(90, roles=["eos", "pad"], codes=[("image", 30)])


def initialised(config, *, seed):
    model = build_decoder(config, VOCABULARY)
    model.to_empty(device="cpu")
    initialise(model, config, seed=seed)
    return model


def test_ids_come_from_the_vocabulary():
    config = hf_config(DecoderConfig(), VOCABULARY)
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (128, 90, 91)
    assert config.bos_token_id == 90


def test_a_vocabulary_without_eos_is_refused():
    with pytest.raises(UsageError, match="no special token `eos`"):
        hf_config(DecoderConfig(), Vocabulary.build(90, roles=["pad"]))


@pytest.mark.parametrize("preset", preset_names(PRESET_PACKAGE))
def test_every_preset_builds(preset):
    config = load_config(DecoderConfig, preset=preset, preset_package=PRESET_PACKAGE)
    model = build_decoder(config, VOCABULARY)
    assert next(model.parameters()).is_meta
    assert parameter_count(model) > 100_000


def test_cm3leon_has_neither_biases_nor_norm_weights():
    config = load_config(DecoderConfig, preset="cm3leon_350m", preset_package=PRESET_PACKAGE)
    model = build_decoder(config, VOCABULARY)
    assert all(parameter.ndim == 2 for parameter in model.parameters())


WIDE = Vocabulary.build(65_000, roles=["eos", "pad"], multiple_of=65_536)


@pytest.mark.parametrize(
    ("preset", "millions", "blocks_millions"),
    [
        ("cm3leon_350m", 373.3, 302.0),
        ("cm3leon_760m", 786.4, 679.5),
        ("cm3leon_7b", 6_727.7, 6_442.5),
    ],
)
def test_cm3leon_has_the_published_number_of_parameters(preset, millions, blocks_millions):
    config = load_config(DecoderConfig, preset=preset, preset_package=PRESET_PACKAGE)
    model = build_decoder(config, WIDE)
    tables = (WIDE.size + config.context_length + 2) * config.hidden_size
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.05)
    assert (parameter_count(model) - tables) / 1e6 == pytest.approx(blocks_millions, abs=0.05)


def test_emu3_has_the_published_shape():
    config = load_config(DecoderConfig, preset="emu3_8b", preset_package=PRESET_PACKAGE)
    vocabulary = Vocabulary.build(184_000, roles=["eos"], multiple_of=184_622)
    model = build_decoder(config, vocabulary)
    # By hand: 32 x (2 x 4096^2 + 2 x 4096 x 1024 + 3 x 4096 x 14336 + 2 x 4096) + 2 tables + a norm.
    blocks = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)
    assert parameter_count(model) == blocks + 2 * 184_622 * 4096 + 4096
    assert (model.config.rms_norm_eps, model.config.head_dim) == (1e-5, 128)


def test_cm3leon_starts_as_published():
    config = load_config(DecoderConfig, preset="cm3leon_760m", preset_package=PRESET_PACKAGE)
    config = dataclasses.replace(config, num_layers=2, context_length=64)
    model = initialised(config, seed=3)
    for name, parameter in model.named_parameters():
        if name.endswith(("out_proj.weight", "fc2.weight")):
            assert not parameter.any(), name
        elif name.endswith("embed_positions.weight"):
            assert parameter.std().item() == pytest.approx(0.0002 * 0.9866, rel=0.02)
        else:
            # Cutting a normal at three deviations leaves 0.9866 of its deviation.
            assert parameter.std().item() == pytest.approx(0.006 * 0.9866, rel=0.02), name
            assert parameter.abs().max() <= 0.018


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_weights_follow_the_seed_and_the_parameter_name(architecture):
    config = DecoderConfig(architecture=architecture, num_layers=2)
    first, again, other = (initialised(config, seed=seed) for seed in (1, 1, 2))
    weights, same = dict(first.named_parameters()), dict(again.named_parameters())
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    name = next(name for name in weights if "layers.0" in name and weights[name].ndim == 2)
    assert not torch.equal(weights[name], dict(other.named_parameters())[name])
    assert not torch.equal(weights[name], weights[name.replace("layers.0", "layers.1")])


def test_rotary_tables_survive_the_meta_device():
    config = DecoderConfig()
    model = initialised(config, seed=0)
    expected = 1.0 / config.rope_theta ** (torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(model.base_model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("num_heads=3", "num_heads 3 does not divide"),
        ("num_kv_heads=3", "num_kv_heads 3 does not divide"),
        ("num_layers=0", "must be at least 1"),
        ("init_std=0", "must be positive"),
        ("architecture=gpt", "architecture"),
        ("num_layer=2", "did you mean 'num_layers'"),
    ],
)
def test_an_impossible_shape_is_a_config_error(override, text):
    with pytest.raises(ConfigError, match=text):
        load_config(DecoderConfig, overrides=[override])
