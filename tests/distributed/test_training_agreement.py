"""What stops one rank stops all: the same line, the same exit code, nobody left waiting."""

import random

import pytest

from mmfast.data import IndexedDatasetBuilder
from mmfast.vocab import Vocabulary

pytestmark = pytest.mark.distributed


def write_texts(prefix, vocabulary, documents):
    prefix.parent.mkdir()
    with IndexedDatasetBuilder(str(prefix), multimodal=True) as builder:
        for ids in documents:
            builder.add_document([vocabulary["eos"], *ids], [len(ids) + 1], modes=[0])
    vocabulary.save(prefix.parent)
    return prefix


@pytest.fixture
def texts(dataset, tmp_path):
    """A function that writes 80 short documents and one given."""
    vocabulary = Vocabulary.load(dataset.parent)
    generator = random.Random(1)
    short = [[generator.randrange(20) for _ in range(9)] for _ in range(80)]

    def write(document):
        return write_texts(tmp_path / "texts" / "train", vocabulary, [*short, document])

    return write


def end_together(launch, prefix, output, *overrides):
    """Runs two ranks through the command; gives their one exit code and one error line."""
    arguments = [f"data.prefix={prefix}", f"output={output}", "train.steps=60", *overrides]
    codes, logged = launch(world_size=2, overrides=arguments, command=True)
    assert "Traceback" not in logged
    errors = [line for line in logged.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2, logged
    assert len(set(errors)) == len(set(codes)) == 1, (codes, errors)
    return codes[0], errors[0]


def test_an_id_that_one_rank_meets_ends_both(launch, texts, tmp_path):
    prefix = texts([3, 10_000, 3])
    code, error = end_together(launch, prefix, tmp_path / "run")
    assert code == 1
    assert "has id 10000 at position 2, outside the vocabulary" in error


def test_a_document_beyond_the_context_ends_both_in_planning(launch, texts, tmp_path):
    prefix = texts([3] * 40)
    context = ["model.context_length=30", "data.window_documents=128"]
    code, error = end_together(launch, prefix, tmp_path / "run", *context)
    assert code == 2
    assert "has 41 ids and does not fit model.context_length 30; raise it" in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "planning comes before training"


@pytest.mark.parametrize("overlong", ["truncate", "split", "drop"])
def test_documents_are_brought_within_the_context(launch, texts, tmp_path, overlong):
    arguments = [
        f"data.prefix={texts([3] * 40)}",
        f"output={tmp_path / 'run'}",
        "train.steps=8",
        "model.context_length=30",
        f"data.overlong={overlong}",
        "model.architecture=opt",  # learned positions: one past the table would be an error
    ]
    codes, logged = launch(world_size=2, overrides=arguments)
    assert codes == [0, 0], logged
