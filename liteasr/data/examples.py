"""Training examples: what one window holds, and the tokens that the decoder should say of it."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import soxr

from liteasr.data.audio import Samples
from liteasr.data.features import LogMel
from liteasr.data.labels import LabelEncoder, Segment
from liteasr.data.rows import Row
from liteasr.data.utterances import Rejected, Utterance, decode

__all__ = ["ExampleMaker", "ExampleOptions", "TrainingClip"]

_HEARD = 0.2
"""Seconds of a segment from which on one can tell that it has begun."""


class ExampleOptions(NamedTuple):
    """How training examples are made.

    Attributes:
        timestamps: Share of the clips that are learned with timestamps.
        longest: Tokens that the decoder has positions for.
        speed: Largest change of a clip's speed, as a share.
        packed: Share of the windows that are filled with further clips.
        seed: Seed of the speeds and of what is packed.
    """

    timestamps: float = 0.0
    longest: int = 448
    speed: float = 0.0
    packed: float = 0.0
    seed: int = 0


class TrainingClip(NamedTuple):
    """A row as it is heard in training.

    Attributes:
        segments: What is said, all of it whole.
        open_at: Where a segment begins of which only the start is heard, in seconds.
    """

    id: str
    name: str
    audio: Samples
    text: str
    segments: list[Segment]
    open_at: float | None = None


class ExampleMaker:
    """Makes examples of rows: audio of one window at most, and its tokens.

    Which windows are learned with timestamps depends on the identity of their first clip alone; how
    fast a clip is played, and which windows are filled with more clips, on the epoch besides.
    """

    def __init__(self, log_mel: LogMel, encode: LabelEncoder, options: ExampleOptions) -> None:
        self.log_mel = log_mel
        self.encode = encode
        self.options = options

    def clip(self, row: Row, set_name: str, epoch: int) -> TrainingClip | Rejected:
        """Decode a row."""
        item = decode(row, set_name, self.log_mel.sampling_rate)
        if isinstance(item, Rejected):
            return item
        if self.log_mel.is_long(len(item.audio)):
            limit = self.log_mel.window_seconds
            return Rejected(set_name, item.id, f"is longer than {limit:g} s", "long")
        audio = self._at_another_speed(item, epoch)
        stretch = len(audio) / len(item.audio)
        whole: Segment = {"start": 0.0, "end": item.seconds, "text": item.text}
        seconds = len(audio) / self.log_mel.sampling_rate
        segments: list[Segment] = [
            {
                "start": min(one["start"] * stretch, seconds),
                "end": min(one["end"] * stretch, seconds),
                "text": one["text"],
            }
            for one in row.get("segments") or [whole]
        ]
        clip = TrainingClip(item.id, _name(item), audio, item.text, segments)
        if len(self._labels([clip])) > self.options.longest:
            reason = f"has more than {self.options.longest} tokens"
            return Rejected(set_name, item.id, reason, "long")
        return clip

    def draw(self, clip: TrainingClip, epoch: int) -> random.Random | None:
        """What draws the clips that are to follow this one in its window, if any are."""
        draw = random.Random(f"packed/{self.options.seed}/{epoch}/{clip.name}")
        return draw if draw.random() < self.options.packed else None

    def fits(self, clips: Sequence[TrainingClip]) -> bool:
        """Whether clips are one window at most, and their tokens what the decoder has room for."""
        samples = sum(len(clip.audio) for clip in clips)
        return not self.log_mel.is_long(samples) and (
            len(self._labels(clips)) <= self.options.longest
        )

    def cut(self, clips: Sequence[TrainingClip], following: TrainingClip) -> list[TrainingClip]:
        """What the rest of a window holds of the next clip, if the window is learned with times.

        A window of long audio ends so, and the next one begins where the segment does that was
        cut: of it the model learns the start alone (arXiv 2212.04356, section 2.3).

        Returns:
            One clip, or none.
        """
        room = self.log_mel.window_samples - sum(len(clip.audio) for clip in clips)
        if not self._has_times(clips) or not 0 < room < len(following.audio):
            return []
        rate = self.log_mel.sampling_rate
        whole = [one for one in following.segments if one["end"] <= room / rate]
        open_at: float | None = None
        if len(whole) < len(following.segments):
            open_at = following.segments[len(whole)]["start"]
            if open_at + _HEARD > room / rate:
                room, open_at = min(room, round(open_at * rate)), None
        if room == 0:
            return []
        part = following._replace(
            audio=following.audio[:room],
            text=" ".join(one["text"] for one in whole),
            segments=whole,
            open_at=open_at,
        )
        return [part] if self.fits([*clips, part]) else []

    def utterance(self, clips: Sequence[TrainingClip]) -> Utterance:
        """One after another."""
        last = clips[-1]
        seconds = self._seconds(clips)
        return Utterance(
            "+".join(clip.id for clip in clips),
            np.concatenate([clip.audio for clip in clips]),
            " ".join(clip.text for clip in clips if clip.text),
            seconds,
            tuple(self._labels(clips)),
            seconds if last.open_at is None else self._seconds(clips[:-1]) + last.open_at,
        )

    def _seconds(self, clips: Sequence[TrainingClip]) -> float:
        return sum(len(clip.audio) for clip in clips) / self.log_mel.sampling_rate

    def _at_another_speed(self, item: Utterance, epoch: int) -> Samples:
        largest = self.options.speed
        if largest == 0:
            return item.audio
        draw = random.Random(f"{self.options.seed}/{epoch}/{_name(item)}")
        speed = draw.uniform(1 - largest, 1 + largest)
        rate = self.log_mel.sampling_rate
        audio = np.ascontiguousarray(soxr.resample(item.audio, rate * speed, rate))
        # One that would not fit any more keeps its speed.
        return item.audio if self.log_mel.is_long(len(audio)) else audio

    def _has_times(self, clips: Sequence[TrainingClip]) -> bool:
        return zlib.crc32(clips[0].name.encode()) < self.options.timestamps * 2**32

    def _labels(self, clips: Sequence[TrainingClip]) -> list[int]:
        if not self._has_times(clips):
            return self.encode.joined([clip.text for clip in clips])
        segments: list[Segment] = []
        open_at: float | None = None
        for number, clip in enumerate(clips):
            at = self._seconds(clips[:number])
            segments += [
                {"start": at + one["start"], "end": at + one["end"], "text": one["text"]}
                for one in clip.segments
            ]
            open_at = None if clip.open_at is None else at + clip.open_at
        return self.encode.with_timestamps(segments, self._seconds(clips), open_at)


def _name(item: Utterance) -> str:
    """The file and its folder: the same wherever the set is."""
    return "/".join(item.id.split("/")[-2:])
