"""What a run shows: pictures and a page, made from its folder alone."""

from __future__ import annotations

import logging
from pathlib import Path

from liteasr.reporting.comparison_page import write_comparison_report
from liteasr.reporting.page import write_run_report

__all__ = ["write_report", "write_report_or_warn"]

log = logging.getLogger(__name__)


def write_report(folder: str | Path) -> Path:
    """Write ``report/`` of a finished ``fit`` or ``compare``; computes nothing anew.

    Args:
        folder: The run folder.

    Returns:
        The HTML file.

    Raises:
        ConfigError: If the folder holds no finished run of this layout.
    """
    folder = Path(folder)
    is_comparison = (folder / "compare.json").is_file() and not (folder / "metrics.json").is_file()
    return write_comparison_report(folder) if is_comparison else write_run_report(folder)


def write_report_or_warn(folder: Path) -> Path | None:
    """:func:`write_report` at the end of a run, which is complete without it: no error leaves."""
    try:
        return write_report(folder)
    except Exception as error:
        log.warning(
            "no report of this run, which is complete otherwise: %s: %s\n"
            "once that is put right: python -m liteasr.report %s",
            type(error).__name__,
            error,
            folder,
        )
        return None
