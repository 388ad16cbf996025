"""Training: clips of one window at most, with the tokens that the decoder should say.

Shape suffixes: B windows in a batch, M mel bins, F mel frames, L tokens.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import torch
from torch.utils.data import Dataset, IterableDataset

from liteasr.config import ConfigError
from liteasr.data.examples import ExampleMaker, ExampleOptions, TrainingClip
from liteasr.data.features import LogMel
from liteasr.data.labels import LabelEncoder
from liteasr.data.loader import Collated, EpochSampler, Extent, SpeechLoader, Tally, make_loader
from liteasr.data.rows import FEATURES
from liteasr.data.sets import SpeechSet, durations
from liteasr.data.utterances import (
    Rejected,
    Sharding,
    Utterance,
    shard_stream,
    stream_workers,
)

__all__ = [
    "TrainingCollate",
    "TrainingExample",
    "TrainingStream",
    "TrainingTable",
    "training_indices",
    "training_loader",
]

log = logging.getLogger(__name__)

IGNORED = -100
"""Label that the loss leaves out."""

_SHUFFLE_BUFFER = 256


class TrainingExample(NamedTuple):
    """What one index of a training set gives: an utterance, and what was passed over for it.

    Attributes:
        rows: Rows of a stream behind it.
    """

    utterance: Utterance | None
    rejected: tuple[Rejected, ...]
    rows: int = 1


def training_indices(one: SpeechSet, window_seconds: float) -> list[int]:
    """Rows of a set that can be trained on, as far as their durations are known.

    Text is not aligned to audio, so clips over one window cannot be cut.

    Args:
        one: A set that can be indexed.
        window_seconds: Longest clip.

    Raises:
        ConfigError: If there are none.
    """
    seconds = durations(one, trust_columns=True)
    kept = [
        index
        for index, duration in enumerate(seconds)
        # Those that cannot be read stay, to be counted and named when their turn comes.
        if duration is None or math.isinf(duration) or duration <= window_seconds
    ]
    if not kept:
        raise ConfigError(f"{one.key}: all clips are longer than {window_seconds:g} s")
    if len(kept) < len(seconds):
        log.info(
            "%s: left %d of %d clips out of training, which are longer than %g s",
            *(one.key, len(seconds) - len(kept), len(seconds), window_seconds),
        )
    return kept


class TrainingTable(Dataset[TrainingExample]):
    """Training sets that can be indexed, one after another.

    A row that cannot be used gives way to the next one that can, so that every process has as many
    batches as the others.

    Args:
        parts: Name, rows and indices in use of each set.
        log_mel: Feature extractor.
        encode: From transcript to labels.
        options: How examples are made.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, datasets.Dataset, Sequence[int]]],
        log_mel: LogMel,
        encode: LabelEncoder,
        options: ExampleOptions,
    ) -> None:
        self.parts = [(name, rows) for name, rows, _ in parts]
        part = [torch.full((len(indices),), n) for n, (_, _, indices) in enumerate(parts)]
        # A tensor, not a list: worker processes share its memory.
        self.entries = torch.stack(
            [torch.cat(part), torch.cat([torch.tensor(indices) for _, _, indices in parts])]
        )
        self.make = ExampleMaker(log_mel, encode, options)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which pass comes next; before the processes that read are started."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.entries.shape[1]

    def __getitem__(self, index: int) -> TrainingExample:
        rejected: list[Rejected] = []
        for offset in range(len(self)):
            clip = self._clip((index + offset) % len(self))
            if isinstance(clip, TrainingClip):
                clips = self._followed(clip, rejected)
                return TrainingExample(self.make.utterance(clips), tuple(rejected))
            rejected.append(clip)
        return TrainingExample(None, tuple(rejected))

    def _clip(self, index: int) -> TrainingClip | Rejected:
        part, row = self.entries[:, index].tolist()
        name, rows = self.parts[part]
        return self.make.clip(rows[row], name, self.epoch)

    def _followed(self, clip: TrainingClip, rejected: list[Rejected]) -> list[TrainingClip]:
        """A clip and those drawn to fill its window."""
        clips, draw = [clip], self.make.draw(clip, self.epoch)
        while draw is not None:
            following = self._clip(draw.randrange(len(self)))
            if isinstance(following, Rejected):
                rejected.append(following)
                break
            if not self.make.fits([*clips, following]):
                return clips + self.make.cut(clips, following)
            clips.append(following)
        return clips


class TrainingStream(IterableDataset[TrainingExample]):
    """One process's share of streamed training sets, shuffled, again and again without an end.

    Args:
        rows: The sets as one stream.
        set_name: Name for messages.
        log_mel: Feature extractor.
        encode: From transcript to labels.
        sharding: The process.
        seed: Seed of the order.
        options: How examples are made.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        set_name: str,
        log_mel: LogMel,
        encode: LabelEncoder,
        sharding: Sharding,
        seed: int,
        options: ExampleOptions,
    ) -> None:
        shuffled: Any = rows.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        self.rows: Any = shard_stream(shuffled, sharding, in_order=False)
        self.set_name = set_name
        self.make = ExampleMaker(log_mel, encode, options)

    def __iter__(self) -> Iterator[TrainingExample]:
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            found = False
            for example in self._pass(epoch):
                found = found or example.utterance is not None
                yield example
            if not found:
                return

    def _pass(self, epoch: int) -> Iterator[TrainingExample]:
        """All rows once; in a window to be filled, a clip is followed by those that come next."""
        clips: list[TrainingClip] = []
        for row in self.rows:
            clip = self.make.clip(row, self.set_name, epoch)
            if isinstance(clip, Rejected):
                yield TrainingExample(None, (clip,))
                continue
            if clips and not self.make.fits([*clips, clip]):
                yield self._example(clips, self.make.cut(clips, clip))
                clips = []
            clips.append(clip)
            if len(clips) == 1 and self.make.draw(clip, epoch) is None:
                yield self._example(clips)
                clips = []
        if clips:
            yield self._example(clips)

    def _example(
        self, clips: Sequence[TrainingClip], cut: Sequence[TrainingClip] = ()
    ) -> TrainingExample:
        return TrainingExample(self.make.utterance([*clips, *cut]), (), len(clips))


class TrainingCollate:
    """Batches of ``input_features`` (B, M, F), ``frames`` (B,), ``labels`` (B, L) and ``ids``.

    ``said_frames`` (B,) of each hold what the labels say: all that are audio, but for those of a
    segment that the window cuts.

    Args:
        log_mel: Feature extractor.
    """

    def __init__(self, log_mel: LogMel) -> None:
        self.log_mel = log_mel

    def __call__(self, examples: Sequence[TrainingExample]) -> Collated:
        """Make one batch, or none if no example has an utterance."""
        rejected = tuple(row for example in examples for row in example.rejected)
        rows = sum(example.rows for example in examples)
        found = [example.utterance for example in examples if example.utterance is not None]
        if not found:
            return Collated((), rejected, rows)
        features_BMF, frames_B = self.log_mel.windows([utterance.audio for utterance in found])
        longest = max(len(utterance.labels) for utterance in found)
        labels_BL = torch.full((len(found), longest), IGNORED)
        for row_L, utterance in zip(labels_BL, found, strict=True):
            row_L[: len(utterance.labels)] = torch.tensor(utterance.labels)
        batch = {
            "input_features": features_BMF,
            "frames": frames_B,
            "said_frames": torch.tensor([self._said_frames(one) for one in found]),
            "labels": labels_BL,
            "ids": [utterance.id for utterance in found],
        }
        return Collated((batch,), rejected, rows)

    def _said_frames(self, utterance: Utterance) -> int:
        seconds = utterance.seconds if utterance.said_seconds is None else utterance.said_seconds
        return self.log_mel.frames(round(seconds * self.log_mel.sampling_rate))


def training_loader(
    sets: Mapping[str, SpeechSet],
    log_mel: LogMel,
    encode: LabelEncoder,
    sharding: Sharding,
    tally: Tally,
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    options: ExampleOptions,
    consumed: Callable[[], int],
) -> SpeechLoader:
    """One process's share of the training sets.

    Args:
        sets: The sets, by name. If any is a stream, all are read as one stream without an end.
        log_mel: Feature extractor.
        encode: From transcript to labels.
        sharding: The process.
        tally: Counts what is not used.
        batch_size: Clips in a batch.
        num_workers: Processes that read.
        seed: Seed of the order.
        options: How examples are made.
        consumed: Tells how many batches of an epoch the trainer has used.

    Raises:
        ConfigError: If a set has no clip short enough.
    """
    collate = TrainingCollate(log_mel)
    if any(one.is_stream for one in sets.values()):
        rows = _as_one_stream(sets)
        name = "+".join(sets)
        workers = stream_workers(rows, num_workers, sharding)
        loader = make_loader(
            TrainingStream(rows, name, log_mel, encode, sharding, seed, options),
            workers,
            collate_fn=collate,
            batch_size=batch_size,
        )
        readers = sharding.world_size, workers
        return SpeechLoader(loader, tally, {}, consumed=consumed, readers=readers)
    seconds = log_mel.window_seconds
    parts = [(name, one.rows, training_indices(one, seconds)) for name, one in sets.items()]
    table = TrainingTable(parts, log_mel, encode, options)
    # Workers are not persistent: those of an epoch broken off would live on beside evaluation's.
    loader = make_loader(
        table,
        num_workers,
        collate_fn=collate,
        batch_size=batch_size,
        sampler=EpochSampler(table, sharding.world_size, sharding.rank, shuffle=True, seed=seed),
    )
    extents = {name: Extent(len(one.rows)) for name, one in sets.items()}
    readers = sharding.world_size, num_workers
    return SpeechLoader(loader, tally, extents, len(loader), consumed=consumed, readers=readers)


def _as_one_stream(sets: Mapping[str, SpeechSet]) -> datasets.IterableDataset:
    """All sets as one stream, without the times of segments, which hub sets do not have."""
    streams = [
        one.rows if one.is_stream else one.rows.to_iterable_dataset() for one in sets.values()
    ]
    features = datasets.Features(FEATURES)
    return datasets.concatenate_datasets(
        [rows.select_columns(list(features)).cast(features) for rows in streams]
    )
