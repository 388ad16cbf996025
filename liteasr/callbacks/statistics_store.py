"""Calibration statistics and finished blocks on disk: a killed run goes on where it stopped."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from liteasr.compression import LowRankFactors
from liteasr.files import atomic_path

__all__ = ["StatisticsStore"]

log = logging.getLogger(__name__)


class StatisticsStore:
    """Partial statistics of each process, the total of all, and the factors of finished blocks.

    A file is only believed if it was written for the same key (method, model, calibration clips,
    number of processes); any other is left aside and overwritten.

    Args:
        folder: Where the files are; ``None`` stores nothing.
        key: What the statistics belong to, plain values.
        rank: Number of this process.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any], rank: int) -> None:
        self.folder = folder
        self.key = dict(key)
        self.rank = rank

    @property
    def _partial(self) -> Path | None:
        return None if self.folder is None else self.folder / f"partial-{self.rank}.pt"

    @property
    def _total(self) -> Path | None:
        return None if self.folder is None else self.folder / "total.pt"

    def save_partial(self, state: Mapping[str, Any], batches: int, clips: int) -> None:
        """Save what this process has so far.

        Args:
            state: State dict of the method.
            batches: Batches it has seen.
            clips: Clips it has seen.
        """
        self._save(self._partial, {"state": dict(state), "batches": batches, "clips": clips})

    def save_total(self, state: Mapping[str, Any], clips: int) -> None:
        """Save the sum over all processes; on one of them only."""
        self._save(self._total, {"state": dict(state), "clips": clips})

    def load_partial(self) -> dict[str, Any] | None:
        """What this process had: ``state``, ``batches``, ``clips``; or ``None``."""
        return self._load(self._partial)

    def load_total(self) -> dict[str, Any] | None:
        """The sum over all processes: ``state``, ``clips``; or ``None``."""
        return self._load(self._total)

    def save_block(self, index: int, factors: Mapping[str, LowRankFactors]) -> None:
        """Save the final factors of an encoder block; on one process only."""
        layers = {
            name: {part: getattr(one, part) for part in ("weight1", "weight2", "bias")}
            for name, one in factors.items()
        }
        self._save(self._block(index), {"layers": layers})

    def load_block(self, index: int) -> dict[str, LowRankFactors] | None:
        """Final factors of an encoder block, or ``None`` if it was not finished."""
        content = self._load(self._block(index))
        if content is None:
            return None
        return {name: LowRankFactors(**parts) for name, parts in content["layers"].items()}

    def _block(self, index: int) -> Path | None:
        return None if self.folder is None else self.folder / f"block-{index}.pt"

    def drop_partial(self) -> None:
        """Remove this process's partial statistics."""
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)

    def _save(self, path: Path | None, content: dict[str, Any]) -> None:
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save({"key": self.key, **content}, temporary)

    def _load(self, path: Path | None) -> dict[str, Any] | None:
        if path is None or not path.is_file():
            return None
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be read and is left aside: %s", path, error)
            return None
        return content if content.get("key") == self.key else None
