"""The error of a run that cannot go on though nothing was wrong with what was asked for."""

from __future__ import annotations

__all__ = ["RunError"]


class RunError(RuntimeError):
    """A run had to stop: the message says where, and what can be done.

    It is raised on all processes of a run at the same place. Entry points print it without a
    traceback and end with exit code 1.
    """
