"""How training went: losses and validation WER over optimizer steps."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from liteasr.plots import STYLES, save_png

__all__ = ["Curve", "LearningCurves", "curves_plot", "read_curves"]

Curve = Mapping[int, float]
"""Optimizer step → value."""

_TRAIN, _VAL, _TOTAL = "train/", "val/wer", "train/loss"


@dataclass(frozen=True)
class LearningCurves:
    """What training logged.

    Attributes:
        losses: Loss → curve; ``loss`` is the weighted sum.
        wers: Validation set → curve in percent; ``mean of sets`` where there are several.
        before: Validation WER before the first step, if it was measured.
        kept: Step of the weights that were kept.
        kept_wer: Their validation WER.
    """

    losses: Mapping[str, Curve]
    wers: Mapping[str, Curve]
    before: float | None = None
    kept: int | None = None
    kept_wer: float | None = None


def read_curves(
    files: Sequence[Path],
    before: float | None = None,
    kept: int | None = None,
    kept_wer: float | None = None,
) -> LearningCurves | None:
    """Curves from what Lightning's CSV logger wrote.

    Args:
        files: The tables, of interrupted attempts first; where steps overlap, later ones count.
        before: Validation WER before the first step.
        kept: Step of the weights that were kept.
        kept_wer: Their validation WER.

    Returns:
        The curves; ``None`` if there are none of training.

    Raises:
        ValueError: If a table holds something else than numbers.
    """
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for file in files:
        with file.open(encoding="utf-8", newline="") as rows:
            for row in csv.DictReader(rows):
                for name, value in row.items():
                    if value and name.startswith((_TRAIN, _VAL)):
                        # Lightning counts from 0; here it is steps that were taken.
                        curves[name][int(row["step"]) + 1] = float(value)
    losses = {_short(name): curve for name, curve in curves.items() if name.startswith(_TRAIN)}
    if not losses:
        return None
    sets = {name: curve for name, curve in curves.items() if name.startswith(f"{_VAL}/")}
    wers = {name.removeprefix(f"{_VAL}/"): curve for name, curve in sets.items()}
    if len(sets) != 1 and _VAL in curves:
        wers["mean of sets"] = curves[_VAL]
    return LearningCurves(losses, wers, before, kept, kept_wer)


def _short(name: str) -> str:
    if name == _TOTAL:
        return "loss"
    short = name.removeprefix(_TRAIN).removesuffix("_loss").replace("_", " ")
    return "CTC" if short == "ctc" else short


def curves_plot(curves: LearningCurves, path: str | Path) -> None:
    """Losses on the left, validation WER on the right with a mark at the weights that were kept.

    Args:
        curves: What to draw.
        path: File to write.
    """
    figure = Figure(figsize=(10 if curves.wers else 5.5, 3.8), layout="constrained")
    if curves.wers:
        loss_axes, wer_axes = figure.subplots(1, 2)
        _draw_wers(wer_axes, curves)
    else:
        loss_axes = figure.subplots()
    _draw_losses(loss_axes, curves.losses)
    save_png(figure, path)


def _draw_losses(axes: Axes, losses: Mapping[str, Curve]) -> None:
    whole = losses.get("loss", {})
    axes.plot(list(whole), list(whole.values()), color="black", linewidth=1.1, label="loss")
    parts = {name: curve for name, curve in losses.items() if name != "loss"}
    for style, (name, curve) in zip(STYLES, parts.items(), strict=False):
        line = {"color": style.color, "linestyle": style.line, "linewidth": 1.1}
        axes.plot(list(curve), list(curve.values()), label=name, **line)
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    _finish(axes, has_legend=bool(parts))


def _draw_wers(axes: Axes, curves: LearningCurves) -> None:
    main = "mean of sets" if "mean of sets" in curves.wers else next(iter(curves.wers))
    for style, (name, curve) in zip(
        STYLES, ((n, c) for n, c in curves.wers.items() if n != main), strict=False
    ):
        line = {"color": style.color, "linestyle": style.line, "marker": style.marker}
        axes.plot(list(curve), list(curve.values()), label=name, linewidth=1, markersize=3, **line)
    points = dict(curves.wers[main])
    if curves.before is not None:
        points = {0: curves.before, **points}
    if curves.kept is not None and curves.kept_wer is not None:
        # The last weights are measured after training, which the table does not hold.
        points[curves.kept] = curves.kept_wer
    axes.plot(list(points), list(points.values()), "o-", color="black", markersize=4, label=main)
    if curves.kept is not None and curves.kept_wer is not None:
        label = f"kept: step {curves.kept}, {curves.kept_wer:.2f} %"
        ring: dict[str, Any] = {
            "markersize": 12,
            "markerfacecolor": "none",
            "color": "black",
            "linestyle": "none",
        }
        axes.plot([curves.kept], [curves.kept_wer], marker="o", label=label, **ring)
    axes.set_ylabel("validation WER, %")
    _finish(axes, has_legend=True)


def _finish(axes: Axes, *, has_legend: bool) -> None:
    axes.set_xlabel("optimizer steps")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if has_legend:
        axes.legend(frameon=False, fontsize=9)
