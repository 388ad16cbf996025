"""Time that a model takes, as it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["Stopwatch", "rounded"]


class Stopwatch:
    """Adds up the seconds that pass in its blocks; queued work of an accelerator included.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.running():
        ...     pass
        >>> watch.seconds > 0
        True
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block."""
        _finish_queued()
        started = time.perf_counter()
        try:
            yield
        finally:
            _finish_queued()
            self.seconds += time.perf_counter() - started


def _finish_queued() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def rounded(speed: float | None) -> float | None:
    """Three significant digits, or ``None`` as it is.

    Example:
        >>> rounded(0.012345), rounded(123.45)
        (0.0123, 123.0)
    """
    return None if speed is None else float(f"{speed:.3g}")
