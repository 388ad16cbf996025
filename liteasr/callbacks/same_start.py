"""Whether a checkpoint is of the training that is to go on from it."""

from __future__ import annotations

import hashlib
from typing import Any

import lightning as L
import torch

from liteasr.compression import encoder_parameters
from liteasr.distributed import raise_together

__all__ = ["SameStart"]


class SameStart(L.Callback):
    """Refuses a checkpoint of training that began with other weights.

    Names and shapes, at which the module looks, are the same in two compressions of a checkpoint
    that differ in their calibration, and in two checkpoints of one size.

    Args:
        name: What is trained, for messages: a folder or a hub id.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._start: dict[str, str] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the weights' digest, before a checkpoint replaces or a strategy splits them."""
        model: Any = pl_module.model
        digest = hashlib.sha256()
        for key, weight in sorted(model.state_dict().items()):
            digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
            flat = weight.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy())
        size = f"{encoder_parameters(model.get_encoder()) / 1e6:.3f} M"
        self._start = {"model": f"{self.name}, encoder of {size}", "sha256": digest.hexdigest()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of its start."""
        return dict(self._start)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the start of a checkpoint's training with this one's; every process must call it.

        Raises:
            ConfigError: If they differ on any of them.
        """
        problems = []
        if state_dict["sha256"] != self._start["sha256"]:
            problems.append(
                f"checkpoint: of training that began with other weights "
                f"({state_dict['model']}) than this one ({self._start['model']})"
            )
        raise_together(problems)
