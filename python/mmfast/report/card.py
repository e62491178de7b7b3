"""The model card that a training run leaves beside its export: `README.md`, `loss.svg` and a picture grid.

It says what was trained on what and how far it came, in Markdown that model hubs show as it is.
"""

from pathlib import Path

from mmfast.files import read_json_object, write_text
from mmfast.report.charts import line_chart
from mmfast.report.pictures import save_grid
from mmfast.report.run import Run, Training, read_run
from mmfast.report.sections import loss_series

CARD_FILE, CURVES_FILE, GRID_FILE = "README.md", "loss.svg", "grid.png"
# A picture alone has no style sheet: the page's colours of curves, on white.
_STYLE = """
svg{background:#fff;font:12px sans-serif}.rule{stroke:#ddd}.tick{fill:#666}.end{text-anchor:end}
.middle{text-anchor:middle}.curve{fill:none;stroke-width:2}.faint{opacity:.3;stroke-width:1}
.dotted{stroke-dasharray:2 4}.curve.s0,.dot.s0{stroke:#1f77b4}.curve.s1,.dot.s1{stroke:#d55e00}
.curve.s2,.dot.s2{stroke:#2e8b57}.curve.s3,.dot.s3{stroke:#a040a0}.curve.s4,.dot.s4{stroke:#b8860b}
.curve.s5,.dot.s5{stroke:#555}.dot{fill:#fff}.label.s0{fill:#1f77b4}.label.s1{fill:#d55e00}
.label.s2{fill:#2e8b57}.label.s3{fill:#a040a0}.label.s4{fill:#b8860b}.label.s5{fill:#555}
"""


def save_model_card(run_folder: Path) -> Path:
    """Writes the card of a finished run into its `model/` and returns its path.

    Raises:
        UsageError: the folder holds no run.
        CorruptDataError: one of its files is not what it should be.
    """
    run = read_run(run_folder)
    model = run_folder / "model"
    (training,) = [t for t in run.trainings if t.folder == run_folder]
    card = [f"# {run_folder.name}", "", *_facts(training, model), ""]
    chart = line_chart(loss_series(training), x_title="step", description="training loss by step")
    if chart is not None:
        svg = chart.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        write_text(model / CURVES_FILE, svg.replace(">", f"><style>{_STYLE}</style>", 1))
        card += [
            "## Loss",
            "",
            "Nats a weighted token; bold: the mean of the steps around; dotted: held-out data.",
            "",
            f"![loss by step]({CURVES_FILE})",
            "",
        ]
    latest = _latest_samples(run)
    if latest is not None:
        save_grid(run.unjudged[latest], model / GRID_FILE, columns=8)
        card += ["## Samples", "", f"![pictures drawn in training]({GRID_FILE})", ""]
    card += ["## Configuration", "", "```yaml", training.config.rstrip(), "```", ""]
    write_text(model / CARD_FILE, "\n".join(card))
    return model / CARD_FILE


def _facts(training: Training, model: Path) -> list[str]:
    shape = read_json_object(model / "config.json")
    summary, environment = training.summary, training.environment
    validation = training.losses("loss", split="validation")
    facts = {
        "class": ", ".join(shape.get("architectures") or []),
        "ids": f"{shape.get('vocab_size', 0):,}",
        "steps": f"{summary.get('steps', 0):,}",
        "tokens": f"{summary.get('train_tokens', 0):,}",
        "loss, first and last steps": f"{summary.get('first_loss', 0):.4f} to "
        f"{summary.get('last_loss', 0):.4f}",
        "loss on held-out data": f"{validation[-1][1]:.4f}" if validation else "not measured",
        "seed": str(summary.get("seed", "")),
        "trained on": f"{environment.get('world_size', 1)} processes, {environment.get('device', '')}",
        "made with": f"mmfast {environment.get('mmfast', '')}, torch {environment.get('torch', '')}, "
        f"transformers {environment.get('transformers', '')}",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]


def _latest_samples(run: Run) -> str | None:
    """Name of the newest set of pictures that the run drew while it trained."""
    sets = [name for name in run.unjudged if name.startswith("samples/step-")]
    return max(sets, key=lambda name: int(name.rpartition("-")[2]), default=None)
