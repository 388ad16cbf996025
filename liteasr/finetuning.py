"""The training stage of a run: train, keep the best weights, never end worse than before."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint

from liteasr.builders import build_module, build_trainer
from liteasr.callbacks import LastCheckpoint, SeededSteps, StopOnNonFiniteLoss
from liteasr.config import ConfigError, Recipe, Weights
from liteasr.data import SpeechDataModule
from liteasr.loading import load_model
from liteasr.module import WhisperModule
from liteasr.runfolder import RunFolder, is_first_process
from liteasr.stages import evaluate_module, save_model

__all__ = ["finetune"]

log = logging.getLogger(__name__)

_MONITOR = "val/wer"


@dataclass(frozen=True)
class _Candidate:
    """Weights that a run may end with: of a checkpoint, of step 0, or else the live ones."""

    wer: float | None
    step: int
    checkpoint: Path | None = None


def finetune(
    recipe: Recipe, run: RunFolder, module: WhisperModule, datamodule: SpeechDataModule
) -> dict[str, Any]:
    """Train as the recipe says and write ``model/`` anew.

    Of the weights before training, those of every validation and the last ones, those with the
    lowest validation WER are kept; without validation sets the last ones.

    Args:
        recipe: The recipe.
        run: Receives logs and checkpoints, and holds those to go on from.
        module: The model as it is before.
        datamodule: The data.

    Returns:
        ``seconds``, ``step`` (optimizer steps behind the weights that were kept),
        ``val_wer_before`` and ``val_wer`` (percent, ``None`` without validation sets).

    Raises:
        ConfigError: If the teacher cannot be used, or a checkpoint is of another model.
        RunError: If the loss becomes infinite or no number.
    """
    started = time.perf_counter()
    before = _measure_before(recipe, run, module, datamodule)
    _find_teacher(recipe, module)
    best = _best_checkpoint(recipe, run)
    trainer = build_trainer(recipe, run, _callbacks(recipe, run, best), recipe.finetune.max_steps)
    last = run.checkpoints / "last.ckpt"
    resumable = recipe.run.resume and last.is_file()
    trainer.fit(module, datamodule=datamodule, ckpt_path=str(last) if resumable else None)
    module.learn_from(None)
    kept = _choose(recipe, trainer, module, datamodule, best, before)
    _write(recipe, run, module, kept)
    trainer.strategy.barrier("liteasr_model_saved")
    return {
        "seconds": time.perf_counter() - started,
        "step": kept.step,
        "val_wer_before": before,
        "val_wer": kept.wer,
    }


def _measure_before(
    recipe: Recipe, run: RunFolder, module: WhisperModule, datamodule: SpeechDataModule
) -> float | None:
    """Validation WER without training, once a run."""
    if not recipe.data.val or recipe.model.weights is Weights.random:
        return None

    def measure() -> dict[str, Any]:
        return {"wer": evaluate_module(recipe, module, datamodule, "val")["wer"]}

    wer: float = run.stage("before_finetuning", measure)["wer"]
    return wer


def _find_teacher(recipe: Recipe, module: WhisperModule) -> None:
    if not module.objective.weights.needs_teacher:
        return
    source = recipe.model
    if recipe.finetune.teacher is None:
        dense = load_model(source.id, revision=source.revision, dtype=source.dtype.value)
    else:
        dense = load_model(recipe.finetune.teacher, dtype=source.dtype.value)
    theirs, ours = dense.config, module.model.config
    for key in ("d_model", "num_mel_bins", "vocab_size", "max_source_positions"):
        if getattr(theirs, key) != getattr(ours, key):
            raise ConfigError(
                f"finetune.teacher: {recipe.finetune.teacher} has {key} {getattr(theirs, key)}, "
                f"the model {getattr(ours, key)}"
            )
    module.learn_from(dense)


def _best_checkpoint(recipe: Recipe, run: RunFolder) -> ModelCheckpoint | None:
    if not recipe.data.val:
        return None
    return ModelCheckpoint(
        run.checkpoints,
        filename="best",
        monitor=_MONITOR,
        # The average of the weights is put into whole checkpoints only.
        save_weights_only=recipe.finetune.ema_decay is None,
        enable_version_counter=False,
    )


def _callbacks(recipe: Recipe, run: RunFolder, best: ModelCheckpoint | None) -> list[L.Callback]:
    train = recipe.finetune
    callbacks: list[L.Callback] = [SeededSteps(recipe.run.seed), StopOnNonFiniteLoss()]
    if train.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=train.ema_decay))
    if best is not None and train.patience is not None:
        callbacks.append(EarlyStopping(_MONITOR, patience=train.patience, min_delta=0.0))
    # The best one first, so that the last one knows of it.
    callbacks += [] if best is None else [best]
    every = min(train.val_every, train.max_steps) if best is None else None
    return [*callbacks, LastCheckpoint(run.checkpoints, every)]


def _choose(
    recipe: Recipe,
    trainer: L.Trainer,
    module: WhisperModule,
    datamodule: SpeechDataModule,
    best: ModelCheckpoint | None,
    before: float | None,
) -> _Candidate:
    """Weights with the lowest validation WER; of equal ones those that were trained less."""
    end = trainer.global_step
    if best is None:
        return _Candidate(None, end)
    candidates = [] if before is None else [_Candidate(before, 0)]
    if best.best_model_path and best.best_model_score is not None:
        file = Path(best.best_model_path)
        step = int(torch.load(file, map_location="cpu", weights_only=True)["global_step"])
        candidates.append(_Candidate(float(best.best_model_score), step, file))
    if end % recipe.finetune.val_every and not any(one.step == end for one in candidates):
        trainer.validate(module, datamodule=datamodule, verbose=False)
        candidates.append(_Candidate(float(trainer.callback_metrics[_MONITOR]), end))
    kept = min(candidates, key=lambda one: (round(one.wer or 0.0, 4), one.step))
    if kept.step == 0 and is_first_process():
        log.warning(
            "finetune: no step had a lower val/wer than the %.2f before training; "
            "the model stays as it was",
            kept.wer,
        )
    return kept


def _write(recipe: Recipe, run: RunFolder, module: WhisperModule, kept: _Candidate) -> None:
    """Write the weights that were chosen as ``model/``."""
    if kept.checkpoint is not None:
        state = torch.load(kept.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
    elif kept.step == 0:
        if run.model.is_dir():
            return
        module = build_module(recipe)
    save_model(recipe, run.model, module)
