"""The report shows what is there, survives what is not, and cannot be injected into."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmfast.cli import main
from mmfast.errors import CorruptDataError, UsageError
from mmfast.evaluate import Evaluation, Reading, Score
from mmfast.report import grid_image, read_run, report_html, summarise
from mmfast.report.charts import Series, line_chart, nice_ticks, smoothed
from mmfast.report.markup import Markup, element

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&"
SUMMARY_KEYS = {
    "classifier_accuracy_real",
    "reconstruction_accuracy",
    "image_accuracy",
    "image_accuracy_unguided",
    "caption_accuracy",
    "num_generated",
    "num_held_out",
    "first_loss",
    "last_loss",
    "train_tokens",
    "train_seconds",
    "total_seconds",
    "world_size",
    "seed",
}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def score(
    folder: Path, readings: list[tuple[str, str | None]], caption: str | None = None
) -> Score:
    """A score whose images exist: 16x16, one grey level each."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i, (label, read) in enumerate(readings):
        Image.fromarray(np.full((16, 16), 4 * i, np.uint8)).save(folder / f"{i}.png")
        made.append(
            Reading(image=f"{i}.png", label=label, read=read, caption=caption, original=f"{i}.png")
        )
    return Score(manifest=folder / "manifest.jsonl", readings=made)


def write_run(root: Path, *, text: str = "a {label}", label: str = "cat") -> Path:
    """A run folder with every kind of file; `text` and `label` go wherever text of users goes."""
    pairs: list[tuple[str, str | None]] = [(label, label), ("dog", "dog"), ("dog", label)]
    Evaluation(
        judge=score(root / "raw", pairs[:2]),
        num_train=5,
        judge_size=16,
        reconstructions=score(root / "reconstructions", pairs[:2]),
        images={
            "guided": score(root / "generated" / "guided", pairs),
            "unguided": score(root / "generated" / "unguided", pairs),
        },
        captions=score(root / "captions", [*pairs, (label, None)], caption=text),
        seconds=1.0,
    ).save(root / "evaluation.json")
    write_lines(
        root / "train" / "metrics.jsonl",
        [
            {"step": i, "loss": 3 / i, "loss_text": 2 / i, "loss_image": 4 / i, "tokens": 64 * i}
            for i in range(1, 101)
        ]
        + [{"step": 100, "loss": 0.5, "split": "validation"}],
    )
    (root / "train" / "config.yaml").write_text(f"output: '{text}'\n")
    (root / "train" / "env.json").write_text(json.dumps({"device": text}))
    (root / "train" / "summary.json").write_text(
        json.dumps(
            {"first_loss": 3.0, "last_loss": 0.03, "train_tokens": 6400, "train_seconds": 9.5}
            | {"steps": 100, "world_size": 2, "seed": 7}
        )
    )
    (root / "generated" / "guided" / "generate.json").write_text(json.dumps({"prompt": text}))
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "training.json").write_text(json.dumps({"warnings": [text]}))
    (root / "data").mkdir()
    (root / "data" / "train.prepare.json").write_text(json.dumps({"skipped": {text: 3}}))
    write_lines(
        root / "stages.jsonl",
        [
            {"stage": "train", "command": text, "started_at": 100.0, "seconds": 10.0},
            {"stage": text, "command": "x", "started_at": 111.0, "seconds": 4.0},
        ],
    )
    return root


class Elements(HTMLParser):
    """All start tags with their attributes, and whether every tag is closed in order."""

    void = frozenset({"meta", "img", "line", "rect", "circle", "polyline"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(root: Path) -> str:
    run = read_run(root)
    return report_html(run, summarise(run))


def test_every_section_of_a_whole_run_is_there(tmp_path: Path) -> None:
    html = page(write_run(tmp_path))
    headings = re.findall("<h2>(.*?)</h2>", html)
    assert headings == [
        "Generated images",
        "Reconstructions",
        "Captions",
        "Accuracy by label",
        "Loss",
        "Time",
        "Data",
        "Configuration",
    ]
    assert Elements(html).open == []
    # Two sets of three images, two pairs, four captions.
    assert html.count("data:image/png;base64,") == 2 * 3 + 2 * 2 + 4


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    html = page(write_run(tmp_path, text=HOSTILE, label=HOSTILE))
    elements = Elements(html)
    assert elements.open == []
    assert "script" not in {tag for tag, _ in elements.found}
    assert not [name for _, attributes in elements.found for name in attributes if name[:2] == "on"]
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10


def test_the_page_loads_nothing_and_forbids_itself_to(tmp_path: Path) -> None:
    html = page(write_run(tmp_path))
    for tag, attributes in Elements(html).found:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "use"}
        assert "style" not in attributes, "the policy would drop inline styles"
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", html)
    policy = re.search('Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert "default-src &#x27;none&#x27;; img-src data:;" in policy[1]


@pytest.mark.parametrize(
    ("kept", "sections"),
    [
        ("train/metrics.jsonl", ["Loss"]),
        ("stages.jsonl", ["Time"]),
        ("tokenizer/training.json", ["Data"]),
        ("data/train.prepare.json", ["Data"]),
        ("generated/guided/generate.json", []),
        (
            "evaluation.json",
            ["Generated images", "Reconstructions", "Captions", "Accuracy by label"],
        ),
    ],
)
def test_each_piece_alone_makes_a_report(tmp_path: Path, kept: str, sections: list[str]) -> None:
    root = write_run(tmp_path)
    for path in sorted(root.rglob("*.*")):
        if path.is_file() and path != root / kept:
            path.unlink()
    html = page(root)
    assert re.findall("<h2>(.*?)</h2>", html) == sections
    assert Elements(html).open == []


def test_images_that_nobody_judged_are_shown_by_prompt(tmp_path: Path) -> None:
    drawn = score(tmp_path / "drawn", [("a", "a"), ("b", "b")])
    write_lines(
        drawn.manifest,
        [{"image": r.image, "prompt": f"a picture of {r.label}"} for r in drawn.readings],
    )
    (tmp_path / "drawn" / "generate.json").write_text("{}")
    html = page(tmp_path)
    assert "drawn: 2, not judged" in html
    assert "a picture of b" in html
    assert html.count("data:image") == 2
    assert "Framed" not in html


def test_a_grid_of_many_labels_is_cut_and_says_so(tmp_path: Path) -> None:
    root = write_run(tmp_path)
    drawn = score(root / "drawn", [(f"label {i}", "x") for i in range(60)])
    write_lines(drawn.manifest, [{"image": r.image, "label": r.label} for r in drawn.readings])
    (root / "drawn" / "generate.json").write_text("{}")
    html = page(root)
    assert "The first 50 of 60 labels." in html
    assert "label 49" in html
    assert "label 50" not in html


def test_figures_that_are_not_finite_are_null_in_the_summary(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    (tmp_path / "summary.json").write_text('{"last_loss": NaN, "train_seconds": "x", "seed": 1}')
    summary = summarise(read_run(tmp_path))
    assert summary == {"last_loss": None, "train_seconds": None, "seed": 1}
    assert page(tmp_path)


def test_an_empty_folder_and_a_missing_one_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to report"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="no run folder"):
        read_run(tmp_path / "gone")


def _break_evaluation(root: Path) -> str:
    data = json.loads((root / "evaluation.json").read_text())
    del data["images"]["guided"]["readings"]
    (root / "evaluation.json").write_text(json.dumps(data))
    return "evaluation.json"


def _break_version(root: Path) -> str:
    data = json.loads((root / "evaluation.json").read_text()) | {"format_version": 99}
    (root / "evaluation.json").write_text(json.dumps(data))
    return "evaluation format 99"


def _break_metrics(root: Path) -> str:
    path = root / "train" / "metrics.jsonl"
    path.write_text("{\n" + path.read_text())
    return "metrics.jsonl:1"


def _break_stages(root: Path) -> str:
    (root / "stages.jsonl").write_text('{"stage": "x"}\n')
    return "stages.jsonl"


def _break_seconds(root: Path) -> str:
    (root / "stages.jsonl").write_text('{"stage": "x", "started_at": 1, "seconds": Infinity}\n')
    return "not a finite number"


def _break_summary(root: Path) -> str:
    (root / "train" / "summary.json").write_text("[1]")
    return "summary.json"


@pytest.mark.parametrize(
    "damage",
    [
        _break_evaluation,
        _break_version,
        _break_metrics,
        _break_stages,
        _break_seconds,
        _break_summary,
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    root = write_run(tmp_path)
    text = damage(root)
    with pytest.raises(CorruptDataError, match=re.escape(text)):
        read_run(root)


def test_a_metrics_line_cut_off_while_written_is_left_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_run(tmp_path).trainings[0].losses("loss") == [(1.0, 2.0)]


def test_losses_that_are_not_finite_do_not_break_the_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n{"step": 3, "loss": 1.0}\n'
    )
    html = page(tmp_path)
    assert "<h2>Loss</h2>" in html
    assert "nan" not in html.partition("</style>")[2].lower()


def test_summary_has_the_keys_of_a_whole_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path))
    summary = summarise(run)
    assert set(summary) == SUMMARY_KEYS
    assert summary["image_accuracy"] == pytest.approx(2 / 3)
    assert summary["caption_accuracy"] == pytest.approx(2 / 4)
    assert (summary["num_generated"], summary["num_held_out"]) == (3, 2)
    assert summary["total_seconds"] == 15.0
    assert summarise(run, now=120.0)["total_seconds"] == 20.0
    assert (summary["seed"], summary["world_size"]) == (7, 2)


def test_grid_has_a_row_per_label_and_frames_what_was_read_wrong(tmp_path: Path) -> None:
    readings = [(label, label) for label in ("a", "b", "c") for _ in range(5)]
    whole = score(tmp_path / "whole", [*readings])
    wrong = score(tmp_path / "wrong", [("a", "b"), *readings[1:]])
    image = grid_image(whole)
    assert image.height == 2 * 18 + 3 * (64 + 6) - 6
    label_width = image.width - (2 * 18 + 5 * (64 + 6) - 6)
    assert 16 < label_width < 60
    assert grid_image(whole, columns=2).width == image.width - 3 * (64 + 6)
    frame = (255, 122, 92)
    colours = {colour for _, colour in grid_image(wrong).getcolors(1 << 20) or ()}
    assert frame in colours
    assert frame not in {colour for _, colour in image.getcolors(1 << 20) or ()}


def test_images_outside_the_manifests_folder_are_not_shown(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run")
    Image.new("L", (16, 16)).save(tmp_path / "secret.png")
    data = json.loads((root / "evaluation.json").read_text())
    before = page(root).count("data:image")
    data["images"]["guided"]["readings"][0]["image"] = "../../../secret.png"
    (root / "evaluation.json").write_text(json.dumps(data))
    assert page(root).count("data:image") == before - 1


def test_large_images_are_reduced(tmp_path: Path) -> None:
    root = write_run(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (800, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "generated" / "guided" / "0.png")
    assert len(page(root)) < 200_000


def test_smoothing_keeps_a_line_and_the_count() -> None:
    line = [(float(i), 2.0 * i) for i in range(50)]
    out = smoothed(line, 10)
    assert [x for x, _ in out] == [x for x, _ in line]
    assert [y for _, y in out[:40]] == pytest.approx([y for _, y in line[:40]])
    assert smoothed(line, 1) == line


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 6.2), (-3, 5), (2, 2), (0, 1e-7), (0, 12345)]
)
def test_ticks_enclose_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 5)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))


def test_a_chart_of_one_point_or_none(tmp_path: Path) -> None:
    one = Series(name="x", points=[(1.0, 1.0)], colour=0)
    assert line_chart([one], x_title="step", description="d") is not None
    none = Series(name="x", points=[], colour=0)
    assert line_chart([none], x_title="step", description="d") is None


def test_only_element_makes_markup() -> None:
    assert element("p", "<b>") == "<p>&lt;b&gt;</p>"
    assert element("p", Markup("<b>")) == "<p><b></p>"
    assert element("p", title='"><b>') == '<p title="&quot;&gt;&lt;b&gt;"></p>'
    assert element("p", class_=None) == "<p></p>"


def mmfast(*arguments: str | Path) -> int:
    """Runs the command in this process and returns its exit code."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


def test_the_command_writes_page_grid_and_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_run(tmp_path / "run")
    arguments = ("report", root, "--summary", root / "summary.json")
    assert mmfast(*arguments) == 0
    printed = capsys.readouterr().out
    assert "image_accuracy_unguided" in printed
    html = (root / "report.html").read_text()
    assert html.startswith("<!doctype html>")
    with Image.open(root / "grid.png") as image:
        assert image.width > 200
    assert set(json.loads((root / "summary.json").read_text())) == SUMMARY_KEYS
    # A second report is not about the first one.
    assert mmfast(*arguments) == 0
    assert capsys.readouterr().out == printed
    assert (root / "report.html").read_text() == html


def test_a_dry_run_says_what_is_there_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_run(tmp_path / "run")
    assert mmfast("report", root, "--dry-run") == 0
    assert "image sets judged: 2" in capsys.readouterr().out
    assert not (root / "report.html").exists()


def test_usage_errors_end_with_code_2_and_corrupt_data_with_3(tmp_path: Path) -> None:
    for arguments in ((), (tmp_path,), (tmp_path, "--columns", "0")):
        assert mmfast("report", *arguments) == 2
    (tmp_path / "evaluation.json").write_text("{}")
    assert mmfast("report", tmp_path) == 3
    assert not (tmp_path / "report.html").exists()
