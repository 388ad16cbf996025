"""What a comparison measures: each entry at each size, once, as a stage of the run."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import lightning as L

from liteasr.builders import build_callback, build_module, build_trainer
from liteasr.callbacks import CompressionCallback
from liteasr.compression import CompressionPlan, LinearShape, encoder_parameters, find_linears
from liteasr.config import BudgetConfig, CompressionConfig, ConfigError, Recipe, parse_size
from liteasr.console import console
from liteasr.data import SpeechDataModule
from liteasr.model_card import write_model_card
from liteasr.module import WhisperModule
from liteasr.runfolder import RunFolder, is_first_process
from liteasr.stages import evaluate_against_dense, evaluate_module, save_model

__all__ = ["Comparison", "check_entries", "entry_config", "smallest_accepted", "smallest_size"]

_REASON = "unreachable"


def entry_config(recipe: Recipe, name: str, size: str) -> CompressionConfig:
    """The section ``compression`` as an entry of ``compare.methods`` changes it.

    Thresholds and options belong to a method: those of the section hold for entries of the same
    method only.

    Args:
        recipe: The recipe.
        name: Name of the entry.
        size: Parameters of the encoder, as in ``compression.budget.encoder_params``.

    Example:
        >>> from liteasr.config import load_recipe
        >>> config = entry_config(load_recipe("tiny"), "pca", "7.1M")
        >>> config.method, config.budget.encoder_params
        ('pca', '7.1M')
    """
    base, entry = recipe.compression, recipe.compare.methods[name]
    same = entry.method == base.method
    thresholds = base.thresholds if same and entry.thresholds is None else entry.thresholds
    weight = base.padding_weight if entry.padding_weight is None else entry.padding_weight
    return replace(
        base,
        method=entry.method,
        thresholds=thresholds,
        padding_weight=weight,
        options={**(base.options if same else {}), **entry.options},
        budget=BudgetConfig(encoder_params=size, granularity=base.budget.granularity),
    )


def check_entries(recipe: Recipe, run: RunFolder) -> None:
    """Make every entry's method once, so that a wrong option is told before anything is done.

    Raises:
        ConfigError: Naming all entries that cannot be made.
    """
    errors: list[str] = []
    for name in recipe.compare.methods:
        try:
            build_callback(entry_config(recipe, name, "1M"), run.statistics / name)
        except ConfigError as error:
            errors += [_of_entry(name, message) for message in error.errors]
    if errors:
        raise ConfigError(list(dict.fromkeys(errors)))


def _of_entry(name: str, message: str) -> str:
    """A message about the derived section, naming the entry that it comes from."""
    if message.startswith("compression.callback"):
        return message
    return f"compare.methods.{name}: {message.removeprefix('compression.method: ')}"


def smallest_size(module: WhisperModule, granularity: int) -> int:
    """Parameters of the encoder with every layer at the smallest rank that ``auto`` gives.

    Args:
        module: The dense model.
        granularity: That rank.
    """
    shapes = [
        LinearShape(linear.in_features, linear.out_features, linear.bias is not None, pivoted=True)
        for linear in find_linears(module.model).values()
    ]
    width = int(module.model.config.d_model)
    shapes.append(LinearShape(3 * width, width, pivoted=True))  # the second convolution
    saved = [shape.dense_params() - shape.low_rank_params(granularity) for shape in shapes]
    return encoder_parameters(module.encoder) - sum(max(0, params) for params in saved)


def smallest_accepted(
    low: float, high: float, tolerance: float, accept: Callable[[int], bool]
) -> int | None:
    """The smallest size that is accepted, by bisection.

    Args:
        low: Sizes below are not tried.
        high: A size known to be good enough.
        tolerance: The search ends when what is left to search is not wider.
        accept: Whether a size is good enough; taken to hold for all larger sizes.

    Returns:
        The size, or ``None`` if none below ``high`` was accepted.

    Example:
        >>> smallest_accepted(0, 1000, tolerance=10, accept=lambda size: size >= 700)
        704
    """
    best = None
    while high - low > tolerance:
        middle = round((low + high) / 2)
        if accept(middle):
            best, high = middle, middle
        else:
            low = middle
    return best


class Comparison:
    """Results of one run's dense model and of its entries, each computed once.

    Args:
        recipe: The recipe.
        run: Keeps finished results.
        dense: The model, which stays as it is.
        datamodule: The data.
    """

    def __init__(
        self, recipe: Recipe, run: RunFolder, dense: WhisperModule, datamodule: SpeechDataModule
    ) -> None:
        self.recipe = recipe
        self.run = run
        self._dense = dense
        self._datamodule = datamodule
        self._last: tuple[CompressionConfig, WhisperModule, CompressionCallback] | None = None

    def dense(self, role: str = "test") -> dict[str, Any]:
        """Size and WER of the model as it came, on the sets of a role."""
        result = self.run.stage(
            f"dense on {role}",
            lambda: evaluate_module(self.recipe, self._dense, self._datamodule, role),
        )
        kept = ("encoder_params", "wer", "datasets", "rtfx", "encoder_rtfx", "ran_on")
        return {key: result.get(key) for key in kept}

    def result(self, name: str, size: str, role: str = "test") -> dict[str, Any]:
        """What an entry gives at a size.

        Args:
            name: Name of the entry.
            size: Parameters wanted.
            role: Whose sets are decoded, ``test`` or ``val``.

        Returns:
            Sizes, WER, errors, times, ranks, dimensions of heads, and ``reason``: why the size
            cannot be reached, or ``None``.
        """
        config = entry_config(self.recipe, name, size)
        return self.run.stage(
            f"{self._label(name, config)} on {role}", lambda: self._measure(name, config, role)
        )

    def keep_model(self, name: str, size: str) -> None:
        """Write the model of a result to ``models/<name>-<size>``, unless that is done."""
        result, dense = self.result(name, size), self.dense()
        if result["reason"] is not None:
            return
        folder = self.run.models / f"{name}-{size.replace(' ', '')}"
        metrics = {"dense": dense, "compressed": result, "finetuned": None}
        metrics["encoder_relative_error"] = result["encoder_relative_error"]
        config = entry_config(self.recipe, name, size)

        def write() -> dict[str, Any]:
            module, _ = self._compressed(name, config)
            save_model(self.recipe, folder, module)
            if is_first_process():
                write_model_card(folder, self.recipe.model.id, metrics)
            return {"folder": str(folder.relative_to(self.run.path))}

        self.run.stage(f"model of {self._label(name, config)}", write)

    def _label(self, name: str, config: CompressionConfig) -> str:
        """Name of an entry at a size that changes with anything that its result depends on."""
        text = json.dumps(asdict(config), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{name} at {config.budget.encoder_params} ({digest})"

    def _measure(self, name: str, config: CompressionConfig, role: str) -> dict[str, Any]:
        module, callback = self._compressed(name, config)
        plan = callback.plan
        assert plan is not None
        reason = plan.options.get(_REASON)
        measured: dict[str, Any] = {"encoder_params": None, "wer": None, "datasets": {}}
        measured |= dict.fromkeys(("encoder_relative_error", "rtfx", "encoder_rtfx", "ran_on"))
        if reason is None:
            measured = evaluate_against_dense(self.recipe, module, self._datamodule, role)
            measured.pop("seconds")
        elif is_first_process():
            console.print(f"{name}: {reason}", markup=False)
        times = callback.timing_s
        return {
            "name": name,
            "method": config.method,
            "wanted_params": round(parse_size(config.budget.encoder_params or "")),
            **measured,
            "predicted_error": plan.predicted_error,
            "seconds": {
                "calibrate": round(times["calibrate"], 3),
                "compress": round(times["factorize"], 3),
            },
            "plan": plan.ranks,
            "heads": plan.head_dims,
            "calibration": plan.calibration,
            "reason": reason,
        }

    def _compressed(
        self, name: str, config: CompressionConfig
    ) -> tuple[WhisperModule, CompressionCallback]:
        """A model of its own, compressed; the last one is kept for who asks again."""
        if self._last is None or self._last[0] != config:
            self._last = None
            # Each starts from the seed, so that a resumed run draws what an uninterrupted one does.
            L.seed_everything(self.recipe.run.seed, workers=True, verbose=False)
            module = build_module(self.recipe)
            callback = build_callback(config, self.run.statistics / name)
            _compare_quietly(callback)
            if is_first_process():
                console.print(f"compressing by {name} to {config.budget.encoder_params}")
            trainer = build_trainer(self.recipe, None, [callback])
            trainer.fit(module, datamodule=self._datamodule)
            # Lightning keeps the trainer at the module, and that the callback with its method.
            self._last = copy.copy(config), module, callback
        return self._last[1:]


def _compare_quietly(callback: CompressionCallback) -> None:
    """Let a callback go on where a size cannot be reached, and print no table of layers.

    Only process 0 allocates. An error there would leave the others waiting for its plan; a plan
    without layers, which says why, reaches them all.
    """
    allocate = callback.allocate

    def allocate_or_tell() -> CompressionPlan:
        try:
            return allocate()
        except ConfigError:
            raise
        except ValueError as error:
            return CompressionPlan(method=callback.method.name, options={_REASON: str(error)})

    callback.allocate = allocate_or_tell  # type: ignore[method-assign]
    callback.report = lambda *_: None  # type: ignore[method-assign]
