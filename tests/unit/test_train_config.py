"""Training configurations: presets, overrides, and errors that name the key."""

import pytest

from mmfast.config import config_yaml, load_config, preset_names
from mmfast.errors import ConfigError
from mmfast.train.config import MODEL_PRESETS, TRAIN_PRESETS, TrainConfig, load_train_config


@pytest.mark.parametrize("preset", preset_names(TRAIN_PRESETS))
def test_every_preset_loads(preset):
    assert load_train_config(preset, []).train.steps > 0


def test_a_model_preset_lies_below_the_file_and_the_arguments(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model:\n  preset: llama_350m\n  num_layers: 3\n")
    config = load_train_config(str(file), ["model.hidden_size=512"])
    assert (config.model.num_layers, config.model.hidden_size) == (3, 512)
    assert config.model.context_length == 4096, "not taken from the model preset"


def test_an_argument_can_choose_the_model_preset():
    config = load_train_config("tiny", ["model.preset=cm3leon_350m"])
    assert (config.model.architecture, config.model.num_layers) == ("opt", 24)


def test_the_resolved_configuration_reads_back_as_itself(tmp_path):
    config = load_train_config("tiny", ["data.sources=[{prefix: a, weight: 2}, {prefix: b}]"])
    file = tmp_path / "config.yaml"
    file.write_text(config_yaml(config))
    again = load_config(TrainConfig, file=file, section_presets={"model": MODEL_PRESETS})
    assert again == config


def test_an_unknown_argument_names_the_nearest_key():
    with pytest.raises(ConfigError, match=r"argument 'train.step=3': .*did you mean 'train.steps'"):
        load_train_config("tiny", ["train.step=3"])


def test_an_unknown_key_of_a_file_names_file_and_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  steps: 3\n  log_evry: 1\n")
    with pytest.raises(ConfigError, match=r"run.yaml:3: .*did you mean 'train.log_every'"):
        load_train_config(str(file), [])


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        load_train_config("tyni", [])
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        load_train_config("tiny", ["model.preset=tyni"])


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=0",
        "train.steps=many",
        "train.checkpoint_every=-1",
        "optimizer.learning_rate=0",
        "optimizer.beta2=1.0",
        "schedule.kind=exponential",
        "schedule.final_ratio=2",
        "parallel.wrap=layer",
        "data.bin_tokens=1",
        "data.sources=[{prefix: a, weight: 0}]",
        "output=",
        "steps",
    ],
)
def test_an_impossible_value_is_a_config_error_that_names_its_key(override):
    key = override.split("=")[0].split(".")[-1]
    with pytest.raises(ConfigError, match=key.removesuffix("s")):
        load_train_config("tiny", [override])


@pytest.mark.parametrize(
    ("text", "line", "explanation"),
    [
        ("- a\n- b\n", 1, "holds `key: value`, found a list"),
        ("# nothing\n5\n", 2, "holds `key: value`, found '5'"),
        ("seed: 1\ntrain: 5\n", 2, "key 'train' is a section with keys of its own, found 5"),
        ("seed: 1\ntrain:\n", 2, "key 'train' is a section with keys of its own, found None"),
        ("model:\n  - 1\n", 1, "key 'model' is a section with keys of its own"),
        ("data:\n  sources:\n    0: {prefix: a}\n", 2, "key 'data.sources' is a list"),
    ],
)
def test_a_file_of_another_shape_names_its_line(tmp_path, text, line, explanation):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_train_config(str(file), [])
    assert f"run.yaml:{line}: " in str(raised.value)
    assert explanation in str(raised.value)


def test_a_file_with_control_characters_is_a_config_error(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"seed: \x00")
    with pytest.raises(ConfigError, match=r"run\.yaml: not valid YAML: unacceptable character"):
        load_train_config(str(tmp_path / "run.yaml"), [])


@pytest.mark.parametrize(
    ("argument", "explanation"),
    [
        ("data.sources.0.prefix=x", "key 'data.sources' is a list and is given as a whole"),
        ("data.sources[0].prefix=x", "key 'data.sources' is a list and is given as a whole"),
        ("train=5", "key 'train' is a section with keys of its own, found 5"),
        ("model=null", "key 'model' is a section with keys of its own, found None"),
        ("[=1", "is not of the form key.path=value"),
        ("train.steps=[", "the value is not valid YAML"),
    ],
)
def test_an_argument_of_another_shape_says_so(argument, explanation):
    with pytest.raises(ConfigError) as raised:
        load_train_config("tiny", [argument])
    assert str(raised.value).startswith(f"argument {argument!r}")
    assert explanation in str(raised.value)


def test_the_small_presets_take_a_captioned_picture_of_256_ids():
    config = load_train_config("tiny", [])
    longest = min(config.data.bin_tokens, config.model.context_length)
    assert longest >= 3 + 256 + 200, "eos caption break image eos, with a caption of 200 ids"
    assert config.train.checkpoint_every == 500, "a killed run would start again"


def test_one_dataset_and_a_blend_exclude_each_other():
    with pytest.raises(ConfigError, match="not both"):
        load_train_config("tiny", ["data.prefix=a", "data.sources=[{prefix: b}]"])
