"""The sections of the page, each a function from the run to markup, or None when it has nothing."""

from collections.abc import Iterable, Mapping
from typing import Any

from mmfast.evaluate import Reading, Score
from mmfast.report.charts import Series, bar_chart, line_chart, meter, smoothed
from mmfast.report.markup import Markup, element, joined, table
from mmfast.report.pictures import (
    MAX_ROWS,
    SMALL_SIDE,
    data_uri,
    load_picture,
    rows_by_label,
    wrong_first,
)
from mmfast.report.run import Run, Training
from mmfast.report.summary import figure

_NUM_PAIRS = 40
_NUM_CAPTIONS = 24
_MAX_LABELS = 50
_MAX_CELL_TEXT = 200
_MAX_DEPTH = 8


def figures(run: Run, summary: Mapping[str, Any]) -> Markup | None:
    """The headline: a tile for each accuracy with its interval, and for time and size."""
    tiles: list[tuple[str, str, str]] = []
    for name, score in _scores(run):
        low, high = score.interval()
        counted = f"{score.num_right:,} of {len(score.readings):,}"
        tiles.append((name, f"{score.accuracy:.3f}", f"{counted}\n95 %: {low:.3f}-{high:.3f}"))
    if "first_loss" in summary and "last_loss" in summary:
        tiles.append(
            (
                "loss",
                figure(summary["last_loss"]),
                f"from {figure(summary['first_loss'])}\nper weighted token",
            )
        )
    if "total_seconds" in summary:
        beside = "minutes in all"
        if summary.get("train_seconds") is not None:
            beside += f"\n{_clock(float(summary['train_seconds']))} of them training"
        tiles.append(("time", _clock(float(summary["total_seconds"])), beside))
    if not tiles:
        return None
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", name),
                element("dd", value, class_="value"),
                element("dd", beside, class_="beside"),
                class_="figure",
            )
            for name, value, beside in tiles
        ),
        class_="figures",
    )


def images(run: Run, *, columns: int) -> Markup | None:
    """Grids of generated images: a row per label, wrong ones framed with what the judge read."""
    judged = run.evaluation.images if run.evaluation is not None else {}
    if not judged and not run.unjudged:
        return None
    grids = []
    for name, score in [*judged.items(), *run.unjudged.items()]:
        found = (
            f"{score.num_right:,} of {len(score.readings):,} as asked"
            if name in judged
            else f"{len(score.readings):,}, not judged"
        )
        grids.append(element("h3", f"{name}: {found}"))
        grids.append(_grid(score, columns))
        num_labels = len({reading.label for reading in score.readings})
        if num_labels > MAX_ROWS:
            note = f"The first {MAX_ROWS} of {num_labels:,} labels."
            grids.append(element("p", note, class_="note"))
        settings = _settings_of(run, score)
        if settings is not None:
            grids.append(settings)
    return _section(
        "Generated images",
        "A row per label that was asked for."
        + " Framed: the judge, a classifier trained on real pixels only, read something else, and what."
        * bool(judged),
        *grids,
    )


def reconstructions(run: Run) -> Markup | None:
    """Pairs of a real held-out image and what the image tokenizer made of it."""
    evaluation = run.evaluation
    if evaluation is None or evaluation.reconstructions is None:
        return None
    score = evaluation.reconstructions
    pairs = []
    for reading in wrong_first(score.readings, _NUM_PAIRS):
        before = load_picture(reading.original or "", evaluation.judge.manifest.parent)
        after = load_picture(reading.image, score.manifest.parent)
        shown = [_picture(image, reading) for image in (before, after) if image is not None]
        if shown:
            pairs.append(
                element("figure", *shown, class_="pair" if reading.right else "pair wrong")
            )
    return _section(
        "Reconstructions",
        f"Real held-out images, and beside each what is left of it after the image tokenizer: the "
        f"judge reads {score.num_right:,} of {len(score.readings):,} right.",
        element("div", *pairs, class_="pairs"),
    )


def captions(run: Run) -> Markup | None:
    """A sample of written captions with their images and verdicts."""
    evaluation = run.evaluation
    if evaluation is None or evaluation.captions is None:
        return None
    score = evaluation.captions
    folders = (score.manifest.parent, evaluation.judge.manifest.parent)
    cards = []
    for reading in wrong_first(score.readings, _NUM_CAPTIONS):
        picture = load_picture(reading.image, *folders)
        if reading.right:
            verdict = element("span", reading.label, class_="verdict-right")
        else:
            said = f"reads as {reading.read}" if reading.read else "no known phrasing"
            verdict = element("span", f"{said}, is {reading.label}", class_="verdict-wrong")
        shown = _picture(picture, reading) if picture is not None else Markup()
        said = element("figcaption", _clipped(reading.caption or ""), verdict)
        cards.append(element("figure", shown, said, class_="card"))
    return _section(
        "Captions",
        f"Written for real held-out images: {score.num_right:,} of {len(score.readings):,} follow a "
        f"known phrasing and name the right label; {score.well_formed:.1%} follow a phrasing at all. "
        "Below, mistakes first, then right ones drawn evenly from all.",
        element("div", *cards, class_="cards"),
    )


def per_label(run: Run) -> Markup | None:
    """Accuracy by label for every set, and every mistake with its count."""
    scores = _scores(run)[1:]
    if not scores:
        return None
    counts = {name: score.confusion() for name, score in scores}
    labels = list(dict.fromkeys(r.label for _, score in scores for r in score.readings))
    # Labels come in the order of the prompts, where there are prompts.
    for _, score in scores[::-1]:
        if score in (run.evaluation.images.values() if run.evaluation else ()):
            labels = list(dict.fromkeys([*(r.label for r in score.readings), *labels]))
    rows = []
    for label in labels[:_MAX_LABELS]:
        cells: list[Markup | str] = [label]
        for colour, (name, _) in enumerate(scores):
            row = counts[name].get(label, {})
            right, num = row.get(label, 0), sum(row.values())
            meter_ = element("span", meter(right / num, colour=colour), f"{right:,} of {num:,}")
            cells.append(meter_ if num else "")
        rows.append(cells)
    mistakes = [
        (name, label, read or "no known phrasing", f"{count:,}")
        for name, score in scores
        for label, row in score.confusion().items()
        for read, count in row.items()
        if read != label
    ]
    listed = (
        element(
            "details",
            element(
                "summary", f"All mistakes ({sum(int(m[3].replace(',', '')) for m in mistakes)})"
            ),
            table(("set", "label", "read as", "count"), mistakes),
        )
        if mistakes
        else element("p", "There is no mistake in any set.", class_="note")
    )
    return _section(
        "Accuracy by label",
        "Share of each label's images and captions that were read as that label.",
        table(("", *(name for name, _ in scores)), rows),
        listed,
    )


def losses(run: Run) -> Markup | None:
    """Loss curves of each training run, by modality, with validation where there is any."""
    charts: list[Markup] = []
    for training in run.trainings:
        chart = line_chart(
            loss_series(training),
            x_title="step",
            description="training loss by step, by modality",
        )
        if chart is not None:
            if len(run.trainings) > 1:
                charts.append(element("h3", str(training.folder.relative_to(run.root))))
            charts.append(chart)
            if training.summary:
                charts.append(_facts("Figures of the run", training.summary))
    if not charts:
        return None
    return _section(
        "Loss",
        "Natural logarithm, per weighted token. Thin: every step; bold: mean over the steps around; "
        "dotted: validation.",
        *charts,
    )


def preparation(run: Run) -> Markup | None:
    """What became of the raw data: tokenizers and datasets, their counts and skips."""
    parts = [_facts(f"Tokenizer: {name}", facts) for name, facts in run.tokenizers.items()]
    parts += [_facts(f"Dataset: {name}", facts) for name, facts in run.datasets.items()]
    if not parts:
        return None
    warnings = [
        element("p", f"{name}: {warning}", class_="verdict-wrong")
        for name, facts in run.tokenizers.items()
        if isinstance(facts.get("warnings"), list)
        for warning in facts["warnings"]
    ]
    return _section(
        "Data", "Tokenizers and datasets that the run was made with.", *warnings, *parts
    )


def timings(run: Run) -> Markup | None:
    """A bar for each stage of the road, and the commands."""
    if not run.stages:
        return None
    longest = max(stage.seconds for stage in run.stages)
    bars = [(stage.name, [(stage.seconds, _duration(stage.seconds))]) for stage in run.stages]
    commands = "\n\n".join(stage.command for stage in run.stages if stage.command)
    return _section(
        "Time",
        f"{_duration(sum(stage.seconds for stage in run.stages))} in {len(run.stages)} stages.",
        bar_chart(bars, description="seconds by stage", full=longest),
        element("details", element("summary", "Commands"), element("pre", commands))
        if commands
        else Markup(),
    )


def configuration(run: Run) -> Markup | None:
    """The resolved configuration and the environment of each training run."""
    parts = []
    for training in run.trainings:
        if training.config:
            parts.append(
                element(
                    "details", element("summary", "config.yaml"), element("pre", training.config)
                )
            )
        if training.environment:
            parts.append(_facts("env.json", training.environment))
    if not parts:
        return None
    return _section("Configuration", "As resolved when training started.", *parts)


def _scores(run: Run) -> list[tuple[str, Score]]:
    """All scores by name, the judge's own first."""
    evaluation = run.evaluation
    if evaluation is None:
        return []
    scores = [("judge, real images", evaluation.judge)]
    if evaluation.reconstructions is not None:
        scores.append(("reconstructions", evaluation.reconstructions))
    scores.extend((f"images, {name}", score) for name, score in evaluation.images.items())
    if evaluation.captions is not None:
        scores.append(("captions", evaluation.captions))
    return scores


def loss_series(training: Training) -> list[Series]:
    """Curves of a training run: each loss, smoothed over its steps, and held-out loss."""
    series = []
    for colour, name in enumerate(training.loss_names()):
        points = training.losses(name)
        shown = "all" if name == "loss" else name.removeprefix("loss_")
        window = max(1, len(points) // 40)
        if window > 1:
            series.append(Series(name=shown, points=points, colour=colour % 6, faint=True))
        series.append(Series(name=shown, points=smoothed(points, window), colour=colour % 6))
        validation = training.losses(name, split="validation")
        if name == "loss" and validation:
            series.append(
                Series(name="validation", points=validation, colour=colour % 6, dotted=True)
            )
    return series


def _grid(score: Score, columns: int) -> Markup:
    rows = []
    for row in rows_by_label(score, columns=columns):
        cells = [element("th", row.label, title=row.label, scope="row")]
        for reading in row.readings:
            picture = load_picture(reading.image, score.manifest.parent)
            content = [_picture(picture, reading) if picture is not None else Markup("?")]
            if not reading.right:
                content.append(element("span", reading.read or "nothing", class_="read"))
            cells.append(element("td", *content, class_=None if reading.right else "wrong"))
        rows.append(element("tr", *cells))
    return element("div", element("table", *rows, class_="grid"), class_="scroll")


def _picture(image: Any, reading: Reading) -> Markup:
    small = max(image.size) <= SMALL_SIDE
    read = "" if reading.right or reading.caption is not None else f", read as {reading.read}"
    return element(
        "img",
        src=data_uri(image),
        alt=f"{reading.label}{read}",
        title=f"{reading.image}: {reading.label}{read}",
        class_="picture small" if small else "picture large",
    )


def _settings_of(run: Run, score: Score) -> Markup | None:
    """`generate.json` of the folder that a set of images lies in."""
    for name, facts in run.generations.items():
        if (run.root / name).resolve() == score.manifest.parent.resolve():
            return _facts("How they were generated", facts)
    return None


def _facts(title: str, facts: Mapping[str, Any]) -> Markup:
    rows = [(key, _clipped(value)) for key, value in _flattened(facts)]
    brief = ", ".join(
        f"{key.replace('_', ' ')} {figure(value)}"
        for key, value in facts.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and key != "format_version"
    )
    heading = element("summary", title, element("span", _clipped(brief), class_="brief"))
    return element("details", heading, table(("", ""), rows))


def _flattened(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Dotted keys and their values as text; lists in one line."""
    for key, value in facts.items():
        if isinstance(value, Mapping) and prefix.count(".") < _MAX_DEPTH:
            yield from _flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(figure(item) for item in value) or "none"
        else:
            yield f"{prefix}{key}", "none" if value is None else figure(value)


def _section(title: str, note: str, *children: str | Markup) -> Markup:
    return element(
        "section", element("h2", title), element("p", note, class_="note"), joined(children)
    )


def _clipped(text: str) -> str:
    return text if len(text) <= _MAX_CELL_TEXT else text[: _MAX_CELL_TEXT - 1] + "…"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"
