"""``python -m liteasr.fit --config RECIPE [key=value …]``: compress a checkpoint and measure it."""

from __future__ import annotations

import itertools
import json
import resource
import sys
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch

from liteasr.builders import (
    build_callback,
    build_datamodule,
    build_module,
    build_trainer,
    check_sources,
)
from liteasr.cli import recipe_parser, run_main
from liteasr.compression import AllocationError, CompressionPlan
from liteasr.config import (
    ConfigError,
    Recipe,
    Weights,
    check_goal,
    load_recipe,
    to_yaml,
)
from liteasr.console import console
from liteasr.data import SpeechDataModule
from liteasr.environment import environment
from liteasr.files import write_text
from liteasr.finetuning import check_teacher, finetune
from liteasr.loading import require_weights
from liteasr.model_card import write_model_card
from liteasr.module import WhisperModule
from liteasr.predictions import write_predictions
from liteasr.reporting import write_report_or_warn
from liteasr.runfolder import RunFolder, is_first_process
from liteasr.stages import evaluate_against_dense, evaluate_module, save_model
from liteasr.summary import print_summary

__all__ = ["fit", "main"]


def fit(recipe: Recipe) -> dict[str, Any]:
    """Run a recipe: dense WER → calibrate and compress → fine-tune if asked → WER of what is left.

    Args:
        recipe: What to do; see :func:`liteasr.config.load_recipe`.

    Returns:
        The content of ``metrics.json``.

    Raises:
        ConfigError: If the recipe or its data cannot be used. A run folder that this call made is
            gone then.
    """
    L.seed_everything(recipe.run.seed, workers=True, verbose=False)
    run = RunFolder(recipe)
    if is_first_process():
        run.check()
    _check_parts(recipe, run)
    module = build_module(recipe)
    datamodule = build_datamodule(recipe, module)
    datamodule.check()
    run.open()
    try:
        return _run_stages(recipe, run, module, datamodule)
    except ConfigError:
        run.discard()
        raise


def _check_parts(recipe: Recipe, run: RunFolder) -> None:
    """Make once what is made again later, so that a wrong name is told before anything is done.

    Raises:
        ConfigError: If a part cannot be made.
    """
    # Reading the recipe of a comparison does not ask for a goal, as that has sizes of its own.
    errors = list(check_goal(recipe))
    if errors:
        raise ConfigError(errors)
    require_weights(recipe.model.id)
    check_teacher(recipe)
    if recipe.compression.method != "none":
        build_callback(recipe.compression, run.statistics)
    # Weights are split over processes, and precisions may not fit that, in training only.
    for steps in {0, recipe.finetune.max_steps}:
        build_trainer(recipe, None, steps=steps)


def _run_stages(
    recipe: Recipe, run: RunFolder, module: WhisperModule, datamodule: SpeechDataModule
) -> dict[str, Any]:
    stages: dict[str, Any] = {"dense": None, "compressed": None, "finetuned": None}
    timing = {"calibrate": 0.0, "factorize": 0.0, "finetune": 0.0, "evaluate": 0.0}
    if recipe.evaluation.dense and recipe.model.weights is Weights.pretrained:
        stages["dense"] = _measure(recipe, run, "dense", module, datamodule)
    if recipe.compression.method != "none":
        timing |= run.stage("compress", lambda: _compress(recipe, run, module, datamodule))
        module = build_module(recipe, str(run.model))
        module.compression_plan = CompressionPlan.load(run.plan)
        stages["compressed"] = _measure(recipe, run, "compressed", module, datamodule)
    if recipe.finetune.max_steps:
        training = run.stage("finetune", lambda: finetune(recipe, run, module, datamodule))
        timing["finetune"] = training.pop("seconds")
        module = build_module(recipe, str(run.model))
        stages["finetuned"] = _measure(recipe, run, "finetuned", module, datamodule) | training
    return _conclude(recipe, run, stages, timing)


def _measure(
    recipe: Recipe, run: RunFolder, name: str, module: WhisperModule, datamodule: SpeechDataModule
) -> dict[str, Any]:
    """WER of a stage, with what the model said of each utterance in ``predictions/``."""

    def measure() -> dict[str, Any]:
        evaluate = evaluate_module if name == "dense" else evaluate_against_dense
        result = evaluate(recipe, module, datamodule)
        if is_first_process():
            write_predictions(run.predictions, name, module.predictions)
        return result

    result = run.stage(name, measure)
    run.log(name, result)
    return result


def _conclude(
    recipe: Recipe, run: RunFolder, stages: dict[str, Any], timing: dict[str, float]
) -> dict[str, Any]:
    results = [stage for stage in stages.values() if stage is not None]
    timing["evaluate"] = sum(stage.pop("seconds") for stage in results)
    errors = [stage.pop("encoder_relative_error") for stage in results]
    for stage, key in itertools.product(results, ("rtfx", "encoder_rtfx", "ran_on")):
        stage.setdefault(key, None)  # of a stage that an earlier version finished
    metrics = {
        **stages,
        "encoder_relative_error": errors[-1],
        "timing_s": {name: round(seconds, 3) for name, seconds in timing.items()},
        "peak_memory_mb": round(_peak_memory_mb(), 1),
    }
    if is_first_process():
        write_model_card(run.model, recipe.model.id, metrics)
        write_text(run.environment, json.dumps(environment(), indent=2) + "\n")
        write_text(run.metrics, json.dumps(metrics, indent=2) + "\n")
        report = write_report_or_warn(run.path)
        print_summary(run, metrics, report)
    return metrics


def _compress(
    recipe: Recipe, run: RunFolder, module: WhisperModule, datamodule: SpeechDataModule
) -> dict[str, float]:
    """Calibrate, swap, and write ``plan.json`` and ``model/``; returns seconds a step."""
    callback = build_callback(recipe.compression, run.statistics)
    trainer = build_trainer(recipe, run, [callback])
    if is_first_process():
        sets = ", ".join(recipe.data.calibration)
        console.print(f"calibrating on {recipe.data.calibration_clips} clips of: {sets}")
    try:
        trainer.fit(module, datamodule=datamodule)
    except AllocationError as error:
        raise ConfigError(f"compression.budget: {error}") from error
    save_model(recipe, run.model, module)
    if trainer.is_global_zero and callback.plan is not None:
        write_text(run.plan, callback.plan.to_json())
        if callback.spectra is not None:
            write_text(run.spectra, callback.spectra.to_json())
    trainer.strategy.barrier("liteasr_model_saved")
    return callback.timing_s


def _peak_memory_mb() -> float:
    """Peak memory in MB: of the NVIDIA GPU that did the work, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def dry_run(recipe: Recipe) -> None:
    """Check everything that can be checked without loading weights.

    Raises:
        ConfigError: Naming what is wrong.
    """
    run = RunFolder(recipe)
    run.check()
    _check_parts(recipe, run)
    check_sources(recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = recipe_parser("fit").parse_intermixed_args(argv)

    def body() -> None:
        recipe = load_recipe(arguments.config, arguments.overrides)
        if arguments.print_config:
            print(to_yaml(recipe), end="")
        if arguments.dry_run:
            dry_run(recipe)
            print(f"{arguments.config}: everything but the weights is in order")
        if not (arguments.print_config or arguments.dry_run):
            fit(recipe)

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
