"""What a linear layer costs, dense and at every rank."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LinearShape"]


@dataclass(frozen=True)
class LinearShape:
    """Widths of a linear layer, whether it has a bias, and whether its low ranks are pivoted."""

    in_features: int
    out_features: int
    bias: bool = True
    pivoted: bool = False

    def dense_params(self) -> int:
        """Parameters of the dense layer."""
        return self.in_features * self.out_features + self.out_features * self.bias

    def low_rank_params(self, rank: int) -> int:
        """Parameters of a low-rank layer in its place, which always has a bias.

        >>> LinearShape(384, 384, bias=False).low_rank_params(16)
        12672
        >>> LinearShape(384, 384, bias=False, pivoted=True).low_rank_params(16)
        12416
        """
        return self._factors(rank) + self.out_features

    def _factors(self, rank: int) -> int:
        return rank * (self.in_features + self.out_features - rank * self.pivoted)

    @property
    def full_rank(self) -> int:
        """The largest rank there is."""
        return min(self.in_features, self.out_features)

    def params(self, rank: int | None) -> int:
        """Parameters at a rank; ``rank=None`` is the dense layer."""
        return self.dense_params() if rank is None else self.low_rank_params(rank)

    def flops(self, rank: int | None) -> int:
        """Multiplications and additions for one vector; ``rank=None`` is the dense layer."""
        if rank is None:
            return 2 * self.in_features * self.out_features
        return 2 * self._factors(rank)

    def saves(self, rank: int) -> bool:
        """Whether a low-rank layer of this rank has fewer parameters than the dense one."""
        return self.low_rank_params(rank) < self.dense_params()

    def ranks(self, granularity: int) -> list[int]:
        """Multiples of the granularity that save parameters, ascending.

        >>> LinearShape(4, 4, bias=False).ranks(granularity=1)
        [1]
        """
        return [
            rank for rank in range(granularity, self.full_rank, granularity) if self.saves(rank)
        ]
