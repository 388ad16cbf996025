"""The goal of a compression: how large, how fast or how exact the encoder shall be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from liteasr.config.errors import ConfigError
from liteasr.config.schema import BudgetConfig

__all__ = ["GOALS", "Budget", "parse_budget", "parse_size", "set_goals"]

GOALS = (
    *("encoder_params", "encoder_ratio", "encoder_flops_ratio", "encoder_time_ratio"),
    "max_error",
)
"""Keys of ``compression.budget`` that say what to reach; at most one of them is set."""

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_WHOLE = r"[0-9]+(?:_[0-9]+)*"
_SIZE = re.compile(
    rf"(?P<scaled>{_WHOLE}(?:\.[0-9]+)?)\s*(?P<suffix>[kmb])"
    rf"|(?P<plain>{_WHOLE}(?:(?:\.[0-9]+)?e\+?[0-9]{{1,2}})?)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Budget:
    """What a compression has to reach.

    Attributes:
        kind: One of :data:`GOALS`.
        amount: Parameters for ``encoder_params``; for the others a number between 0 and 1.
        granularity: Ranks are multiples of this.
    """

    kind: str
    amount: float
    granularity: int


def set_goals(config: BudgetConfig) -> list[str]:
    """Keys of the goals that a budget sets, in the order of :data:`GOALS`.

    Example:
        >>> set_goals(BudgetConfig(max_error=0.1, encoder_params="7M"))
        ['encoder_params', 'max_error']
    """
    return [key for key in GOALS if getattr(config, key) is not None]


def parse_budget(config: BudgetConfig) -> Budget | None:
    """The goal of ``compression.budget``.

    Args:
        config: The section of the recipe.

    Returns:
        The one goal that is set; ``None`` if there is none.

    Raises:
        ConfigError: Several goals are set, or a value is none; all that is wrong is told.

    Example:
        >>> parse_budget(BudgetConfig(encoder_params="269.93M"))
        Budget(kind='encoder_params', amount=269930000.0, granularity=8)
        >>> parse_budget(BudgetConfig(encoder_ratio=0.5, granularity=16))
        Budget(kind='encoder_ratio', amount=0.5, granularity=16)
        >>> parse_budget(BudgetConfig()) is None
        True
    """
    errors = list(_errors(config))
    if errors:
        raise ConfigError(errors)
    for kind in set_goals(config):
        value = getattr(config, kind)
        amount = parse_size(value) if kind == "encoder_params" else float(value)
        return Budget(kind, amount, config.granularity)
    return None


def _errors(config: BudgetConfig) -> Iterator[str]:
    section = "compression.budget"
    given = set_goals(config)
    if len(given) > 1:
        keys = ", ".join(f"{section}.{key}" for key in given)
        yield f"{keys}: only one goal can be set; set the others to null"
    for key in given:
        value = getattr(config, key)
        if key == "encoder_params":
            try:
                parse_size(value)
            except ConfigError as error:
                yield from error.errors
        elif not 0 < value < 1:
            yield f"{section}.{key}: {value} is not above 0 and below 1"
    if config.granularity < 1:
        yield f"{section}.granularity: {config.granularity} is not at least 1"


def parse_size(text: str, key: str = "compression.budget.encoder_params") -> float:
    """Parameters that a text such as ``7.41 M`` stands for.

    Args:
        text: A number, with K, M or B or without.
        key: Where it stands in the recipe, for the message.

    Raises:
        ConfigError: It is no number above 0.

    Example:
        >>> [parse_size(text) for text in ("7.41 M", "0.4b", "429e6", "7_410_000")]
        [7410000.0, 400000000.0, 429000000.0, 7410000.0]
    """
    match = _SIZE.fullmatch(text.strip())
    size = 0.0
    if match:
        # Decimal, because 2.01 times a million is no whole number in floats.
        number = Decimal((match["scaled"] or match["plain"]).replace("_", ""))
        size = float(number * _SUFFIXES[(match["suffix"] or "").lower()])
    if not 0 < size < math.inf:
        raise ConfigError(
            f"{key}: {text!r} is no number of parameters above 0; "
            "write 269.93M (or K, B), 429e6 or 7410000"
        )
    return size
