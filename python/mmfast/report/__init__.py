"""One self-contained HTML page of a run, its picture grid, and its figures as JSON.

>>> from pathlib import Path
>>> from mmfast.report import read_run, report_html, summarise
>>> run = read_run(Path("out/demo"))  # doctest: +SKIP
>>> html = report_html(run, summarise(run))  # doctest: +SKIP
"""

from mmfast.report.card import save_model_card
from mmfast.report.page import report_html, save_page
from mmfast.report.pictures import grid_image, save_grid
from mmfast.report.run import Run, read_run
from mmfast.report.summary import print_summary, save_summary, summarise

__all__ = [
    "Run",
    "grid_image",
    "print_summary",
    "read_run",
    "report_html",
    "save_grid",
    "save_model_card",
    "save_page",
    "save_summary",
    "summarise",
]
