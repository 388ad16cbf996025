"""The loaders that a trainer iterates over, and the count of what they could not read."""

from __future__ import annotations

import atexit
import itertools
import logging
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, DistributedSampler

from liteasr.config import ConfigError
from liteasr.data.utterances import Rejected

__all__ = ["Collated", "EpochSampler", "Extent", "SpeechLoader", "Tally", "make_loader"]

log = logging.getLogger(__name__)

_SHOWN = 3
_ENOUGH_ROWS = 100


@dataclass(frozen=True)
class Collated:
    """What a group of rows gave: no batch, one, or (with long utterances) several."""

    batches: tuple[dict[str, Any], ...]
    rejected: tuple[Rejected, ...]
    rows: int


class Extent(NamedTuple):
    """Rows that a count of unreadable files refers to.

    ``is_sample``: they are a part of the set (a process's share, a draw), of which one bad row says
    nothing yet.
    """

    rows: int
    is_sample: bool = False


class Tally:
    """What a role's sets could not give, counted once a file, over all epochs.

    An unreadable file is named in a warning. Files that are left out for another reason are said
    once for each set and reason.

    Args:
        role: ``calibration``, ``train``, ``val`` or ``test``.
        max_bad_fraction: Share of unreadable files above which a set is no good.

    Attributes:
        bad: Reason by file, by set.
        deferred: Keep errors in ``problems`` and go on, for processes that must stop together.
        problems: Errors that were kept, by what they are about.
        left_out: Number of rows left out by set and kind.

    Example:
        >>> tally = Tally("test", max_bad_fraction=0.05)
        >>> tally.add([Rejected("mine", "a.wav", "is empty")])
        >>> tally.check("mine", Extent(rows=20))
        >>> try:
        ...     tally.check("mine", Extent(rows=19))
        ... except ConfigError as error:
        ...     print(error.errors[1])
          a.wav: is empty
    """

    def __init__(self, role: str, max_bad_fraction: float) -> None:
        self.role = role
        self.max_bad_fraction = max_bad_fraction
        self.bad: dict[str, dict[str, str]] = {}
        self.deferred = False
        self.problems: dict[str, list[str]] = {}
        self.left_out: Counter[tuple[str, str]] = Counter()
        self._seen: set[tuple[str, str]] = set()

    def add(self, rejected: Iterable[Rejected]) -> None:
        """Count rows that were not used; the same row twice counts once."""
        for row in rejected:
            if (row.set_name, row.id) in self._seen:
                continue
            self._seen.add((row.set_name, row.id))
            key = f"data.{self.role}.{row.set_name}"
            if row.kind == "bad":
                self.bad.setdefault(row.set_name, {})[row.id] = row.reason
                log.warning("%s: skipped %s: %s", key, row.id, row.reason)
                continue
            if not self.left_out[row.set_name, row.kind]:
                why = f"{row.id} {row.reason} and is left out; others will not be named"
                log.info("%s: %s", key, why)
            self.left_out[row.set_name, row.kind] += 1

    def check(self, set_name: str, extent: Extent) -> None:
        """Stop if a set has too many unreadable files.

        Args:
            set_name: The set.
            extent: The rows that were, or will have been, read.

        Raises:
            ConfigError: Naming the first of them.
        """
        bad = self.bad.get(set_name, {})
        allowed = self.max_bad_fraction * extent.rows
        if len(bad) <= (max(allowed, 1) if extent.is_sample else allowed):
            return
        more = len(bad) - _SHOWN
        self.fail(
            set_name,
            [
                f"data.{self.role}.{set_name}: {len(bad)} of {extent.rows} cannot be read, above "
                f"data.max_bad_fraction={self.max_bad_fraction:g}:",
                *(f"  {name}: {reason}" for name, reason in list(bad.items())[:_SHOWN]),
                *([f"  and {more} more"] if more > 0 else []),
            ],
        )

    def fail(self, about: str, messages: list[str]) -> None:
        """Raise, or keep for later where processes must stop together.

        Args:
            about: What the messages are about; kept once.
            messages: What is wrong.

        Raises:
            ConfigError: Unless ``deferred``.
        """
        if not self.deferred:
            raise ConfigError(messages)
        self.problems[about] = messages


class SpeechLoader:
    """Batches of a torch loader whose collate gives :class:`Collated`; counts what it rejected.

    It is no torch ``DataLoader``, so that Lightning does not give it a sampler of its own: what
    each process reads is settled.

    Args:
        loader: The torch loader.
        tally: Counts rejected rows.
        extents: Rows of each set; empty for a stream, of which that is unknown.
        length: Batches, where that is known; there are fewer if all rows of one are rejected.
        may_be_empty: No batch at all is no error: this is a share of a set.
        consumed: Tells how many batches of the pass the trainer has used, so that a checkpoint
            can go on after them.
        readers: Processes that train, and those that read for each.

    Raises:
        ConfigError: While iterating: as soon as a set has too many unreadable files (at the end of
            a stream), or at the end if there was nothing to give.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        tally: Tally,
        extents: Mapping[str, Extent],
        length: int | None = None,
        *,
        may_be_empty: bool = False,
        consumed: Callable[[], int] | None = None,
        readers: tuple[int, int] = (1, 0),
    ) -> None:
        self.loader = loader
        self.tally = tally
        self.extents = dict(extents)
        self._length = length
        self._may_be_empty = may_be_empty
        self._consumed = consumed
        self._readers = readers
        self._skip = 0
        self.batches_read = 0

    def state_dict(self) -> dict[str, int]:
        """Where the pass is, for a checkpoint: ``batches`` used of it on each process."""
        batches = 0 if self._consumed is None else self._consumed()
        return {"batches": batches, "processes": self._readers[0], "workers": self._readers[1]}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Leave out the batches of the next pass that were used before.

        With another number of processes as many clips are left out, to a batch of each. They are
        the same ones in a table; of a stream, which others read in another order, they are not.
        """
        processes = self._readers[0]
        self._skip = state["batches"] * state.get("processes", processes) // processes
        before = (state.get("processes", processes), state.get("workers", self._readers[1]))
        if self._skip and not self.extents and before != self._readers:
            log.warning(
                "data.train: the stream was read by %d processes with %d workers each, and now by "
                "%d with %d: some of its clips come twice in this pass, others not at all",
                *(*before, *self._readers),
            )

    @property
    def dataset(self) -> Any:
        """Data set of the torch loader."""
        return self.loader.dataset

    @property
    def sampler(self) -> Any:
        """Sampler of the torch loader; Lightning tells it the epoch."""
        return self.loader.sampler

    @property
    def batch_sampler(self) -> Any:
        """Batch sampler of the torch loader; Lightning looks whether it shuffles."""
        return self.loader.batch_sampler

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("the number of batches is known only after reading them")
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows, batches = 0, 0
        self.batches_read = 0
        skip, self._skip = self._skip, 0
        # A stream has to be read to be passed over, and some of it may give no batch.
        passed_over = 0 if self._passes_over(skip) else skip
        for collated in self.loader:
            assert isinstance(collated, Collated)
            self.batches_read += 1
            rows += collated.rows
            self.tally.add(collated.rejected)
            # Before the batch is given away: a trainer that knows the length does not come back.
            self._check(Extent(rows, is_sample=True) if rows >= _ENOUGH_ROWS else None)
            batches += len(collated.batches)
            for batch in collated.batches:
                if passed_over:
                    passed_over -= 1
                else:
                    yield batch
        may_be_empty = self._may_be_empty or skip > 0
        self._check(Extent(rows, is_sample=may_be_empty))
        if not batches and not may_be_empty:
            message = f"data.{self.tally.role}: none of {rows} utterances can be used"
            if self._consumed is not None:
                # A trainer without a batch does not come to where processes stop together.
                raise ConfigError(message)
            self.tally.fail("", [message])

    def _passes_over(self, skip: int) -> bool:
        """Whether the sampler leaves out the first batches, so that they are not read."""
        if not isinstance(self.sampler, EpochSampler):
            return False
        # Now: the processes that read get the data set as it is when they start.
        self.dataset.set_epoch(self.sampler.epoch)
        self.sampler.skip = skip * (self.loader.batch_size or 1)
        return True

    def _check(self, streamed: Extent | None) -> None:
        for name, extent in self.extents.items():
            self.tally.check(name, extent)
        if not self.extents and streamed is not None:
            for name in self.tally.bad:
                self.tally.check(name, streamed)


class EpochSampler(DistributedSampler[Any]):
    """One process's share of a data set in a new order each epoch, from any place on.

    Attributes:
        skip: Indices that the next pass leaves out at its start.
    """

    skip = 0

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        return itertools.islice(super().__iter__(), skip, None)


def make_loader(dataset: Any, num_workers: int, **options: Any) -> DataLoader[Any]:
    """A torch loader.

    Args:
        dataset: The data set.
        num_workers: Processes that read; 0 reads in this one.
        options: Further arguments of ``DataLoader``.
    """
    if num_workers:
        # Else tokenizers complains that its threads do not survive the fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        options["worker_init_fn"] = _leave_signals
        atexit.register(_end_readers)
    return DataLoader(dataset, num_workers=num_workers, **options)


def _leave_signals(_: int) -> None:
    """Leave it to the trainer to end: signals may be sent to all processes of a job at once.

    A trainer that finishes its step and saves would else fail for want of data.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _end_readers() -> None:
    """What multiprocessing does at the end of a program, by a signal that cannot be ignored."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
