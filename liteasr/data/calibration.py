"""Which clips calibration sees, and how they are read.

Shape suffixes: B clips in a batch, M mel bins, F mel frames.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
from torch.utils.data import Dataset

from liteasr.data.audio import AudioError, Samples, audio_seconds, split_windows
from liteasr.data.features import LogMel
from liteasr.data.loader import Collated, Tally
from liteasr.data.rows import Row
from liteasr.data.utterances import Rejected, Utterance, audio_source, decode

__all__ = ["CalibrationClips", "CalibrationCollate", "Clip", "Draw", "draw_clips"]

_BUFFER = 10
_SMALLEST_BUFFER = 100
_LARGEST_BUFFER = 1000


class Clip(NamedTuple):
    """A window of a file: samples ``start`` to ``stop``, or all."""

    set_name: str
    row: int
    id: str
    window: int
    start: int
    stop: int | None


class Draw(NamedTuple):
    """The clips drawn, in order, and the rows that they are of, by set.

    ``examined`` counts the rows of each set that were looked at, unreadable ones included.
    """

    clips: list[Clip]
    rows: dict[str, Sequence[Row]]
    examined: dict[str, int]

    def fingerprint(self, log_mel: LogMel) -> str:
        """Short hash of what calibration sees."""
        content = [[clip.id, clip.window, clip.start, clip.stop] for clip in self.clips]
        text = json.dumps([content, log_mel.settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def draw_clips(
    sets: Mapping[str, datasets.Dataset | datasets.IterableDataset],
    count: int,
    seed: int,
    log_mel: LogMel,
    tally: Tally,
) -> Draw:
    """Draw clips from the sets in turn, in a random order of the files of each.

    So the sets have equal shares (the first ones one more), and what a small set lacks comes from
    the others. The draw depends on the seed and the data alone. Windows of a long file follow each
    other. Of a stream, the first rows are shuffled and used.

    Args:
        sets: Rows by name.
        count: Clips in all, at most.
        seed: Seed of the order.
        log_mel: Feature extractor, for the length of a window.
        tally: Counts files whose header cannot be read; others are drawn in their place.
    """
    draw = Draw([], {}, dict.fromkeys(sets, 0))
    turns = []
    for name, rows in sets.items():
        if isinstance(rows, datasets.IterableDataset):
            kept: list[Row] = []
            draw.rows[name] = kept
            numbered = _numbered_stream(rows, kept, seed, count // len(sets))
        else:
            draw.rows[name] = rows
            numbered = _numbered_table(rows, f"{seed}:{name}")
        turns.append(_clips(name, numbered, draw.examined, log_mel, tally))
    draw.clips.extend(itertools.islice(_in_turn(turns), count))
    return draw


def _in_turn(turns: Sequence[Iterator[Clip]]) -> Iterator[Clip]:
    left = list(turns)
    while left:
        for one in list(left):
            clip = next(one, None)
            if clip is None:
                left.remove(one)
            else:
                yield clip


def _numbered_table(rows: datasets.Dataset, seed: str) -> Iterator[tuple[int, Row]]:
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return ((number, rows[number]) for number in order)


def _numbered_stream(
    rows: datasets.IterableDataset, kept: list[Row], seed: int, share: int
) -> Iterator[tuple[int, Row]]:
    buffer = min(max(_BUFFER * share, _SMALLEST_BUFFER), _LARGEST_BUFFER)
    for row in rows.shuffle(seed=seed, buffer_size=buffer):
        kept.append(row)
        yield len(kept) - 1, row


def _clips(
    name: str,
    numbered: Iterator[tuple[int, Row]],
    examined: dict[str, int],
    log_mel: LogMel,
    tally: Tally,
) -> Iterator[Clip]:
    for number, row in numbered:
        examined[name] += 1
        bounds = _bounds(row, name, log_mel)
        if isinstance(bounds, Rejected):
            tally.add([bounds])
            continue
        for window, (start, stop) in enumerate(bounds):
            yield Clip(name, number, row["id"], window, start, stop)


def _bounds(row: Row, set_name: str, log_mel: LogMel) -> list[tuple[int, int | None]] | Rejected:
    """Where the windows of a file begin and end; long files are decoded to find out."""
    try:
        seconds = audio_seconds(audio_source(row), name=row["id"])
    except AudioError as error:
        return Rejected(set_name, row["id"], error.reason)
    if seconds <= log_mel.window_seconds:
        return [(0, None)]
    item = decode(row, set_name, log_mel.sampling_rate)
    if isinstance(item, Rejected):
        return item
    windows = split_windows(item.audio, log_mel.window_seconds, log_mel.sampling_rate)
    ends = list(itertools.accumulate(len(window) for window in windows))
    return list(zip([0, *ends[:-1]], ends, strict=True))


class CalibrationClips(Dataset[Utterance | Rejected]):
    """Clips of a draw, decoded.

    Args:
        clips: One process's share of the clips.
        rows: Rows by set.
        sampling_rate: Rate of the samples, in Hz.
    """

    def __init__(
        self, clips: Sequence[Clip], rows: Mapping[str, Sequence[Row]], sampling_rate: int
    ) -> None:
        self.clips = list(clips)
        self.rows = rows
        self.sampling_rate = sampling_rate
        self._last: tuple[str, Samples] | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Utterance | Rejected:
        clip = self.clips[index]
        if self._last is None or self._last[0] != clip.id:
            item = decode(self.rows[clip.set_name][clip.row], clip.set_name, self.sampling_rate)
            if isinstance(item, Rejected):
                return item
            # Windows of a long file follow each other: decode it once for all of a batch.
            self._last = (clip.id, item.audio)
        audio = self._last[1][clip.start : clip.stop]
        name = f"{clip.id}#{clip.window}" if clip.stop is not None else clip.id
        return Utterance(name, audio, "", len(audio) / self.sampling_rate)


class CalibrationCollate:
    """Batches of ``input_features`` (B, M, F), ``frames`` (B,) and ``ids``.

    Args:
        log_mel: Feature extractor.
    """

    def __init__(self, log_mel: LogMel) -> None:
        self.log_mel = log_mel

    def __call__(self, items: Sequence[Utterance | Rejected]) -> Collated:
        """Make one batch, or none if no clip could be read."""
        rejected = tuple(item for item in items if isinstance(item, Rejected))
        found = [item for item in items if isinstance(item, Utterance)]
        if not found:
            return Collated((), rejected, len(items))
        features_BMF, frames_B = self.log_mel.windows([item.audio for item in found])
        batch: dict[str, Any] = {
            "input_features": features_BMF,
            "frames": frames_B,
            "ids": [item.id for item in found],
        }
        return Collated((batch,), rejected, len(items))
