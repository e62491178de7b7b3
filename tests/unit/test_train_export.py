"""An export opens with transformers alone and computes what the trained model computes."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from mmfast.errors import CorruptDataError, UsageError, VocabularyMismatchError
from mmfast.models import DecoderConfig, build_decoder, initialise, load_exported
from mmfast.train.datasets import DatasetFolder
from mmfast.train.export import export_model
from mmfast.vocab import Vocabulary

VOCABULARY = Vocabulary.build(60, roles=["eos", "pad"], codes=[("image", 10)])


def trained(architecture, *, tied):
    config = DecoderConfig(
        architecture=architecture, hidden_size=32, num_layers=2, tie_embeddings=tied
    )
    model = build_decoder(config, VOCABULARY)
    model.to_empty(device="cpu")
    initialise(model, config, seed=5)
    return config, model


def dataset_folder(path, recipe=None):
    return DatasetFolder(path=path, vocabulary=VOCABULARY, recipe=recipe)


@pytest.mark.parametrize("architecture", ["llama", "opt"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_export_has_equal_logits_in_transformers(tmp_path, architecture, tied):
    config, model = trained(architecture, tied=tied)
    export_model(model, tmp_path / "model", config=config, dataset=dataset_folder(tmp_path))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert type(loaded).__name__ in ("LlamaForCausalLM", "OPTForCausalLM")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert ("lm_head.weight" in names) != tied, "a tied table belongs in the file once"
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["eos_token_id"] == VOCABULARY["eos"]
    assert written["architectures"] == [type(loaded).__name__]


def test_half_precision_is_written_and_declared(tmp_path):
    config, model = trained("llama", tied=False)
    folder = tmp_path / "model"
    dataset = dataset_folder(tmp_path)
    export_model(model, folder, config=config, dataset=dataset, dtype=torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    assert next(model.parameters()).dtype == torch.float32, "the trained model was changed"


def test_tokenizers_and_recipe_travel_with_the_model(tmp_path):
    config, model = trained("llama", tied=False)
    data = tmp_path / "data"
    (data / "fsq").mkdir(parents=True)
    (data / "fsq" / "config.json").write_text('{"kind": "fsq", "fingerprint": "x"}')
    (data / "tokenizer.json").write_text("{}")
    recipe = {"recipe": "folder", "image_tokenizer": {"path": "fsq", "fingerprint": "x"}}
    folder = tmp_path / "model"
    for _ in range(2):  # the second export replaces the first
        export_model(model, folder, config=config, dataset=dataset_folder(data, recipe))
    assert Vocabulary.load(folder) == VOCABULARY
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "image_tokenizer" / "config.json").is_file()
    written = json.loads((folder / "recipe.json").read_text())
    assert written["image_tokenizer"] == {"path": "image_tokenizer", "fingerprint": "x"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model"]


def test_a_retrained_image_tokenizer_is_not_exported(tmp_path):
    config, model = trained("llama", tied=False)
    data = tmp_path / "data"
    (data / "fsq").mkdir(parents=True)
    (data / "fsq" / "config.json").write_text('{"kind": "fsq", "fingerprint": "later"}')
    recipe = {"recipe": "folder", "image_tokenizer": {"path": "fsq", "fingerprint": "before"}}
    dataset = dataset_folder(data, recipe)
    with pytest.raises(VocabularyMismatchError, match=r"fingerprint later, .* with before"):
        export_model(model, tmp_path / "model", config=config, dataset=dataset)
    assert not (tmp_path / "model").exists()


def test_a_missing_image_tokenizer_is_said(tmp_path, capsys):
    config, model = trained("llama", tied=False)
    recipe = {"recipe": "folder", "image_tokenizer": {"path": "gone", "fingerprint": "x"}}
    export_model(model, tmp_path / "model", config=config, dataset=dataset_folder(tmp_path, recipe))
    assert "'gone'" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_training_can_start_from_an_export(tmp_path, architecture):
    config, model = trained(architecture, tied=True)
    export_model(model, tmp_path / "model", config=config, dataset=dataset_folder(tmp_path))
    fresh = build_decoder(config, VOCABULARY)
    fresh.to_empty(device="cpu")
    initialise(fresh, config, seed=6)
    load_exported(fresh, tmp_path / "model", VOCABULARY)
    ours, theirs = dict(fresh.named_parameters()), dict(model.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_export_of_other_ids_or_shape_is_refused(tmp_path):
    config, model = trained("llama", tied=False)
    folder = tmp_path / "model"
    export_model(model, folder, config=config, dataset=dataset_folder(tmp_path))
    other = Vocabulary.build(60, roles=["pad", "eos"], codes=[("image", 10)])
    with pytest.raises(VocabularyMismatchError, match="special token 'eos' is 60 against 61"):
        load_exported(model, folder, other)
    wider = build_decoder(DecoderConfig(hidden_size=64, num_layers=2), VOCABULARY)
    wider.to_empty(device="cpu")
    with pytest.raises(CorruptDataError, match="expected shape"):
        load_exported(wider, folder, VOCABULARY)
    with pytest.raises(UsageError, match=r"no config\.json"):
        load_exported(model, tmp_path, VOCABULARY)
    (folder / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(CorruptDataError, match="not a safetensors file"):
        load_exported(model, folder, VOCABULARY)
