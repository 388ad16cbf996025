"""What the run gave: size and WER before and after, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from liteasr.plots import STYLES, save_png
from liteasr.reporting.numbers import duration, signed

__all__ = ["outcome_plot", "timings_plot"]

_DENSE = "#777777"
_AFTER = (STYLES[0], STYLES[1])


def outcome_plot(stages: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Size of the encoder as bars, and WER of each set as marks on a line of its own.

    Args:
        stages: Stage → ``encoder_params``, ``wer`` and ``datasets`` as in ``metrics.json``, those
            that were measured, ``dense`` first if it is among them.
        path: File to write.
    """
    sets = list(next(iter(stages.values()))["datasets"])
    rows = len(sets) + (len(sets) > 1)
    height = 0.9 + 0.42 * max(rows, len(stages), 3)
    figure = Figure(figsize=(10 if sets else 5.5, height), layout="constrained")
    if sets:
        size_axes, wer_axes = figure.subplots(1, 2, width_ratios=(1, 1.7))
        _wers(wer_axes, stages, sets)
    else:
        size_axes = figure.subplots()
    _sizes(size_axes, {name: stage["encoder_params"] / 1e6 for name, stage in stages.items()})
    save_png(figure, path)


def _sizes(axes: Axes, sizes: Mapping[str, float]) -> None:
    """A bar a stage, all from 0."""
    first = next(iter(sizes.values()))
    for row, (name, size) in enumerate(sizes.items()):
        colour = _DENSE if name == "dense" else _AFTER[0].color
        axes.barh(row, size, color=colour, height=0.6)
        share = "" if row == 0 else f"  ({signed(100 * (size / first - 1), 1)} %)"
        axes.text(size, row, f" {size:.2f} M{share}", va="center", fontsize=9)
    _rows(axes, list(sizes))
    axes.set_xlim(0, 1.55 * max(sizes.values()))
    axes.set_xlabel("encoder parameters, M")


def _wers(axes: Axes, stages: Mapping[str, Mapping[str, Any]], sets: Sequence[str]) -> None:
    """A row a set: the dense WER hollow, the others filled, a line between."""
    rows = [(name, {s: one["datasets"][name] for s, one in stages.items()}) for name in sets]
    if len(sets) > 1:
        rows.append(("mean of sets", {s: one["wer"] for s, one in stages.items()}))
    last = list(stages)[-1]
    for row, (_, wers) in enumerate(rows):
        axes.plot(list(wers.values()), [row] * len(wers), color="#555555", linewidth=1.2, zorder=1)
        for stage, wer in wers.items():
            axes.plot([wer], [row], **_mark(stage), label=stage if row == 0 else None)
        first = next(iter(wers.values()))
        said = f"{wers[last]:.1f}"
        if len(wers) > 1:
            said = f"{first:.1f} → {said}  ({signed(wers[last] - first, 1)})"
        axes.annotate(
            said,
            (1.02, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
    _rows(axes, [name for name, _ in rows])
    if len(sets) > 1:
        axes.axhline(len(sets) - 0.5, color="#bbbbbb", linewidth=0.8)
    most = max(max(wers.values()) for _, wers in rows)
    axes.set_xlim(0, 1.08 * most if most > 0 else 1)
    axes.set_xlabel("WER, %")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)


def _mark(stage: str) -> dict[str, Any]:
    if stage == "dense":
        return {
            "marker": "o",
            "markersize": 9,
            "markerfacecolor": "none",
            "markeredgecolor": "black",
            "markeredgewidth": 1.4,
            "linestyle": "none",
            "zorder": 4,
        }
    style = _AFTER[stage == "finetuned"]
    return {
        "marker": "D" if stage == "finetuned" else "s",
        "markersize": 6.5,
        "color": style.color,
        "linestyle": "none",
    }


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def timings_plot(seconds: Mapping[str, float], path: str | Path) -> None:
    """A bar a stage, in the order of the run.

    Args:
        seconds: Stage → seconds.
        path: File to write.
    """
    figure = Figure(figsize=(8, 0.9 + 0.42 * max(len(seconds), 2)), layout="constrained")
    axes = figure.subplots()
    minutes = max(seconds.values(), default=0.0) >= 180
    for row, spent in enumerate(seconds.values()):
        axes.barh(row, spent / (60 if minutes else 1), color=STYLES[0].color, height=0.6)
        axes.text(spent / (60 if minutes else 1), row, f" {duration(spent)}", va="center")
    _rows(axes, list(seconds))
    axes.set_xlabel("minutes" if minutes else "seconds")
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    save_png(figure, path)
