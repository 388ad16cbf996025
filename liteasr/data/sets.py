"""The sets of a role: loaded together, kept apart from other roles, put in order for decoding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from liteasr.config import EVALUATION_ROLES, ROLES, ConfigError, SourceConfig, SourceKind
from liteasr.data.audio import AudioError, audio_seconds
from liteasr.data.hub import hub_identity
from liteasr.data.sources import Rows, load_source

__all__ = [
    "Roles",
    "SpeechSet",
    "check_disjoint",
    "durations",
    "load_sets",
]

_SHOWN = 3


@dataclass(frozen=True)
class SpeechSet:
    """A named set of a role, with its rows."""

    role: str
    name: str
    source: SourceConfig
    rows: Rows

    @property
    def key(self) -> str:
        """Dotted key in the recipe."""
        return f"data.{self.role}.{self.name}"

    @property
    def is_stream(self) -> bool:
        """Rows come one after another and are not counted."""
        return isinstance(self.rows, datasets.IterableDataset)

    @property
    def has_files(self) -> bool:
        """Every row is a file of its own, whose header is cheap to read."""
        return self.source.kind in (SourceKind.folder, SourceKind.manifest)


Roles = Mapping[str, Mapping[str, SpeechSet]]
"""Sets by role and name."""


def load_sets(
    sources: Mapping[str, SourceConfig], role: str, *, transcripts: bool = True
) -> dict[str, SpeechSet]:
    """Load all sets of a role; without ``transcripts`` they need not have any.

    Raises:
        ConfigError: With what is wrong in any of them.
    """
    sets, errors = {}, []
    for name, source in sources.items():
        try:
            rows = load_source(source, f"data.{role}.{name}", transcripts=transcripts)
        except ConfigError as error:
            errors += error.errors
        else:
            sets[name] = SpeechSet(role, name, source, rows)
    if errors:
        raise ConfigError(errors)
    return sets


def check_disjoint(roles: Roles) -> None:
    """Hold that no file of val or test is one of calibration or train.

    Sets whose rows can be listed are compared by the identity of their files. A stream is compared
    with the hub sets that read the same split: ``skip`` and ``limit`` must keep them apart. (The
    same speech under two names, say in two repositories, goes unnoticed.)

    Raises:
        ConfigError: Naming both keys and some of the files.
    """
    groups = [[role for role in ROLES if role not in EVALUATION_ROLES], EVALUATION_ROLES]
    seen, measured = [[one for role in g for one in roles.get(role, {}).values()] for g in groups]
    known = {id(one): _ids(one) for one in (*seen, *measured)}
    errors = []
    for one, other in itertools.product(seen, measured):
        one_ids, other_ids = known[id(one)], known[id(other)]
        if one_ids is None or other_ids is None:
            if _ranges_overlap(one.source, other.source):
                where = hub_identity(one.source).removeprefix("hub://")
                errors.append(
                    f"{one.key}, {other.key}: both read the same part of {where}; "
                    "set skip and limit to keep them apart"
                )
        elif shared := sorted(one_ids & other_ids):
            some = ", ".join(shared[:_SHOWN]) + (", …" if len(shared) > _SHOWN else "")
            files = "file" if len(shared) == 1 else "files"
            errors.append(f"{one.key}, {other.key}: {len(shared)} {files} in both: {some}")
    if errors:
        raise ConfigError(errors)


def _ids(one: SpeechSet) -> frozenset[str] | None:
    return None if one.is_stream else frozenset(one.rows["id"])


def _ranges_overlap(one: SourceConfig, other: SourceConfig) -> bool:
    if {one.kind, other.kind} != {SourceKind.hub} or hub_identity(one) != hub_identity(other):
        return False
    ends = [math.inf if s.limit is None else s.skip + s.limit for s in (one, other)]
    return max(one.skip, other.skip) < min(ends)


def durations(one: SpeechSet, *, trust_columns: bool) -> Sequence[float | None]:
    """Seconds of each row, ``None`` where finding out means decoding; infinite if unreadable."""
    known: list[float | None] = [None] * len(one.rows)
    if "duration" in one.rows.column_names:
        known = list(one.rows["duration"])
    if not one.has_files:
        return known
    paths: Iterable[Any] = one.rows["audio"]
    return [
        duration if trust_columns and duration is not None else _header_seconds(audio["path"])
        for duration, audio in zip(known, paths, strict=True)
    ]


def _header_seconds(path: str) -> float:
    try:
        return audio_seconds(path)
    except AudioError:
        return math.inf
