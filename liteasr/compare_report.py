"""What a comparison shows: the best of each size, a table for the screen and one in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from liteasr.config import parse_size
from liteasr.console import table

__all__ = [
    "CAPTION",
    "best_entries",
    "comparison_markdown",
    "comparison_table",
    "details_rows",
    "grid_rows",
    "not_reached",
    "search_rows",
    "search_said",
]

Result = Mapping[str, Any]

TIE = 0.05
"""WER, in points, that makes no difference between two entries."""

CAPTION = "WER, % (relative error of the encoder's output); * best of its size"
TITLE = "WER, % (encoder error), * best"


def best_entries(results: Sequence[Result], sizes: Sequence[str]) -> dict[str, str | None]:
    """The entry with the least WER at each size; of those that tie, the one of least error.

    Args:
        results: Results of all entries, as in ``compare.json``.
        sizes: Sizes as the recipe has them.

    Returns:
        Size → name of the entry, ``None`` where no entry reached it.

    Example:
        >>> results = [
        ...     {"name": "a", "wanted_params": 7, "wer": 20.00, "encoder_relative_error": 0.2},
        ...     {"name": "b", "wanted_params": 7, "wer": 20.04, "encoder_relative_error": 0.1},
        ... ]
        >>> best_entries(results, ["7", "6"])
        {'7': 'b', '6': None}
    """
    best: dict[str, str | None] = {}
    for size in sizes:
        there = [one for one in _at(results, size) if one["wer"] is not None]
        least = min((one["wer"] for one in there), default=0.0)
        ties = [one for one in there if one["wer"] <= least + TIE + 1e-9]
        best[size] = min(ties, key=_by_error)["name"] if ties else None
    return best


def _at(results: Sequence[Result], size: str) -> list[Result]:
    return [one for one in results if one["wanted_params"] == round(parse_size(size))]


def _by_error(result: Result) -> tuple[float, float]:
    error = result["encoder_relative_error"]
    return (math.inf if error is None else error), result["wer"]


def comparison_table(content: Mapping[str, Any], sizes: Sequence[str]) -> Table:
    """The table of sizes and entries, for the screen."""
    columns, rows = grid_rows(content, sizes)
    return table(TITLE, columns, rows)


def grid_rows(
    content: Mapping[str, Any], sizes: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for the dense encoder and for each size."""
    dense, results = content["dense"], content["results"]
    names = list(dict.fromkeys(one["name"] for one in results))
    whole = f"dense, {dense['encoder_params'] / 1e6:.2f}M"
    rows = [[whole, *(f"{dense['wer']:.2f}" for _ in names)]]
    for size in sizes:
        by_name = {one["name"]: one for one in _at(results, size)}
        marks = [content["best"][size] == name for name in names]
        cells = [_cell(by_name[name], mark) for name, mark in zip(names, marks, strict=True)]
        rows.append([size, *cells])
    return ["encoder", *names], rows


def _cell(result: Result, is_best: bool) -> str:
    if result["wer"] is None:
        return "not reached"
    error = result["encoder_relative_error"]
    shown = "" if error is None else f" ({error:.4f})"
    return f"{result['wer']:.2f}{shown}{'*' if is_best else ''}"


def comparison_markdown(content: Mapping[str, Any], sizes: Sequence[str], model: str) -> str:
    """The text of ``report/compare.md``.

    Args:
        content: Content of ``compare.json``.
        sizes: Sizes as the recipe has them.
        model: Hub id or folder of the checkpoint.
    """
    clips = content["calibration"].get("clips", 0)
    sets = ", ".join(content["dense"]["datasets"])
    parts = [f"# {Path(model).name}, compressed", f"Calibration: {clips} clips."]
    if content["results"]:
        parts += [
            f"Test sets: {sets}. Cells: {CAPTION.replace('*', chr(92) + '*')}.",
            _markdown_table(*grid_rows(content, sizes)),
            "![WER and error of the encoder over its size](compare.png)",
            "## Each result",
            _markdown_table(*details_rows(content)),
        ]
    reasons = not_reached(content)
    if reasons:
        parts += ["## Not reached", "\n".join(f"- {reason}" for reason in reasons)]
    if content["search"] is not None:
        parts += ["## Search", *_search(content["search"])]
    return "\n\n".join(parts) + "\n"


def not_reached(content: Mapping[str, Any]) -> list[str]:
    """Entries that did not reach a size, and why."""
    return [
        f"{one['name']}, {one['wanted_params'] / 1e6:.2f}M: {one['reason']}"
        for one in content["results"]
        if one["reason"] is not None
    ]


def details_rows(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """WER by set, and what was reached for what was wanted."""
    sets = list(content["dense"]["datasets"])
    columns = ["entry", "wanted, M", "encoder, M", *(f"{name}, %" for name in sets), "mean, %"]
    rows = [_detail("dense", content["dense"], sets)]
    rows += [
        _detail(one["name"], one, sets) for one in content["results"] if one["wer"] is not None
    ]
    return columns, rows


def _detail(name: str, result: Result, sets: Sequence[str]) -> list[str]:
    wanted = f"{result['wanted_params'] / 1e6:.2f}" if "wanted_params" in result else ""
    wers = [f"{result['datasets'][one]:.2f}" for one in sets]
    return [name, wanted, f"{result['encoder_params'] / 1e6:.3f}", *wers, f"{result['wer']:.2f}"]


def _search(search: Mapping[str, Any]) -> list[str]:
    parts = [search_said(search), _markdown_table(*search_rows(search))]
    if search["result"] is not None:
        parts.append("![WER and error of the sizes tried](search.png)")
    return parts


def search_said(search: Mapping[str, Any]) -> str:
    """What the search was for and what it found, in a sentence or two."""
    dense, found = search["dense"], search["result"]
    sets = ", ".join(dense["datasets"])
    said = (
        f"The smallest encoder by {search['name']} that loses at most "
        f"{search['max_wer_increase']:g} points of WER on {sets} (dense: {dense['wer']:.2f} %): "
    )
    if found is None:
        return said + "none of those tried."
    said += f"{found['encoder_params'] / 1e6:.3f} M parameters."
    if found["wer"] is not None:
        said += f" Its WER on the test sets is {found['wer']:.2f} %."
    return said


def search_rows(search: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The sizes tried and their WER."""
    rows = []
    for one in search["tried"]:
        reached = "–" if one["encoder_params"] is None else f"{one['encoder_params'] / 1e6:.3f}"
        wer = "–" if one["wer"] is None else f"{one['wer']:.2f}"
        accepted = "yes" if one["accepted"] else "no"
        rows.append([f"{one['wanted_params'] / 1e6:.3f}", reached, wer, accepted])
    return ["wanted, M", "encoder, M", "WER, %", "near enough"], rows


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('*', chr(92) + '*') for cell in line)} |" for line in lines
    )
