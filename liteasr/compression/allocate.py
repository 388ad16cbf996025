"""From what every rank costs and leaves out to the ranks of all layers for one budget.

Nothing here knows of modules or configurations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from liteasr.compression.shapes import LinearShape

__all__ = [
    "Budget",
    "Option",
    "allocate_budget",
    "allocate_error",
    "combine",
    "rank_options",
    "undominated",
]


BUDGET_KINDS = (
    *("encoder_params", "encoder_ratio", "encoder_flops_ratio", "encoder_time_ratio"),
    "max_error",
)
"""What a budget can be said in."""


@dataclass(frozen=True)
class Budget:
    """What a compression is to reach.

    Attributes:
        kind: ``encoder_params`` (without positional embedding), ``encoder_ratio`` (the same as a
            share of the dense encoder), ``encoder_flops_ratio``, ``encoder_time_ratio`` (as
            measured), or ``max_error`` (predicted relative error of the encoder's output).
        amount: How much of it.
        granularity: Ranks are multiples of this.

    Raises:
        ValueError: If the kind is unknown or the amount out of range.

    Example:
        >>> Budget("encoder_ratio", 0.85)
        Budget(kind='encoder_ratio', amount=0.85, granularity=8)
    """

    kind: str
    amount: float
    granularity: int = 8

    def __post_init__(self) -> None:
        if self.kind not in BUDGET_KINDS:
            raise ValueError(f"budget {self.kind!r} is none of {', '.join(BUDGET_KINDS)}")
        if self.amount <= 0 or (self.kind != "encoder_params" and self.amount >= 1):
            most = "" if self.kind == "encoder_params" else " and below 1"
            raise ValueError(f"{self.kind}: {self.amount} is not above 0{most}")
        if self.granularity < 1:
            raise ValueError(f"granularity {self.granularity} is not at least 1")


@dataclass(frozen=True)
class Option:
    """One way to have an item: a layer at a rank, or a whole attention block in some form.

    Attributes:
        cost: Parameters, FLOPs or nanoseconds, whatever the budget counts.
        damage: Error that it brings, in any unit that adds over items.
        value: What is to be done, for the caller: a rank, ``None`` for dense, ….
    """

    cost: int
    damage: float
    value: Any = None


def rank_options(
    spectrum: Tensor,
    shape: LinearShape,
    *,
    granularity: int = 8,
    cost: Callable[[int | None], int] | None = None,
) -> list[Option]:
    """The dense layer, and every rank that has fewer parameters and costs less.

    Args:
        spectrum: Damage of leaving each component out, descending, (R,).
        shape: Widths of the layer.
        granularity: Ranks are multiples of this.
        cost: Of a rank, or of the dense layer for ``None``; parameters if absent.

    Example:
        >>> import torch
        >>> [(o.cost, o.damage) for o in rank_options(
        ...     torch.tensor([4.0, 2.0, 1.0, 0.0]), LinearShape(4, 4, bias=False), granularity=1)]
        [(16, 0.0), (12, 3.0)]
    """
    lost = spectrum.double().flip(0).cumsum(0).flip(0).tolist()
    count = cost or shape.params
    options = [Option(count(None), 0.0, None)]
    for rank in shape.ranks(granularity):
        if rank < len(lost) and count(rank) < options[0].cost:
            options.append(Option(count(rank), lost[rank], rank))
    return options


def combine(
    first: Sequence[Option], second: Sequence[Option], *, cost: int = 0, damage: float = 0.0
) -> list[Option]:
    """Options of two items together, the best for every price: those on the convex hull of the sum.

    Args:
        first: Options of one item.
        second: Of the other.
        cost: Added to each.
        damage: Added to each.

    Returns:
        Options whose value is the pair of options that they consist of, costs ascending.

    Example:
        >>> steps = [Option(3, 0.0), Option(2, 1.0), Option(1, 3.0)]
        >>> [(one.cost, one.damage) for one in combine(steps, [Option(6, 0.0), Option(4, 3.0)])]
        [(5, 6.0), (6, 4.0), (8, 1.0), (9, 0.0)]
    """
    hulls = _hull(first), _hull(second)
    steps = sorted(
        (_slope(hull[index], hull[index + 1]), which, index + 1)
        for which, hull in enumerate(hulls)
        for index in range(len(hull) - 1)
    )
    chosen = [hulls[0][0], hulls[1][0]]
    pairs = [tuple(chosen)]
    for _, which, index in steps:
        chosen[which] = hulls[which][index]
        pairs.append(tuple(chosen))
    return [
        Option(cost + sum(one.cost for one in pair), damage + sum(one.damage for one in pair), pair)
        for pair in pairs
    ]


def undominated(options: Sequence[Option]) -> list[Option]:
    """Options that no other beats in cost and damage, costs ascending.

    >>> [one.cost for one in undominated([Option(3, 0.0), Option(2, 4.0), Option(1, 3.0)])]
    [1, 3]
    """
    kept: list[Option] = []
    for option in sorted(options, key=lambda one: (one.cost, one.damage)):
        if not kept or option.damage < kept[-1].damage:
            kept.append(option)
    return kept


def _hull(options: Sequence[Option]) -> list[Option]:
    """Options on the lower convex hull, costs ascending and damages falling."""
    hull: list[Option] = []
    for option in undominated(options):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(cheap: Option, dear: Option) -> float:
    """Damage a unit of cost between two options, which falls: negative."""
    return (dear.damage - cheap.damage) / (dear.cost - cheap.cost)


def allocate_budget(items: Mapping[str, Sequence[Option]], budget: float) -> dict[str, Option]:
    """Options with the least total damage whose total cost is at most the budget.

    Bisection on the Lagrange multiplier finds the best choice among those on the convex hull of
    each item's options; what is left of the budget is then spent on single upgrades and on pairs
    of an upgrade and a downgrade, the best first. For convex curves it is exact up to the size of
    one step.

    Args:
        items: Options of each item, by name.
        budget: Total cost allowed.

    Raises:
        ValueError: If even the cheapest options cost more.

    Example:
        >>> items = {
        ...     "a": [Option(9, 0.0), Option(6, 1.0), Option(3, 4.0)],
        ...     "b": [Option(9, 0.0), Option(6, 5.0), Option(3, 20.0)],
        ... }
        >>> [o.cost for o in allocate_budget(items, budget=15).values()]
        [6, 9]
    """
    cheapest = sum(min(option.cost for option in options) for options in items.values())
    if cheapest > budget:
        raise ValueError(f"even the smallest ranks cost {cheapest:,}, more than {budget:,.0f}")
    best = {name: min(options, key=_by_damage) for name, options in items.items()}
    if _total(best) <= budget:
        return best
    low, high = 0.0, 1.0
    while _total(_at_price(items, high)) > budget:
        high *= 16.0
    for _ in range(100):
        price = (low + high) / 2
        if _total(_at_price(items, price)) > budget:
            low = price
        else:
            high = price
    return _fill(items, _at_price(items, high), budget)


def allocate_error(items: Mapping[str, Sequence[Option]], max_damage: float) -> dict[str, Option]:
    """Options with the least total cost whose total damage is at most ``max_damage``.

    Args:
        items: Options of each item, by name; each has one without damage.
        max_damage: Total damage allowed.

    Example:
        >>> items = {"a": [Option(9, 0.0), Option(6, 1.0)], "b": [Option(9, 0.0), Option(6, 5.0)]}
        >>> [o.cost for o in allocate_error(items, max_damage=2.0).values()]
        [6, 9]
    """
    low, high = 0.0, 1.0
    while high < _FREE and _damage(_at_price(items, high)) <= max_damage:
        high *= 16.0
    for _ in range(100):
        price = (low + high) / 2
        if _damage(_at_price(items, price)) <= max_damage:
            low = price
        else:
            high = price
    choice = _at_price(items, low)
    while True:
        room = max_damage - _damage(choice)
        downgrades = [
            (choice[name].cost - option.cost, name, option)
            for name, options in items.items()
            for option in options
            if option.cost < choice[name].cost and option.damage - choice[name].damage <= room
        ]
        if not downgrades:
            return choice
        _, name, option = max(downgrades, key=lambda downgrade: downgrade[0])
        choice[name] = option


_FREE = 1e30
"""A price at which only cost counts."""

_PAIR_ROUNDS = 16
"""Pairs tried at most after single upgrades are exhausted; each closes most of the gap."""


def _by_damage(option: Option) -> tuple[float, int]:
    return option.damage, option.cost


def _total(choice: Mapping[str, Option]) -> int:
    return sum(option.cost for option in choice.values())


def _damage(choice: Mapping[str, Option]) -> float:
    return sum(option.damage for option in choice.values())


def _at_price(items: Mapping[str, Sequence[Option]], price: float) -> dict[str, Option]:
    return {
        name: min(options, key=lambda option: (option.damage + price * option.cost, option.cost))
        for name, options in items.items()
    }


def _fill(
    items: Mapping[str, Sequence[Option]], choice: dict[str, Option], budget: float
) -> dict[str, Option]:
    """Spend what is left: single upgrades while one fits, then pairs of a step up and one down."""
    rounds = 0
    while rounds < _PAIR_ROUNDS:
        room = budget - _total(choice)
        changes = [
            (name, option, option.cost - choice[name].cost, option.damage - choice[name].damage)
            for name, options in items.items()
            for option in options
            if option != choice[name]
        ]
        moves: list[tuple[_Change, ...]] = [
            (change,) for change in changes if change[2] <= room and change[3] < 0
        ]
        if not moves:
            rounds += 1
            moves = _pairs(changes, room)
        if not moves:
            break
        for name, option, _, _ in min(moves, key=_damage_per_cost):
            choice[name] = option
    return choice


_Change = tuple[str, Option, int, float]
"""Item, new option, and the differences of cost and damage."""


def _damage_per_cost(move: tuple[_Change, ...]) -> float:
    return sum(change[3] for change in move) / max(sum(change[2] for change in move), 1)


def _pairs(changes: Sequence[_Change], room: float) -> list[tuple[_Change, ...]]:
    """A step up of one item with a step down of another that use more of the room and gain.

    Only the two smallest steps of each item: all pairs of all steps would be too many.
    """
    ups, downs = [], []
    for _, group in itertools.groupby(changes, key=lambda change: change[0]):
        steps = sorted(group, key=lambda change: abs(change[2]))
        ups += [change for change in steps if change[2] > 0][:2]
        downs += [change for change in steps if change[2] < 0][:2]
    return [
        (up, down)
        for up in ups
        for down in downs
        if up[0] != down[0] and 0 < up[2] + down[2] <= room and up[3] + down[3] < 0
    ]
