"""Agreement between the processes of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from liteasr.config import ConfigError

log = logging.getLogger(__name__)

__all__ = [
    "SharedConfigError",
    "gather_lists",
    "lost_a_process",
    "mean_over_processes",
    "raise_together",
    "sum_over_processes",
    "wait_for_all",
]

Item = TypeVar("Item")

_LEAST = 1e-12
"""In place of a count of nothing."""

_LOST = (
    "Connection reset by peer",
    "Connection closed by peer",
    "Broken pipe",
    "remote process exited",
)


class SharedConfigError(ConfigError):
    """What was asked for cannot be done, as all processes say at the same place."""


def gather_lists(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, in the order of their ranks; every process must call it.

    Args:
        items: Those of this process; they are pickled.

    Example:
        >>> gather_lists([1, 2])
        [1, 2]
    """
    gathered = [list(items)]
    if dist.is_available() and dist.is_initialized():
        gathered = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, list(items))
    return [item for part in gathered for item in part]


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without gradient; every process must call it.

    Args:
        value: Of one shape everywhere.
    """
    total = value.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total


def mean_over_processes(value: Tensor, count: Tensor) -> Tensor:
    """A loss whose mean over the processes is ``Σ value / Σ count``; every process must call it.

    DDP and FSDP average gradients over processes. Those of losses that are means of their own
    batch would weigh a clip by the company that it is in.

    Args:
        value: Summed over what this process has, a scalar.
        count: Of it.

    Example:
        >>> import torch
        >>> mean_over_processes(torch.tensor(6.0), torch.tensor(4)).item()
        1.5
    """
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return value * processes / sum_over_processes(count.to(value)).clamp_min(_LEAST)


def wait_for_all(name: str) -> None:
    """Wait until every process is here; with one process, do nothing.

    Args:
        name: Of the place, for a trace.
    """
    log.debug("waiting at %s", name)
    gather_lists([name])


def lost_a_process(error: RuntimeError) -> bool:
    """Whether an error means that another process of the run is there no more.

    Args:
        error: Raised by a collective operation, of which the words alone tell.

    Example:
        >>> lost_a_process(RuntimeError("Connection reset by peer"))
        False
    """
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return any(words in str(error) for words in _LOST)


def raise_together(errors: Sequence[str]) -> None:
    """Raise on every process what any of them has found wrong; every process must call it.

    A process that raised alone would leave the others waiting for it.

    Args:
        errors: What this process found.

    Raises:
        SharedConfigError: With the errors of all processes, if there are any.

    Example:
        >>> raise_together([])
        >>> raise_together(["data.test.an4: no utterance can be used"])
        Traceback (most recent call last):
        ...
        liteasr.distributed.SharedConfigError: data.test.an4: no utterance can be used
    """
    together = list(dict.fromkeys(gather_lists(errors)))
    if together:
        raise SharedConfigError(together)
