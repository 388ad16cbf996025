"""Callbacks of the training stage that Lightning does not bring."""

from __future__ import annotations

import copy
import logging
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from liteasr.distributed import SharedConfigError, raise_together
from liteasr.errors import RunError

__all__ = [
    "BestCheckpoint",
    "EndAtOnce",
    "LastCheckpoint",
    "SeededSteps",
    "StopEarly",
    "StopOnBadData",
    "StopOnNonFiniteLoss",
]

log = logging.getLogger(__name__)

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


class EndAtOnce(L.Callback):
    """Ends an evaluation when the process is told to (SIGTERM), as an interrupt does.

    Lightning takes note of the signal and looks at it in training alone.
    """

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take SIGTERM over from Lightning, which puts the first handler back in the end."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)

    on_validation_start = on_test_start


class StopOnNonFiniteLoss(L.Callback):
    """Stops training, on all processes, before what is no number reaches the weights.

    That is a loss, or a gradient. With a scaler (fp16) gradients may overflow: it leaves such
    steps out.
    """

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
        self._check(trainer, "loss", loss.detach())

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradients.

        Raises:
            RunError: If one is infinite or no number on any process.
        """
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        gradients = [one.grad for one in parameters if one.grad is not None]
        own = [one.to_local() if isinstance(one, DTensor) else one for one in gradients]
        # Of a small tensor that is split over many processes some have nothing.
        own = [one for one in own if one.numel()]
        # The largest of them, which unlike a sum of squares does not overflow in half precision.
        largest = nn.utils.get_total_norm(own, float("inf"))
        self._check(trainer, "largest gradient", largest, names_clips=False)

    def _check(
        self, trainer: L.Trainer, what: str, value: Tensor, *, names_clips: bool = True
    ) -> None:
        is_finite = bool(torch.isfinite(value).all())
        if trainer.strategy.reduce_boolean_decision(is_finite, all=True):
            return
        said = "no number on another process" if is_finite else f"{float(value):g}"
        clips = self._clips() if names_clips and not is_finite else ""
        raise RunError(
            f"finetune: the {what} is {said} at step {trainer.global_step}, batch "
            f"{trainer.fit_loop.epoch_loop.batch_idx} of epoch {trainer.current_epoch}{clips}; "
            "checkpoints of earlier steps are kept. A lower finetune.learning_rate or "
            "trainer.gradient_clip_val may help, or leaving these clips out"
        )

    def _clips(self) -> str:
        ids = self._batch.get("ids", []) if isinstance(self._batch, Mapping) else []
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        return f" (clips {', '.join(ids[:_SHOWN])}{more})" if ids else ""


class StopOnBadData(L.Callback):
    """Stops training on all processes when one of them has read too much that it cannot use."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at what was read.

        Raises:
            ConfigError: With what any process has found.
        """
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.world_size == 1 or not hasattr(datamodule, "problems"):
            return  # one process has raised it
        problems = datamodule.problems("train")
        if trainer.strategy.reduce_boolean_decision(bool(problems), all=False):
            raise_together(problems)


class StopEarly(EarlyStopping):
    """Lightning's, which stays stopped when training goes on from a checkpoint after the stop."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once, if that was decided before the interrupt."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which finds its file again in a run folder that was moved or copied."""

    @property
    def state_key(self) -> str:
        """That of Lightning's own, which older runs have."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state over with its files in the folder of this run, if they are there."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else path

        state = {**state_dict, "dirpath": self.dirpath}
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = here(state.get(key, ""))
        if state["best_model_path"] and not Path(state["best_model_path"]).is_file():
            log.warning("%s is gone: the best is looked for anew", state["best_model_path"])
            return
        models = state.get("best_k_models", {})
        state["best_k_models"] = {here(path): score for path, score in models.items()}
        super().load_state_dict(state)


class LastCheckpoint(ModelCheckpoint):
    """The newest checkpoint, for going on with an interrupted run: ``last.ckpt`` in a folder.

    It is written after every validation (without one, every ``every`` steps). When a process is
    told to end (SIGTERM, or an interrupt from the keyboard, of which the second ends it at once),
    all of them finish the step, and the validation that is due after it, write it, and end.
    Lightning would end each process wherever it is: in the middle of a validation, of which a
    checkpoint keeps no counts, or of the batches that make a step, of which it keeps no gradients.

    After an error (of a file, of memory) it is written too, by one process alone, and by several if
    all of them raise it; else the others are not there to take part. After one in a validation (but
    of an average of the weights, which are then in the place of those that are trained) the run
    goes on with that validation.

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
        self._step: dict[str, Any] = {}
        self._is_torn = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over from Lightning, which puts the first handlers back in the end."""
        super().on_train_start(trainer, pl_module)
        # Else training that goes on from a step would save it again, amid the next one's batches.
        self._last_global_step_saved = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)
            signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            if self._is_told:
                raise KeyboardInterrupt
            log.info("finishing the step to save it; another interrupt ends at once")
        self._is_told = True

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save the last step, if weights and optimizer are still those of its end."""
        is_whole = self._step.get("global_step") == trainer.global_step
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if trainer.validating and any(isinstance(one, WeightAveraging) for one in callbacks):
            return
        is_shared = isinstance(exception, (RunError, SharedConfigError))
        if not isinstance(exception, Exception) or not is_whole:
            return
        if trainer.world_size > 1 and not is_shared:
            return
        self._is_torn = True
        if trainer.validating:
            _begin_validation(self._step["fit_loop"])
        try:
            self._save(trainer)
        except Exception as second:
            # A full disk or a lost device may be what it is about: the first error counts.
            log.warning("the last step could not be saved: %s", second)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """From here on weights and optimizer may be half of one step and half of the next."""
        self._step = {}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count the batches of the epoch as so many processes do that there are now."""
        loop = checkpoint["loops"]["fit_loop"]
        loaders = loop.get("state_dict", {}).get("combined_loader", [])
        processes = [one["processes"] for one in loaders if "processes" in one]
        if not processes:
            return
        count = loop["epoch_loop.batch_progress"]["current"]
        ready = count["ready"] * processes[0] // trainer.world_size
        # Of the last batch of a checkpoint not all is done: that stays so.
        count.update({key: max(0, ready - (count["ready"] - n)) for key, n in count.items()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state over, wherever the run was then."""
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """After an error, say that the batches since the last step are still to come."""
        if self._is_torn:
            checkpoint["epoch"] = self._step["epoch"]
            checkpoint["loops"]["fit_loop"] = self._step["fit_loop"]

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
        if not loop._should_accumulate():
            self._step = {
                "global_step": trainer.global_step,
                "epoch": trainer.current_epoch,
                "fit_loop": copy.deepcopy(loop.state_dict()),
            }
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
            self._save(trainer)
            raise SIGTERMException

    def _save(self, trainer: L.Trainer) -> None:
        if self._last_global_step_saved != trainer.global_step:
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))


def _begin_validation(fit_loop: dict[str, Any]) -> None:
    """Make a state of Lightning's loops, of before a validation, one of which that comes first.

    It takes up a validation again in which a batch was started and not done.
    """
    progress = fit_loop["epoch_loop.val_loop.batch_progress"]
    done = progress["total"]["completed"]
    for key, count in (("total", done), ("current", 0)):
        progress[key] = {
            **progress[key],
            **dict.fromkeys(("ready", "started"), count + 1),
            **dict.fromkeys(("processed", "completed"), count),
        }
