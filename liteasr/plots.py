"""Plots of results, legible in print without colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, NullLocator

from liteasr.files import atomic_path

__all__ = ["STYLES", "LineStyle", "pareto_plot", "save_png"]


class LineStyle(NamedTuple):
    """A line that is told apart without its colour too."""

    color: str
    marker: str
    line: Any


# Colours of Okabe and Ito that are dark enough for lines; black is the dense encoder's.
STYLES = (
    LineStyle("#0072B2", "o", "-"),
    LineStyle("#D55E00", "s", (0, (6, 1.5, 1.5, 1.5))),
    LineStyle("#009E73", "^", (0, (1.5, 1.5))),
    LineStyle("#CC79A7", "D", (0, (8, 2))),
    LineStyle("#E69F00", "v", (0, (6, 1.5, 1.5, 1.5, 1.5, 1.5))),
    LineStyle("#56B4E9", "P", (0, (3, 2))),
)
_DENSE = "#000000"

_COLLAPSE = 3.0
"""WER above this many times that of the dense encoder is a collapse."""

_WER_TICKS = (
    1,
    1.5,
    2,
    2.5,
    3,
    4,
    5,
    6,
    8,
    10,
    12,
    15,
    17.5,
    20,
    25,
    30,
    40,
    50,
    70,
    100,
    150,
    200,
)


def pareto_plot(results: Mapping[str, Any], path: str | Path) -> None:
    """WER and error of the encoder over its size, one line an entry, as a PNG of 150 dpi.

    Results that reached no size, or have no WER, are left out of the panel. If a method collapses
    (more than three times the dense WER), the WER axis is logarithmic, so that the good ones stay
    apart.

    Args:
        results: ``dense`` and ``results`` as in ``compare.json``.
        path: File to write.
    """
    dense = results["dense"]
    figure = Figure(figsize=(10, 4.6), layout=ConstrainedLayoutEngine(wspace=0.06))
    wer_axes, error_axes = figure.subplots(1, 2)
    for axes in (wer_axes, error_axes):
        axes.set_xlabel("encoder parameters, M")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    wer_axes.set_ylabel("WER, % (mean of sets)")
    error_axes.set_ylabel("relative error of the encoder's output")
    _draw(wer_axes, results["results"], "wer")
    _draw(error_axes, results["results"], "encoder_relative_error")
    _draw_dense_wer(wer_axes, dense)
    _scale_wer(wer_axes, [dense["wer"], *_values(results["results"], "wer")])
    _scale_error(error_axes, _values(results["results"], "encoder_relative_error"))
    _draw_dense_size(error_axes, dense)
    handles, labels = wer_axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=6, frameon=False, handlelength=4.5
    )
    save_png(figure, path)


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG of 150 dpi, whole or not at all; the same bytes for the same figure.

    Args:
        figure: The figure.
        path: File to write.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def _values(results: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [one[key] for one in results if one[key] is not None]


def _draw(axes: Axes, results: Sequence[Mapping[str, Any]], key: str) -> None:
    """One line an entry, from its smallest encoder to its largest."""
    for index, name in enumerate(dict.fromkeys(one["name"] for one in results)):
        style = STYLES[index % len(STYLES)]
        # A second round of colours is told apart by hollow markers.
        face = style.color if index < len(STYLES) else "white"
        points = sorted(
            (one["encoder_params"] / 1e6, one[key])
            for one in results
            if one["name"] == name and one[key] is not None
        )
        axes.plot(
            [size for size, _ in points],
            [value for _, value in points],
            color=style.color,
            marker=style.marker,
            linestyle=style.line,
            markerfacecolor=face,
            markersize=6.5,
            linewidth=1.6,
            label=name,
        )


def _draw_dense_wer(axes: Axes, dense: Mapping[str, Any]) -> None:
    if dense["wer"] is None:
        return
    size = dense["encoder_params"] / 1e6
    axes.axhline(dense["wer"], color=_DENSE, linestyle="--", linewidth=1.0, zorder=1)
    axes.plot(
        [size],
        [dense["wer"]],
        color=_DENSE,
        marker="*",
        markersize=12,
        linestyle="--",
        linewidth=1.0,
        label=f"dense: {dense['wer']:.1f} % at {size:.2f} M",
    )


def _draw_dense_size(axes: Axes, dense: Mapping[str, Any]) -> None:
    """The dense encoder has no error, for which a logarithmic axis has no place."""
    size = dense["encoder_params"] / 1e6
    axes.axvline(size, color=_DENSE, linestyle="--", linewidth=1.0, zorder=1)
    axes.annotate(
        "dense: 0",
        (size, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        rotation=90,
        fontsize="small",
    )


def _scale_wer(axes: Axes, values: Sequence[float | None]) -> None:
    """Linear, or logarithmic with plain numbers where a method collapses."""
    wers = [value for value in values if value is not None]
    dense = values[0]
    if not wers:
        return
    if not dense or min(wers) <= 0 or max(wers) <= _COLLAPSE * dense:
        # At least a point high: nobody cares for less, and all may be equal.
        room = max(0.12 * (max(wers) - min(wers)), 0.5)
        axes.set_ylim(min(wers) - room, max(wers) + room)
        return
    low, high = min(wers) / 1.08, max(wers) * 1.12
    axes.set_ylim(low, high)
    _make_logarithmic(axes, FixedLocator([tick for tick in _WER_TICKS if low <= tick <= high]))
    axes.set_ylabel("WER, % (mean of sets), log scale")


def _scale_error(axes: Axes, errors: Sequence[float]) -> None:
    if errors and min(errors) > 0:
        _make_logarithmic(axes, LogLocator(subs=(1.0, 2.0, 5.0)))


def _make_logarithmic(axes: Axes, ticks: Locator) -> None:
    """With plain numbers at the ticks."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticks)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
