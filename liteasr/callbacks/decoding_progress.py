"""A bar that counts utterances while a trainer decodes; a trainer's own counts batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import lightning as L
from rich.progress import Progress

from liteasr.console import progress

__all__ = ["DecodingProgress"]


class DecodingProgress(L.Callback):
    """Utterances done and time left, on a terminal, for ``trainer.test`` and ``trainer.validate``.

    On several processes it counts those of process 0. The total is known where a loader tells the
    ``extents`` of its sets, as those of :class:`~liteasr.SpeechDataModule` do for all but streams.
    """

    def __init__(self) -> None:
        self._open = ExitStack()
        self._bar: Progress | None = None

    def _start(self, trainer: L.Trainer, loaders: Any) -> None:
        self._close()
        total = _utterances(loaders)
        bar = progress("decoding", total, "utterances", enabled=trainer.is_global_zero)
        self._bar = self._open.enter_context(bar)

    def _advance(self, batch: Mapping[str, Any]) -> None:
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], len(batch["segments"]))

    def _close(self) -> None:
        self._open.close()
        self._bar = None

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar."""
        self._start(trainer, trainer.test_dataloaders)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar."""
        self._start(trainer, trainer.val_dataloaders)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        """Count."""
        self._advance(batch)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        """Count."""
        self._advance(batch)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar away."""
        self._close()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar away."""
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away."""
        self._close()


def _utterances(loaders: Any) -> int | None:
    """Utterances of this process, ``None`` if any loader does not know."""
    each = loaders if isinstance(loaders, Sequence) else [loaders]
    total = 0
    for loader in each:
        extents = getattr(loader, "extents", None)
        if not extents:
            return None
        total += sum(int(extent.rows) for extent in extents.values())
    return total
