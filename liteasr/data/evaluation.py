"""Evaluation: utterances of any length to decode, with their transcripts.

Shape suffixes: B windows in a batch, M mel bins, F mel frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
from torch.utils.data import Dataset, IterableDataset

from liteasr.config import LongForm
from liteasr.data.audio import Samples, split_windows
from liteasr.data.features import LogMel
from liteasr.data.loader import Collated, Extent, SpeechLoader, Tally, make_loader
from liteasr.data.order import Order, plan_batches
from liteasr.data.sets import SpeechSet
from liteasr.data.utterances import (
    Item,
    Rejected,
    Sharding,
    Utterance,
    decode,
    shard_stream,
    stream_workers,
)
from liteasr.text import is_scorable

__all__ = [
    "EvaluationCollate",
    "EvaluationStream",
    "EvaluationTable",
    "stream_loader",
    "table_loader",
]


class EvaluationTable(Dataset[Item]):
    """Rows of a set that can be indexed, decoded.

    Args:
        rows: The rows.
        set_name: Their set.
        sampling_rate: Rate of the samples, in Hz.
    """

    def __init__(self, rows: datasets.Dataset, set_name: str, sampling_rate: int) -> None:
        self.rows = rows
        self.set_name = set_name
        self.sampling_rate = sampling_rate

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return decode(self.rows[index], self.set_name, self.sampling_rate)


class EvaluationStream(IterableDataset[Item]):
    """One process's share of a streamed set, decoded, rows without a scorable transcript rejected.

    Args:
        rows: The stream.
        set_name: Its set.
        sampling_rate: Rate of the samples, in Hz.
        normalizer: Normaliser of transcripts.
        sharding: The process.
        in_order: See :func:`shard_stream`; needs at most one worker.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        set_name: str,
        sampling_rate: int,
        normalizer: Callable[[str], str],
        sharding: Sharding,
        *,
        in_order: bool,
    ) -> None:
        self.rows = rows
        self.set_name = set_name
        self.sampling_rate = sampling_rate
        self.normalizer = normalizer
        self.sharding = sharding
        self.in_order = in_order

    def __iter__(self) -> Iterator[Item]:
        for row in shard_stream(self.rows, self.sharding, in_order=self.in_order):
            text = row["text"] or ""
            if is_scorable(self.normalizer(text), text):
                yield decode(row, self.set_name, self.sampling_rate)
            else:
                yield Rejected(self.set_name, row["id"], "has no transcript", "unscorable")


class EvaluationCollate:
    """Batches to decode: the short utterances together, each long one by itself.

    A batch has ``input_features`` (B, M, F), ``frames`` (B,), ``segments`` (windows of each
    utterance), ``references``, ``ids``, ``seconds``, ``is_long``, and ``attention_mask`` (1, F) for
    a long utterance that is not cut into windows.

    Args:
        set_name: The set.
        log_mel: Feature extractor.
        long_form: How utterances over one window are given.
        planned: Long utterances come by themselves, so one among others is an error of its file.
    """

    def __init__(
        self, set_name: str, log_mel: LogMel, long_form: LongForm, *, planned: bool
    ) -> None:
        self.set_name = set_name
        self.log_mel = log_mel
        self.long_form = long_form
        self.planned = planned

    def __call__(self, items: Sequence[Item]) -> Collated:
        """Make batches of the items that are utterances."""
        rejected = [item for item in items if isinstance(item, Rejected)]
        found = [item for item in items if isinstance(item, Utterance)]
        short = [item for item in found if not self.log_mel.is_long(len(item.audio))]
        long = [item for item in found if self.log_mel.is_long(len(item.audio))]
        if self.planned and len(items) > 1:
            reason = "holds more audio than its header says"
            rejected += [Rejected(self.set_name, item.id, reason) for item in long]
            long = []
        batches = [self._short(short)] if short else []
        batches += [self._long(utterance) for utterance in long]
        return Collated(tuple(batches), tuple(rejected), len(items))

    def _short(self, utterances: Sequence[Utterance]) -> dict[str, Any]:
        return self._windows([[utterance.audio] for utterance in utterances], utterances)

    def _long(self, utterance: Utterance) -> dict[str, Any]:
        if self.long_form is LongForm.windows:
            rate, seconds = self.log_mel.sampling_rate, self.log_mel.window_seconds
            windows = split_windows(utterance.audio, seconds, rate)
            return self._windows([windows], [utterance]) | {"is_long": True}
        features_1MF, mask_1F = self.log_mel.whole(utterance.audio)
        return _described([utterance], [1]) | {
            "input_features": features_1MF,
            "attention_mask": mask_1F,
            "frames": (mask_1F.sum(dim=1) + 1) // 2,
            "is_long": True,
        }

    def _windows(
        self, windows: Sequence[Sequence[Samples]], utterances: Sequence[Utterance]
    ) -> dict[str, Any]:
        features_BMF, frames_B = self.log_mel.windows([w for group in windows for w in group])
        return _described(utterances, [len(group) for group in windows]) | {
            "input_features": features_BMF,
            "frames": frames_B,
            "is_long": False,
        }


def _described(utterances: Sequence[Utterance], segments: list[int]) -> dict[str, Any]:
    return {
        "segments": segments,
        "references": [utterance.text for utterance in utterances],
        "ids": [utterance.id for utterance in utterances],
        "seconds": [utterance.seconds for utterance in utterances],
    }


def table_loader(
    one: SpeechSet,
    order: Order,
    collate: EvaluationCollate,
    sharding: Sharding,
    tally: Tally,
    *,
    batch_size: int,
    num_workers: int,
) -> SpeechLoader:
    """One process's share of a set that can be indexed.

    Args:
        one: The set.
        order: Of :func:`evaluation_order`.
        collate: Makes batches.
        sharding: The process.
        tally: Counts what is not used.
        batch_size: Short utterances decoded together.
        num_workers: Processes that read.
    """
    rank, world_size = sharding
    log_mel = collate.log_mel
    batches = plan_batches(*order, batch_size, sharding, log_mel)
    loader = make_loader(
        EvaluationTable(one.rows, one.name, log_mel.sampling_rate),
        num_workers,
        collate_fn=collate,
        batch_sampler=batches,
    )
    extent = Extent(len(order[0][rank::world_size]), world_size > 1)
    may_be_empty = world_size > 1
    # A trainer skips what it takes for empty, and the other processes would wait for this one.
    length = max(len(batches), int(may_be_empty)) if collate.planned else None
    return SpeechLoader(loader, tally, {one.name: extent}, length, may_be_empty=may_be_empty)


def stream_loader(
    one: SpeechSet,
    normalizer: Callable[[str], str],
    collate: EvaluationCollate,
    sharding: Sharding,
    tally: Tally,
    *,
    batch_size: int,
    num_workers: int,
) -> SpeechLoader:
    """One process's share of a streamed set.

    Args:
        one: The set.
        normalizer: Normaliser of transcripts.
        collate: Makes batches.
        sharding: The process.
        tally: Counts what is not used.
        batch_size: Short utterances decoded together.
        num_workers: Processes that read.
    """
    in_order = one.source.skip > 0 or one.source.limit is not None
    rate = collate.log_mel.sampling_rate
    loader = make_loader(
        EvaluationStream(one.rows, one.name, rate, normalizer, sharding, in_order=in_order),
        min(1, num_workers) if in_order else stream_workers(one.rows, num_workers, sharding),
        collate_fn=collate,
        batch_size=batch_size,
    )
    return SpeechLoader(loader, tally, {}, may_be_empty=sharding.world_size > 1)
