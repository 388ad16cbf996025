"""Sets of utterances as a command line names them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from liteasr.config import DEMO_SPLITS, ConfigError, SourceConfig, SourceKind
from liteasr.data.hub import is_mirror
from liteasr.data.sources import METADATA_FILES, folders_with_metadata

__all__ = ["ESB_REPOSITORY", "esb_sources", "parse_sources"]

ESB_REPOSITORY = "hf-audio/esb-datasets-test-only-sorted"
"""Test sets of the Open ASR Leaderboard."""

_ESB = {
    "voxpopuli": ("voxpopuli", "test"),
    "ami": ("ami", "test"),
    "earnings22": ("earnings22", "test"),
    "gigaspeech": ("gigaspeech", "test"),
    "librispeech_clean": ("librispeech", "test.clean"),
    "librispeech_other": ("librispeech", "test.other"),
    "spgispeech": ("spgispeech", "test"),
    "tedlium": ("tedlium", "test"),
}
_SPLITS = frozenset(
    ("train", "dev", "test", "val", "valid", "validation", "eval", "metadata", "manifest", "data")
)
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)", re.DOTALL)
_HUB = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?::([\w.-]+))?(?::([\w.-]+))?")


def parse_sources(argument: str, taken: Collection[str] = ()) -> dict[str, SourceConfig]:
    """Sources named by one argument of a command line.

    ``esb`` is the eight test sets of the Open ASR Leaderboard and ``esb:FOLDER`` a local copy of
    them; else a folder with ``metadata.jsonl`` or ``metadata.csv``, a ``.jsonl`` manifest, a hub
    data set ``owner/name[:subset[:split]]``, or a folder with Parquet files of one, likewise with
    ``[:subset[:split]]``. ``demo`` is the evaluation set that comes with the package and
    ``demo:calibration`` the other one. ``name=`` before any of these gives a name of your own.

    Args:
        argument: The argument.
        taken: Names in use already, which are avoided if another one suggests itself.

    Returns:
        Sources by name.

    Raises:
        ConfigError: If the argument is none of these, or means several sets.

    Example:
        >>> sources = parse_sources("esb")
        >>> len(sources), sources["librispeech_other"].split
        (8, 'test.other')
        >>> parse_sources("mine=owner/name:clean:dev")["mine"].subset
        'clean'
    """
    named = None if Path(argument).expanduser().exists() else _NAMED.fullmatch(argument)
    if named is None:
        return _parse(argument, taken)
    sources = _parse(named[2], ())
    if len(sources) == 1:
        return {named[1]: next(iter(sources.values()))}
    return {f"{named[1]}_{name}": source for name, source in sources.items()}


def esb_sources(path: str = ESB_REPOSITORY) -> dict[str, SourceConfig]:
    """The eight test sets, of the hub or of a local copy.

    Args:
        path: Repository or folder.
    """
    return {name: _hub(path, subset, split) for name, (subset, split) in _ESB.items()}


def _parse(argument: str, taken: Collection[str]) -> dict[str, SourceConfig]:
    if argument == "esb" or argument.startswith("esb:"):
        return _parse_esb(argument.removeprefix("esb").removeprefix(":"))
    if argument == "demo" or argument.startswith("demo:"):
        return _parse_demo(argument.removeprefix("demo").removeprefix(":"))
    if not argument.strip():
        raise ConfigError(f"--data: {argument!r} {_no_such_thing(argument)}")
    path = Path(argument).expanduser()
    if path.is_dir():
        return _parse_folder(argument, path, taken)
    if path.is_file():
        if path.suffix != ".jsonl":
            raise ConfigError(f"--data: {argument} is no .jsonl manifest")
        name = _local_name(path.resolve().with_suffix(""), taken)
        return {name: SourceConfig(kind=SourceKind.manifest, path=argument)}
    return _parse_hub(argument, taken)


def _parse_esb(mirror: str) -> dict[str, SourceConfig]:
    if mirror and not Path(mirror).expanduser().is_dir():
        raise ConfigError(f"--data: esb:{mirror}: there is no folder {mirror}")
    return esb_sources(mirror or ESB_REPOSITORY)


def _parse_demo(split: str) -> dict[str, SourceConfig]:
    if split and split not in DEMO_SPLITS:
        known = " or ".join(f"demo:{name}" for name in DEMO_SPLITS)
        raise ConfigError(f"--data: demo:{split} is not {known}")
    name = f"demo_{split}" if split else "demo"
    return {name: SourceConfig(kind=SourceKind.demo, split=split or "evaluation")}


def _parse_hub(argument: str, taken: Collection[str]) -> dict[str, SourceConfig]:
    folder, *parts = argument.split(":")
    if 1 <= len(parts) <= 2 and all(parts) and Path(folder).expanduser().is_dir():
        source = _hub(folder, *parts)
    elif (hub := _HUB.fullmatch(argument)) is not None:
        source = _hub(hub[1], hub[2], hub[3] or "test")
    else:
        raise ConfigError(f"--data: {argument} {_no_such_thing(argument)}")
    words = [Path(source.path).expanduser().resolve().name]
    words += [source.subset] if source.subset else []
    words += [source.split] if source.split != "test" or "_".join(words) in taken else []
    return {_clean("_".join(words)): source}


def _parse_folder(argument: str, folder: Path, taken: Collection[str]) -> dict[str, SourceConfig]:
    name = _local_name(folder.resolve(), taken)
    if any((folder / metadata).is_file() for metadata in METADATA_FILES):
        return {name: SourceConfig(kind=SourceKind.folder, path=argument)}
    inner = folders_with_metadata(folder)
    if inner:
        raise ConfigError(
            f"--data: {argument} has no {' or '.join(METADATA_FILES)}; name the folders inside it "
            f"that you mean: {' '.join(map(str, inner))}"
        )
    if is_mirror(folder):
        return {name: _hub(argument, None, "test")}
    raise ConfigError(
        f"--data: {argument} has no {' or '.join(METADATA_FILES)} and no Parquet files"
    )


def _hub(path: str, subset: str | None, split: str = "test") -> SourceConfig:
    # Streamed, so that measuring a part of a large set stores nothing.
    return SourceConfig(kind=SourceKind.hub, path=path, subset=subset, split=split, streaming=True)


def _local_name(path: Path, taken: Collection[str]) -> str:
    """Name of the corpus rather than of its split: ``librispeech`` for ``librispeech/dev``."""
    if path.name.lower() not in _SPLITS or not path.parent.name:
        return _clean(path.name)
    corpus = _clean(path.parent.name)
    return _clean(f"{corpus}_{path.name}") if corpus in taken else corpus


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "data"


def _no_such_thing(argument: str) -> str:
    if argument.startswith((".", "/", "~")) or argument.count("/") > 1:
        return "does not exist"
    return (
        "is no data set: name a folder, a .jsonl manifest, owner/name[:subset[:split]] of the hub, "
        "esb, esb:FOLDER or demo"
    )
