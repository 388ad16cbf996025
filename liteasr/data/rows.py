"""What every source gives: rows with an identity, undecoded audio and a transcript."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import datasets

from liteasr.config import ConfigError, SourceConfig
from liteasr.data.labels import Segment

__all__ = ["FEATURES", "AudioFile", "Row", "build_rows", "pick", "transcript_column"]


class AudioFile(TypedDict):
    """An undecoded file: its content, or else its path."""

    path: str | None
    bytes: bytes | None


class Row(TypedDict):
    """One utterance of a source."""

    id: str
    audio: AudioFile | None
    text: str | None
    segments: NotRequired[list[Segment] | None]


FEATURES: dict[str, Any] = {
    "id": datasets.Value("string"),
    # datasets.Audio would ask for torchcodec when rows are written.
    "audio": {"path": datasets.Value("string"), "bytes": datasets.Value("binary")},
    "text": datasets.Value("string"),
}
OPTIONAL_FEATURES: dict[str, Any] = {
    "duration": datasets.Value("float64"),
    "speaker": datasets.Value("string"),
    "segments": [
        {
            "start": datasets.Value("float64"),
            "end": datasets.Value("float64"),
            "text": datasets.Value("string"),
        }
    ],
}


def transcript_column(
    columns: Sequence[str], source: SourceConfig, key: str, place: str, *, required: bool = True
) -> str | None:
    """The first of the source's transcript columns that is there.

    Args:
        columns: Columns that there are.
        source: Names those that may hold the transcript.
        key: Dotted key of the source, for the error.
        place: What has the columns, for the error.
        required: It must be there; else ``None`` says that it is not.

    Raises:
        ConfigError: If there is none of them, and one is required.

    Example:
        >>> source = SourceConfig(text=["text", "sentence"])
        >>> transcript_column(["path", "sentence"], source, "data.test.a", "a.csv")
        'sentence'
    """
    for name in source.text:
        if name in columns:
            return name
    if not required:
        return None
    raise ConfigError(
        f"{key}.text: {place} has no transcript column {' or '.join(source.text)}; "
        f"its columns are {', '.join(columns) or 'none'}"
    )


def pick(count: int, source: SourceConfig, key: str) -> range:
    """Rows that ``skip`` and ``limit`` leave.

    Args:
        count: Rows that there are.
        source: Holds ``skip`` and ``limit``.
        key: Dotted key of the source, for the error.

    Raises:
        ConfigError: If none are left.

    Example:
        >>> pick(10, SourceConfig(skip=7, limit=2), "data.test.a")
        range(7, 9)
    """
    end = count if source.limit is None else min(count, source.skip + source.limit)
    if source.skip >= end:
        raise ConfigError(f"{key}.skip: {source.skip} leaves none of {count} utterances")
    return range(source.skip, end)


def build_rows(rows: Sequence[dict[str, Any]]) -> datasets.Dataset:
    """An in-memory set of rows.

    Args:
        rows: ``id``, ``audio``, ``text``, and ``duration``, ``speaker`` and ``segments`` where
            known.
    """
    features = dict(FEATURES)
    for name, feature in OPTIONAL_FEATURES.items():
        if any(row.get(name) is not None for row in rows):
            features[name] = feature
    columns = {name: [row.get(name) for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
