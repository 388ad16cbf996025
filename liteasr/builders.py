"""From a recipe to the objects that run it; the entry points share these."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from liteasr.callbacks import CompressionCallback, DecodingProgress, EndAtOnce
from liteasr.checkpoint_io import AtomicCheckpointIO
from liteasr.compression import (
    Budget,
    CompressionMethod,
    ThresholdRule,
    build_method,
    find_method,
)
from liteasr.config import (
    FSDP,
    CompressionConfig,
    ConfigError,
    Recipe,
    TrainerConfig,
    Weights,
    parse_budget,
    parse_thresholds,
    reads_transcripts,
)
from liteasr.data import SpeechDataModule
from liteasr.loading import load_config, load_processor
from liteasr.module import WhisperModule
from liteasr.runfolder import RunFolder

log = logging.getLogger(__name__)

# What a recipe says to every method that takes it: under which keys, and what it says if nothing.
DEFAULT_THRESHOLDS = "0.99:0.999"
RECIPE_KEYS = {
    "rule": "compression.thresholds, rank_multiple and max_rank_*",
    "padding_weight": "compression.padding_weight",
    "budget": "compression.budget",
}

__all__ = [
    "build_callback",
    "build_datamodule",
    "build_method_from_config",
    "build_module",
    "build_trainer",
    "check_sources",
]


def build_module(recipe: Recipe, model_id: str | None = None) -> WhisperModule:
    """The checkpoint of the recipe, or another one in its place, in a LightningModule.

    Args:
        recipe: The recipe.
        model_id: Folder to load instead, with tokenizer (an exported model).
    """
    model, train = recipe.model, recipe.finetune
    return WhisperModule(
        model_id or model.id,
        revision=None if model_id else model.revision,
        processor_id=None if model_id else model.processor,
        language=model.language,
        task=None if model.task is None else model.task.value,
        dtype=model.dtype.value,
        attention=model.attention.value,
        random_weights=model_id is None and model.weights is Weights.random,
        num_beams=recipe.decoding.num_beams,
        max_new_tokens=recipe.decoding.max_new_tokens,
        trainable=train.trainable.value,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        warmup_steps=train.warmup_steps,
        schedule=train.schedule.value,
        cross_entropy_weight=train.cross_entropy_weight,
        label_smoothing=train.label_smoothing,
        encoder_distillation_weight=train.encoder_distillation_weight,
        logit_distillation_weight=train.logit_distillation_weight,
        ctc_weight=train.ctc_weight,
        flat_start_steps=train.flat_start_steps,
        spec_augment=asdict(train.spec_augment),
        gradient_checkpointing=train.gradient_checkpointing,
    )


def build_datamodule(recipe: Recipe, module: WhisperModule) -> SpeechDataModule:
    """The sets of the recipe, made for the checkpoint's processor."""
    return SpeechDataModule(
        recipe.data,
        module.processor,
        language=recipe.model.language,
        task=None if recipe.model.task is None else recipe.model.task.value,
        normalizer=module.normalizer,
        seed=recipe.run.seed,
        long_form=recipe.decoding.long_form.value,
        max_labels=module.model.config.max_target_positions,
        train_transcripts=reads_transcripts(recipe.finetune),
    )


def check_sources(recipe: Recipe) -> None:
    """Look at the model's configuration and processor and at the data, without loading weights.

    Raises:
        ConfigError: Naming what cannot be used.
    """
    source = recipe.model
    load_config(source.id, source.revision)
    processor = load_processor(source.processor or source.id, revision=source.revision)
    SpeechDataModule(
        recipe.data,
        processor,
        normalizer=str,
        seed=recipe.run.seed,
        train_transcripts=reads_transcripts(recipe.finetune),
    ).check()


def build_method_from_config(config: CompressionConfig) -> CompressionMethod:
    """The method that ``compression.method`` names.

    Raises:
        ConfigError: If it cannot be made.
    """
    common = {
        "rule": _rule(config),
        "padding_weight": config.padding_weight,
        "budget": _budget(config),
    }
    try:
        cls = find_method(config.method)
        taken = inspect.signature(cls).parameters
        unused = [name for name in common if name not in taken and common[name] is not None]
        if unused:
            keys = ", ".join(RECIPE_KEYS[name] for name in unused)
            log.warning("method %s does not use %s of the recipe", config.method, keys)
        common = {name: value for name, value in common.items() if value is not None}
        options = {name: value for name, value in common.items() if name in taken}
        return build_method(config.method, **{**options, **config.options})
    except ValueError as error:
        raise ConfigError(f"compression.method: {error}") from error


def _rule(config: CompressionConfig) -> ThresholdRule | None:
    """The published rule as the recipe changes it; ``None`` if it does not."""
    keys = ("rank_multiple", "max_rank_attention", "max_rank_mlp")
    default = CompressionConfig()
    if config.thresholds is None and all(getattr(config, k) == getattr(default, k) for k in keys):
        return None
    attention, mlp = parse_thresholds(config.thresholds or DEFAULT_THRESHOLDS)
    multiple, cap_attention, cap_mlp = (getattr(config, key) for key in keys)
    return ThresholdRule(attention, mlp, multiple, cap_attention, cap_mlp)


def _budget(config: CompressionConfig) -> Budget | None:
    budget = parse_budget(config.budget)
    return None if budget is None else Budget(budget.kind, budget.amount, budget.granularity)


def build_callback(config: CompressionConfig, statistics: Path) -> CompressionCallback:
    """The callback that ``compression.callback`` names, with its method.

    Raises:
        ConfigError: If either cannot be made.
    """
    module_name, _, class_name = config.callback.replace(":", ".").rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"compression.callback: cannot import {config.callback}") from error
    if not (isinstance(cls, type) and issubclass(cls, CompressionCallback)):
        raise ConfigError(f"compression.callback: {config.callback} is no CompressionCallback")
    method = build_method_from_config(config)
    return cls(method, statistics_dir=statistics, save_every=config.save_every)


def _strategy(config: TrainerConfig, *, trains: bool) -> str | Strategy:
    """What Lightning takes; weights are split in training only."""
    if config.strategy != FSDP:
        return config.strategy
    if not trains:
        return "auto"
    # Without a count of its own, it would split tensors over the devices of a machine. "auto"
    # here is the number of machines, so that the processes have to be counted.
    return _EveryProcess(tensor_parallel_size=1, save_distributed_checkpoint=False)


class _EveryProcess(ModelParallelStrategy):
    """Data-parallel over all processes: Lightning has to be told their number, known only here."""

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def build_trainer(
    recipe: Recipe, run: RunFolder | None, callbacks: Sequence[L.Callback] = (), steps: int = 0
) -> L.Trainer:
    """A trainer with the recipe's devices, strategy and precision.

    Args:
        recipe: The recipe.
        run: Receives logs and checkpoints; none are written without it.
        callbacks: Callbacks of the stage.
        steps: Optimizer steps; 0 for a trainer that compresses or evaluates only.

    Raises:
        ConfigError: With Lightning's own words, if it does not take an argument.
    """
    config = recipe.trainer
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    has_bar = steps > 0 and sys.stderr.isatty()
    bars: list[L.Callback] = [DecodingProgress(), EndAtOnce()] if steps == 0 else []
    bars += [RichProgressBar()] if has_bar else []
    checkpointing = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    try:
        return L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=_strategy(config, trains=steps > 0),
            precision=config.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=config.accumulate_grad_batches,
            gradient_clip_val=config.gradient_clip_val,
            log_every_n_steps=config.log_every_n_steps,
            max_steps=steps,
            limit_train_batches=None if steps else 0,
            limit_val_batches=None if steps and recipe.data.val else 0,
            num_sanity_val_steps=0,
            val_check_interval=(
                recipe.finetune.val_every * config.accumulate_grad_batches
                if recipe.data.val
                else None
            ),
            check_val_every_n_epoch=None if recipe.data.val else 1,
            use_distributed_sampler=False,
            callbacks=[*bars, *callbacks],
            plugins=[AtomicCheckpointIO(), *_slurm()],
            logger=run.loggers if run is not None else False,
            enable_checkpointing=checkpointing,
            enable_progress_bar=has_bar,
            enable_model_summary=False,
            # Weights that are split must not be gathered into tensors of inference mode.
            inference_mode=config.strategy != FSDP,
            default_root_dir=None if run is None else run.path,
        )
    except (
        *(ValueError, TypeError, RuntimeError, ImportError),
        MisconfigurationException,
    ) as error:
        raise ConfigError(f"trainer: {error}") from error


def _slurm() -> list[SLURMEnvironment]:
    """SLURM as Lightning finds it, but without its requeueing.

    That saves in the middle of a step, and what it saves during an evaluation is loaded by the next
    one. The job script puts the job back (``recipes/cluster/slurm.sbatch``).
    """
    # torchrun may have been started by SLURM, and comes first.
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]
