"""The speed-up of each combination beside its bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from liteasr.plots import STYLES, save_png

__all__ = ["speed_up_plot"]

_KINDS = {
    "eager": ("encoder", STYLES[0]),
    "compiled": ("encoder, compiled", STYLES[1]),
    "transcription": ("whole transcription", STYLES[2]),
    "graphs": ("encoder, CUDA graphs", STYLES[3]),
}


class _Row(NamedTuple):
    """One combination: what it is called, how it is drawn, and its record."""

    label: str
    kind: str
    record: Mapping[str, Any]


def speed_up_plot(
    content: Mapping[str, Any], labels: Mapping[str, Sequence[str]], path: str | Path
) -> None:
    """A row a combination: the speed-up as a mark, the quartiles of its rounds as a line.

    Dashed lines are no speed-up at all and the FLOP ratio, its bound. What was skipped is left out.

    Args:
        content: Content of the JSON file.
        labels: Names of the records of ``encoder`` and ``transcription``.
        path: File to write.
    """
    rows = _rows(content, labels)
    figure = Figure(figsize=(9, 1.5 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(rows):
        _draw(axes, index, row)
    bound = _flop_ratio(content)
    _draw_bounds(axes, bound)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("speed-up over dense (line: quartiles of the rounds)")
    ends = [value for row in rows for value in _ends(row.record)]
    low, high = min([1.0, *ends]), max([1.0, bound, *ends])
    room = 0.06 * (high - low) + 0.02
    axes.set_xlim(low - room, high + room)
    handles = [_handle(kind) for kind in dict.fromkeys(row.kind for row in rows)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    save_png(figure, path)


def _rows(content: Mapping[str, Any], labels: Mapping[str, Sequence[str]]) -> list[_Row]:
    rows = [
        _Row(label, record["mode"], record)
        for label, record in zip(labels["encoder"], content["encoder"], strict=True)
        if not record["skipped"]
    ]
    records = zip(labels["transcription"], content["transcription"], strict=True)
    return rows + [
        _Row(label, "transcription", record) for label, record in records if not record["skipped"]
    ]


def _flop_ratio(content: Mapping[str, Any]) -> float:
    dense, lite = (content["models"][name]["encoder_flops"] for name in ("dense", "lite"))
    return float(dense / lite)


def _ends(record: Mapping[str, Any]) -> tuple[float, float, float]:
    by_round = record["by_round"]
    return by_round["lower_quartile"], record["speed_up"], by_round["upper_quartile"]


def _draw(axes: Axes, index: int, row: _Row) -> None:
    _, style = _KINDS[row.kind]
    low, middle, high = _ends(row.record)
    axes.plot([low, high], [index, index], color=style.color, linewidth=1.8)
    axes.plot([middle], [index], color=style.color, marker=style.marker, markersize=7)
    said = f"{middle:.2f}"
    if "efficiency" in row.record:
        said += f"  ({100 * row.record['efficiency']:.0f} % of FLOP ratio)"
    axes.annotate(
        said,
        (1.02, index),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=9,
        annotation_clip=False,
    )


def _draw_bounds(axes: Axes, bound: float) -> None:
    # Away from each other, for they may be near.
    sides = ("right", "left") if bound >= 1 else ("left", "right")
    names = ((1.0, "dense"), (bound, f"FLOP ratio {bound:.2f}"))
    for (value, said), side in zip(names, sides, strict=True):
        axes.axvline(value, color="#000000", linestyle="--", linewidth=1.0, zorder=1)
        axes.annotate(
            said,
            (value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha=side,
            va="bottom",
            fontsize=9,
        )


def _handle(kind: str) -> Line2D:
    said, style = _KINDS[kind]
    return Line2D(
        [], [], color=style.color, marker=style.marker, linewidth=1.8, markersize=7, label=said
    )
