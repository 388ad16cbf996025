"""The folder of a run: who may write into it, and what is already in it."""

from __future__ import annotations

import copy
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only

from liteasr.config import ConfigError, Recipe, load_recipe, to_yaml
from liteasr.config import Logger as LoggerKind
from liteasr.files import recover, write_text

__all__ = ["RunFolder", "is_first_process"]

Stage = dict[str, Any]

# Keys that say where and on what a run runs, not what it computes; and what is compared, since
# the stages of a comparison are named by all that they depend on.
_FREE_ON_RESUME = (
    *("run.name", "run.dir", "run.resume", "run.overwrite", "data.num_workers"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.num_threads", "trainer.log_every_n_steps", "trainer.loggers", "compare."),
)


def is_first_process() -> bool:
    """Whether this process writes the files of a run: process 0 of the first node."""
    rank = getattr(rank_zero_only, "rank", None)
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return rank in (None, 0) and node == "0"


class RunFolder:
    """Files of one run under ``run.dir``.

    ``recipe.yaml`` is written first and marks a folder as ours. Results of finished stages are
    kept in ``stages.json``, so that ``run.resume`` does not repeat them.

    Args:
        recipe: The resolved recipe.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.path = Path(recipe.run.dir).expanduser()
        self.model = self.path / "model"
        self.plan = self.path / "plan.json"
        self.statistics = self.path / "statistics"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.json"
        self.comparison = self.path / "compare.json"
        self.report = self.path / "report"
        self.predictions = self.path / "predictions"
        self.spectra = self.path / "spectra.json"
        self.environment = self.path / "environment.json"
        self.models = self.path / "models"
        self._recipe_file = self.path / "recipe.yaml"
        self._stages_file = self.path / "stages.json"
        self._is_new = False
        self._done: dict[str, Stage] | None = None

    @cached_property
    def loggers(self) -> list[Logger]:
        """Loggers of all stages: ``metrics.csv``, and those of the recipe.

        An earlier attempt's ``metrics.csv`` is kept beside the new one.
        """
        loggers = [self._make_logger(kind) for kind in self.recipe.trainer.loggers]
        table = self.path / "metrics.csv"
        if table.exists() and is_first_process():
            earlier = len(list(self.path.glob("metrics.*.csv"))) + 1
            table.rename(self.path / f"metrics.{earlier}.csv")
        return [CSVLogger(self.path, name=None, version=""), *loggers]

    def _make_logger(self, kind: LoggerKind) -> Logger:
        if kind is LoggerKind.tensorboard:
            return TensorBoardLogger(self.path, name="tensorboard", version="")
        # Arguments would win over wandb's own variables.
        return WandbLogger(
            name=os.environ.get("WANDB_NAME", self.recipe.run.name),
            project=os.environ.get("WANDB_PROJECT", "liteasr"),
            id=self._wandb_id(),
            resume="allow",
            save_dir=self.path,
        )

    def _wandb_id(self) -> str | None:
        """The one that the run has had, so that going on goes on there too."""
        file = self.path / "wandb_id"
        if "WANDB_RUN_ID" in os.environ or not is_first_process():
            return os.environ.get("WANDB_RUN_ID")
        if not file.exists():
            write_text(file, uuid.uuid4().hex)
        return file.read_text(encoding="utf-8")

    def log(self, stage: str, result: Stage) -> None:
        """Log the WER of a stage."""
        if result["wer"] is None:
            return
        rows = {f"{stage}/wer/{name}": wer for name, wer in result["datasets"].items()}
        for logger in self.loggers:
            logger.log_metrics({f"{stage}/wer": result["wer"], **rows})
            logger.save()

    def check(self) -> None:
        """See whether :meth:`open` would succeed, without touching anything.

        Raises:
            ConfigError: If the folder holds something else, or a run and neither ``run.resume``
                nor ``run.overwrite`` is set, or a run of another recipe is to be resumed, or it
                cannot be written; or if the package of a logger is not installed.
        """
        for kind in self.recipe.trainer.loggers:
            if find_spec(kind.value) is None:
                raise ConfigError(
                    f"trainer.loggers: {kind.value} is not installed; "
                    f"pip install {kind.value} brings it"
                )
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"run.dir: {self.path} is a file")
        if self.path.is_dir() and any(self.path.iterdir()):
            self._check_present()
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ConfigError(f"run.dir: {self.path} cannot be written ({parent} is read-only)")

    def _check_present(self) -> None:
        if not self._recipe_file.is_file():
            raise ConfigError(
                f"run.dir: {self.path} is not empty and holds no run of liteasr; name another"
            )
        if self.recipe.run.resume:
            self._check_same_recipe()
        elif not self.recipe.run.overwrite:
            raise ConfigError(
                f"run.dir: {self.path} holds a run already; run.resume=true goes on with it, "
                "run.overwrite=true replaces it"
            )

    def _check_same_recipe(self) -> None:
        before, now = _flat(load_recipe(self._recipe_file)), _flat(self.recipe)
        changed = sorted(key for key in before | now if before.get(key) != now.get(key))
        if changed:
            differences = ", ".join(
                f"{key} ({before.get(key)!r} → {now.get(key)!r})" for key in changed
            )
            raise ConfigError(
                f"run.resume: the run in {self.path} was made with another recipe: {differences}"
            )

    def open(self) -> None:
        """Make the folder, or make it empty, or take it as it is; on process 0 only.

        Raises:
            ConfigError: As :meth:`check` does.
        """
        if not is_first_process():
            return
        self.check()
        if self.recipe.run.overwrite and self.path.is_dir():
            shutil.rmtree(self.path)
        recover(self.path)
        self._is_new = not self._recipe_file.exists()
        # Stored as a recipe that may be run again without deleting what it made.
        stored = replace(self.recipe, run=replace(self.recipe.run, overwrite=False, resume=False))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self._recipe_file, to_yaml(stored))
        except OSError as error:
            raise ConfigError(f"run.dir: {self.path} cannot be written: {error}") from error

    def discard(self) -> None:
        """Remove what a run that should not have begun has written.

        Finished stages stay, and checkpoints: a file may become unreadable after hours of training.
        """
        has_work = self._stages_file.exists() or any(self.checkpoints.glob("*.ckpt"))
        if self._is_new and not has_work and is_first_process():
            shutil.rmtree(self.path, ignore_errors=True)

    def stage(self, name: str, compute: Callable[[], Stage]) -> Stage:
        """Result of a stage: as it was saved, or computed and saved now.

        Args:
            name: Name of the stage.
            compute: Does the work; called on every process, its result on process 0 counts.
        """
        if self._done is None:
            self._done = self._load_stages() if self.recipe.run.resume else {}
        if name not in self._done:
            self._done[name] = compute()
            if is_first_process():
                write_text(self._stages_file, json.dumps(self._done, indent=2) + "\n")
        return copy.deepcopy(self._done[name])

    def _load_stages(self) -> dict[str, Stage]:
        if not self._stages_file.is_file():
            return {}
        stages: dict[str, Stage] = json.loads(self._stages_file.read_text(encoding="utf-8"))
        return stages


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted key → value of everything that makes a run what it is."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            flat[prefix] = value

    walk("", asdict(recipe))
    return {key: value for key, value in flat.items() if not key.startswith(_FREE_ON_RESUME)}
