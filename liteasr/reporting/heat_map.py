"""Rank and kept energy of every layer, legible for 4 encoder layers and for 32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from liteasr.compression.plan import CONVOLUTION, CompressionPlan, LayerPlan
from liteasr.plots import save_png
from liteasr.reporting.names import LINEARS, place_of, short_name

__all__ = ["heat_map"]

_COLUMNS = 16
"""Encoder layers side by side; more go into a second row, so that the numbers stay legible."""

_DARK = 0.5
"""Luminance of a cell below which its number is white."""

Cell = tuple[float, str]


def heat_map(plan: CompressionPlan, path: str | Path) -> None:
    """Rank and kept energy of every layer as two heat maps, dense layers hatched.

    Below stand the rank of the second convolution and the dimensions of reduced heads.

    Args:
        plan: What was decided.
        path: File to write.
    """
    layers = {place: one for name, one in plan.layers.items() if (place := place_of(name))}
    count = 1 + max((number for number, _ in layers), default=0)
    bands = math.ceil(count / _COLUMNS)
    width = math.ceil(count / bands)
    cell = min(1.0, 7.2 / width)
    figure = Figure(figsize=(cell * width + 1.7, 4.6 * bands), layout="constrained")
    grid = figure.subplots(2 * bands, 1, squeeze=False)[:, 0]
    kept = [one.kept_energy for one in layers.values() if one.rank is not None]
    scales = (
        (_rank_cell, "rank (colour: share of the full rank)", Normalize(0, 1)),
        (_energy_cell, "kept energy, % of the output's variance", _energy_scale(kept)),
    )
    for part, (cell_of, title, scale) in enumerate(scales):
        axes = grid[part * bands : (part + 1) * bands]
        cells = {place: cell_of(one) for place, one in layers.items() if one.rank is not None}
        for band, one in enumerate(axes):
            numbers = range(band * width, min(count, (band + 1) * width))
            _heat_map(one, cells, numbers, width, scale)
            one.set_xticks(range(len(numbers)), [_column(plan, n) for n in numbers], fontsize=9)
        axes[0].set_title(title, fontsize=10, loc="left")
        axes[-1].set_xlabel("encoder layer")
        colours = ScalarMappable(scale, _blues())
        bar = figure.colorbar(colours, ax=list(axes), format=FuncFormatter(_percent), pad=0.01)
        bar.ax.tick_params(labelsize=8)
    if notes := _notes(plan):
        figure.supxlabel(notes, fontsize=9, x=0.01, ha="left")
    save_png(figure, path)


def _column(plan: CompressionPlan, number: int) -> str:
    """Number of an encoder layer, and the dimensions of its heads where they are reduced."""
    for name, one in plan.attention.items():
        if place_of(f"{name}.q_proj") == (number, "q_proj") and one.qk_dim is not None:
            return f"{number}\n{one.qk_dim} / {one.v_dim}"
    return str(number)


def _notes(plan: CompressionPlan) -> str:
    notes = []
    if plan.head_dims:
        one = next(iter(plan.attention.values()))
        full = one.embed_dim // one.num_heads
        notes.append(f"below a layer: dimensions of a head, scores / values, of {full}")
    for name, layer in plan.layers.items():
        if name.endswith(CONVOLUTION) and layer.rank is not None:
            full = min(layer.in_features, layer.out_features)
            notes.append(f"second convolution: rank {layer.rank} of {full}")
    return "\n".join(notes)


def _blues() -> Colormap:
    """From nearly white to a blue on which black can still be told from white; falls in grey."""
    return ListedColormap(colormaps["Blues"](np.linspace(0.04, 0.8, 256)))


def _energy_scale(kept: Sequence[float]) -> Normalize:
    low = min(kept, default=0.9)
    return Normalize(min(math.floor(low * 20) / 20, 0.95), 1)


def _percent(value: float, _position: object = None) -> str:
    return f"{100 * value:.3g} %"


def _rank_cell(layer: LayerPlan) -> Cell:
    rank = layer.rank or 0
    return rank / min(layer.in_features, layer.out_features), str(rank)


def _energy_cell(layer: LayerPlan) -> Cell:
    # Cut, not rounded: 100 would say that nothing was lost.
    return layer.kept_energy, f"{math.floor(1000 * layer.kept_energy) / 10:.1f}"


def _heat_map(
    axes: Axes,
    cells: Mapping[tuple[int, str], Cell],
    numbers: range,
    width: int,
    scale: Normalize,
) -> None:
    """One row a kind of layer, one column an encoder layer."""
    colours, size = _blues(), 9 if width <= 12 else 7.5
    for column, number in enumerate(numbers):
        for row, linear in enumerate(LINEARS):
            cell = cells.get((number, linear))
            _box(axes, (column, row), None if cell is None else colours(scale(cell[0])))
            text = "dense" if cell is None else cell[1]
            label = axes.text(column, row, text, ha="center", va="center", fontsize=size)
            if cell is None:
                label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
            elif _luminance(colours(scale(cell[0]))) < _DARK:
                label.set_color("white")
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(len(LINEARS) - 0.5, -0.5)
    axes.set_yticks(range(len(LINEARS)), [short_name(linear) for linear in LINEARS], fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _box(axes: Axes, centre: tuple[int, int], face: Sequence[float] | None) -> None:
    """A cell of a colour, or hatched."""
    corner = (centre[0] - 0.5, centre[1] - 0.5)
    look: dict[str, Any] = {"facecolor": face, "edgecolor": "white", "linewidth": 1}
    if face is None:
        look = {"facecolor": "white", "edgecolor": "#999999", "linewidth": 0, "hatch": "////"}
    axes.add_patch(Rectangle(corner, 1, 1, **look))


def _luminance(colour: Sequence[float]) -> float:
    red, green, blue = colour[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue
