"""A linear layer in two factors.

Shape suffixes: B batch, T frames, I input width, O output width, K rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LowRankLinear"]


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
        self.weight1 = nn.Parameter(torch.empty(in_features, rank, device=device, dtype=dtype))
        self.weight2 = nn.Parameter(torch.empty(rank, out_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

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
