"""A self-attention as one thing to make smaller: low ranks, heads in fewer dimensions, or both.

Shape suffixes: I input width, O output width, D width of the side of a layer that is projected,
H heads, E width of a dense head, R of a reduced one, X = H·R. Everything is fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from liteasr.compression.allocate import Option, combine, rank_options, undominated
from liteasr.compression.attention_factors import HeadModes, block_diagonal, modes_in_metric
from liteasr.compression.factorize import LowRankFactors
from liteasr.compression.metric import damped, spectrum_in_metric
from liteasr.compression.shapes import LinearShape

__all__ = [
    "PROJECTIONS",
    "AttentionView",
    "HeadChoice",
    "LayerView",
    "ReducedPair",
    "best_of",
    "head_options",
    "padded",
]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")

_BEYOND_FIRST_ORDER = 1.0
"""What errors cost that gradients do not see, as a share of what they see.

More than the damping of low ranks: errors of scores soon leave the range of the first order, which
sees none where attention does not look, and takes those that it sees for small."""


@dataclass(frozen=True)
class LayerView:
    """A linear layer with the statistics of its narrower side.

    Attributes:
        weight_OI: Weight.
        bias_O: Bias, or none.
        mean_D: Mean of the narrower side.
        covariance_DD: Its covariance.
        metric_DD: What an error of it costs.
    """

    weight_OI: Tensor
    bias_O: Tensor | None
    mean_D: Tensor
    covariance_DD: Tensor
    metric_DD: Tensor

    @property
    def on_input(self) -> bool:
        """Whether the narrower side is the input."""
        return self.weight_OI.shape[1] < self.weight_OI.shape[0]

    @property
    def reduced_shape(self) -> LinearShape:
        """Widths as a projection of reduced heads, which is a pivoted layer and so has a bias."""
        outputs, inputs = self.weight_OI.shape
        return LinearShape(inputs, outputs, bias=True, pivoted=True)


@dataclass(frozen=True)
class ReducedPair:
    """Two projections of which only the product matters, in fewer dimensions a head.

    Attributes:
        first: ``q_proj`` or ``v_proj``.
        second: ``k_proj`` or ``out_proj``.
        damage: What the dimensions that were left out cost.
    """

    first: LayerView
    second: LayerView
    damage: float


class AttentionView:
    """The projections of a self-attention as they are for heads of any width.

    An error of the scores ``qᵀ k`` is one of the queries, whose cost is known from their gradients:
    those hold the keys, as attention looks at them. In the same way an error of what the heads mix
    is one of the input of ``out_proj``. So both pairs are reduced by the components of one vector
    in the metric of its errors, and what goes is left out of both projections (Eckart and Young,
    1936; docs/method.md, step 8).

    Args:
        layers: The four projections by the last part of their names, dense.
        mixed_mean_D: Mean of the input of ``out_proj``.
        mixed_covariance_DD: Its covariance.
        heads: H.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerView],
        mixed_mean_D: Tensor,
        mixed_covariance_DD: Tensor,
        heads: int,
    ) -> None:
        self.layers = dict(layers)
        self.heads = heads
        self.width = len(mixed_mean_D) // heads
        self._mixed_mean_D, self._mixed_covariance_DD = mixed_mean_D, mixed_covariance_DD
        query, key, out = (self.layers[name] for name in ("q_proj", "k_proj", "out_proj"))
        weight_OD = out.weight_OI
        self._moments = (
            query.covariance_DD + torch.outer(query.mean_D, query.mean_D),
            mixed_covariance_DD,
        )
        self._metrics = (
            _with_all_keys(query.metric_DD, key.covariance_DD, heads),
            damped(weight_OD.T @ out.metric_DD @ weight_OD, _BEYOND_FIRST_ORDER),
        )
        # Of the first and the second projection of each pair, a row a dimension of the heads.
        self._weights = (
            (query.weight_OI, key.weight_OI),
            (self.layers["v_proj"].weight_OI, weight_OD.T),
        )
        self._modes: dict[int, HeadModes] = {}
        self._pairs: dict[tuple[str, int], ReducedPair] = {}

    def layer(self, name: str, qk_dim: int, v_dim: int) -> LayerView:
        """One projection of heads of ``qk_dim`` and ``v_dim`` dimensions; it is kept."""
        half, dim = ("scores", qk_dim) if name in ("q_proj", "k_proj") else ("values", v_dim)
        if (half, dim) not in self._pairs:
            self._pairs[half, dim] = getattr(self, half)(dim)
        pair = self._pairs[half, dim]
        return pair.first if name in ("q_proj", "v_proj") else pair.second

    def scores(self, dim: int) -> ReducedPair:
        """Queries and keys of ``dim`` dimensions a head.

        Raises:
            ValueError: If the dense heads have fewer.
        """
        query, key = self.layers["q_proj"], self.layers["k_proj"]
        if dim == self.width:
            return ReducedPair(query, key, 0.0)
        to_q_XD, to_k_XD, damage = self._maps(0, dim)
        return ReducedPair(
            _through(query, to_q_XD, to_k_XD), _through(key, to_k_XD, to_q_XD), damage
        )

    def values(self, dim: int) -> ReducedPair:
        """Values of ``dim`` dimensions a head; the mean of what they are mixed to stays exact.

        Raises:
            ValueError: If the dense heads have fewer.
        """
        value, out = self.layers["v_proj"], self.layers["out_proj"]
        if dim == self.width:
            return ReducedPair(value, out, 0.0)
        to_v_XD, to_out_XD, damage = self._maps(1, dim)
        weight_OX = out.weight_OI @ to_out_XD.T
        lost_D = self._mixed_mean_D - to_out_XD.T @ (to_v_XD @ self._mixed_mean_D)
        bias_O = out.weight_OI @ lost_D
        reduced = LayerView(
            weight_OX,
            bias_O if out.bias_O is None else out.bias_O + bias_O,
            to_v_XD @ self._mixed_mean_D,
            to_v_XD @ self._mixed_covariance_DD @ to_v_XD.T,
            weight_OX.T @ out.metric_DD @ weight_OX,
        )
        return ReducedPair(_through(value, to_v_XD, to_out_XD), reduced, damage)

    def _maps(self, which: int, dim: int) -> tuple[Tensor, Tensor, float]:
        """Maps to fewer dimensions, and the cost of what they lose, all heads together."""
        moment_DD, metric_DD = self._moments[which], self._metrics[which]
        if which not in self._modes:
            self._modes[which] = modes_in_metric(moment_DD, metric_DD, self.heads)
        left_XD, right_XD = self._modes[which].maps(dim)
        lost_DD = torch.eye(len(moment_DD)).to(moment_DD) - left_XD.T @ right_XD
        damage = (lost_DD.T @ moment_DD @ lost_DD * metric_DD).sum()
        # Each dimension may be scaled in one projection and back in the other. Where both have
        # equal norms, optimizers and half precision treat them alike.
        first_OI, second_OI = self._weights[which]
        tiny = torch.finfo(torch.float64).tiny ** 0.25
        norm1_X = (left_XD @ first_OI).norm(dim=1).clamp_min(tiny)
        norm2_X = (right_XD @ second_OI).norm(dim=1).clamp_min(tiny)
        scale_X1 = (norm2_X / norm1_X).sqrt()[:, None]
        return left_XD * scale_X1, right_XD / scale_X1, float(damage)


def _with_all_keys(metric_DD: Tensor, keys_DD: Tensor, heads: int) -> Tensor:
    """The metric of queries, and in each head as much of the mean squares of scores of all keys."""
    width = len(metric_DD) // heads
    tiny = torch.finfo(torch.float64).tiny ** 0.5
    added = []
    for start in range(0, len(metric_DD), width):
        head = slice(start, start + width)
        share = metric_DD[head, head].trace() / keys_DD[head, head].trace().clamp_min(tiny)
        added.append(_BEYOND_FIRST_ORDER * share * keys_DD[head, head])
    # Keys may not use all dimensions of their head.
    return damped(metric_DD + block_diagonal(added), 1e-6)


def _through(layer: LayerView, map_XD: Tensor, other_XD: Tensor) -> LayerView:
    """A layer followed by a map of its output, whose errors come back through the other map."""
    return LayerView(
        map_XD @ layer.weight_OI,
        None if layer.bias_O is None else map_XD @ layer.bias_O,
        map_XD @ layer.mean_D,
        map_XD @ layer.covariance_DD @ map_XD.T,
        other_XD @ layer.metric_DD @ other_XD.T,
    )


@dataclass(frozen=True)
class HeadChoice:
    """How two projections of a self-attention are to be.

    Attributes:
        dim: Dimensions of a head; ``None`` leaves the heads as they are.
        damage: What the dimensions cost that are left out.
        ranks: Options of the two projections, whose values are ranks; ``None`` is dense.
    """

    dim: int | None
    damage: float
    ranks: tuple[Option, Option]


def head_options(
    pair: ReducedPair,
    dim: int | None,
    shapes: Sequence[LinearShape],
    costs: Sequence[Callable[[int | None], int]],
    *,
    granularity: int,
    damping: float,
    head_cost: int = 0,
) -> list[Option]:
    """Ranks of the two projections of heads of one width; the best for every price.

    Projections of reduced heads are pivoted layers at any rank: at the full one they are dense.

    Args:
        pair: The projections.
        dim: Dimensions of a head, or ``None`` for dense heads.
        shapes: Widths of the two.
        costs: What a rank of each costs; dense, or the full one, for ``None``.
        granularity: Ranks are multiples of this.
        damping: Of the metric, for ranks.
        head_cost: What the products of attention cost.

    Returns:
        Options whose value is a :class:`HeadChoice`.
    """
    both = []
    for view, shape, cost in zip((pair.first, pair.second), shapes, costs, strict=True):
        spectrum_D = spectrum_in_metric(view.covariance_DD, view.metric_DD, damping)
        options = rank_options(spectrum_D, shape, granularity=granularity, cost=cost)
        if dim is not None:
            options[0] = replace(options[0], value=shape.full_rank)
        both.append(options)
    return [
        Option(one.cost, one.damage, HeadChoice(dim, pair.damage, one.value))
        for one in combine(*both, cost=head_cost, damage=pair.damage)
    ]


def best_of(options: Sequence[Sequence[Option]]) -> list[Option]:
    """Options for heads of several widths as one item's."""
    return undominated([one for of_a_width in options for one in of_a_width])


def padded(factors: LowRankFactors, name: str, heads: int, width: int) -> LowRankFactors:
    """Factors of a projection of reduced heads for dense heads: zeros in the dimensions that went.

    Args:
        factors: Of the reduced projection.
        name: Which one, by the last part of its name.
        heads: H.
        width: E.

    Raises:
        ValueError: If the reduced heads are wider.
    """
    weight1, weight2, bias = factors.weight1, factors.weight2, factors.bias
    if name == "out_proj":
        weight1 = _fill_heads(weight1.T, heads, width).T
    else:
        weight2 = _fill_heads(weight2, heads, width)
        bias = _fill_heads(bias[None], heads, width)[0]
    return LowRankFactors(weight1, weight2, bias)


def _fill_heads(rows_KX: Tensor, heads: int, width: int) -> Tensor:
    rows_KHR = rows_KX.reshape(len(rows_KX), heads, -1)
    missing = width - rows_KHR.shape[-1]
    if missing < 0:
        raise ValueError(f"heads of {rows_KHR.shape[-1]} dimensions do not fit into {width}")
    return torch.nn.functional.pad(rows_KHR, (0, missing)).flatten(1)
