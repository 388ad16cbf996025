"""Timing two things in turn, and what can be said of the times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from liteasr.speed import Stopwatch

__all__ = [
    "NAMES",
    "Comparison",
    "Round",
    "Skipped",
    "alternate",
    "compare",
    "out_of_memory_is_no_end",
    "spread",
]

NAMES = ("dense", "lite")

Round: TypeAlias = Mapping[str, Callable[[], object]]
"""``dense`` and ``lite``: the same work by each of them."""


class Skipped(Exception):
    """A combination that cannot be measured here, while others can; says why."""


@contextmanager
def out_of_memory_is_no_end() -> Iterator[None]:
    """Skip what the memory is too small for.

    Raises:
        Skipped: Then.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Skipped("the GPU's memory is too small") from error
    except RuntimeError as error:
        # The CPU's allocator has no class of its own.
        if "can't allocate memory" not in str(error):
            raise
        raise Skipped("the memory is too small") from error


def alternate(
    rounds: Iterable[Round], on_run: Callable[[str], None] = lambda name: None
) -> dict[str, list[float]]:
    """Time both in every round; who is first changes from round to round.

    What drifts (heat, other programs) meets both alike, and so does what the first of two leaves
    to the second.

    Args:
        rounds: The work; it is taken from the iterator outside the clock.
        on_run: Told before each run who runs.

    Returns:
        Seconds of each round, by name.

    Example:
        >>> order = []
        >>> work = {"dense": lambda: order.append("d"), "lite": lambda: order.append("l")}
        >>> times = alternate([work] * 3)
        >>> "".join(order), len(times["lite"])
        ('dllddl', 3)
    """
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for index, work in enumerate(rounds):
        for name in NAMES if index % 2 == 0 else NAMES[::-1]:
            on_run(name)
            watch = Stopwatch()
            with watch.running():
                work[name]()
            seconds[name].append(watch.seconds)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, by linear interpolation.

    Args:
        values: At least one.

    Example:
        >>> spread([4.0, 1.0, 2.0])
        {'lower_quartile': 1.5, 'median': 2.0, 'upper_quartile': 3.0}
    """
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"lower_quartile": low, "median": middle, "upper_quartile": high}


@dataclass(frozen=True)
class Comparison:
    """How much faster lite was.

    Attributes:
        speed_up: Median time of dense over that of lite.
        by_round: The same within each round: median and quartiles.
        flop_ratio: Arithmetic of dense over that of lite, to which the speed-up is bound as long as
            both do as much arithmetic a second.
        efficiency: Speed-up over that bound.
    """

    speed_up: float
    by_round: dict[str, float]
    flop_ratio: float
    efficiency: float

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only."""
        return asdict(self)


def compare(seconds: Mapping[str, Sequence[float]], flop_ratio: float) -> Comparison:
    """Compare the times of rounds.

    Args:
        seconds: Of :func:`alternate`; at least one round.
        flop_ratio: Arithmetic of dense over that of lite.

    Example:
        >>> result = compare({"dense": [3.0, 3.0], "lite": [2.0, 2.0]}, flop_ratio=2.0)
        >>> result.speed_up, result.efficiency
        (1.5, 0.75)
    """
    dense, lite = (np.asarray(seconds[name]) for name in NAMES)
    speed_up = float(np.median(dense) / np.median(lite))
    by_round = spread((dense / lite).tolist())
    return Comparison(speed_up, by_round, flop_ratio, speed_up / flop_ratio)
