"""A finished run, read from its folder: all that a report needs and nothing that computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from liteasr.compression.plan import CompressionPlan
from liteasr.compression.spectra import Spectra
from liteasr.config import ConfigError
from liteasr.environment import FORMAT
from liteasr.predictions import Prediction, read_predictions
from liteasr.reporting.curves_plot import LearningCurves, read_curves

__all__ = [
    "STAGES",
    "RunRecord",
    "read_environment",
    "read_json",
    "read_recipe",
    "read_run",
]

STAGES = ("dense", "compressed", "finetuned")

_METRICS = ("encoder_relative_error", "timing_s", "peak_memory_mb")
_STAGE = ("encoder_params", "wer", "datasets")


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says.

    Attributes:
        recipe_text: ``recipe.yaml``.
        recipe: The same, parsed.
        stages: Stage → size and WER, those that were measured, in their order.
        metrics: The rest of ``metrics.json``.
        plan: ``plan.json``; ``None`` if nothing was compressed.
        spectra: ``spectra.json``, if the method gave any.
        predictions: Stage → utterances; empty where none are kept.
        curves: How training went; ``None`` if nothing was trained.
        seconds: Part of the run → seconds, in their order.
        environment: ``environment.json``.
    """

    recipe_text: str
    recipe: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Any]
    plan: CompressionPlan | None
    spectra: Spectra | None
    predictions: Mapping[str, list[Prediction]]
    curves: LearningCurves | None
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]


def read_run(folder: Path) -> RunRecord:
    """Read the folder of a finished ``fit``.

    Args:
        folder: ``run.dir`` of the run.

    Raises:
        ConfigError: If a file is missing, cannot be read, or is of another layout; named.
    """
    text, recipe = read_recipe(folder)
    metrics = _read_metrics(folder)
    environment = read_environment(folder)
    stages = {name: metrics[name] for name in STAGES if metrics[name] is not None}
    plan_file, spectra_file = folder / "plan.json", folder / "spectra.json"
    if "compressed" in stages and not plan_file.is_file():
        raise ConfigError(f"{folder}: plan.json is missing")
    try:
        return RunRecord(
            recipe_text=text,
            recipe=recipe,
            stages=stages,
            metrics={key: metrics[key] for key in _METRICS},
            plan=CompressionPlan.load(plan_file) if plan_file.is_file() else None,
            spectra=Spectra.load(spectra_file) if spectra_file.is_file() else None,
            predictions={
                name: found
                for name in stages
                if (found := read_predictions(folder / "predictions", name))
            },
            curves=_curves(folder, metrics["finetuned"]),
            seconds=_seconds(folder, metrics["timing_s"]),
            environment=environment,
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def read_recipe(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """Text and content of ``recipe.yaml``, which marks a run folder.

    Raises:
        ConfigError: If it is not there, or no mapping.
    """
    file = folder / "recipe.yaml"
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder")
    if not file.is_file():
        raise ConfigError(f"{folder} holds no run of liteasr: recipe.yaml is missing")
    text = file.read_text(encoding="utf-8")
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("model"), dict):
        raise ConfigError(f"{file} is no recipe: it names no model")
    return text, recipe


def read_environment(folder: Path) -> Mapping[str, Any]:
    """Content of ``environment.json``.

    Raises:
        ConfigError: If it is not there, as in runs of earlier versions, or of another format.
    """
    file = folder / "environment.json"
    if not file.is_file():
        raise ConfigError(
            f"{folder}: environment.json is missing: an earlier version of liteasr made this run"
        )
    content = read_json(file)
    if content.get("format") != FORMAT:
        raise ConfigError(f"{file}: its format is {content.get('format')!r}, not {FORMAT}")
    return content


def read_json(file: Path) -> dict[str, Any]:
    """Content of a JSON object.

    Raises:
        ConfigError: If the file is not there or holds something else; named.
    """
    if not file.is_file():
        raise ConfigError(f"{file} is missing")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} cannot be read: it is no JSON object")
    return content


def _read_metrics(folder: Path) -> dict[str, Any]:
    file = folder / "metrics.json"
    if not file.is_file():
        raise ConfigError(
            f"{folder} holds no finished run: metrics.json is missing; "
            f"go on with: python -m liteasr.fit --config {folder / 'recipe.yaml'} run.resume=true"
        )
    metrics = read_json(file)
    missing = [key for key in (*STAGES, *_METRICS) if key not in metrics]
    missing += [
        f"{stage}.{key}"
        for stage in STAGES
        if isinstance(metrics.get(stage), dict)
        for key in _STAGE
        if key not in metrics[stage]
    ]
    if missing:
        raise ConfigError(f"{file} is of another layout: {', '.join(missing)} not there")
    if all(metrics[stage] is None for stage in STAGES):
        raise ConfigError(f"{file}: nothing was measured")
    return metrics


def _curves(folder: Path, finetuned: Mapping[str, Any] | None) -> LearningCurves | None:
    """What ``metrics.csv`` holds, and the tables of attempts that were interrupted."""
    if finetuned is None:
        return None
    earlier = sorted(folder.glob("metrics.*.csv"), key=lambda file: int(file.name.split(".")[1]))
    files = [file for file in (*earlier, folder / "metrics.csv") if file.is_file()]
    try:
        kept = (finetuned.get(key) for key in ("val_wer_before", "step", "val_wer"))
        return read_curves(files, *kept)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{folder}: metrics.csv cannot be read: {error}") from error


def _seconds(folder: Path, timing: Mapping[str, float]) -> dict[str, float]:
    """Each measurement by itself where ``stages.json`` still has it, else all together."""
    file = folder / "stages.json"
    stages = read_json(file) if file.is_file() else {}
    measured = {
        name: float(stages[name]["seconds"])
        for name in STAGES
        if isinstance(stages.get(name), dict) and "seconds" in stages[name]
    }
    parts = {
        "measure dense": measured.get("dense", 0.0),
        "calibrate": timing["calibrate"],
        "compress": timing["factorize"],
        "measure compressed": measured.get("compressed", 0.0),
        "fine-tune": timing["finetune"],
        "measure fine-tuned": measured.get("finetuned", 0.0),
    }
    if not measured:
        parts["measure"] = timing["evaluate"]
    return {name: seconds for name, seconds in parts.items() if seconds > 0}
