"""The page of a comparison, from its ``compare.json``."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from liteasr.compare_report import (
    CAPTION,
    details_rows,
    grid_rows,
    not_reached,
    search_rows,
    search_said,
)
from liteasr.config import ConfigError
from liteasr.files import write_text
from liteasr.plots import pareto_plot
from liteasr.reporting.page import PAGE, draw, inlined, render
from liteasr.reporting.record import read_environment, read_json, read_recipe
from liteasr.reporting.tables import Table

__all__ = ["write_comparison_report"]

_KEYS = ("dense", "calibration", "results", "best", "search")


def write_comparison_report(folder: Path) -> Path:
    """Draw the plots and write the page of a finished ``compare`` into ``report/``.

    Args:
        folder: The run folder.

    Returns:
        The HTML file.

    Raises:
        ConfigError: If the folder holds no finished comparison of this layout.
    """
    text, recipe = read_recipe(folder)
    environment = read_environment(folder)
    content = read_json(folder / "compare.json")
    missing = [key for key in _KEYS if key not in content]
    sizes = (recipe.get("compare") or {}).get("encoder_params")
    if missing or not isinstance(sizes, list):
        what = ", ".join(missing) or "compare.encoder_params of recipe.yaml"
        raise ConfigError(f"{folder / 'compare.json'} is of another layout: {what} not there")
    results, search = content["results"], content["search"]
    tried = {"dense": search["dense"], "results": search["tried"]} if search else {}
    report = folder / "report"
    drawings = {
        "compare.png": (lambda path: pareto_plot(content, path)) if results else None,
        "search.png": (lambda path: pareto_plot(tried, path)) if search else None,
    }
    pictures = inlined(draw(report, drawings))
    empty: tuple[list[str], list[list[str]]] = ([], [])
    page = render(
        "compare.html.j2",
        title=f"{PurePath(str(recipe['model'].get('id'))).name}, methods and sizes compared",
        said=_said(content),
        caption=f"Cells: {CAPTION}.",
        grid=Table(*(grid_rows(content, sizes) if results else empty)),
        details=Table(*(details_rows(content) if results else empty)),
        reasons=not_reached(content),
        search={"said": search_said(search), "tried": Table(*search_rows(search))}
        if search
        else None,
        pictures=pictures,
        recipe_text=text,
        environment=environment,
    )
    write_text(report / PAGE, page)
    return report / PAGE


def _said(content: dict[str, Any]) -> str:
    clips = content["calibration"].get("clips", 0)
    sets = ", ".join(content["dense"]["datasets"])
    dense = content["dense"]
    size = f"{dense['encoder_params'] / 1e6:.3f} M"
    return (
        f"Calibration: {clips} clips. Test sets: {sets}. The dense encoder has {size} parameters "
        f"and a WER of {dense['wer']:.2f} %."
    )
