"""From resolved plain containers to the dataclasses of :mod:`liteasr.config.schema`.

Nothing is converted silently: a truth value is no number, a number is text only as it was written,
an unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from liteasr.config.errors import did_you_mean
from liteasr.config.reading import Key, Origin, dotted
from liteasr.config.schema import Recipe

__all__ = ["Builder", "fill_defaults", "to_plain"]

T = TypeVar("T")

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_INVALID: Any = object()


def to_plain(value: Any) -> Any:
    """Dataclasses as dictionaries and enums as their values, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    return value


def fill_defaults(schema: type[Any], values: Any) -> Any:
    """``values`` with every key of the schema that they lack; unknown keys stay."""
    if not isinstance(values, dict):
        return values
    filled = {**to_plain(schema()), **values}
    for name, hint in get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            filled[name] = fill_defaults(hint, filled[name])
        elif _is_sections(hint) and isinstance(filled[name], dict):
            section = get_args(hint)[1]
            items = filled[name].items()
            filled[name] = {key: fill_defaults(section, item) for key, item in items}
    return filled


def _is_sections(hint: Any) -> bool:
    """Whether a field is a dictionary of dataclasses by name."""
    return get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1])


def _leaves(schema: type[Any], prefix: Key = ()) -> Iterator[Key]:
    for name, hint in get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _leaves(hint, (*prefix, name))
        else:
            yield (*prefix, name)


class Builder:
    """Builds typed objects and collects everything that is wrong on the way.

    Args:
        origins: Place of every key, for the messages.
        failures: Message by key of values that could not be resolved.
        complete: Whether all files could be read; if not, absent keys are no error.

    Attributes:
        errors: What is wrong.
        invalid: Keys whose value is not the one asked for.
    """

    def __init__(
        self, origins: Mapping[Key, Origin], failures: Mapping[Key, str], complete: bool
    ) -> None:
        self.origins = origins
        self.failures = failures
        self.complete = complete
        self.errors: list[str] = []
        self.invalid: list[Key] = []

    def section(self, schema: type[T], values: Any, key: Key = ()) -> T:
        """An instance of the dataclass ``schema``; defaults stand in for invalid values."""
        if not isinstance(values, dict):
            names = ", ".join(get_type_hints(schema))
            found = "is empty" if values is None else f"is {values!r}"
            self._fail(key, f"{found}; it must be a section with keys among {names}")
            return schema()
        hints = get_type_hints(schema)
        arguments = {}
        for name, value in values.items():
            child = (*key, name)
            if name not in hints:
                self._unknown(child, list(hints))
            elif child in self.failures:
                self._fail(child, self.failures[child])
            elif value == MISSING:
                self._missing(child)
            else:
                arguments[name] = self._convert(hints[name], value, child)
        return schema(**{k: v for k, v in arguments.items() if v is not _INVALID})

    def _where(self, key: Key) -> str:
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                return f" ({self.origins[key[:length]].where})"
        return ""

    def _fail(self, key: Key, message: str, hint: str = "") -> Any:
        self.errors.append(f"{dotted(key)}: {message}{self._where(key)}{hint}")
        self.invalid.append(key)
        return _INVALID

    def _unknown(self, key: Key, allowed: list[str]) -> None:
        hint = did_you_mean(key[-1], allowed)
        if not hint:
            elsewhere = [dotted(leaf) for leaf in _leaves(Recipe) if leaf[-1] == key[-1]]
            hint = f"; did you mean {elsewhere[0]!r}?" if elsewhere else ""
        parent = f"{dotted(key[:-1])} has" if key[:-1] else "a recipe has"
        self._fail(key, "unknown key", f"{hint} {parent}: {', '.join(allowed)}")

    def _missing(self, key: Key) -> None:
        self.invalid.append(key)
        if not self.complete:
            return
        hint = ""
        if key[-1] == "kind":
            role = key[:-2]
            siblings = {k[2] for k in self.origins if k[:2] == role and len(k) == 4}
            complete = {n for n in siblings if (*role, n, "kind") in self.origins}
            hint = did_you_mean(key[-2], complete - {key[-2]})
        where = self._where(key[:-1]) if key[-1] == "kind" else ""
        self.errors.append(f"{dotted(key)}: must be set, it has no default{where}{hint}")

    def _convert(self, hint: Any, value: Any, key: Key) -> Any:
        if hint is Any:
            return self._anything(value, key)
        if get_origin(hint) in (types.UnionType, Union):
            (inner,) = (item for item in get_args(hint) if item is not type(None))
            return None if value is None else self._convert(inner, value, key)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self.section(hint, value, key)
        if get_origin(hint) is dict:
            return self._mapping(get_args(hint)[1], value, key)
        if get_origin(hint) is list:
            return self._list(get_args(hint)[0], value, key)
        if issubclass(hint, Enum):
            return self._enum(hint, value, key)
        convert = {bool: self._bool, int: self._int, float: self._float, str: self._str}[hint]
        return convert(value, key)

    def _anything(self, value: Any, key: Key) -> Any:
        failed = [place for place in self.failures if place[: len(key)] == key]
        for place in failed:
            self._fail(place, self.failures[place])
        return _INVALID if failed else value

    def _mapping(self, hint: Any, value: Any, key: Key) -> Any:
        if value is None:
            return {}
        if not isinstance(value, dict):
            return self._fail(key, f"{value!r} is no set of named entries")
        converted = {}
        for name, item in value.items():
            child = (*key, name)
            if child in self.failures:
                self._fail(child, self.failures[child])
            else:
                converted[name] = self._convert(hint, item, child)
        return converted

    def _list(self, hint: Any, value: Any, key: Key) -> Any:
        if not isinstance(value, list):
            return self._fail(key, f"{value!r} is no list")
        items = []
        for index, item in enumerate(value):
            child = (*key, str(index))
            if child in self.failures:
                items.append(self._fail(child, self.failures[child]))
            else:
                items.append(self._convert(hint, item, child))
        return _INVALID if any(item is _INVALID for item in items) else items

    def _enum(self, hint: type[Enum], value: Any, key: Key) -> Any:
        allowed = {str(member.value): member for member in hint}
        if str(value) in allowed:
            return allowed[str(value)]
        names = ", ".join(allowed)
        return self._fail(
            key, f"{value!r} is none of {names}", did_you_mean(str(value), list(allowed))
        )

    def _bool(self, value: Any, key: Key) -> Any:
        if isinstance(value, bool):
            return value
        if str(value).lower() in _TRUE | _FALSE:
            return str(value).lower() in _TRUE
        return self._fail(key, f"{value!r} is neither true nor false")

    def _int(self, value: Any, key: Key) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        try:
            return int(value) if isinstance(value, str) else self._no_int(value, key)
        except ValueError:
            return self._no_int(value, key)

    def _no_int(self, value: Any, key: Key) -> Any:
        return self._fail(key, f"{value!r} is no whole number")

    def _float(self, value: Any, key: Key) -> Any:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number):
                return number
        return self._fail(key, f"{value!r} is no number")

    def _str(self, value: Any, key: Key) -> Any:
        if isinstance(value, str):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self._fail(key, f"{value!r} is no text")
        # The number as written: '0123' and '1e10' may be commits.
        origin = self.origins.get(key)
        written = origin.text if origin else None
        return str(value) if written is None or "${" in written else written
