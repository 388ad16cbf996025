"""What a person sees: progress bars and tables; quiet when the output is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["console", "progress", "table"]

console = Console(stderr=True)


@contextmanager
def progress(
    description: str, total: int | None, unit: str, *, enabled: bool = True
) -> Iterator[Progress]:
    """A bar with counts and remaining time; ``advance`` its only task.

    Args:
        description: What is being done.
        total: Units of work in all, if that is known.
        unit: Name of the unit, plural.
        enabled: ``False`` for all processes but the first.

    Yields:
        The progress display; ``progress.advance(progress.task_ids[0], n)``.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, disable=not (enabled and sys.stderr.isatty()))
    with bar:
        bar.add_task(description, total=total)
        yield bar


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table whose first column is left-aligned and whose others are numbers.

    Args:
        title: Caption.
        columns: Headings.
        rows: Cells, already formatted.
    """
    result = Table(title=title)
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        result.add_row(*row)
    return result
