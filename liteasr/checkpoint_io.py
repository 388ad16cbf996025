"""Checkpoints of Lightning's that are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from liteasr.files import atomic_path

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and renames.

    Lightning writes to the system's temporary folder and moves; from another file system that is a
    copy, which an interrupt or a full disk leaves cut short in the place of the old one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a file.

        Args:
            checkpoint: The content.
            path: Local file.
            storage_options: Not used.

        Raises:
            OSError: If it cannot be written; the old file is as it was.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
