"""The one error of a wrong recipe or input, and the spelling hints in its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["ConfigError", "did_you_mean", "nearest"]


class ConfigError(ValueError):
    """A recipe, an option or an input of the user's is wrong.

    Args:
        errors: What is wrong, naming the key or the file; one message or several.

    Attributes:
        errors: The messages. ``str()`` of the exception is all of them, one a line.

    Example:
        >>> ConfigError("data.root: no folder '/x'").errors
        ["data.root: no folder '/x'"]
        >>> print(ConfigError(["model.id: not set", "run.seed: -1 is not at least 0"]))
        model.id: not set
        run.seed: -1 is not at least 0
    """

    errors: list[str]

    def __init__(self, errors: str | Sequence[str]) -> None:
        super().__init__(errors)
        self.errors = [errors] if isinstance(errors, str) else list(errors)

    def __str__(self) -> str:
        return "\n".join(self.errors)


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word spelled most like ``word``, if any is near enough.

    Example:
        >>> nearest("Threshold", ["method", "thresholds"])
        'thresholds'
    """
    by_folded = {name.casefold(): name for name in allowed}
    matches = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    return by_folded[matches[0]] if matches else None


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """A half-sentence with the nearest allowed word, to append to a message; or nothing.

    Example:
        >>> did_you_mean("pcaa", ["pca", "none"])
        "; did you mean 'pca'?"
    """
    guess = nearest(word, allowed)
    return f"; did you mean {guess!r}?" if guess else ""
