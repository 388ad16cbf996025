"""YAML to plain containers, with the place of every key.

The dialect is YAML with the scalars of YAML 1.2: ``no`` is the language, not ``false``; ``1:1`` is
a pair of thresholds, not sixty-one; ``0123456`` is a commit, not an octal number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml  # type: ignore[import-untyped, unused-ignore]

from liteasr.config.errors import ConfigError

__all__ = ["Key", "Layer", "Origin", "dotted", "dump", "read_file", "read_text"]

Key: TypeAlias = tuple[str, ...]

_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z"
    r"|[-+]?[0-9]+[eE][-+]?[0-9]+\Z"
    r"|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
)
_RESOLVERS = {
    None: [
        (_TAG + "null", re.compile(r"(?:~|null|Null|NULL)?\Z")),
        (_TAG + "bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
        (_TAG + "int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")),
        (_TAG + "float", _FLOAT),
    ]
}


@dataclass(frozen=True)
class Origin:
    """Where a key was set."""

    where: str
    """For a person: ``recipes/tiny.yaml, line 3`` or ``command line``."""
    text: str | None = None
    """A plain scalar as it was written, before YAML made a number of it."""


@dataclass
class Layer:
    """The content of one file or of one override."""

    values: Any = None
    """Plain containers; every key is a string."""
    origins: dict[Key, Origin] = field(default_factory=dict)
    """Place of every key in ``values``."""
    errors: list[str] = field(default_factory=list)
    """What is wrong but did not keep the rest from being read."""


def dotted(key: Key) -> str:
    """``("data", "root")`` as ``data.root``."""
    return ".".join(key)


def read_file(path: Path, label: str) -> Layer:
    """Read a YAML file that holds keys and values.

    Args:
        path: The file.
        label: Its name in messages.

    Raises:
        ConfigError: The file cannot be read, is not YAML, is empty or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{label}: cannot be read ({reason})") from error
    layer = read_text(text, label)
    if layer.values is None:
        raise ConfigError(f"{label}: is empty; expected keys and values")
    if not isinstance(layer.values, dict):
        found = "a list" if isinstance(layer.values, list) else f"only {layer.values!r}"
        raise ConfigError(f"{label}: holds {found}; expected keys and values")
    return layer


def read_text(text: str, label: str, prefix: Key = (), *, lines: bool = True) -> Layer:
    """Read a YAML document from a string.

    Args:
        text: The document.
        label: Its name in messages.
        prefix: Key under which the document will be merged.
        lines: Whether messages give line numbers.

    Raises:
        ConfigError: The text is not YAML.
    """
    reader = _Reader(label, lines)
    try:
        loader = yaml.SafeLoader(text)
        loader.yaml_implicit_resolvers = _RESOLVERS
        node = loader.get_single_node()
        if node is not None:
            reader.layer.values = reader.build(loader, node, prefix)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = reader.where(mark) if mark else label
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        context = getattr(error, "context", None)
        detail = f"{context}: {problem}" if context else problem
        raise ConfigError(f"{place}: is not valid YAML ({detail})") from error
    return reader.layer


class _Reader:
    """Turns YAML nodes into containers and notes their places."""

    def __init__(self, label: str, lines: bool) -> None:
        self.label = label
        self.lines = lines
        self.layer = Layer()
        self._open: list[Any] = []

    def where(self, mark: Any) -> str:
        return f"{self.label}, line {mark.line + 1}" if self.lines else self.label

    def build(self, loader: Any, node: Any, key: Key) -> Any:
        """The value of a node; ``key`` is where it will stand in the recipe."""
        scalar = isinstance(node, yaml.ScalarNode)
        text = node.value if scalar and node.style is None else None
        self.layer.origins.setdefault(key, Origin(self.where(node.start_mark), text))
        if scalar:
            return self._scalar(loader, node)
        if any(node is ancestor for ancestor in self._open):
            raise ConfigError(f"{self.where(node.start_mark)}: an alias contains itself")
        self._open.append(node)
        try:
            if isinstance(node, yaml.SequenceNode):
                return [
                    self.build(loader, child, (*key, str(index)))
                    for index, child in enumerate(node.value)
                ]
            return dict(self._pairs(loader, node, key))
        finally:
            self._open.pop()

    def _scalar(self, loader: Any, node: Any) -> Any:
        value = loader.construct_object(node)
        if value is not None and not isinstance(value, bool | int | float | str):
            where = self.where(node.start_mark)
            raise ConfigError(f"{where}: the YAML tag {node.tag!r} is not supported")
        return value

    def _pairs(self, loader: Any, node: Any, key: Key) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for name_node, child in node.value:
            where = self.where(name_node.start_mark)
            if not isinstance(name_node, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key must be a plain word")
            name = str(name_node.value)
            path = (*key, name)
            if name in seen:
                self.layer.errors.append(f"{dotted(path)}: is given twice ({where})")
                continue
            seen.add(name)
            scalar = isinstance(child, yaml.ScalarNode) and child.style is None
            self.layer.origins[path] = Origin(where, child.value if scalar else None)
            yield name, self.build(loader, child, path)


def _ignore_aliases(*_: object) -> bool:
    return True


_dump_resolvers = {
    first: [*resolvers, (_TAG + "float", _FLOAT)]
    for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _first in "-+.0123456789":
    _dump_resolvers.setdefault(_first, [(_TAG + "float", _FLOAT)])
# Quotes whatever either this dialect or YAML 1.1 would take for something else than text.
_Dumper: Any = type(
    "_Dumper",
    (yaml.SafeDumper,),
    {"yaml_implicit_resolvers": _dump_resolvers, "ignore_aliases": _ignore_aliases},
)


def dump(values: dict[str, Any]) -> str:
    """Plain containers as YAML that :func:`read_text` reads back unchanged."""
    text = yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    return str(text)
