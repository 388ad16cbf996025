"""Callbacks of the training stage that Lightning does not bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from liteasr.errors import RunError

__all__ = ["LastCheckpoint", "SeededSteps", "StopOnNonFiniteLoss"]

_SHOWN = 3


class SeededSteps(L.Callback):
    """Draws the chance of a training step from the seed, the step's number and the process.

    Dropout and SpecAugment are then those of an uninterrupted run when training goes on from a
    checkpoint, which does not hold the state of the generators.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch and numpy."""
        step = trainer.fit_loop.total_batch_idx
        entropy = np.random.SeedSequence([self.seed, step, trainer.global_rank])
        seed = int(entropy.generate_state(1)[0])
        torch.manual_seed(seed)
        # transformers draws the masks of SpecAugment from numpy's global generator.
        np.random.seed(seed)  # noqa: NPY002


class StopOnNonFiniteLoss(L.Callback):
    """Stops training, on all processes, before a loss that is no number reaches the weights."""

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember which clips the step sees."""
        self._batch = batch

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss.

        Raises:
            RunError: If it is infinite or no number on any process.
        """
        is_finite = bool(torch.isfinite(loss.detach()).all())
        if trainer.strategy.reduce_boolean_decision(is_finite, all=True):
            return
        where = "" if is_finite else f" ({self._clips()})"
        raise RunError(
            f"finetune: the loss is {float(loss.detach()):g} at step {trainer.global_step}, batch "
            f"{trainer.fit_loop.epoch_loop.batch_idx} of epoch {trainer.current_epoch}{where}; "
            "checkpoints of earlier steps are kept. A lower finetune.learning_rate or "
            "trainer.gradient_clip_val may help, or leaving these clips out"
        )

    def _clips(self) -> str:
        ids = self._batch.get("ids", []) if isinstance(self._batch, Mapping) else []
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        return "clips " + ", ".join(ids[:_SHOWN]) + more if ids else "of another process"


class LastCheckpoint(ModelCheckpoint):
    """The newest checkpoint, for going on with an interrupted run: ``last.ckpt`` in a folder.

    It is written after every validation (without one, every ``every`` steps), and when the
    process is told to end (SIGTERM), which Lightning heeds between two steps. Other exceptions may
    break a step in half, so that what they leave is not saved.

    Args:
        folder: Where to write.
        every: Optimizer steps between two, or ``None`` if there are validations.
    """

    def __init__(self, folder: Any, every: int | None) -> None:
        super().__init__(
            folder,
            filename="last",
            every_n_train_steps=every,
            enable_version_counter=False,
            save_on_exception=True,
        )

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save between two steps, where SIGTERM stops."""
        if isinstance(exception, SIGTERMException) and self._should_save_on_exception(trainer):
            epochs = trainer.fit_loop.epoch_progress.current
            if epochs.ready == epochs.completed:
                # Else the next epoch would go on after the last batch of this one: with nothing.
                trainer.fit_loop.epoch_loop.batch_progress.reset_on_run()
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))
