"""Callbacks of the training stage that Lightning does not bring."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from liteasr.errors import RunError

__all__ = ["LastCheckpoint", "SeededSteps", "StopEarly", "StopOnNonFiniteLoss"]

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
        value = "no number on another process" if is_finite else f"{float(loss.detach()):g}"
        clips = "" if is_finite else self._clips()
        raise RunError(
            f"finetune: the loss is {value} at step {trainer.global_step}, batch "
            f"{trainer.fit_loop.epoch_loop.batch_idx} of epoch {trainer.current_epoch}{clips}; "
            "checkpoints of earlier steps are kept. A lower finetune.learning_rate or "
            "trainer.gradient_clip_val may help, or leaving these clips out"
        )

    def _clips(self) -> str:
        ids = self._batch.get("ids", []) if isinstance(self._batch, Mapping) else []
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        return f" (clips {', '.join(ids[:_SHOWN])}{more})" if ids else ""


class StopEarly(EarlyStopping):
    """Lightning's, which stays stopped when training goes on from a checkpoint after the stop."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once, if that was decided before the interrupt."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class LastCheckpoint(ModelCheckpoint):
    """The newest checkpoint, for going on with an interrupted run: ``last.ckpt`` in a folder.

    It is written after every validation (without one, every ``every`` steps). When a process is
    told to end (SIGTERM), all of them finish the step, and the validation that is due after it,
    write it, and end. Lightning would end each process wherever it is: in the middle of a
    validation, of which a checkpoint keeps no counts, or of the batches that make a step, of which
    it keeps no gradients.

    Args:
        folder: Where to write.
        every: Optimizer steps between two, or ``None`` if there are validations.
    """

    def __init__(self, folder: Any, every: int | None) -> None:
        super().__init__(
            folder, filename="last", every_n_train_steps=every, enable_version_counter=False
        )
        self._validates = every is None
        self._is_told = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take SIGTERM over from Lightning, which puts the first handler back in the end."""
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: object) -> None:
        self._is_told = True

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is time to, and end after a step if that is asked for."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        loop, interval = trainer.fit_loop, trainer.val_check_batch
        is_due = self._validates and interval and (loop.total_batch_idx + 1) % interval == 0
        if not is_due and not loop._should_accumulate():
            self._end_if_told(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, and end if that is asked for."""
        super().on_validation_end(trainer, pl_module)
        self._end_if_told(trainer)

    def _end_if_told(self, trainer: L.Trainer) -> None:
        """Save and end, all processes at the same step.

        Raises:
            SIGTERMException: If any process is told to.
        """
        if trainer.strategy.reduce_boolean_decision(self._is_told, all=False):
            if self._last_global_step_saved != trainer.global_step:
                self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))
            raise SIGTERMException
