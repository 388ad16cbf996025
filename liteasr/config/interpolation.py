"""Interpolations (``${data.root}``, ``${oc.env:HOME}``), resolved once, after all merging."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationKeyError, OmegaConfBaseException

from liteasr.config.errors import did_you_mean
from liteasr.config.reading import Key, dotted

__all__ = ["Resolver", "escape"]

_ESCAPABLE = re.compile(r"(\\*)\$\{")
_QUOTED = re.compile(r"'([^']*)'")


def escape(text: str) -> str:
    r"""Text that resolves to ``text``, with no interpolation in it.

    Example:
        >>> print(escape("costs ${5}"), escape("plain"))
        costs \${5} plain
    """
    return _ESCAPABLE.sub(lambda match: match[1] * 2 + r"\${", text)


class Resolver:
    """Resolves every interpolation of a plain dictionary that it can.

    Args:
        values: Merged values, with the defaults filled in.

    Attributes:
        failures: Message by key of each value that could not be resolved; it is ``None`` in the
            result.

    Example:
        >>> Resolver({"a": "x", "b": "${a}/y"}).resolve()
        {'a': 'x', 'b': 'x/y'}
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.failures: dict[Key, str] = {}
        self._values = self._parsable(values, ())
        self._names = [dotted(key) for key in _keys(values, ())]

    def resolve(self) -> dict[str, Any]:
        """The values with every interpolation replaced by what it refers to."""
        config = OmegaConf.create(self._values)
        return {str(name): self._child(config, name, (str(name),), [config]) for name in config}

    def _parsable(self, value: Any, key: Key) -> Any:
        """A copy without the strings that break OmegaConf's grammar."""
        if isinstance(value, dict):
            return {name: self._parsable(item, (*key, name)) for name, item in value.items()}
        if isinstance(value, list):
            return [self._parsable(item, (*key, str(i))) for i, item in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            try:
                OmegaConf.create({"value": value})
            except GrammarParseError as error:
                reason = str(error).splitlines()[0]
                self.failures[key] = f"{value!r} is no valid interpolation ({reason})"
                return None
        return value

    def _plain(self, node: Any, key: Key, ancestors: list[Any]) -> Any:
        if isinstance(node, DictConfig):
            names = list(node)
            return {
                str(name): self._child(node, name, (*key, str(name)), [*ancestors, node])
                for name in names
            }
        if isinstance(node, ListConfig):
            places = range(len(node))
            return [self._child(node, i, (*key, str(i)), [*ancestors, node]) for i in places]
        return node

    def _child(self, parent: Any, name: Any, key: Key, ancestors: list[Any]) -> Any:
        if OmegaConf.is_missing(parent, name):
            return "???"
        try:
            node = parent[name]
        except OmegaConfBaseException as error:
            raw: Any = OmegaConf.to_container(parent, resolve=False)
            self.failures[key] = self._explain(error, raw[name])
            return None
        if any(node is ancestor for ancestor in ancestors):
            self.failures[key] = "refers to the section that it is in"
            return None
        return self._plain(node, key, ancestors)

    def _explain(self, error: OmegaConfBaseException, raw: Any) -> str:
        reason = str(error).splitlines()[0]
        quoted = _QUOTED.search(reason)
        if isinstance(error, InterpolationKeyError) and quoted:
            hint = did_you_mean(quoted[1], self._names)
            return f"{raw!r} refers to {quoted[1]!r}, which is not set{hint}"
        reason = reason.removeprefix("KeyError raised while resolving interpolation: ")
        return f"{raw!r} cannot be resolved ({reason})"


def _keys(values: Any, prefix: Key) -> Iterator[Key]:
    if isinstance(values, dict):
        for name, value in values.items():
            yield (*prefix, name)
            yield from _keys(value, (*prefix, name))
