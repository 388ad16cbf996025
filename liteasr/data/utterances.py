"""Rows decoded into utterances, one by one, in the processes that read audio."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import datasets
from datasets.distributed import split_dataset_by_node

from liteasr.data.audio import AudioError, Samples, load_audio
from liteasr.data.rows import Row

__all__ = [
    "Item",
    "Rejected",
    "Sharding",
    "Utterance",
    "audio_source",
    "decode",
    "shard_stream",
    "stream_workers",
]


@dataclass(frozen=True)
class Utterance:
    """A decoded row.

    Where it is for training, ``labels`` are its tokens, which say what is heard in the first
    ``said_seconds``.
    """

    id: str
    audio: Samples
    text: str
    seconds: float
    labels: tuple[int, ...] = ()
    said_seconds: float | None = None


class Rejected(NamedTuple):
    """A row that is not used: unreadable, too long to train on, or without transcript."""

    set_name: str
    id: str
    reason: str
    kind: Literal["bad", "long", "unscorable"] = "bad"


Item: TypeAlias = Utterance | Rejected


class Sharding(NamedTuple):
    """Which process this is, of how many."""

    rank: int = 0
    world_size: int = 1


def audio_source(row: Row) -> str | bytes:
    """Content of a row's file, or else its path.

    Raises:
        AudioError: If the row has neither.
    """
    audio = row["audio"]
    source = None
    if audio is not None:
        source = audio["path"] if audio["bytes"] is None else audio["bytes"]
    if source is None:
        raise AudioError(row["id"], "has no audio")
    return source


def decode(row: Row, set_name: str, sampling_rate: int) -> Item:
    """Decode a row, or say why it cannot be.

    Args:
        row: The row.
        set_name: Its set.
        sampling_rate: Rate of the samples, in Hz.
    """
    try:
        samples = load_audio(audio_source(row), sampling_rate, name=row["id"])
    except AudioError as error:
        return Rejected(set_name, row["id"], error.reason)
    return Utterance(row["id"], samples, row["text"] or "", len(samples) / sampling_rate)


def shard_stream(
    rows: datasets.IterableDataset, sharding: Sharding, *, in_order: bool
) -> datasets.IterableDataset | Iterator[Row]:
    """One process's share of a stream.

    Args:
        rows: The stream.
        sharding: The process.
        in_order: Take every ``world_size``-th row of the one stream, which every process then
            reads whole. Else whole files go to processes where their number allows, which would
            make the rows of ``skip`` and ``limit`` depend on the number of processes.
    """
    rank, world_size = sharding
    if in_order:
        return itertools.islice(rows, rank, None, world_size)
    if world_size == 1:
        return rows
    return split_dataset_by_node(rows, rank=rank, world_size=world_size)


def stream_workers(rows: datasets.IterableDataset, num_workers: int, sharding: Sharding) -> int:
    """Workers that each get files of their own, out of those asked for.

    Args:
        rows: A stream that :func:`shard_stream` shares out, not ``in_order``.
        num_workers: Workers asked for.
        sharding: The process.
    """
    files = rows.num_shards
    if files % sharding.world_size == 0:
        files //= sharding.world_size
    return int(min(num_workers, files))
