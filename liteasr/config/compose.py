"""From a recipe, its fragments and the command line to one plain dictionary.

Later wins: the fragments of a ``defaults:`` list in their order, then the file's own keys, then
the overrides in their order. Nothing is resolved or typed here, so an override of a key also
reaches every ``${...}`` that refers to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liteasr.config.errors import ConfigError, did_you_mean
from liteasr.config.reading import Key, Layer, Origin, dotted, read_file, read_text
from liteasr.config.schema import ROLES

__all__ = ["Composer", "find_recipe", "fragment_folders", "parse_overrides"]

COMMAND_LINE = "command line"
_PACKAGE = Path(__file__).resolve().parent.parent


def _shipped(kind: str) -> Path:
    """Folder of the shipped ``configs`` or ``recipes``: in the wheel, or in a checkout."""
    packaged = _PACKAGE / f"_{kind}"
    return packaged if packaged.is_dir() else _PACKAGE.parent / kind


def _label(path: Path) -> str:
    """Path of a file as messages show it: relative where that is shorter to read."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def find_recipe(path: str | Path) -> Path:
    """The file of a recipe, given its path or the name of a shipped one.

    Args:
        path: ``my/recipe.yaml``, or ``small_acc`` (also ``recipes/small_acc.yaml``).

    Raises:
        ConfigError: There is no such file and no such shipped recipe.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return given
    folder = _shipped("recipes")
    name = given.name.removesuffix(".yaml")
    if given.parent in (Path(), Path("recipes")) and name:
        shipped = folder / f"{name}.yaml"
        if shipped.is_file():
            return shipped
    if given.is_dir():
        raise ConfigError(f"{path}: is a folder, not a recipe file")
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    raise ConfigError(
        f"{path}: no such recipe file{did_you_mean(name, names)} "
        f"Shipped recipes: {', '.join(names) or 'none'}"
    )


def fragment_folders(recipe: Path) -> list[Path]:
    """Where the fragments of a recipe are looked for, first place first."""
    shipped = _shipped("configs")
    if recipe.absolute().parent == _PACKAGE / "_recipes":
        return [shipped]
    beside = [parent / "configs" for parent in recipe.absolute().parents]
    return [*(folder for folder in beside if folder.is_dir() and folder != shipped), shipped]


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Command line overrides as dotted keys and their values.

    Args:
        arguments: ``key=value`` each; the value is YAML.

    Raises:
        ConfigError: At least one is malformed; all of them are named.

    Example:
        >>> parse_overrides(["finetune.max_steps=10", "data.test.ljspeech=null"])
        {'finetune.max_steps': 10, 'data.test.ljspeech': None}
    """
    errors: list[str] = []
    parsed = [(key, layer.values) for key, layer in _read_overrides(arguments, errors)]
    if errors:
        raise ConfigError(errors)
    return {dotted(key): value for key, value in parsed}


def _read_overrides(arguments: Sequence[str], errors: list[str]) -> list[tuple[Key, Layer]]:
    layers: list[tuple[Key, Layer]] = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        key = tuple(part.strip() for part in name.split("."))
        if not equals:
            errors.append(f"{argument}: has no '='; write overrides as key=value ({COMMAND_LINE})")
        elif not all(key):
            errors.append(f"{argument}: the key before '=' is incomplete ({COMMAND_LINE})")
        elif key == ("defaults",):
            errors.append(f"defaults: cannot be overridden; set the keys ({COMMAND_LINE})")
        else:
            try:
                layer = read_text(text, COMMAND_LINE, key, lines=False)
            except ConfigError as error:
                reason = str(error).removeprefix(f"{COMMAND_LINE}: ")
                errors.append(f"{dotted(key)}: {reason} ({COMMAND_LINE})")
            else:
                errors.extend(layer.errors)
                layers.append((key, layer))
    return layers


class Composer:
    """Merges files and overrides into ``values`` and remembers where each key came from.

    Args:
        folders: Where fragments are looked for.

    Attributes:
        values: What has been merged so far.
        origins: Place of every key in ``values``.
        errors: What went wrong.
        complete: ``False`` once a file could not be read, so that keys may be absent for no fault
            of their own.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self.values: dict[str, Any] = {}
        self.origins: dict[Key, Origin] = {}
        self.errors: list[str] = []
        self.complete = True

    def add_file(self, path: Path, ancestors: tuple[Path, ...] = ()) -> None:
        """Merge a file: its fragments first, then its own keys."""
        try:
            layer = read_file(path, _label(path))
        except ConfigError as error:
            self._broken(error.errors)
            return
        self.errors.extend(layer.errors)
        fragments = layer.values.pop("defaults", [])
        for name, where in self._fragment_names(fragments, layer, path):
            self._add_fragment(name, where, (*ancestors, path.absolute()))
        self._merge(self.values, layer.values, layer.origins, ())

    def add_overrides(self, arguments: Sequence[str]) -> None:
        """Merge ``key=value`` arguments, in their order."""
        for key, layer in _read_overrides(arguments, self.errors):
            nested = layer.values
            for part in reversed(key):
                nested = {part: nested}
            origin = layer.origins.get(key, Origin(COMMAND_LINE))
            for depth in range(1, len(key) + 1):
                layer.origins.setdefault(key[:depth], Origin(origin.where))
            self._merge(self.values, nested, layer.origins, ())

    def _broken(self, errors: Sequence[str]) -> None:
        self.errors.extend(errors)
        self.complete = False

    def _fragment_names(self, fragments: Any, layer: Layer, path: Path) -> list[tuple[str, str]]:
        origin = layer.origins.get(("defaults",))
        where = origin.where if origin else _label(path)
        if not isinstance(fragments, list):
            self._broken([f"defaults: must be a list of names such as model/tiny ({where})"])
            return []
        names = []
        for index, name in enumerate(fragments):
            place = layer.origins[("defaults", str(index))].where
            if isinstance(name, str) and name:
                names.append((name, place))
            else:
                self._broken([f"defaults: {name!r} is no name such as model/tiny ({place})"])
        return names

    def _add_fragment(self, name: str, where: str, ancestors: tuple[Path, ...]) -> None:
        for folder in self.folders:
            path = folder / f"{name}.yaml"
            if not path.is_file():
                continue
            if path.absolute() in ancestors:
                chain = [*ancestors[ancestors.index(path.absolute()) :], path]
                circle = " → ".join(file.stem for file in chain)
                self._broken([f"defaults: {name!r} includes itself: {circle} ({where})"])
            else:
                self.add_file(path, ancestors)
            return
        known = sorted(
            {
                file.relative_to(folder).with_suffix("").as_posix()
                for folder in self.folders
                for file in folder.rglob("*.yaml")
            }
        )
        places = ", ".join(_label(folder) for folder in self.folders)
        hint = did_you_mean(name.removesuffix(".yaml"), known)
        self._broken([f"defaults: no fragment {name!r} in {places} ({where}){hint}"])

    def _merge(
        self,
        base: dict[str, Any],
        over: dict[str, Any],
        origins: dict[Key, Origin],
        prefix: Key,
    ) -> None:
        for name, value in over.items():
            key = (*prefix, name)
            if isinstance(value, dict):
                if not isinstance(base.get(name), dict):
                    self._refuse_to_hide(base.get(name), key, origins[key])
                    base[name] = {}
                self.origins[key] = origins[key]
                self._merge(base[name], value, origins, key)
            elif value is None and _is_entry(key):
                self._remove(base, key, origins[key])
            else:
                base[name] = value
                self._forget(key)
                self.origins.update(
                    (place, origin) for place, origin in origins.items() if place[: len(key)] == key
                )

    def _refuse_to_hide(self, hidden: Any, key: Key, origin: Origin) -> None:
        """Keys set below a scalar would silently take its place."""
        if hidden is None or _is_options(key):
            return
        self.errors.append(
            f"{dotted(key)}: is {hidden!r} ({self.origins[key].where}), "
            f"so no keys can be set below it ({origin.where})"
        )

    def _remove(self, base: dict[str, Any], key: Key, origin: Origin) -> None:
        if key[-1] in base:
            del base[key[-1]]
            self._forget(key)
        elif self.complete:
            hint = did_you_mean(key[-1], base)
            kind = "source" if key[0] == "data" else "entry"
            self.errors.append(f"{dotted(key)}: no such {kind} to remove ({origin.where}){hint}")

    def _forget(self, key: Key) -> None:
        for place in [place for place in self.origins if place[: len(key)] == key]:
            del self.origins[place]


def _is_entry(key: Key) -> bool:
    """Whether ``key`` is a source or a method to compare, by name, which ``null`` removes."""
    if len(key) != 3:
        return False
    return (key[0] == "data" and key[1] in ROLES) or key[:2] == ("compare", "methods")


def _is_options(key: Key) -> bool:
    """Whether ``key`` is a method's own options, of which any may hold any value."""
    in_entry = key[:2] == ("compare", "methods") and key[3:4] == ("options",)
    return key[:2] == ("compression", "options") or in_entry
