"""A single-process run in this process: validation, dry run, and inputs that must be refused."""

import dataclasses
import json
import os
import shutil

import pytest

from mmfast.cli import run_verb
from mmfast.errors import (
    ConfigError,
    CorruptDataError,
    StateMismatchError,
    UsageError,
    VocabularyMismatchError,
)
from mmfast.train import checkpoint, load_train_config, train, trainer
from mmfast.train.checkpoint import list_checkpoints
from mmfast.vocab import Vocabulary

pytestmark = pytest.mark.distributed


@pytest.fixture
def arguments(tiny_model, dataset, tmp_path):
    return [*tiny_model, f"data.prefix={dataset}", f"output={tmp_path / 'run'}", "train.steps=2"]


@pytest.fixture
def finished(arguments, tmp_path):
    train(load_train_config("tiny", arguments))
    return tmp_path / "run"


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_folder_holds_what_the_reader_needs(finished):
    found = files_below(finished)
    for name in (
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoints/step-2/state.json",
        "checkpoints/step-2/vocabulary.json",
        "model/config.json",
        "model/model.safetensors",
        "model/vocabulary.json",
    ):
        assert name in found
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "loss", "loss_text", "loss_image", "lr", "grad_norm", "tokens"} <= set(lines[0])
    assert not [name for name in found if ".tmp" in name]


def test_validation_is_the_same_whenever_the_weights_are(arguments, dataset, tmp_path):
    still = [
        "optimizer.learning_rate=1e-30",
        "train.validate_every=1",
        "train.validation_batches=2",
    ]
    config = load_train_config("tiny", [*arguments, *still, f"data.validation_prefix={dataset}"])
    train(config)
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    found = [line["loss"] for line in lines if line.get("split") == "validation"]
    assert len(found) == 2
    assert found[0] == found[1]


def test_a_finished_run_is_not_trained_again(arguments, dataset, tmp_path):
    finished, arguments = tmp_path / "run", [*arguments, f"data.validation_prefix={dataset}"]
    train(load_train_config("tiny", arguments))
    before = (finished / "metrics.jsonl").read_bytes()
    weights = (finished / "model" / "model.safetensors").read_bytes()
    train(load_train_config("tiny", arguments))
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert (finished / "model" / "model.safetensors").read_bytes() == weights


def test_a_source_with_few_epochs_ends_the_run_with_an_export(arguments, dataset, tmp_path, capsys):
    arguments = [a for a in arguments if not a.startswith(("data.prefix", "train.steps"))]
    blend = f"data.sources=[{{prefix: {dataset}, max_epochs: 1}}]"
    summary = train(load_train_config("tiny", [*arguments, blend, "train.steps=1000"]))
    assert 1 < summary["steps"] < 1000
    assert "the data ends after step" in capsys.readouterr().err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_dry_run_prints_the_batch_and_writes_nothing(arguments, dataset, tmp_path, capsys):
    before = files_below(tmp_path), files_below(dataset.parent)
    with pytest.raises(SystemExit) as exit_info:
        run_verb("train", ["tiny", *arguments, "--dry-run"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    assert "parameters: " in printed
    assert "memory per process: " in printed
    assert "<eos>" in printed
    assert "[image, 4 ids: " in printed
    assert (files_below(tmp_path), files_below(dataset.parent)) == before


@pytest.mark.parametrize(
    ("argument", "code", "text"),
    [
        ("train.step=3", 2, "did you mean 'train.steps'"),
        ("data.prefix=/nowhere/data", 2, "there is no dataset /nowhere/data"),
        ("data.prefix=''", 2, "no dataset is named"),
        ("data.bin_tokens=8", 2, "cannot make the next batch"),
        (
            "model.context_length=8",
            2,
            "does not fit model.context_length 8; raise it, or set overlong",
        ),
        ("model.init_from=/nowhere", 2, "/nowhere is not an exported model"),
    ],
)
def test_a_bad_argument_ends_with_one_line_and_its_code(arguments, capsys, argument, code, text):
    with pytest.raises(SystemExit) as exit_info:
        run_verb("train", ["tiny", *arguments, argument])
    assert exit_info.value.code == code
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert last_line.startswith("error: ")
    assert text in last_line


def other_vocabulary(dataset, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(dataset.parent, folder)
    vocabulary = Vocabulary.load(folder)
    special = dict(vocabulary.special)
    special["pad"], special["break"] = special["break"], special["pad"]
    dataclasses.replace(vocabulary, special=special).save(folder)
    return folder / dataset.name


def test_a_checkpoint_with_another_vocabulary_is_refused(finished, arguments, dataset, tmp_path):
    other = other_vocabulary(dataset, tmp_path)
    config = load_train_config("tiny", [*arguments, f"data.prefix={other}"])
    with pytest.raises(VocabularyMismatchError, match="special token 'break' is 22 against 21"):
        train(config)


def test_datasets_with_different_vocabularies_are_refused(arguments, dataset, tmp_path):
    other = other_vocabulary(dataset, tmp_path)
    config = load_train_config("tiny", [*arguments, f"data.validation_prefix={other}"])
    with pytest.raises(VocabularyMismatchError, match="special token 'break'"):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_dataset_whose_image_tokenizer_was_retrained_is_refused(
    arguments, dataset, tmp_path, capsys, dry
):
    folder = tmp_path / "data"
    shutil.copytree(dataset.parent, folder)
    (folder / "fsq").mkdir()
    (folder / "fsq" / "config.json").write_text('{"kind": "fsq", "fingerprint": "later"}')
    recipe = {"recipe": "folder", "image_tokenizer": {"path": "fsq", "fingerprint": "before"}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(SystemExit) as ending:
        run_verb("train", ["tiny", *arguments, f"data.prefix={folder / dataset.name}", *dry])
    assert ending.value.code == 1
    assert "has fingerprint later" in (error := capsys.readouterr().err)
    assert "was prepared with before" in error
    assert not (tmp_path / "run").exists()


def test_going_on_from_an_older_checkpoint_leaves_one_history(arguments, dataset, tmp_path, capsys):
    run, validation = tmp_path / "run", f"data.validation_prefix={dataset}"
    every = ["train.steps=6", "train.checkpoint_every=2", "train.keep_latest=9", validation]
    train(load_train_config("tiny", [*arguments, *every]))
    shorter = load_train_config("tiny", [*arguments, *every, "train.steps=5"])
    train(shorter, resume=str(run / "checkpoints" / "step-2"))
    assert "removed the later step-4, step-6" in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [
        "step-2",
        "step-4",
        "step-5",
    ]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["step"], line.get("split")) for line in lines]
    assert steps == [*((step, None) for step in range(1, 6)), (5, "validation")]
    before = files_below(run), (run / "metrics.jsonl").read_bytes()
    train(shorter)
    assert (files_below(run), (run / "metrics.jsonl").read_bytes()) == before


def test_a_checkpoint_of_another_run_does_not_mix_with_the_one_in_the_folder(
    finished, arguments, tmp_path
):
    shutil.copytree(finished, tmp_path / "other")
    with pytest.raises(UsageError, match="already holds a run with step-2"):
        train(load_train_config("tiny", arguments), resume=f"{tmp_path}/other/checkpoints/step-2")


def test_a_checkpoint_of_the_same_name_is_replaced_and_comes_after_its_metrics(
    finished, arguments, tmp_path, monkeypatch
):
    stale = finished / "checkpoints" / "step-4"
    in_order, synced = [], set()
    original, fsync = checkpoint.publish, os.fsync

    def note(stat):
        return stat.st_ino, stat.st_size

    def record(descriptor):
        synced.add(note(os.fstat(descriptor)))
        fsync(descriptor)

    def publish(temporary, final):
        shutil.copytree(finished / "checkpoints" / "step-2", stale)
        (stale / "stale").touch()
        in_order.append(note((finished / "metrics.jsonl").stat()) in synced)
        original(temporary, final)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(checkpoint, "publish", publish)
    config = load_train_config("tiny", [*arguments, "train.steps=4"])
    train(config)
    assert in_order == [True]
    assert not (stale / "stale").exists()
    assert checkpoint.read_state(stale).step == 4
    assert not [name for name in files_below(finished) if ".tmp" in name]


@pytest.mark.parametrize("stopped_at", ["after the save", "before the last validation"])
def test_the_last_validation_is_written_once(arguments, dataset, tmp_path, stopped_at, monkeypatch):
    config = load_train_config("tiny", [*arguments, f"data.validation_prefix={dataset}"])

    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if stopped_at == "after the save":
            patched.setattr(trainer, "export_model", killed)
        else:
            patched.setattr(trainer._Run, "_validate", killed)
            # A SIGTERM in the last step saves, and leaves before it validates.
            patched.setattr(trainer._Run, "_is_validated", trainer._Run._save)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    for _ in range(2):
        train(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("split") for line in lines] == [None, None, "validation"]


def test_an_exported_model_with_another_vocabulary_is_refused(
    finished, arguments, dataset, tmp_path
):
    other = other_vocabulary(dataset, tmp_path)
    extra = [f"data.prefix={other}", f"model.init_from={finished}/model", f"output={tmp_path}/new"]
    with pytest.raises(VocabularyMismatchError, match="special token 'break'"):
        train(load_train_config("tiny", [*arguments, *extra]))


def test_a_checkpoint_of_another_model_is_refused(finished, arguments):
    with pytest.raises(ConfigError, match="num_layers is 2 there and 3 here"):
        train(load_train_config("tiny", [*arguments, "model.num_layers=3"]))


def test_a_checkpoint_of_another_stream_is_refused(finished, arguments):
    with pytest.raises(StateMismatchError):
        train(load_train_config("tiny", [*arguments, "data.window_documents=32", "train.steps=4"]))


def test_never_resuming_refuses_a_folder_that_holds_a_run(finished, arguments):
    with pytest.raises(UsageError, match="already holds a run with step-2"):
        train(load_train_config("tiny", arguments), resume="never")


def test_a_path_that_is_no_checkpoint_is_refused(arguments, tmp_path):
    with pytest.raises(UsageError, match="is not a checkpoint"):
        train(load_train_config("tiny", arguments), resume=str(tmp_path))


@pytest.mark.parametrize("damage", ["state", "shard"])
def test_a_damaged_checkpoint_is_corrupt_data(finished, arguments, damage):
    checkpoint = list_checkpoints(finished / "checkpoints")[-1]
    if damage == "state":
        (checkpoint / "state.json").write_text('{"format_version": 1, "steps"')
    else:
        shard = next(checkpoint.glob("*.distcp"))
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CorruptDataError):
        train(load_train_config("tiny", [*arguments, "train.steps=4"]))
