"""From a source of a recipe to its rows: one function per kind.

Rows have the columns ``id`` (what tells one file from another in the check that no file has two
roles), ``audio`` (``path`` and ``bytes``, undecoded), ``text``, and where known ``duration`` (s)
and ``speaker``. Where nobody reads transcripts (calibration, distillation of the encoder), ``text``
is empty for speech that has none.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets

from liteasr.config import DEMO_SPLITS, ConfigError, SourceConfig, SourceKind
from liteasr.data.hub import load_hub
from liteasr.data.labels import Segment
from liteasr.data.rows import build_rows, pick, transcript_column

__all__ = [
    "AUDIO_SUFFIXES",
    "METADATA_FILES",
    "Rows",
    "folders_with_metadata",
    "load_demo",
    "load_folder",
    "load_hub",
    "load_manifest",
    "load_source",
]

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
"""Names of the file that lists a folder's audio."""

AUDIO_SUFFIXES = (
    *(".aif", ".aiff", ".au", ".caf", ".flac", ".mp3"),
    *(".oga", ".ogg", ".opus", ".w64", ".wav"),
)
"""How names of audio files end, in lower case, in a folder that has no such list."""

_MANIFEST_COLUMNS = ("audio_filepath", "audio", "file_name")
_SHOWN = 3
_DEMO = Path(__file__).resolve().parents[1] / "demo" / "speech"


class _Entry(NamedTuple):
    """A line of a metadata file or manifest, with its number."""

    line: int
    values: Mapping[str, Any]


def load_source(source: SourceConfig, key: str, *, transcripts: bool = True) -> Rows:
    """The rows of a source, ``skip`` and ``limit`` applied; a stream if it asks for that.

    Args:
        source: The source.
        key: Its dotted key (``data.test.librispeech``), for errors.
        transcripts: Every row must have one; else rows without have an empty ``text``.

    Raises:
        ConfigError: Naming key, file and line of what is wrong.
    """
    return _LOADERS[source.kind](source, key, transcripts=transcripts)


def load_folder(source: SourceConfig, key: str, *, transcripts: bool = True) -> datasets.Dataset:
    """A folder in Hugging Face ``audiofolder`` layout.

    ``metadata.jsonl`` or ``metadata.csv`` names the files in ``file_name``. Without ``transcripts``
    a folder that has neither gives all audio in it and in its sub-folders, in the order of names.

    Raises:
        ConfigError: If the folder, its metadata, a transcript or a file is not there.
    """
    folder = Path(source.path).expanduser()
    if not folder.is_dir():
        state = "is no folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{key}.path: {source.path} {state}")
    metadata = next((folder / n for n in METADATA_FILES if (folder / n).is_file()), None)
    if metadata is None:
        files = [] if transcripts or folders_with_metadata(folder) else _audio_files(folder)
        if not files:
            missing = "" if transcripts else f" and no audio ({', '.join(AUDIO_SUFFIXES)})"
            raise ConfigError(f"{key}.path: {source.path} {_no_metadata(folder, missing)}")
        return build_rows([_file_row(files[index]) for index in pick(len(files), source, key)])
    entries = (
        _read_jsonl(metadata, key) if metadata.suffix == ".jsonl" else _read_csv(metadata, key)
    )
    return _local_rows(entries, metadata, ("file_name",), source, key, transcripts)


def load_manifest(source: SourceConfig, key: str, *, transcripts: bool = True) -> datasets.Dataset:
    """A JSONL manifest: ``audio_filepath`` (or ``audio``, ``file_name``) and a transcript a line.

    Paths are relative to the manifest.

    Raises:
        ConfigError: If the manifest, a line, a transcript or a file cannot be used.
    """
    manifest = Path(source.path).expanduser()
    if not manifest.is_file():
        state = "is no file" if manifest.exists() else "does not exist"
        raise ConfigError(f"{key}.path: {source.path} {state}")
    entries = _read_jsonl(manifest, key)
    return _local_rows(entries, manifest, _MANIFEST_COLUMNS, source, key, transcripts)


def load_demo(source: SourceConfig, key: str, *, transcripts: bool = True) -> datasets.Dataset:
    """A split of the speech that comes with the package: ``calibration`` or ``evaluation``.

    Raises:
        ConfigError: If there is no such split, or ``skip`` leaves nothing of it.

    Example:
        >>> rows = load_demo(SourceConfig(kind=SourceKind.demo, split="evaluation", limit=2), "d")
        >>> rows["text"][0]
        'the children are learning geography'
    """
    if source.split not in DEMO_SPLITS:
        raise ConfigError(
            f"{key}.split: the built-in demo data has no {source.split!r}, "
            f"only {' and '.join(DEMO_SPLITS)}"
        )
    folder = replace(source, path=str(_DEMO / source.split))
    return load_folder(folder, key, transcripts=transcripts)


_LOADERS: dict[SourceKind, Callable[..., Rows]] = {
    SourceKind.hub: load_hub,
    SourceKind.folder: load_folder,
    SourceKind.manifest: load_manifest,
    SourceKind.demo: load_demo,
}


def folders_with_metadata(folder: Path, depth: int = 2) -> list[Path]:
    """Sub-folders, down to ``depth`` levels, that could be sources of their own."""
    found: list[Path] = []
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if any((child / name).is_file() for name in METADATA_FILES):
            found.append(child)
        elif depth > 1:
            found += folders_with_metadata(child, depth - 1)
    return found


def _no_metadata(folder: Path, missing: str) -> str:
    if not any(folder.iterdir()):
        return "is empty"
    found = folders_with_metadata(folder)
    hint = f"; there is some in {', '.join(map(str, found))}" if found else ""
    return f"has no {' or '.join(METADATA_FILES)}{hint or missing}"


def _raise_some(messages: list[str]) -> None:
    """Raise the first few of many like errors, if there are any."""
    if messages:
        more = len(messages) - _SHOWN
        raise ConfigError(messages[:_SHOWN] + ([f"and {more} more like these"] if more > 0 else []))


def _read_text(file: Path, key: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}.path: cannot read {file}: {error}") from error


def _read_jsonl(file: Path, key: str) -> list[_Entry]:
    entries, errors = [], []
    # str.splitlines would also break at characters that JSON allows within a text.
    for line, text in enumerate(_read_text(file, key).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except ValueError as error:
            errors.append(f"{key}.path: {file}, line {line}: is not JSON: {error}")
            continue
        if isinstance(values, dict):
            entries.append(_Entry(line, values))
        else:
            errors.append(f"{key}.path: {file}, line {line}: is not a JSON object")
    _raise_some(errors)
    return entries


def _read_csv(file: Path, key: str) -> list[_Entry]:
    reader = csv.DictReader(_read_text(file, key).splitlines(keepends=True))
    try:
        return [_Entry(reader.line_num, values) for values in reader]
    except csv.Error as error:
        raise ConfigError(f"{key}.path: {file}, line {reader.line_num}: {error}") from error


def _local_rows(
    entries: list[_Entry],
    listing: Path,
    file_columns: tuple[str, ...],
    source: SourceConfig,
    key: str,
    transcripts: bool,
) -> datasets.Dataset:
    if not entries:
        raise ConfigError(f"{key}.path: {listing} lists no audio")
    columns = list(dict.fromkeys(name for entry in entries for name in entry.values))
    text_column = transcript_column(columns, source, key, str(listing), required=transcripts)
    rows, errors = [], []
    for entry in (entries[index] for index in pick(len(entries), source, key)):
        try:
            row = _local_row(entry.values, listing.parent, file_columns)
            rows.append(row | {"text": _text(entry.values, text_column, transcripts)})
        except ValueError as error:
            errors.append(f"{key}.path: {listing}, line {entry.line}: {error}")
    _raise_some(errors)
    return build_rows(rows)


def _audio_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    )


def _file_row(file: Path) -> dict[str, Any]:
    path = os.path.realpath(file)
    return {"id": path, "audio": {"path": path, "bytes": None}, "text": ""}


def _text(values: Mapping[str, Any], column: str | None, required: bool) -> str:
    """Transcript of a row.

    Raises:
        ValueError: If it has none and must.
    """
    text = None if column is None else values.get(column)
    if isinstance(text, str):
        return text
    if required:
        raise ValueError(f"has no transcript ({column})")
    return ""


def _local_row(
    values: Mapping[str, Any], folder: Path, file_columns: tuple[str, ...]
) -> dict[str, Any]:
    """One row of a local set but for its transcript.

    Raises:
        ValueError: If it cannot be used, without saying where it is.
    """
    name = next((values[column] for column in file_columns if values.get(column)), None)
    if not isinstance(name, str):
        raise ValueError(f"names no audio file ({' or '.join(file_columns)})")
    if values.get("offset"):
        raise ValueError("offset: parts of files are not supported; cut the file")
    if not (folder / name).is_file():
        raise ValueError(f"there is no file {folder / name}")
    speaker = values.get("speaker")
    return _file_row(folder / name) | {
        "duration": _seconds(values.get("duration")),
        "speaker": None if speaker is None else str(speaker),
        "segments": _segments(values.get("segments")),
    }


def _segments(value: Any) -> list[Segment] | None:
    """Parts of a clip in the order of time, if the row tells any.

    Raises:
        ValueError: If it tells something else.
    """
    if not value:
        return None
    try:
        segments: list[Segment] = [
            {"start": float(one["start"]), "end": float(one["end"]), "text": str(one["text"])}
            for one in value
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError("segments: is no list of start, end (in seconds) and text") from error
    times = [time for one in segments for time in (one["start"], one["end"])]
    if not segments or times[0] < 0 or times != sorted(times) or not math.isfinite(times[-1]):
        raise ValueError("segments: start and end must grow from segment to segment, from 0 on")
    return segments


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if 0 < seconds < math.inf else None
