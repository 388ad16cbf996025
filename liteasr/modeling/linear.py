"""Linear layers of low rank.

Shape suffixes: B batch, T frames, I input width, O output width, K rank, D the narrower of I and O.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LowRankLinear", "PivotedLinear"]


class LowRankLinear(nn.Module):
    """``y = (x @ weight1) @ weight2 + bias``, a linear layer of rank K.

    Stands in for :class:`torch.nn.Linear` and takes and returns the same shapes. Parameter names
    and layouts are those of the published lite-whisper checkpoints (arXiv 2502.20583, section 3):
    ``weight1`` (I, K), ``weight2`` (K, O), ``bias`` (O,).

    Args:
        in_features: Input width I.
        out_features: Output width O.
        rank: Inner width K, at least 1.
        device: Where the parameters live.
        dtype: Type of the parameters.

    Raises:
        ValueError: If ``rank`` is not positive.

    Example:
        >>> layer = LowRankLinear(in_features=6, out_features=4, rank=2)
        >>> layer(torch.zeros(3, 5, 6)).shape
        torch.Size([3, 5, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self._make_factors(device, dtype)
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def _make_factors(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight1 = nn.Parameter(torch.empty(self.in_features, self.rank, **place))
        self.weight2 = nn.Parameter(torch.empty(self.rank, self.out_features, **place))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw factors that keep the variance of a unit-variance input."""
        nn.init.normal_(self.weight1, std=self.in_features**-0.5)
        nn.init.normal_(self.weight2, std=self.rank**-0.5)
        nn.init.zeros_(self.bias)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        x_TI = x_BTI.reshape(-1, self.in_features)
        y_TO = torch.addmm(self.bias, x_TI @ self.weight1, self.weight2)
        return y_TO.view(*x_BTI.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Widths and rank, for ``print(model)``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class PivotedLinear(LowRankLinear):
    """A linear layer of rank K in ``K (I + O - K)`` numbers instead of ``K (I + O)``.

    Of the factors of a product any invertible matrix can be moved from one to the other, so K² of
    their entries say nothing. Here K rows of the first factor are the identity: K
    inputs, the pivots, go on as they are and the other inputs are added to them in the proportions
    of ``interpolation``; ``skeleton`` maps the K sums to the outputs,

        y = (x[pivots] + x[others] @ interpolation) @ skeleton + bias,

    an interpolative decomposition of the weight (Cheng, Gimbutas, Martinsson and Rokhlin, 2005;
    for language models Zhao et al., arXiv 2501.19090). Where the output is the narrower side, K
    outputs are pivots, which ``skeleton`` gives, and ``interpolation`` makes the others of them.

    Where gradients are wanted, ``weight1`` and ``weight2``, the factors of
    :class:`LowRankLinear`, are put together first, which is more arithmetic and less copying; so
    they are wherever something else asks for them. At full rank, K = D, the skeleton is all
    there is, the whole weight. A GPU, for which moving channels costs more than
    the products that it saves, takes both factors too, or their product where that is less work.

    Args:
        in_features: Input width I.
        out_features: Output width O.
        rank: Inner width K, at most D.
        device: Where the parameters live.
        dtype: Type of the parameters.

    Attributes:
        skeleton: (K, O) with pivots among the inputs, else (I, K).
        interpolation: (I - K, K), else (K, O - K); ``None`` at full rank.
        order: Inputs in the order pivots, others; or for each output its place in that order,
            (D,) int32. It is a buffer and no parameter; ``None`` at full rank.

    Raises:
        ValueError: If ``rank`` is not in 1…D.

    Example:
        >>> layer = PivotedLinear(in_features=6, out_features=4, rank=2)
        >>> layer(torch.zeros(3, 5, 6)).shape, sum(one.numel() for one in layer.parameters())
        (torch.Size([3, 5, 4]), 20)
    """

    interpolation: nn.Parameter | None
    order: Tensor | None

    def _make_factors(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        inside, outside, rank = self.in_features, self.out_features, self.rank
        narrow = min(inside, outside)
        if rank > narrow:
            raise ValueError(f"rank must be at most {narrow}, got {rank}")
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        skeleton = (rank, outside) if self.pivots_inputs else (inside, rank)
        between = (narrow - rank, rank) if self.pivots_inputs else (rank, narrow - rank)
        self.skeleton = nn.Parameter(torch.empty(skeleton, **place))
        if rank == narrow:
            # Not an empty one, which would get no gradient and cannot be split over processes.
            self.register_parameter("interpolation", None)
            self.register_buffer("order", None)
            return
        self.interpolation = nn.Parameter(torch.empty(between, **place))
        self.register_buffer("order", torch.empty(narrow, device=device, dtype=torch.int32))

    @property
    def pivots_inputs(self) -> bool:
        """Whether pivots are inputs; else they are outputs."""
        return self.in_features <= self.out_features

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw parameters that keep the variance of a unit-variance input, and pivots."""
        nn.init.zeros_(self.bias)
        if self.interpolation is None or self.order is None:
            nn.init.normal_(self.skeleton, std=self.in_features**-0.5)
            return
        nn.init.normal_(self.skeleton, std=(2 * self.skeleton.shape[0]) ** -0.5)
        nn.init.normal_(self.interpolation, std=max(1, self.interpolation.shape[0]) ** -0.5)
        self.order.copy_(torch.randperm(len(self.order)))

    @property
    def weight1(self) -> Tensor:  # type: ignore[override]
        """First factor, (I, K)."""
        if not self.pivots_inputs:
            return self.skeleton
        if self.interpolation is None or self.order is None:
            return self._identity()
        rows = torch.cat([self._identity(), self.interpolation])
        return torch.empty_like(rows).index_copy(0, self.order.long(), rows)

    @property
    def weight2(self) -> Tensor:  # type: ignore[override]
        """Second factor, (K, O)."""
        if self.pivots_inputs:
            return self.skeleton
        if self.interpolation is None or self.order is None:
            return self._identity()
        columns = torch.cat([self._identity(), self.interpolation], dim=1)
        return columns.index_select(1, self.order)

    def _identity(self) -> Tensor:
        return torch.eye(self.rank, device=self.skeleton.device, dtype=self.skeleton.dtype)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        if self.interpolation is None or self.order is None:
            x_TI = x_BTI.reshape(-1, self.in_features)
            y_TO = torch.addmm(self.bias, x_TI, self.skeleton)
            return y_TO.view(*x_BTI.shape[:-1], self.out_features)
        if torch.is_grad_enabled():
            return super().forward(x_BTI)
        x_TI, rank = x_BTI.reshape(-1, self.in_features), self.rank
        if x_TI.device.type != "cpu":
            return self._in_products(x_TI).view(*x_BTI.shape[:-1], self.out_features)
        if self.pivots_inputs:
            x_TI = _select(x_TI, self.order)
            x_TK = torch.addmm(x_TI[:, :rank], x_TI[:, rank:], self.interpolation)
            y_TO = torch.addmm(self.bias, x_TK, self.skeleton)
        else:
            x_TK = x_TI @ self.skeleton
            y_TO = _select(torch.cat([x_TK, x_TK @ self.interpolation], dim=1), self.order)
            y_TO = y_TO + self.bias.to(y_TO.dtype)
        return y_TO.view(*x_BTI.shape[:-1], self.out_features)

    def _in_products(self, x_TI: Tensor) -> Tensor:
        """Map (T, I) to (T, O) with matrix products alone.

        The weight is put together where that and one product are less work than two products.
        """
        weight1_IK, weight2_KO = self.weight1, self.weight2
        (frames, inside), (rank, outside) = x_TI.shape, weight2_KO.shape
        if (frames + rank) * inside * outside < frames * rank * (inside + outside):
            return torch.addmm(self.bias, x_TI, weight1_IK @ weight2_KO)
        return torch.addmm(self.bias, x_TI @ weight1_IK, weight2_KO)


def _select(x_TD: Tensor, order_D: Tensor) -> Tensor:
    """Columns in another order."""
    if x_TD.dtype == torch.bfloat16 and x_TD.device.type == "cpu":
        # torch 2.13 selects columns of this type at a fifth of the speed of fp32.
        return x_TD.float().index_select(1, order_D).to(x_TD.dtype)
    return x_TD.index_select(1, order_D)
