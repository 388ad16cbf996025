"""Steps that several kinds of run share: measure a model, write it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from liteasr.builders import build_trainer
from liteasr.compression import encoder_parameters
from liteasr.config import Recipe, Weights
from liteasr.console import console
from liteasr.data import SpeechDataModule
from liteasr.export import export_model
from liteasr.loading import load_config, load_model
from liteasr.metrics import macro_average
from liteasr.module import WhisperModule
from liteasr.runfolder import is_first_process
from liteasr.speed import rounded

__all__ = ["evaluate_against_dense", "evaluate_module", "save_model"]


def evaluate_module(
    recipe: Recipe, module: WhisperModule, datamodule: SpeechDataModule, role: str = "test"
) -> dict[str, Any]:
    """WER of every set of a role, if there are any, with the encoder's size.

    Args:
        recipe: The recipe.
        module: The model.
        datamodule: The data.
        role: ``test`` or ``val``.

    Returns:
        ``encoder_params``, ``wer`` (percent, mean of the sets, or ``None``), ``datasets`` (WER by
        set), ``rtfx`` and ``encoder_rtfx`` (seconds of audio a second of recognition, and of its
        encoder alone, or ``None``), ``ran_on`` (devices and precision),
        ``encoder_relative_error`` (``None`` if not measured), ``seconds``.
    """
    sets = getattr(recipe.data, role)
    if sets and is_first_process():
        size = f"{encoder_parameters(module.encoder) / 1e6:.3f} M"
        console.print(f"measuring the encoder of {size} on: {', '.join(sets)}")
    started = time.perf_counter()
    if sets:
        trainer = build_trainer(recipe, None)
        # A trainer without steps is built to leave validation sets alone.
        trainer.limit_val_batches = 1.0
        run = trainer.test if role == "test" else trainer.validate
        run(module, datamodule=datamodule, verbose=False)
    results = module.results if sets else {}
    wers = {name: float(summary["wer"]) for name, summary in results.items()}
    return {
        "encoder_params": encoder_parameters(module.encoder),
        "wer": round(macro_average(wers), 4) if wers else None,
        "datasets": wers,
        "rtfx": rounded(module.rtfx) if sets else None,
        "encoder_rtfx": rounded(module.encoder_rtfx) if sets else None,
        "ran_on": _place(trainer) if sets else None,
        "encoder_relative_error": module.encoder_relative_error,
        "seconds": time.perf_counter() - started,
    }


def _place(trainer: L.Trainer) -> str:
    """What a model ran on, as far as speeds on other such places cannot be compared with it."""
    device = trainer.strategy.root_device
    name = f"CPU, {torch.get_num_threads()} threads"
    if device.type != "cpu":
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{trainer.world_size} × {name}, {trainer.precision}"


def evaluate_against_dense(
    recipe: Recipe, module: WhisperModule, datamodule: SpeechDataModule, role: str = "test"
) -> dict[str, Any]:
    """:func:`evaluate_module` with the encoder's error, if the recipe asks for it.

    Its reference is the model that the recipe compresses; where it compresses none, as when
    training of a lite-whisper goes on, it is the teacher. There is none where training began with
    random weights.
    """
    if recipe.evaluation.encoder_error and recipe.model.weights is Weights.pretrained:
        source, teacher = recipe.model, recipe.finetune.teacher
        if teacher is not None and recipe.compression.method == "none":
            dense = load_model(teacher, dtype=source.dtype.value)
        else:
            dense = load_model(source.id, revision=source.revision, dtype=source.dtype.value)
        module.compare_with(dense.get_encoder())
    result = evaluate_module(recipe, module, datamodule, role)
    module.compare_with(None)
    return result


def save_model(recipe: Recipe, folder: Path, module: WhisperModule) -> None:
    """Write the model as a Hugging Face folder in the type that the recipe says; on process 0."""
    if not is_first_process():
        return
    stored = load_config(recipe.model.id, recipe.model.revision).dtype
    wanted = recipe.export.dtype
    dtype = stored if wanted is None else getattr(torch, wanted.value)
    export_model(module.model, module.processor, folder, dtype)
