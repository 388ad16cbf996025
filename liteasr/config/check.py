"""What no recipe may say: impossible values, and combinations that make no sense."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

from liteasr.config.check_compare import check_compare, check_comparison
from liteasr.config.check_compression import check_compression, check_goal
from liteasr.config.errors import did_you_mean
from liteasr.config.schema import (
    DEMO_SPLITS,
    EVALUATION_ROLES,
    FSDP,
    ROLES,
    Dtype,
    FinetuneConfig,
    Recipe,
    SourceConfig,
    SourceKind,
    Trainable,
    Weights,
)

__all__ = ["PRECISIONS", "RANGES", "STRATEGIES", "Range", "check", "reads_transcripts"]

PRECISIONS = (
    *("64-true", "64", "32-true", "32", "16-true", "16-mixed", "16"),
    *("bf16-true", "bf16-mixed", "bf16", "transformer-engine", "transformer-engine-float16"),
)
"""Values of ``trainer.precision``, Lightning's."""

STRATEGIES = (
    *("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"),
    FSDP,
)
"""Values of ``trainer.strategy``, those a model can be written from."""


class Range(NamedTuple):
    """Numbers that some keys may have; a key without a value is left alone."""

    holds: Callable[[float], bool]
    wording: str
    keys: tuple[str, ...]


RANGES = (
    Range(
        lambda x: x >= 1,
        "at least 1",
        (
            "data.calibration_clips",
            "data.calibration_batch_size",
            "data.train_batch_size",
            "data.eval_batch_size",
            "decoding.num_beams",
            "decoding.max_new_tokens",
            "compression.rank_multiple",
            "finetune.val_every",
            "finetune.patience",
            "finetune.spec_augment.mask_time_length",
            "finetune.spec_augment.mask_feature_length",
            "trainer.num_nodes",
            "trainer.accumulate_grad_batches",
            "trainer.log_every_n_steps",
            "trainer.num_threads",
        ),
    ),
    Range(
        lambda x: x >= 0,
        "at least 0",
        (
            "run.seed",
            "data.num_workers",
            "compression.save_every",
            "finetune.max_steps",
            "finetune.warmup_steps",
            "finetune.flat_start_steps",
            "finetune.weight_decay",
            "finetune.cross_entropy_weight",
            "finetune.encoder_distillation_weight",
            "finetune.logit_distillation_weight",
            "trainer.gradient_clip_val",
        ),
    ),
    Range(
        lambda x: 0 <= x <= 1,
        "from 0 to 1",
        (
            "data.train_timestamps",
            "data.train_packed",
            "finetune.spec_augment.mask_time_prob",
            "finetune.spec_augment.mask_feature_prob",
        ),
    ),
    Range(lambda x: 0 <= x <= 0.5, "from 0 to 0.5", ("data.train_speed",)),
    Range(lambda x: 0 < x < math.inf, "above 0", ("finetune.learning_rate",)),
    Range(lambda x: 0 < x < 1, "above 0 and below 1", ("finetune.ema_decay",)),
    Range(
        lambda x: 0 < x <= 1,
        "above 0 and at most 1",
        ("compression.max_rank_attention", "compression.max_rank_mlp"),
    ),
    Range(lambda x: 0 <= x <= 1, "between 0 and 1", ("compression.padding_weight",)),
    Range(
        lambda x: 0 <= x < 1,
        "at least 0 and below 1",
        ("data.max_bad_fraction", "finetune.label_smoothing", "finetune.ctc_weight"),
    ),
)
"""Ranges of the numbers of a recipe."""


def check(recipe: Recipe, *, complete: bool = True, for_comparison: bool = False) -> list[str]:
    """Everything that keeps a typed recipe from making sense, as messages that name the keys.

    Local paths are looked up; nothing is read and the network is not used.

    Args:
        recipe: The recipe.
        complete: ``False`` if parts of it could not be read, so that absent sets, stages and goals
            are no error.
        for_comparison: Whether its section ``compare`` is to be run.
    """
    checks = [_ranges, _run, _model, _sources, _overlaps, _training, _trainer]
    checks += [check_compression]
    checks.append(check_compare)
    if complete:
        # The recipe of a comparison can be read by all; fit asks for the goal itself.
        needs_goal = not (for_comparison or recipe.compare.is_asked_for)
        checks += [_stages, partial(check_goal, needs_goal=needs_goal)]
        checks += [check_comparison] if for_comparison else []
    return [message for one in checks for message in one(recipe)]


def _get(recipe: Recipe, key: str) -> Any:
    return reduce(getattr, key.split("."), recipe)


def _ranges(recipe: Recipe) -> Iterator[str]:
    for allowed in RANGES:
        for key in allowed.keys:
            value = _get(recipe, key)
            if value is not None and not allowed.holds(value):
                yield f"{key}: {value} is not {allowed.wording}"


def _run(recipe: Recipe) -> Iterator[str]:
    run = recipe.run
    for key in ("name", "dir"):
        if not getattr(run, key).strip():
            yield f"run.{key}: must not be empty"
    if run.resume and run.overwrite:
        yield "run.resume, run.overwrite: only one can be true: go on, or start over"
    if run.overwrite and Path.cwd().is_relative_to(Path(run.dir).expanduser().resolve()):
        yield f"run.dir: {run.dir!r} holds the current folder, which run.overwrite would delete"


def _is_local(name: str) -> bool:
    """Whether a model or data set is named by a path rather than as ``owner/name``."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _exists(name: str) -> bool:
    return Path(name).expanduser().exists()


def _model(recipe: Recipe) -> Iterator[str]:
    for key in ("model.id", "model.processor", "finetune.teacher"):
        value = _get(recipe, key)
        if value is None:
            continue
        if not value.strip():
            yield f"{key}: must not be empty"
        elif _is_local(value) and not _exists(value):
            yield f"{key}: {value} does not exist"


def _all_sources(recipe: Recipe) -> Iterator[tuple[str, str, SourceConfig]]:
    """Role, dotted key and content of every source."""
    for role in ROLES:
        for name, source in getattr(recipe.data, role).items():
            yield role, f"data.{role}.{name}", source


def _sources(recipe: Recipe) -> Iterator[str]:
    for _, key, source in _all_sources(recipe):
        if source.skip < 0:
            yield f"{key}.skip: {source.skip} is not at least 0"
        if source.limit is not None and source.limit < 1:
            yield f"{key}.limit: {source.limit} is not at least 1"
        if not source.text:
            yield f"{key}.text: names no column"
        if source.kind is SourceKind.demo:
            yield from _demo(key, source)
        elif not source.path.strip():
            if isinstance(source.kind, SourceKind):
                yield f"{key}.path: must be set"
        else:
            yield from _source_path(key, source)


def _demo(key: str, source: SourceConfig) -> Iterator[str]:
    if source.path:
        yield f"{key}.path: the built-in demo data has none; leave it out"
    if source.split not in DEMO_SPLITS:
        hint = did_you_mean(source.split, DEMO_SPLITS)
        yield (
            f"{key}.split: the built-in demo data has no {source.split!r}, "
            f"only {' and '.join(DEMO_SPLITS)}{hint}"
        )


def _source_path(key: str, source: SourceConfig) -> Iterator[str]:
    path = Path(source.path).expanduser()
    if source.kind is SourceKind.hub:
        if _is_local(source.path) and not path.exists():
            yield f"{key}.path: {source.path} does not exist"
    elif source.kind in (SourceKind.folder, SourceKind.manifest):
        is_folder = source.kind is SourceKind.folder
        if not path.exists():
            yield f"{key}.path: {source.kind.value} {source.path} does not exist"
        elif is_folder != path.is_dir():
            yield f"{key}.path: {source.path} is no {'folder' if is_folder else 'file'}"


def _identity(source: SourceConfig) -> tuple[str | None, ...]:
    """Equal for two sources that read the same utterances, ``skip`` and ``limit`` aside."""
    if source.kind is SourceKind.demo:
        return source.kind.value, source.split
    path = os.path.realpath(Path(source.path).expanduser()) if _exists(source.path) else source.path
    if source.kind is SourceKind.hub:
        return source.kind.value, path, source.subset, source.split
    return getattr(source.kind, "value", None), path


def _overlaps(recipe: Recipe) -> Iterator[str]:
    sources = [
        entry for entry in _all_sources(recipe) if entry[2].path or entry[2].kind is SourceKind.demo
    ]
    for (role, key, one), (other_role, other_key, other) in itertools.combinations(sources, 2):
        if (role in EVALUATION_ROLES) == (other_role in EVALUATION_ROLES):
            continue
        start = max(one.skip, other.skip)
        end = min(s.skip + (math.inf if s.limit is None else s.limit) for s in (one, other))
        if _identity(one) == _identity(other) and start < end:
            span = f"from {start} on" if end == math.inf else f"{start} to {end - 1}"
            yield (
                f"{key}, {other_key}: both read utterances {span} of {one.path or 'the demo'}; "
                "set skip and limit to keep them apart"
            )


def _stages(recipe: Recipe) -> Iterator[str]:
    compresses = recipe.compression.method != "none"
    trains = recipe.finetune.max_steps > 0
    if compresses and not recipe.data.calibration:
        yield "data.calibration: names no source, but compression.method needs calibration clips"
    if trains and not recipe.data.train:
        yield "data.train: names no source, but finetune.max_steps asks for training"
    if recipe.model.weights is Weights.random and compresses:
        yield "model.weights: random weights cannot be compressed; set compression.method=none"
    if not compresses and not trains:
        yield (
            "compression.method, finetune.max_steps: nothing to do: "
            "neither compression nor training is asked for"
        )


def reads_transcripts(train: FinetuneConfig) -> bool:
    """Whether a loss of the training stage looks at transcripts.

    Example:
        >>> reads_transcripts(FinetuneConfig(cross_entropy_weight=0, encoder_distillation_weight=1))
        False
    """
    weights = (train.cross_entropy_weight, train.logit_distillation_weight, train.ctc_weight)
    return any(weight > 0 for weight in weights)


def _training(recipe: Recipe) -> Iterator[str]:
    train = recipe.finetune
    if train.patience is not None and not recipe.data.val:
        yield "finetune.patience: needs validation sets in data.val"
    distils = train.encoder_distillation_weight > 0 or train.logit_distillation_weight > 0
    decodes = train.cross_entropy_weight > 0 or train.logit_distillation_weight > 0
    if not distils and not decodes:
        yield (
            "finetune.cross_entropy_weight, encoder_distillation_weight, "
            "logit_distillation_weight: one must be above 0"
        )
    elif not decodes and train.trainable is Trainable.all:
        yield "finetune.trainable: all, but no loss with a weight looks at the decoder"
    if train.max_steps > 0 and recipe.model.dtype is Dtype.float16:
        yield (
            "model.dtype: float16 weights cannot be trained (the epsilon of AdamW is 0 in them); "
            "use float32 with trainer.precision=16-mixed"
        )
    if train.max_steps > 0 and recipe.trainer.precision == "16-true":
        yield (
            "trainer.precision: 16-true weights cannot be trained (the epsilon of AdamW is 0 in "
            "them); use 16-mixed or bf16-mixed"
        )
    if distils and recipe.model.weights is Weights.random and train.teacher is None:
        yield "finetune.teacher: must be set for distillation into random weights"


def _trainer(recipe: Recipe) -> Iterator[str]:
    precision = recipe.trainer.precision
    if precision not in PRECISIONS:
        hint = did_you_mean(precision, PRECISIONS)
        yield f"trainer.precision: {precision!r} is none of {', '.join(PRECISIONS)}{hint}"
    strategy = recipe.trainer.strategy
    if strategy not in STRATEGIES:
        hint = did_you_mean(strategy, STRATEGIES)
        yield (
            f"trainer.strategy: {strategy!r} is none of {', '.join(STRATEGIES)}, "
            f"those this version can write a model from{hint}"
        )
    if strategy == FSDP and recipe.finetune.ema_decay is not None:
        yield "finetune.ema_decay: Lightning averages no weights that fsdp has split"
    devices = recipe.trainer.devices
    if not isinstance(devices, str) and not _are_devices(devices):
        yield f"trainer.devices: {devices!r} is no count, no list of indices and not auto"


def _are_devices(devices: Any) -> bool:
    if isinstance(devices, list):
        return bool(devices) and all(type(index) is int and index >= 0 for index in devices)
    return type(devices) is int and (devices >= 1 or devices == -1)
