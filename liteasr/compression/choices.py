"""What can be done with the layers and self-attentions of an encoder, and what was chosen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from liteasr.compression.allocate import Option, combine, rank_options
from liteasr.compression.heads import (
    PROJECTIONS,
    AttentionView,
    ReducedPair,
    best_of,
    head_options,
)
from liteasr.compression.layer_times import EncoderTimes, dims_of, widths_of
from liteasr.compression.shapes import LinearShape

__all__ = ["Choice", "Choices", "Costs", "timed_dims"]

_Cost = Callable[[int | None], int]
"""From a rank, ``None`` for dense, to what it costs."""


@dataclass(frozen=True)
class Costs:
    """What a budget counts: parameters, FLOPs a frame, or nanoseconds a window.

    Attributes:
        kind: Kind of the budget; parameters for all but those by FLOPs and by time.
        frames: Frames of a window.
        times: As measured, for a budget by time.
    """

    kind: str
    frames: int
    times: EncoderTimes | None = None

    @property
    def by_time(self) -> bool:
        """Whether time is counted."""
        return self.kind == "encoder_time_ratio"

    def of_layer(self, name: str, shape: LinearShape) -> _Cost:
        """Of a layer of the dense encoder, by its full name and shape."""
        if self.by_time:
            return self._measured().layers[name].at
        return self._counted(shape)

    def of_reduced(self, shape: LinearShape) -> _Cost:
        """Of a projection of reduced heads."""
        if self.by_time:
            return self._measured().reduced[widths_of(shape)].at
        return self._counted(shape)

    def of_products(self, width: int) -> int:
        """Of scores, or of mixing values, in all heads; 0 where both are counted at once."""
        return 2 * self.frames * width if self.kind == "encoder_flops_ratio" else 0

    def of_heads(self, qk_dim: int, v_dim: int) -> int:
        """Time of both, which is not the sum of two: kernels pad one to the other."""
        return self._measured().heads[dims_of(qk_dim, v_dim)] if self.by_time else 0

    def of_bias(self, width: int) -> int:
        """Of a bias, where parameters are counted."""
        return 0 if self.by_time or self.kind == "encoder_flops_ratio" else width

    def _counted(self, shape: LinearShape) -> _Cost:
        return shape.flops if self.kind == "encoder_flops_ratio" else shape.params

    def _measured(self) -> EncoderTimes:
        if self.times is None:
            raise ValueError("a budget by time needs times")
        return self.times


@dataclass(frozen=True)
class Choice:
    """What is done with every layer and every self-attention.

    Attributes:
        layers: Layer → option, whose value is its rank, ``None`` for dense.
        heads: Self-attention → dimensions of its heads, for queries and keys and for values, where
            they are reduced. Its projections then have a rank, the full one at most.
        head_damage: Damage of that, by self-attention.
        cost: Of all.
        damage: Of all.
    """

    layers: dict[str, Option] = field(default_factory=dict)
    heads: dict[str, tuple[int, int]] = field(default_factory=dict)
    head_damage: dict[str, float] = field(default_factory=dict)
    cost: int = 0
    damage: float = 0.0


def timed_dims(dims: Sequence[int], full: int) -> list[tuple[int, int]]:
    """Dimensions of heads that a budget by time looks at, for queries and keys and for values.

    Values bear least, so they have at least as many.

    Args:
        dims: What heads may be reduced to, ascending.
        full: Dimensions of dense heads.

    Example:
        >>> timed_dims([16, 32], 64)
        [(16, 16), (16, 32), (16, 64), (32, 32), (32, 64), (64, 64)]
    """
    return list(itertools.combinations_with_replacement([*dims, full], 2))


class Choices:
    """Options of all layers and self-attentions for one budget.

    Args:
        shapes: Layers of the dense encoder, by full name.
        spectrum: Damage of leaving out each component of a layer, by its name.
        attentions: Full names of self-attentions whose heads may be reduced; their projections are
            among the layers.
        view: Makes the view of one of them. It is large, and not kept.
        dims: Dimensions that heads may be reduced to.
        costs: What is counted.
        granularity: Ranks are multiples of this.
        damping: Of the metric.

    Attributes:
        items: Options by item: a layer, or a self-attention or a half of one.
        dense_cost: Of the dense layers, attention's products with them where they are counted.
    """

    def __init__(
        self,
        shapes: Mapping[str, LinearShape],
        spectrum: Callable[[str], Tensor],
        attentions: Sequence[str],
        view: Callable[[str], AttentionView],
        dims: Sequence[int],
        costs: Costs,
        *,
        granularity: int,
        damping: float,
    ) -> None:
        self._shapes, self._attentions = dict(shapes), tuple(attentions)
        self._heads = (0, 0)
        self._dims, self._costs = tuple(dims), costs
        self._granularity, self._damping = granularity, damping
        self.dense_cost = sum(costs.of_layer(*one)(None) for one in self._shapes.items())
        self.items: dict[str, list[Option]] = {}
        for name, shape in self._shapes.items():
            if name.rpartition(".")[0] not in self._attentions:
                self.items[name] = rank_options(
                    spectrum(name),
                    shape,
                    granularity=granularity,
                    cost=costs.of_layer(name, shape),
                )
        for name in self._attentions:
            self.items |= self._of_attention(name, view(name))

    def _of_attention(self, name: str, view: AttentionView) -> dict[str, list[Option]]:
        self._heads = view.heads, view.width
        products = 2 * self._costs.of_products(view.heads * view.width)
        self.dense_cost += products + self._costs.of_heads(view.width, view.width)
        dims = (*self._dims, view.width)
        scores = {d: self._of_pair(name, PROJECTIONS[:2], view, view.scores(d), d) for d in dims}
        values = {d: self._of_pair(name, PROJECTIONS[2:], view, view.values(d), d) for d in dims}
        if not self._costs.by_time:
            return {
                f"{name}:scores": best_of(list(scores.values())),
                f"{name}:values": best_of(list(values.values())),
            }
        return {
            name: best_of(
                [
                    combine(scores[qk], values[v], cost=self._costs.of_heads(qk, v))
                    for qk, v in timed_dims(self._dims, view.width)
                ]
            )
        }

    def _of_pair(
        self, name: str, last: Sequence[str], view: AttentionView, pair: ReducedPair, dim: int
    ) -> list[Option]:
        head_cost = self._costs.of_products(view.heads * dim)
        if dim < view.width:
            shapes = [pair.first.reduced_shape, pair.second.reduced_shape]
            costs = [self._costs.of_reduced(shape) for shape in shapes]
            if last == PROJECTIONS[2:]:
                # Dense keys gain a bias where the values are reduced.
                head_cost += self._costs.of_bias(view.heads * view.width)
        else:
            names = [f"{name}.{one}" for one in last]
            shapes = [self._shapes[one] for one in names]
            costs = [self._costs.of_layer(*one) for one in zip(names, shapes, strict=True)]
        return head_options(
            pair,
            dim if dim < view.width else None,
            shapes,
            costs,
            granularity=self._granularity,
            damping=self._damping,
            head_cost=head_cost,
        )

    def choice(self, chosen: Mapping[str, Option]) -> Choice:
        """What one option of each item means for layers and self-attentions."""
        layers: dict[str, Option] = {}
        heads: dict[str, tuple[int, int]] = {}
        damages: dict[str, float] = {}
        heads_count, width = self._heads
        for attention in self._attentions:
            pairs = (
                [one.value for one in chosen[attention].value]
                if self._costs.by_time
                else [chosen[f"{attention}:{half}"].value for half in ("scores", "values")]
            )
            options = [option for pair in pairs for option in pair.ranks]
            if any(pair.dim is not None for pair in pairs):
                dims = pairs[0].dim or width, pairs[1].dim or width
                heads[attention] = dims
                damages[attention] = sum(pair.damage for pair in pairs)
                full = [min(heads_count * dim, heads_count * width) for dim in dims for _ in "ab"]
                options = [
                    replace(option, value=option.value or rank)
                    for option, rank in zip(options, full, strict=True)
                ]
            for last, option in zip(PROJECTIONS, options, strict=True):
                layers[f"{attention}.{last}"] = option
        return Choice(
            {name: layers.get(name) or chosen[name] for name in self._shapes},
            heads,
            damages,
            cost=sum(option.cost for option in chosen.values()),
            damage=sum(option.damage for option in chosen.values()),
        )
