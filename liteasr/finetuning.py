"""The training stage of a run: train, keep the best weights, never end worse than before."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from liteasr.builders import build_module, build_trainer
from liteasr.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    SameStart,
    SeededSteps,
    StopEarly,
    StopOnBadData,
    StopOnNonFiniteLoss,
)
from liteasr.config import ConfigError, Recipe, Weights
from liteasr.data import SpeechDataModule
from liteasr.distributed import wait_for_all
from liteasr.loading import load_config, load_model, require_weights
from liteasr.module import WhisperModule
from liteasr.runfolder import RunFolder, is_first_process
from liteasr.stages import evaluate_module, save_model

__all__ = ["check_teacher", "finetune"]

log = logging.getLogger(__name__)

_MONITOR = "val/wer"
_BEST, _LAST = "best.ckpt", "last.ckpt"


@dataclass(frozen=True)
class _Candidate:
    """Weights that a run may end with: of a checkpoint, or those from before training."""

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
    before = _measure_before(recipe, run, module, datamodule)
    trained = run.stage("train", lambda: _train(recipe, run, module, datamodule))
    started = time.perf_counter()
    kept = _choose(_candidates(recipe, run, datamodule, trained, before))
    _write(recipe, run, kept)
    wait_for_all("liteasr_model_saved")
    return {
        "seconds": trained["seconds"] + time.perf_counter() - started,
        "step": kept.step,
        "val_wer_before": before,
        "val_wer": kept.wer,
    }


def _train(
    recipe: Recipe, run: RunFolder, module: WhisperModule, datamodule: SpeechDataModule
) -> dict[str, Any]:
    """Train to the end; ``last.ckpt`` and ``best.ckpt`` are what is left of it.

    Returns:
        ``seconds``, ``step`` of the last weights, ``validated_step`` of the last validation, and
        ``wer`` and ``best_step`` of the best one, ``None`` if there was none.
    """
    started = time.perf_counter()
    _find_teacher(recipe, module)
    best = _best_checkpoint(recipe, run)
    trainer = build_trainer(recipe, run, _callbacks(recipe, run, best), recipe.finetune.max_steps)
    last = run.checkpoints / _LAST
    resumable = recipe.run.resume and last.is_file()
    if resumable:
        _load(last)  # each strategy loads it in its own way; what is broken is told here
    trainer.fit(module, datamodule=datamodule, ckpt_path=str(last) if resumable else None)
    module.learn_from(None)
    trainer.save_checkpoint(last)
    score = None if best is None else best.best_model_score
    return {
        "seconds": time.perf_counter() - started,
        "step": trainer.global_step,
        "validated_step": module.validated_step,
        "wer": None if score is None else float(score),
        "best_step": None if score is None else _load(run.checkpoints / _BEST)["global_step"],
    }


def _measure_before(
    recipe: Recipe, run: RunFolder, module: WhisperModule, datamodule: SpeechDataModule
) -> float | None:
    """Validation WER without training, once a run."""
    if not recipe.data.val or recipe.model.weights is Weights.random:
        return None

    measure = partial(_val_wer, recipe, module, datamodule)
    wer: float = run.stage("before_finetuning", measure)["wer"]
    return wer


def check_teacher(recipe: Recipe) -> None:
    """See from configurations whether the model can learn from ``finetune.teacher``.

    Raises:
        ConfigError: If the teacher is of another shape, or no checkpoint with weights.
    """
    teacher, source = recipe.finetune.teacher, recipe.model
    if teacher is None:
        return
    try:
        require_weights(teacher)
        theirs = load_config(teacher)
    except ConfigError as error:
        raise _of_teacher(error) from error
    ours = load_config(source.id, source.revision)
    for key in ("d_model", "num_mel_bins", "vocab_size", "max_source_positions"):
        if getattr(theirs, key) != getattr(ours, key):
            raise ConfigError(
                f"finetune.teacher: {teacher} has {key} {getattr(theirs, key)}, "
                f"the model {getattr(ours, key)}"
            )


def _of_teacher(error: ConfigError) -> ConfigError:
    """An error of loading, which takes what it loads for the model."""
    return ConfigError([one.replace("model.id", "finetune.teacher", 1) for one in error.errors])


def _find_teacher(recipe: Recipe, module: WhisperModule) -> None:
    if not module.objective.weights.needs_teacher:
        return
    source, teacher = recipe.model, recipe.finetune.teacher
    if teacher is None:
        dense = load_model(source.id, revision=source.revision, dtype=source.dtype.value)
    else:
        try:
            dense = load_model(teacher, dtype=source.dtype.value)
        except ConfigError as error:
            raise _of_teacher(error) from error
    module.learn_from(dense)


def _best_checkpoint(recipe: Recipe, run: RunFolder) -> ModelCheckpoint | None:
    if not recipe.data.val:
        return None
    return BestCheckpoint(
        run.checkpoints,
        filename="best",
        monitor=_MONITOR,
        # The average of the weights is put into whole checkpoints only.
        save_weights_only=recipe.finetune.ema_decay is None,
        enable_version_counter=False,
    )


def _callbacks(recipe: Recipe, run: RunFolder, best: ModelCheckpoint | None) -> list[L.Callback]:
    train = recipe.finetune
    callbacks: list[L.Callback] = [
        SameStart(recipe.model.id),
        SeededSteps(recipe.run.seed),
        StopOnBadData(),
        StopOnNonFiniteLoss(),
    ]
    if train.ema_decay is not None:
        callbacks.append(
            WeightAveraging(
                # An average of the pivots' numbers would be those of others.
                use_buffers=False,
                # Interpolates, so that weights that are not trained stay what they are.
                multi_avg_fn=get_ema_multi_avg_fn(train.ema_decay),  # type: ignore[no-untyped-call]
            )
        )
    if best is not None and train.patience is not None:
        callbacks.append(StopEarly(_MONITOR, patience=train.patience, min_delta=0.0))
    # The best one first, so that the last one knows of it.
    callbacks += [] if best is None else [best]
    every = min(train.val_every, train.max_steps) if best is None else None
    return [*callbacks, LastCheckpoint(run.checkpoints, every)]


def _candidates(
    recipe: Recipe,
    run: RunFolder,
    datamodule: SpeechDataModule,
    trained: dict[str, Any],
    before: float | None,
) -> list[_Candidate]:
    """The weights from before training, of the best validation, and the last ones; or just these.

    The last ones are measured if they were not.
    """
    end = _Candidate(None, trained["step"], run.checkpoints / _LAST)
    if not recipe.data.val:
        return [end]
    candidates = [] if before is None else [_Candidate(before, 0)]
    if trained["best_step"] is not None:
        best = run.checkpoints / _BEST
        candidates.append(_Candidate(trained["wer"], trained["best_step"], best))
    # Not told by val_every: the last batch of an epoch makes a step of fewer batches.
    if trained["validated_step"] != end.step:
        module = _loaded(recipe, run, end)
        wer = run.stage("measure_last", lambda: _val_wer(recipe, module, datamodule))["wer"]
        candidates.append(replace(end, wer=wer))
    return candidates


def _val_wer(
    recipe: Recipe, module: WhisperModule, datamodule: SpeechDataModule
) -> dict[str, float | None]:
    return {"wer": evaluate_module(recipe, module, datamodule, "val")["wer"]}


def _choose(candidates: Sequence[_Candidate]) -> _Candidate:
    """Weights with the lowest validation WER; of equal ones those that were trained less."""
    kept = min(candidates, key=lambda one: (round(one.wer or 0.0, 4), one.step))
    if kept.step == 0 and is_first_process():
        log.warning(
            "finetune: no step had a lower val/wer than the %.2f before training; "
            "the model stays as it was",
            kept.wer,
        )
    return kept


def _loaded(recipe: Recipe, run: RunFolder, candidate: _Candidate) -> WhisperModule:
    """A module with a candidate's weights: none of it is split over processes."""
    module = build_module(recipe, str(run.model) if run.model.is_dir() else None)
    if candidate.checkpoint is not None:
        module.load_state_dict(_load(candidate.checkpoint)["state_dict"])
    return module


def _load(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's content; tensors are read from the file when they are used.

    Raises:
        ConfigError: If it is damaged.
    """
    try:
        content: dict[str, Any] = torch.load(
            checkpoint, map_location="cpu", weights_only=True, mmap=True
        )
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ConfigError(
            f"run.resume: {checkpoint} cannot be read ({str(error).split(chr(10), 1)[0]}); "
            "without it the training begins anew"
        ) from error
    return content


def _write(recipe: Recipe, run: RunFolder, kept: _Candidate) -> None:
    """Write the weights that were chosen as ``model/``, unless they are there; on process 0.

    The others must not read the folder while it is replaced.
    """
    if is_first_process() and (kept.checkpoint is not None or not run.model.is_dir()):
        save_model(recipe, run.model, _loaded(recipe, run, kept))
