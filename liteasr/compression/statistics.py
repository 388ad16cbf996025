"""Streaming first and second moments: what calibration keeps instead of activations.

Shape suffixes: N vectors of a block, D their width.

Precision policy: a block is summed in the type of ``block_dtype`` (fp32), totals are kept in
fp64, and whatever is derived from them is fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["MomentStatistics"]


class MomentStatistics:
    """Weighted count, sum and Gram matrix of vectors that arrive in blocks.

    These three are sufficient for the mean and covariance, so for every principal component
    analysis of the vectors or of a linear map of them (arXiv 2502.20583, section 3.1), and they
    add over blocks, files and processes.

    Whisper has channels whose mean is many times their deviation. Sums are therefore taken about
    a shift close to the mean (that of the first block), which fp32 needs and fp64 undoes exactly.

    Args:
        dim: Width D of the vectors.
        device: Where the sums live.
        block_dtype: Type in which one block is summed.

    Example:
        >>> statistics = MomentStatistics(dim=2)
        >>> statistics.update(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
        >>> statistics.mean()
        tensor([1., 3.], dtype=torch.float64)
        >>> statistics.covariance()
        tensor([[1., 2.],
                [2., 4.]], dtype=torch.float64)
    """

    def __init__(
        self,
        dim: int,
        device: torch.device | str | None = None,
        block_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dim = dim
        self.block_dtype = block_dtype
        self.weight = torch.zeros((), dtype=torch.float64, device=device)
        self.sum_D = torch.zeros(dim, dtype=torch.float64, device=device)
        self.gram_DD = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self.shift_D: Tensor | None = None

    @torch.no_grad()
    def update(self, x_ND: Tensor, weight_N: Tensor | None = None) -> None:
        """Add a block; inside ``torch.autocast`` too it is summed in ``block_dtype``.

        Args:
            x_ND: Vectors, (N, D) or with more leading dimensions.
            weight_N: Weight of each vector, as many as vectors; 1 if absent.
        """
        x_ND = x_ND.detach().reshape(-1, self.dim).to(self.block_dtype)
        if x_ND.shape[0] > 0:
            with torch.autocast(x_ND.device.type, enabled=False):
                self._add(x_ND, weight_N)

    def _add(self, x_ND: Tensor, weight_N: Tensor | None) -> None:
        if self.shift_D is None:
            self.shift_D = x_ND.mean(dim=0)
        centred_ND = x_ND - self.shift_D
        if weight_N is None:
            weighted_ND = centred_ND
            self.weight += x_ND.shape[0]
        else:
            weight_N = weight_N.reshape(-1).to(self.block_dtype)
            weighted_ND = centred_ND * weight_N[:, None]
            self.weight += weight_N.sum().to(self.weight)
        self.sum_D += weighted_ND.sum(dim=0).to(self.sum_D)
        self.gram_DD += (weighted_ND.T @ centred_ND).to(self.gram_DD)

    def _unshift(self) -> None:
        """Express the sums about zero, so that they add to those of others."""
        if self.shift_D is None:
            return
        shift_D = self.shift_D.to(self.sum_D)
        cross_DD = torch.outer(self.sum_D, shift_D)
        self.gram_DD += cross_DD + cross_DD.T + self.weight * torch.outer(shift_D, shift_D)
        self.sum_D += self.weight * shift_D
        self.shift_D = torch.zeros_like(self.shift_D)

    def merge(self, other: MomentStatistics) -> None:
        """Add the sums of ``other``, which may be about another shift.

        Raises:
            ValueError: If the widths differ.
        """
        if other.dim != self.dim:
            raise ValueError(f"cannot merge statistics of widths {self.dim} and {other.dim}")
        copy = MomentStatistics(other.dim, other.sum_D.device, other.block_dtype)
        copy.load_state_dict(other.state_dict())
        copy._unshift()
        self._unshift()
        self.weight += copy.weight.to(self.weight.device)
        self.sum_D += copy.sum_D.to(self.sum_D.device)
        self.gram_DD += copy.gram_DD.to(self.gram_DD.device)

    def all_reduce(self, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Replace the sums by their totals over all processes.

        Args:
            reduce_sum: Returns the sum of a tensor over all processes; called on each of them in
                the same order.
        """
        self._unshift()
        self.weight = reduce_sum(self.weight)
        self.sum_D = reduce_sum(self.sum_D)
        self.gram_DD = reduce_sum(self.gram_DD)

    def mean(self) -> Tensor:
        """Weighted mean, (D,) fp64.

        Raises:
            ValueError: If nothing was added.
        """
        self._require_data()
        mean_D = self.sum_D / self.weight
        return mean_D if self.shift_D is None else mean_D + self.shift_D.to(mean_D)

    def covariance(self) -> Tensor:
        """Weighted covariance (normalised by the total weight), (D, D) fp64, symmetric.

        Raises:
            ValueError: If nothing was added.
        """
        self._require_data()
        mean_D = self.sum_D / self.weight
        covariance_DD = self.gram_DD / self.weight - torch.outer(mean_D, mean_D)
        return (covariance_DD + covariance_DD.T) / 2

    def second_moment(self) -> Tensor:
        """Weighted sum of ``x xᵀ`` about zero, not divided by the weight, (D, D) fp64.

        What a metric is made of: the sum over all vectors of the outer products of gradients.

        Raises:
            ValueError: If nothing was added.
        """
        self._require_data()
        mean_D = self.mean()
        total_DD: Tensor = self.weight * (self.covariance() + torch.outer(mean_D, mean_D))
        return total_DD

    def _require_data(self) -> None:
        if not float(self.weight) > 0:
            raise ValueError("no vectors were added: nothing was calibrated on")

    def state_dict(self) -> dict[str, Tensor]:
        """The sums as plain tensors on the CPU."""
        state = {"weight": self.weight, "sum": self.sum_D, "gram": self.gram_DD}
        if self.shift_D is not None:
            state["shift"] = self.shift_D
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over sums that :meth:`state_dict` gave.

        Raises:
            ValueError: If they are of another width.
        """
        if state["sum"].shape != self.sum_D.shape:
            raise ValueError(
                f"statistics of width {state['sum'].numel()} do not fit width {self.dim}"
            )
        device = self.sum_D.device
        self.weight = state["weight"].to(device).clone()
        self.sum_D = state["sum"].to(device).clone()
        self.gram_DD = state["gram"].to(device).clone()
        shift_D = state.get("shift")
        self.shift_D = None if shift_D is None else shift_D.to(device, self.block_dtype)
