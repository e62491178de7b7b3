"""The judge reads real digits, refuses to judge when it cannot, and its figures can be bad."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mmfast.cli import main
from mmfast.errors import CorruptDataError, UsageError
from mmfast.evaluate import CaptionReader, Evaluation, Reading, Score, WeakJudgeError, evaluate

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_manifest(folder: Path, pixels: np.ndarray, labels: list[str]) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(folder / f"{i:04}.png")
        lines.append(json.dumps({"image": f"{i:04}.png", "label": label}))
    manifest = folder / "captions.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    scans = load_digits()
    pixels = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    labels = [LABELS[i] for i in scans.target]
    order = np.random.default_rng(0).permutation(len(pixels))
    root = tmp_path_factory.mktemp("digits")
    train, test = order[:700], order[700:1000]
    shuffled = [labels[i] for i in np.random.default_rng(5).permutation(test)]
    return {
        "train": write_manifest(root / "train", pixels[train], [labels[i] for i in train]),
        "test": write_manifest(root / "test", pixels[test], [labels[i] for i in test]),
        "shuffled": write_manifest(root / "shuffled", pixels[test], shuffled),
    }


def test_the_judge_reads_real_digits_and_not_wrong_labels(
    digits: dict[str, Path], tmp_path: Path
) -> None:
    result = evaluate(
        train_captions=digits["train"],
        test_captions=digits["test"],
        reconstructions=digits["test"],
        images={"shuffled": digits["shuffled"]},
    )
    assert result.judge.accuracy >= 0.96
    assert result.reconstructions is not None
    assert result.reconstructions.accuracy == result.judge.accuracy
    # Ten labels at random over 300 images: 0.10 +- 0.06 is three and a half standard deviations.
    assert 0.04 <= result.images["shuffled"].accuracy <= 0.16

    result.save(tmp_path / "out" / "evaluation.json")
    data = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert data["judge"]["num"] == 300
    assert data["judge"]["num_train"] == 700
    assert len(data["images"]["shuffled"]["readings"]) == 300
    counts = data["images"]["shuffled"]["confusion"]
    assert sum(sum(row.values()) for row in counts.values()) == 300
    assert "captions" not in data


def test_reconstructions_remember_their_originals(digits: dict[str, Path], tmp_path: Path) -> None:
    source = digits["test"].parent
    lines = [
        {"image": "0000.png", "label": "one", "original": str(source / "0007.png")},
        {"image": "0000.png", "label": "one", "original": "/etc/passwd"},
        {"image": "0000.png", "label": "one"},
    ]
    (tmp_path / "0000.png").write_bytes((source / "0000.png").read_bytes())
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    result = evaluate(
        train_captions=digits["train"], test_captions=digits["test"], reconstructions=manifest
    )
    result.save(tmp_path / "evaluation.json")
    again = Evaluation.load(tmp_path / "evaluation.json").reconstructions
    assert again is not None
    assert [reading.original for reading in again.readings] == ["0007.png", None, None]


def test_a_judge_that_cannot_read_real_images_may_not_judge(digits: dict[str, Path]) -> None:
    with pytest.raises(WeakJudgeError, match="would mean nothing"):
        evaluate(train_captions=digits["train"], test_captions=digits["shuffled"])


@pytest.mark.parametrize(
    ("caption", "read"),
    [
        ("a handwritten seven", "seven"),
        ("  a handwritten\n seven ", "seven"),
        ("the digit two, by hand", "two"),
        ("a handwritten sevens", None),
        ("A handwritten seven", None),
        ("a handwritten eleven", None),
        ("a handwritten seven seven", None),
        ("", None),
    ],
)
def test_a_caption_must_follow_a_template_word_for_word(caption: str, read: str | None) -> None:
    reader = CaptionReader(["a handwritten {label}", "the digit {label}, by hand"], LABELS)
    assert reader.read(caption, expected="seven") == read


def test_labels_with_one_caption_between_them_count_as_the_expected_one() -> None:
    reader = CaptionReader(["x {label}"], ["a b", "a  b"])
    assert reader.read("x a b", expected="a  b") == "a  b"
    assert reader.read("x a b", expected="a b") == "a b"


def test_captions_are_scored_by_label_and_by_form(digits: dict[str, Path], tmp_path: Path) -> None:
    captions, templates = tmp_path / "captions.jsonl", tmp_path / "templates.txt"
    written = [("one", "a one"), ("two", "a one"), ("two", "gibberish"), ("two", "a  two")]
    captions.write_text(
        "\n".join(json.dumps({"image": "x.png", "label": lb, "caption": c}) for lb, c in written)
    )
    templates.write_text("a {label}\n\n")
    score = evaluate(
        train_captions=digits["train"],
        test_captions=digits["test"],
        captions=captions,
        templates=templates,
    ).captions
    assert score is not None
    assert (score.accuracy, score.well_formed) == (0.5, 0.75)
    assert [reading.read for reading in score.readings] == ["one", "one", None, "two"]


def test_the_interval_holds_the_accuracy_and_narrows_with_more_readings() -> None:
    def interval(num: int) -> tuple[float, float]:
        readings = [Reading(image="", label="a", read="a" if i % 4 else "b") for i in range(num)]
        return Score(manifest=Path(), readings=readings).interval()

    (low, high), (lower, higher) = interval(400), interval(40)
    assert lower < low < 0.75 < high < higher
    # Wilson's interval for 300 of 400, from the closed form computed by hand.
    assert (low, high) == pytest.approx((0.70533, 0.78995), abs=1e-4)


@pytest.mark.parametrize(
    ("line", "error", "text"),
    [
        ("{broken", CorruptDataError, ":2 is not JSON"),
        ("[1]", CorruptDataError, "holds a JSON list, not an object"),
        ('{"image": "0000.png"}', UsageError, "field 'label'"),
        ('{"image": "0000.png", "label": "eleven"}', UsageError, "not among the training labels"),
        ('{"image": "gone.png", "label": "one"}', UsageError, "there is no image"),
        ('{"image": "../test/0000.png", "label": "one"}', UsageError, "holds `..`"),
        ('{"image": "/etc/passwd", "label": "one"}', UsageError, "is absolute"),
        ('{"image": "text.png", "label": "one"}', UsageError, "not a readable"),
    ],
)
def test_a_bad_manifest_line_is_named(
    digits: dict[str, Path], tmp_path: Path, line: str, error: type[Exception], text: str
) -> None:
    with Image.open(digits["test"].parent / "0000.png") as image:
        image.save(tmp_path / "0000.png")
    (tmp_path / "text.png").write_text("no image")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"image": "0000.png", "label": "one"}\n' + line + "\n")
    with pytest.raises(error, match=text):
        evaluate(
            train_captions=digits["train"],
            test_captions=digits["test"],
            images={"bad": manifest},
        )


def mmfast(*arguments: str | Path) -> int:
    """Runs the command in this process and returns its exit code."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


def test_the_command_prints_the_judges_own_figure_beside_each_result(
    digits: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "evaluation.json"
    required = ("--train-captions", digits["train"], "--test-captions", digits["test"])
    assert mmfast("evaluate", *required, "--images", digits["test"], "--output", output) == 0
    printed = capsys.readouterr().out
    judge = f"{json.loads(output.read_text())['judge']['accuracy']:.3f}"
    assert printed.count(judge) == 3
    assert "images test" in printed


def test_a_dry_run_counts_and_writes_nothing(
    digits: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "evaluation.json"
    required = ("--train-captions", digits["train"], "--test-captions", digits["test"])
    assert mmfast("evaluate", *required, "--output", output, "--dry-run") == 0
    assert "700 records" in capsys.readouterr().out
    assert not output.exists()


def test_usage_errors_end_with_code_2(
    digits: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    required = ("--train-captions", digits["train"], "--test-captions", digits["test"])
    output = tmp_path / "evaluation.json"
    for arguments, text in (
        ((), "Missing option"),
        ((*required, "--captions", digits["test"]), "give both or neither"),
        ((*required, "--images", tmp_path / "gone.jsonl"), "there is no manifest"),
        ((*required, "--images", "=x"), "NAME=MANIFEST"),
        ((*required, "--images", "a=x", "--images", "a=y"), "two sets"),
    ):
        assert mmfast("evaluate", *arguments, "--output", output) == 2
        assert text in capsys.readouterr().err
        assert not output.exists()
