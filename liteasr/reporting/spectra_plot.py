"""What each rank of each layer would have left out, and where the cut was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from liteasr.compression.plan import CompressionPlan, LayerPlan
from liteasr.compression.spectra import Spectra, SpectrumCurve
from liteasr.plots import STYLES, LineStyle, save_png
from liteasr.reporting.names import LINEARS, place_of, short_name

__all__ = ["spectra_plot"]

_FLOOR = 0.01
"""The axis ends at this share of the least that any cut leaves out."""


def spectra_plot(spectra: Spectra, plan: CompressionPlan, path: str | Path) -> None:
    """What each rank would leave out: a panel a kind of layer, a curve a layer, the cut marked.

    Args:
        spectra: The curves.
        plan: The chosen ranks; a layer without one is a thin curve without a mark.
        path: File to write.
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).flat
    places = {place: name for name in spectra.layers if (place := place_of(name))}
    count = 1 + max((number for number, _ in places), default=0)
    for axes, linear in zip(panels, LINEARS, strict=True):
        axes.set_title(short_name(linear), fontsize=10)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        for number in range(count):
            name = places.get((number, linear))
            if name is not None:
                _draw(axes, spectra.layers[name], plan.layers.get(name), _style(number, count))
        if not plan.pivoted:
            _break_even(axes, plan, linear)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _scale(figure.axes[0], spectra, plan)
    dotted = "" if plan.pivoted else "; dotted: a low-rank layer above is no smaller"
    figure.supxlabel(f"rank (marks: chosen{dotted})", fontsize=10)
    figure.supylabel(f"left out: {spectra.unit}", fontsize=10)
    if count <= len(STYLES):
        handles = [_handle(number, count) for number in range(count)]
        figure.legend(
            handles=handles, loc="outside upper center", ncols=count, frameon=False, handlelength=4
        )
    else:
        colours = ScalarMappable(Normalize(0, count - 1), _depths())
        figure.colorbar(colours, ax=figure.axes, label="encoder layer", pad=0.01)
    save_png(figure, path)


def _draw(axes: Axes, curve: SpectrumCurve, layer: LayerPlan | None, style: LineStyle) -> None:
    rank = None if layer is None else layer.rank
    width = 1.4 if rank is not None else 0.7
    # A logarithmic axis has no place for nothing left out, which full rank gives.
    points = [(x, y) for x, y in zip(*curve, strict=True) if y > 0]
    ranks, left_out = [x for x, _ in points], [y for _, y in points]
    axes.plot(ranks, left_out, color=style.color, linestyle=style.line, linewidth=width)
    if rank in curve.ranks:
        cut = curve.left_out[curve.ranks.index(rank)]
        axes.plot(
            [rank],
            [cut],
            color=style.color,
            marker=style.marker,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.7,
            linestyle="none",
            zorder=3,
        )


def _style(number: int, count: int) -> LineStyle:
    """A line of its own for each of a few layers; for many, darker is nearer to the input."""
    if count <= len(STYLES):
        return STYLES[number]
    red, green, blue, _ = _depths()(number / (count - 1))
    return LineStyle(to_hex((red, green, blue)), "o", "-")


def _depths() -> Colormap:
    """Viridis without its lightest end, which is lost on paper."""
    return ListedColormap(colormaps["viridis"](np.linspace(0, 0.88, 256)))


def _handle(number: int, count: int) -> Line2D:
    style = _style(number, count)
    return Line2D(
        [],
        [],
        color=style.color,
        linestyle=style.line,
        marker=style.marker,
        markersize=5,
        label=f"layer {number}",
    )


def _break_even(axes: Axes, plan: CompressionPlan, linear: str) -> None:
    """The rank from which on two factors have as many parameters as the dense layer."""
    for name, layer in plan.layers.items():
        place = place_of(name)
        if place is not None and place[1] == linear:
            inside, outside = layer.in_features, layer.out_features
            axes.axvline(
                inside * outside / (inside + outside), color="#555555", linestyle=":", linewidth=1
            )
            return


def _scale(axes: Axes, spectra: Spectra, plan: CompressionPlan) -> None:
    """Logarithmic; what is far below every cut is not worth the room."""
    drawn = {name: curve for name, curve in spectra.layers.items() if place_of(name)}
    most = max((max(curve.left_out) for curve in drawn.values()), default=1.0)
    cuts = [
        curve.left_out[curve.ranks.index(rank)]
        for name, rank in plan.ranks.items()
        if (curve := drawn.get(name)) is not None and rank in curve.ranks
    ]
    least = min((cut for cut in cuts if cut > 0), default=most)
    if most > 0:
        axes.set_yscale("log")
        axes.set_ylim(max(_FLOOR * min(least, 0.1 * most), 1e-9 * most), 1.5 * most)
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_minor_locator(NullLocator())
