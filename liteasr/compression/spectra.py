"""What each rank of each layer would leave out: a record for plots, small enough to keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Spectra", "SpectrumCurve"]

_POINTS = 64
_DIGITS = 6


class SpectrumCurve(NamedTuple):
    """What is left out at some ranks of one layer, from rank 0 to all of them."""

    ranks: list[int]
    left_out: list[float]


@dataclass(frozen=True)
class Spectra:
    """Curves of all layers; the content of ``spectra.json``.

    Attributes:
        unit: What is counted, as it stands at an axis.
        layers: Full name of a linear layer → its curve.

    Example:
        >>> spectra = Spectra.of({"fc1": torch.tensor([4.0, 2.0, 1.0])}, "cost", {"fc1": 2})
        >>> spectra.layers["fc1"]
        SpectrumCurve(ranks=[0, 1, 2, 3], left_out=[7.0, 3.0, 1.0, 0.0])
    """

    unit: str
    layers: dict[str, SpectrumCurve]

    @classmethod
    def of(cls, spectra: Mapping[str, Tensor], unit: str, ranks: Mapping[str, int]) -> Spectra:
        """Thin spectra out to some dozens of ranks each, the chosen one among them.

        Args:
            spectra: Layer → values, descending, (R,).
            unit: What they count.
            ranks: Chosen rank of each layer that has one.
        """
        return cls(unit, {name: _curve(one, ranks.get(name)) for name, one in spectra.items()})

    def to_json(self) -> str:
        """Text of ``spectra.json``."""
        layers = {name: curve._asdict() for name, curve in self.layers.items()}
        return json.dumps({**asdict(self), "layers": layers}) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Spectra:
        """Read ``spectra.json``.

        Raises:
            ValueError: If the file is not one, named.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            curves = {name: SpectrumCurve(**one) for name, one in data["layers"].items()}
            return cls(data["unit"], curves)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} holds no spectra: {error}") from error


def _curve(values_R: Tensor, rank: int | None) -> SpectrumCurve:
    values_R = values_R.detach().cpu().double()
    # Summed from the small end, so that the tail keeps its digits.
    tails = torch.cat([values_R.flip(0).cumsum(0).flip(0), values_R.new_zeros(1)])
    size = len(values_R)
    ranks = {round(size * point / _POINTS) for point in range(_POINTS + 1)}
    chosen = sorted(ranks | ({rank} if rank is not None and rank <= size else set()))
    return SpectrumCurve(chosen, [float(f"{float(tails[one]):.{_DIGITS}g}") for one in chosen])
