"""One HTML file that needs nothing else, from a finished run."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from liteasr.files import write_text
from liteasr.reporting.curves_plot import curves_plot
from liteasr.reporting.heat_map import heat_map
from liteasr.reporting.outcome_plots import outcome_plot, timings_plot
from liteasr.reporting.record import RunRecord, read_run
from liteasr.reporting.spectra_plot import spectra_plot
from liteasr.reporting.tables import (
    Table,
    edits_table,
    headline,
    layers_table,
    sets_table,
    worst_utterances,
)

__all__ = ["PAGE", "draw", "inlined", "render", "write_run_report"]

PAGE = "report.html"

_WORST = 20

Drawing = Callable[[Path], None]


def write_run_report(folder: Path) -> Path:
    """Draw the pictures and write the page of a finished ``fit`` into ``report/``.

    Args:
        folder: The run folder.

    Returns:
        The HTML file.

    Raises:
        ConfigError: If the folder holds no finished run of this layout.
    """
    record = read_run(folder)
    report = folder / "report"
    pictures = inlined(draw(report, _drawings(record)))
    write_text(report / PAGE, _page(record, pictures))
    return report / PAGE


def _drawings(record: RunRecord) -> dict[str, Drawing | None]:
    """Picture → what draws it, ``None`` where the run has nothing to show."""
    plan, spectra, curves = record.plan, record.spectra, record.curves
    has_layers = plan is not None and bool(plan.layers)
    return {
        "outcome.png": lambda path: outcome_plot(record.stages, path),
        "layers.png": (lambda path: heat_map(plan, path)) if plan and has_layers else None,
        "spectra.png": (
            (lambda path: spectra_plot(spectra, plan, path)) if plan and spectra else None
        ),
        "curves.png": (lambda path: curves_plot(curves, path)) if curves else None,
        "timings.png": (lambda path: timings_plot(record.seconds, path)),
    }


def draw(report: Path, drawings: Mapping[str, Drawing | None]) -> list[Path]:
    """Make the pictures, and take away those of an earlier report that are made no more.

    Args:
        report: Folder; made if absent.
        drawings: Name of the file → what draws it, or ``None``.

    Returns:
        The files, in their order.
    """
    report.mkdir(exist_ok=True)
    files = []
    for name, drawing in drawings.items():
        if drawing is None:
            (report / name).unlink(missing_ok=True)
        else:
            drawing(report / name)
            files.append(report / name)
    return files


def inlined(files: list[Path]) -> dict[str, str]:
    """Pictures as they stand in a page: file name → data URL."""
    return {
        file.name: f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
        for file in files
    }


def render(template: str, **values: Any) -> str:
    """Fill a template of this package; every value is escaped.

    Args:
        template: Its file name.
        values: Its variables; a missing one is an error.
    """
    environment = Environment(
        loader=PackageLoader("liteasr.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _page(record: RunRecord, pictures: Mapping[str, str]) -> str:
    plan = record.plan
    name = PurePath(str(record.recipe["model"].get("id"))).name
    return render(
        "run.html.j2",
        title=f"{name}, {'measured' if plan is None else 'compressed by ' + plan.method}",
        headline=headline(record),
        sets=sets_table(record),
        edits=edits_table(record),
        plan=plan,
        layers=Table([], []) if plan is None else layers_table(plan),
        pictures=pictures,
        utterances=worst_utterances(record.predictions, _WORST),
        has_predictions=bool(record.predictions),
        is_compared=len(record.predictions) > 1,
        recipe_text=record.recipe_text,
        environment=record.environment,
    )
