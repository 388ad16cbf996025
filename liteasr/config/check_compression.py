"""What the section ``compression`` of a recipe may not say."""

from __future__ import annotations

from collections.abc import Iterator

from liteasr.config.budget import GOALS, parse_budget, set_goals
from liteasr.config.errors import ConfigError, did_you_mean
from liteasr.config.schema import CompressionConfig, Recipe

__all__ = [
    "METHOD_NAMES",
    "check_compression",
    "check_goal",
    "check_method",
    "parse_thresholds",
]

METHOD_NAMES = ("auto", "sensitivity", "pca", "none")
"""Compression methods that have a name; others are named by the dotted path of their class."""

_BUDGETED = ("auto", "sensitivity")
"""Methods that allocate ranks to a goal and have no rule without one."""

_SIZES = ("encoder_params", "encoder_ratio")
"""Goals that the published method can be scaled to."""


def parse_thresholds(text: str, key: str = "compression.thresholds") -> tuple[float, float]:
    """Kept energy of attention layers and of MLP layers.

    Args:
        text: ``attention:mlp``, or one number for both; each above 0 and at most 1.
        key: Where it stands in the recipe, for the message.

    Raises:
        ConfigError: The text is something else.

    Example:
        >>> parse_thresholds("0.99:0.999"), parse_thresholds("0.99")
        ((0.99, 0.999), (0.99, 0.99))
    """
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(0 < number <= 1 for number in numbers):
        raise ConfigError(
            f"{key}: {text!r} is neither one number nor attention:mlp "
            "(0.99:0.999), each above 0 and at most 1"
        )
    return numbers[0], numbers[-1]


def check_method(key: str, method: str) -> Iterator[str]:
    """Whether ``method`` can be the name of one, as messages that name ``key``."""
    if method not in METHOD_NAMES and not _is_dotted(method):
        names = ", ".join(METHOD_NAMES)
        hint = did_you_mean(method, METHOD_NAMES)
        yield f"{key}: {method!r} is none of {names}, nor the dotted path of a class{hint}"


def check_compression(recipe: Recipe) -> Iterator[str]:
    """Values of the section that are wrong by themselves, as messages that name the keys."""
    compression = recipe.compression
    yield from check_method("compression.method", compression.method)
    if not _is_dotted(compression.callback):
        yield f"compression.callback: {compression.callback!r} is not the dotted path of a class"
    if compression.thresholds is not None:
        try:
            parse_thresholds(compression.thresholds)
        except ConfigError as error:
            yield from error.errors
    try:
        parse_budget(compression.budget)
    except ConfigError as error:
        yield from error.errors


def check_goal(recipe: Recipe, *, needs_goal: bool = True) -> Iterator[str]:
    """Whether the method can do with the goal and the thresholds, as messages that name the keys.

    Nothing is asked of ``none`` or of a method named by its dotted path.

    Args:
        recipe: The recipe.
        needs_goal: Whether a goal must be set; a comparison has sizes of its own.
    """
    compression = recipe.compression
    if compression.method in _BUDGETED:
        yield from _budgeted(compression, needs_goal)
    elif compression.method == "pca":
        for key in set_goals(compression.budget):
            if key not in _SIZES:
                yield (
                    f"compression.budget.{key}: method pca knows only sizes: {', '.join(_SIZES)}; "
                    f"methods {', '.join(_BUDGETED)} know {key}"
                )


def _budgeted(compression: CompressionConfig, needs_goal: bool) -> Iterator[str]:
    method = compression.method
    if needs_goal and not set_goals(compression.budget):
        yield f"compression.budget: method {method} needs one of {', '.join(GOALS)}"
    if compression.thresholds is not None:
        yield (
            f"compression.thresholds: thresholds belong to method pca, and the method is {method}; "
            "set compression.method=pca, or say the size in compression.budget"
        )


def _is_dotted(name: str) -> bool:
    parts = name.replace(":", ".").split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)
