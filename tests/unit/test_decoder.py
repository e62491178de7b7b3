"""Decoders take their ids from the vocabulary and their weights from (seed, parameter name)."""

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
