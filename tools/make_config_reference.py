"""Write ``docs/configuration.md``, the reference of a recipe, from the schema's own words.

::

    python tools/make_config_reference.py

Types, defaults, allowed values and descriptions are those of ``liteasr/config/schema*.py`` and
``liteasr/config/check.py``; the text around them is ``tools/templates/configuration.md.j2``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from omegaconf import MISSING

from liteasr.config import ROLES, Recipe
from liteasr.config.build import to_plain
from liteasr.config.check import PRECISIONS, RANGES, STRATEGIES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
TEMPLATE = Path(__file__).resolve().parent / "templates" / "configuration.md.j2"

WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "any"}
CHOICES = {"trainer.precision": PRECISIONS, "trainer.strategy": STRATEGIES}
NAMED = {"data": "<set>", "compare": "<method>"}
"""How the page calls a name that the user chooses, by section."""
DEFAULTS = {"run.name": "name of the file"}
"""Those that the schema does not hold."""


class Row(NamedTuple):
    """A key as the page shows it, in Markdown."""

    key: str
    type: str
    default: str
    text: str


class Section(NamedTuple):
    """A dataclass of the schema as the page shows it."""

    key: str
    text: str
    rows: list[Row]


class Shipped(NamedTuple):
    """A shipped recipe and what its first comment says."""

    path: str
    text: str


def main() -> int:
    """Write the page and return the exit code."""
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


def render() -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE.name).render(
        sections=list(sections()), recipes=list(recipes()), fragments=fragments()
    )


def recipes() -> Iterator[Shipped]:
    """Every shipped recipe, with the first sentence of its first comment."""
    for file in sorted((ROOT / "recipes").rglob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        comment = " ".join(line.removeprefix("#").strip() for line in lines[:end])
        sentence = re.split(r"(?<=\.)\s", comment)[0]
        yield Shipped(file.relative_to(ROOT).as_posix(), sentence)


def fragments() -> dict[str, list[str]]:
    """Folder → names of the fragments in it."""
    folders = sorted(path for path in (ROOT / "configs").iterdir() if path.is_dir())
    return {folder.name: sorted(f.stem for f in folder.glob("*.yaml")) for folder in folders}


def sections(schema: type[Any] = Recipe, key: str = "") -> Iterator[Section]:
    """A dataclass and all below it, each once; sets of the four roles are alike.

    Args:
        schema: The dataclass.
        key: Its dotted key.
    """
    children: dict[type[Any], str] = {}
    rows = []
    texts = docstrings(schema)
    defaults = to_plain(schema())
    for name, hint in get_type_hints(schema).items():
        child = f"{key}.{name}" if key else name
        below = _dataclass_of(hint)
        if below is not None and get_origin(hint) is dict:
            children[below] = f"{key}.{'<role>' if name in ROLES else name}.{NAMED[key]}"
        elif below is not None:
            children[below] = child
        if not _is_section(hint):
            default = DEFAULTS.get(child) or _default(defaults[name])
            rows.append(Row(child, type_in_words(hint, child), default, texts[name]))
    if key:
        yield Section(key, _markdown(inspect.getdoc(schema) or ""), rows)
    for below, child in children.items():
        yield from sections(below, child)


def docstrings(schema: type[Any]) -> dict[str, str]:
    """What the source says below each field of a dataclass, in Markdown.

    Raises:
        ValueError: If it says nothing of a field that is no section of its own.
    """
    (node,) = ast.parse(inspect.getsource(schema)).body
    assert isinstance(node, ast.ClassDef)
    texts = {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr)
        if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
    hints = get_type_hints(schema)
    silent = [name for name in hints if name not in texts and not _is_section(hints[name])]
    if silent:
        raise ValueError(f"{schema.__name__}: no docstring below {', '.join(silent)}")
    return {name: _markdown(text) for name, text in texts.items()}


def type_in_words(hint: Any, key: str) -> str:
    """A type with the values that are allowed, in Markdown.

    Args:
        hint: Annotation of a field.
        key: Its dotted key.
    """
    if get_origin(hint) in (types.UnionType, Union):
        (inner,) = (item for item in get_args(hint) if item is not type(None))
        return f"{type_in_words(inner, key)}; or `null`"
    if key in CHOICES:
        return _either(CHOICES[key])
    if get_origin(hint) is dict:
        below = get_args(hint)[1]
        return "keys and values" if below is Any else "entries by name"
    if get_origin(hint) is list:
        (inner,) = get_args(hint)
        if inner in WORDS:
            return f"list of {WORDS[inner]}s"
        return f"list of {type_in_words(inner, key)}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _either([str(member.value) for member in hint])
    wording = [one.wording for one in RANGES if key in one.keys]
    return ", ".join([WORDS[hint], *wording])


def _either(values: Any) -> str:
    *others, last = (f"`{value}`" for value in values)
    return f"{', '.join(others)} or {last}"


def _is_section(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def _dataclass_of(hint: Any) -> type[Any] | None:
    """The dataclass that a field holds, by itself or by name."""
    if get_origin(hint) is dict:
        hint = get_args(hint)[1]
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _default(value: Any) -> str:
    if value == MISSING:
        return "must be set"
    if isinstance(value, dict):
        return ", ".join(f"`{name}`" for name in value) or "none"
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value) or "none"
    if value == "":
        return "empty"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _markdown(text: str) -> str:
    """A docstring as one line that may stand in a table."""
    line = " ".join(text.split()).replace("``", "`")
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", line).replace("|", r"\|")


if __name__ == "__main__":
    sys.exit(main())
