"""An MLP with fewer hidden units, and its output layer fitted to those that stay.

For ``y = W h + b`` with hidden activations ``h`` of covariance ``C``, units are taken away one
small group after another, each time those without which the best ``W`` for the rest loses least in
a metric ``G`` of ``y`` (the optimal brain surgeon of Hassibi and Stork, NIPS 1992, for columns).
Unlike a low rank this keeps the products dense and needs no second factor, which pays where the
weights have no low rank.

Tensors in, tensors out. Shape suffixes: O output width, H hidden units, S units that stay.
Everything is fp64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from liteasr.compression.metric import metric_root

__all__ = ["Elimination", "UnitFactors", "eliminate_units", "fit_to_units"]

_RIDGE = 1e-3
"""Added to a covariance, as a share of its mean variance: draws the fit to the weights there were,
where the calibration clips do not say otherwise."""

_GROUPS = 384
"""Steps in which all units would be taken away: groups of 4 in Whisper's tiny, 13 in large."""


@dataclass
class UnitFactors:
    """Parameters of one of the two linear layers of an MLP with fewer hidden units.

    Attributes:
        weight: (out, in) of :class:`torch.nn.Linear`, one of them the units that stay.
        bias: (out,).
    """

    weight: Tensor
    bias: Tensor

    def parameters(self) -> dict[str, Tensor]:
        """What is in the layer, by the name of its parameter there."""
        return {"weight": self.weight, "bias": self.bias}


@dataclass
class Elimination:
    """The order in which hidden units go.

    Attributes:
        order_H: Units, those that go first in front.
        damage_H: Cost of being without the first n + 1 of them, ascending.
    """

    order_H: Tensor
    damage_H: Tensor

    def kept(self, units: int) -> Tensor:
        """Which units stay, (S,), ascending."""
        kept_S: Tensor = self.order_H[len(self.order_H) - units :].sort().values
        return kept_S

    def damage(self, units: int) -> float:
        """Cost of keeping so many."""
        gone = len(self.order_H) - units
        return float(self.damage_H[gone - 1]) if gone else 0.0


def eliminate_units(
    weight_OH: Tensor, covariance_HH: Tensor, metric_OO: Tensor, damping: float = 0.1
) -> Elimination:
    """Order the hidden units of an MLP by what the best fit to the others loses without them.

    Args:
        weight_OH: ``W``.
        covariance_HH: ``C``.
        metric_OO: ``G``.
        damping: Added to ``G``, as a share of its mean eigenvalue.

    Example:
        >>> eliminate_units(
        ...     torch.eye(3), torch.diag(torch.tensor([4.0, 1.0, 2.0])), torch.eye(3), 0.0
        ... ).order_H
        tensor([1, 2, 0])
    """
    count = weight_OH.shape[1]
    weight_OH = metric_root(metric_OO, damping) @ weight_OH.to(covariance_HH).double()
    precision_HH = torch.linalg.inv(_with_ridge(covariance_HH))
    stays_H = torch.ones(count, dtype=torch.bool, device=weight_OH.device)
    size = max(1, count // _GROUPS)
    order, damages, total = [], [], torch.zeros((), dtype=torch.float64)
    for left in range(count, 0, -size):
        alone_H = weight_OH.square().sum(0) / precision_HH.diagonal()
        alone_H[~stays_H] = torch.inf
        gone = alone_H.topk(min(size, left), largest=False).indices
        # W and the inverse covariance of those that stay, without these.
        pull = torch.linalg.solve(precision_HH[gone][:, gone], precision_HH[gone])
        before = weight_OH[:, gone]
        lost = (before @ torch.linalg.solve(precision_HH[gone][:, gone], before.T)).trace()
        weight_OH = weight_OH - before @ pull
        precision_HH = precision_HH - precision_HH[:, gone] @ pull
        stays_H[gone] = False
        weight_OH[:, gone] = 0.0
        precision_HH[gone] = precision_HH[:, gone] = 0.0
        precision_HH[gone, gone] = 1.0
        total = total + lost.cpu()
        order.append(gone)
        damages.append(total.expand(len(gone)))
    return Elimination(torch.cat(order).cpu(), torch.cat(damages))


def fit_to_units(
    weight_OH: Tensor,
    bias_O: Tensor,
    mean_H: Tensor,
    covariance_HH: Tensor,
    kept_S: Tensor,
) -> tuple[UnitFactors, float]:
    """The output layer that comes nearest to ``W h + b`` from some of the units.

    Args:
        weight_OH: ``W``.
        bias_O: ``b``.
        mean_H: Mean of ``h``.
        covariance_HH: ``C``.
        kept_S: Units to use.

    Returns:
        The layer, (O, S), and the share of the output's variance that it gives, in 0…1.

    Example:
        >>> twice = torch.tensor([[1.0, 1.0], [1.0, 1.0]])  # two units that always say the same
        >>> weight, zero = torch.tensor([[1.0, 2.0]]), torch.zeros(2)
        >>> layer, kept = fit_to_units(weight, zero[:1], zero, twice, torch.tensor([0]))
        >>> round(layer.weight.item(), 2), round(kept, 2)
        (3.0, 1.0)
    """
    covariance_HH = covariance_HH.double()
    weight_OH = weight_OH.to(covariance_HH)
    mean_H, kept_S = mean_H.to(covariance_HH), kept_S.to(covariance_HH.device)
    ridged_HS = _with_ridge(covariance_HH)[:, kept_S]
    fitted_OS = torch.linalg.solve(ridged_HS[kept_S], (weight_OH @ ridged_HS).T).T
    bias_O = bias_O.to(covariance_HH) + weight_OH @ mean_H - fitted_OS @ mean_H[kept_S]
    total = (weight_OH @ covariance_HH * weight_OH).sum()
    lost = total - 2 * (fitted_OS * (weight_OH @ covariance_HH[:, kept_S])).sum()
    lost = lost + (fitted_OS @ covariance_HH[kept_S][:, kept_S] * fitted_OS).sum()
    kept = 1.0 - float(lost / total) if total > 0 else 1.0
    return UnitFactors(fitted_OS, bias_O), min(1.0, max(0.0, kept))


def _with_ridge(covariance_HH: Tensor) -> Tensor:
    covariance_HH = covariance_HH.double()
    ridge = _RIDGE * covariance_HH.diagonal().mean() + torch.finfo(torch.float64).tiny ** 0.5
    ridged_HH: Tensor = covariance_HH + ridge * torch.eye(len(covariance_HH)).to(covariance_HH)
    return ridged_HH
