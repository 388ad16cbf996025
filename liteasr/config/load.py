"""A recipe file and command line overrides as one typed, checked object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liteasr.config.build import Builder, fill_defaults, to_plain
from liteasr.config.check import check
from liteasr.config.compose import Composer, find_recipe, fragment_folders
from liteasr.config.errors import ConfigError
from liteasr.config.interpolation import Resolver, escape
from liteasr.config.reading import Key, dotted, dump
from liteasr.config.schema import Recipe

__all__ = ["load_recipe", "to_yaml"]


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, for_comparison: bool = False
) -> Recipe:
    """Read a recipe, merge its fragments and the overrides, and check it.

    Later wins: the fragments named in ``defaults:`` in their order, the recipe's own keys, the
    overrides. Only then are interpolations resolved. ``null`` removes an entry of a dictionary of
    sources (``data.test.ljspeech=null``) or empties it (``data.test=null``).

    Args:
        path: A file, or the name of a shipped recipe such as ``small_acc``.
        overrides: ``key=value`` with a dotted key and a YAML value.
        for_comparison: Whether its section ``compare`` is to be run, and must say what.

    Returns:
        Plain dataclasses, without any interpolation left.

    Raises:
        ConfigError: Something is wrong; ``errors`` holds everything that is.

    Example:
        >>> recipe = load_recipe("small_acc", ["data.calibration_clips=32"])
        >>> recipe.model.id, recipe.data.calibration_clips, recipe.run.dir
        ('openai/whisper-small', 32, 'runs/small_acc')
    """
    file = find_recipe(path)
    composer = Composer(fragment_folders(file))
    composer.add_file(file)
    composer.add_overrides(overrides)
    _name_run(composer.values, file.stem)

    resolver = Resolver(fill_defaults(Recipe, composer.values))
    values = resolver.resolve()
    builder = Builder(composer.origins, resolver.failures, composer.complete)
    recipe = builder.section(Recipe, values)

    impossible = check(recipe, complete=composer.complete, for_comparison=for_comparison)
    errors = [*composer.errors, *builder.errors, *_unexplained(impossible, builder.invalid)]
    if errors:
        raise ConfigError(errors)
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """A recipe as YAML that :func:`load_recipe` reads back to an equal one.

    Example:
        >>> print(to_yaml(load_recipe("tiny"))[:20])
        run:
          name: tiny
    """
    values: dict[str, Any] = _escaped(to_plain(recipe))
    return dump(values)


def _name_run(values: dict[str, Any], stem: str) -> None:
    run = values.setdefault("run", {})
    if isinstance(run, dict):
        run.setdefault("name", stem)


def _unexplained(messages: list[str], invalid: list[Key]) -> list[str]:
    """Messages about combinations that do not merely follow from a value already told of."""
    told = [dotted(key) + "." for key in invalid]

    def follows(message: str) -> bool:
        keys = [key + "." for key in message.partition(": ")[0].split(", ")]
        return any(key.startswith(t) or t.startswith(key) for key in keys for t in told)

    return [message for message in messages if not follows(message)]


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escape(value) if isinstance(value, str) else value
