"""The published rule: from the spectrum of one layer to its rank.

A spectrum is the list of variances of a layer's output along its principal components, in
descending order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from liteasr.compression.shapes import LinearShape

__all__ = ["ThresholdRule", "kept_energy", "rank_for_energy"]


def kept_energy(spectrum: Tensor, rank: int) -> float:
    """Share of the variance in the first ``rank`` components, in 0…1; 1 for a constant output.

    >>> kept_energy(torch.tensor([3.0, 1.0]), rank=1)
    0.75
    """
    total = float(spectrum.sum())
    return float(spectrum[:rank].sum()) / total if total > 0 else 1.0


def rank_for_energy(spectrum: Tensor, threshold: float, multiple: int = 16) -> int | None:
    """The first multiple whose kept energy exceeds the threshold (published ``compress.py``).

    Args:
        spectrum: Variances, descending, (R,).
        threshold: Energy to exceed, in 0…1.
        multiple: Ranks tried are its multiples below R.

    Returns:
        The rank, or ``None`` where no multiple passes.

    >>> rank_for_energy(torch.tensor([8.0, 1.0, 0.5, 0.4, 0.1]), threshold=0.85, multiple=2)
    2
    """
    energy = torch.cumsum(spectrum.double(), dim=0)
    if not float(energy[-1]) > 0:
        return None
    candidates = range(multiple, len(spectrum), multiple)
    return next((rank for rank in candidates if energy[rank - 1] / energy[-1] > threshold), None)


@dataclass(frozen=True)
class ThresholdRule:
    """The published rank rule (arXiv 2502.20583, section 3.1 and ``compress.py``).

    A layer gets the first multiple of ``multiple`` whose kept energy exceeds the threshold. It
    stays dense where none does, where that rank is above the cap, or where it would not save
    parameters.

    Attributes:
        attention: Threshold of q, k, v and out projections.
        mlp: Threshold of fc1 and fc2.
        multiple: Ranks are multiples of this.
        max_rank_attention: Cap for attention layers, as a share of the encoder's width.
        max_rank_mlp: Cap for MLP layers, as a share of the encoder's width.
    """

    attention: float = 0.99
    mlp: float = 0.999
    multiple: int = 16
    max_rank_attention: float = 0.5
    max_rank_mlp: float = 0.8

    def rank(self, spectrum: Tensor, shape: LinearShape, *, mlp: bool) -> int | None:
        """Rank of one layer, or ``None`` for dense.

        Args:
            spectrum: Variances of its output, descending.
            shape: Its widths.
            mlp: Whether it belongs to the MLP.
        """
        threshold = self.mlp if mlp else self.attention
        width = min(shape.in_features, shape.out_features)
        cap = (self.max_rank_mlp if mlp else self.max_rank_attention) * width
        rank = rank_for_energy(spectrum, threshold, self.multiple)
        return rank if rank is not None and rank <= cap and shape.saves(rank) else None
