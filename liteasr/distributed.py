"""Agreement between the processes of a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from liteasr.config import ConfigError

__all__ = ["raise_together"]


def raise_together(errors: Sequence[str]) -> None:
    """Raise on every process what any of them has found wrong; every process must call it.

    A process that raised alone would leave the others waiting for it.

    Args:
        errors: What this process found.

    Raises:
        ConfigError: With the errors of all processes, if there are any.

    Example:
        >>> raise_together([])
        >>> raise_together(["data.test.an4: no utterance can be used"])
        Traceback (most recent call last):
        ...
        liteasr.config.errors.ConfigError: data.test.an4: no utterance can be used
    """
    gathered: list[list[str]] = [list(errors)]
    if dist.is_available() and dist.is_initialized():
        gathered = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, list(errors))
    together = list(dict.fromkeys(message for part in gathered for message in part))
    if together:
        raise ConfigError(together)
