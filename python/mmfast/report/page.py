"""The report page: one HTML file that needs nothing else and loads nothing from anywhere.

Everything that comes from files is escaped (`mmfast.report.markup`), pictures are `data:` addresses,
and a content security policy forbids scripts, remote resources and any style but the page's own,
which it names by its hash.
"""

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from mmfast.files import write_text
from mmfast.report import sections
from mmfast.report.markup import Markup, element
from mmfast.report.run import Run


def report_html(
    run: Run, summary: Mapping[str, Any], *, title: str | None = None, columns: int = 20
) -> str:
    """The page as text.

    Args:
        run: what was found.
        summary: the figures of `summarise`.
        title: heading; the run folder's name by default.
        columns: images per row of a grid, at most.
    """
    title = title or run.root.resolve().name
    style = resources.files("mmfast.report").joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = (
        sections.figures(run, summary),
        sections.images(run, columns=columns),
        sections.reconstructions(run),
        sections.captions(run),
        sections.per_label(run),
        sections.losses(run),
        sections.timings(run),
        sections.preparation(run),
        sections.configuration(run),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        # The style sheet is ours and is not escaped: its hash is in the policy above.
        element("style", Markup(style)),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("p", _lead(run), class_="lead")),
        *(part for part in parts if part is not None),
        element("footer", "Made by ", element("code", "mmfast report"), "."),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def save_page(html: str, path: Path) -> None:
    """Writes the page."""
    write_text(path, html)


def _lead(run: Run) -> str:
    """One sentence on what the page is about."""
    found = []
    if run.trainings and (losses := run.trainings[0].losses("loss")):
        found.append(f"a model trained for {losses[-1][0]:,.0f} steps")
    if run.evaluation is not None:
        generated = sum(len(score.readings) for score in run.evaluation.images.values())
        if generated:
            found.append(f"{generated:,} images it drew")
        if run.evaluation.captions is not None:
            found.append(f"{len(run.evaluation.captions.readings):,} captions it wrote")
    if not found:
        return "What was found in the run's folder."
    text = ", ".join(found[:-1]) + (" and " if len(found) > 1 else "") + found[-1]
    return text[0].upper() + text[1:] + "."
