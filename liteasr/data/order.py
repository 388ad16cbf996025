"""In which order, and together with which others, utterances are decoded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from liteasr.config import ConfigError
from liteasr.data.features import LogMel
from liteasr.data.sets import SpeechSet, durations
from liteasr.data.utterances import Sharding
from liteasr.text import is_scorable

__all__ = ["Order", "evaluation_order", "plan_batches"]

log = logging.getLogger(__name__)

Order: TypeAlias = tuple[list[int], list[float] | None]
"""Rows in the order of decoding, and their seconds if they can be relied on."""


def evaluation_order(one: SpeechSet, normalizer: Callable[[str], str]) -> Order:
    """Rows to decode, the longest first where that is known, and their seconds.

    Longest first, so that batches are of like lengths and memory is at its most at the start.

    Args:
        one: A set that can be indexed.
        normalizer: Normaliser of transcripts.

    Returns:
        Indices of rows with a scorable transcript, and their seconds by the headers of the files
        (infinite where one cannot be read), or ``None`` for rows that are no files.

    Raises:
        ConfigError: If no row has a scorable transcript.
    """
    texts = list(one.rows["text"])
    order = [i for i, text in enumerate(texts) if is_scorable(normalizer(text or ""), text or "")]
    if not order:
        raise ConfigError(f"{one.key}: none of {len(texts)} transcripts can be scored")
    if len(order) < len(texts):
        log.info(
            "%s: left out %d of %d utterances, whose transcripts cannot be scored",
            *(one.key, len(texts) - len(order), len(texts)),
        )
    seconds = durations(one, trust_columns=False)
    if not any(seconds[index] is None for index in order):
        order.sort(key=lambda index: -(seconds[index] or 0.0))
    if not one.has_files:
        return order, None
    return order, [seconds[index] or 0.0 for index in order]


def plan_batches(
    order: Sequence[int],
    seconds: Sequence[float] | None,
    batch_size: int,
    sharding: Sharding,
    log_mel: LogMel,
) -> list[list[int]]:
    """Batches of one process: every ``world_size``-th utterance, long ones by themselves.

    Args:
        order: Rows in the order of decoding.
        seconds: Their durations, if known.
        batch_size: Short utterances decoded together.
        sharding: The process.
        log_mel: Says what is long.

    Example:
        >>> from transformers import WhisperFeatureExtractor
        >>> log_mel = LogMel(WhisperFeatureExtractor())
        >>> plan_batches([3, 0, 1, 2], [40.0, 9.0, 8.0, 7.0], 2, Sharding(), log_mel)
        [[3], [0, 1], [2]]
    """
    mine = range(sharding.rank, len(order), sharding.world_size)
    # One sample less than resampling may round to.
    samples = [0.0 if seconds is None else seconds[i] * log_mel.sampling_rate + 1 for i in mine]
    long = [
        n for n, count in enumerate(samples) if math.isinf(count) or log_mel.is_long(int(count))
    ]
    alone = set(long)
    short = [mine[n] for n in range(len(mine)) if n not in alone]
    batches = [[order[mine[n]]] for n in long]
    batches += [
        [order[i] for i in short[at : at + batch_size]] for at in range(0, len(short), batch_size)
    ]
    return batches
