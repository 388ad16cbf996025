"""All combinations, one after another, and the record of what they gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.markup import escape

from liteasr.benchmarking.contestants import Contest, Pair, describe
from liteasr.benchmarking.encoders import measure_encoders, random_features
from liteasr.benchmarking.hardware import hardware
from liteasr.benchmarking.report import described
from liteasr.benchmarking.settings import Combination, Settings, combinations
from liteasr.benchmarking.timing import NAMES, Skipped, out_of_memory_is_no_end
from liteasr.benchmarking.transcription import (
    Clips,
    load_clips,
    measure_transcription,
    passes_needed,
)
from liteasr.config import ConfigError
from liteasr.console import progress
from liteasr.data import LogMel
from liteasr.environment import environment
from liteasr.loading import load_processor

__all__ = ["FORMAT", "measure"]

FORMAT = 1
"""Of the JSON file."""

Say = Callable[[str, int], None]
"""Shows what runs now, and adds so many runs to those done."""


def measure(settings: Settings) -> dict[str, Any]:
    """Measure all combinations, and whole transcription if there is audio.

    Args:
        settings: Checked options.

    Returns:
        The content of the JSON file, but for the command: ``device``, ``hardware``, ``packages``,
        ``models`` (name, sizes and ranks of both), ``fast_dense``, ``input`` of the encoders,
        ``encoder`` and ``transcription``: a record a combination, see :func:`measure_encoders` and
        :func:`measure_transcription`; those that do not work here have a reason in ``skipped``.

    Raises:
        ConfigError: If a model or audio cannot be used, or no combination works here.
    """
    contest = Contest(settings)
    clips = _clips(settings)
    encoder: list[dict[str, Any]] = []
    transcription: list[dict[str, Any]] = []
    models: dict[str, Any] = {}
    with progress("loading", _runs(settings, clips), "runs") as bar:

        def say(description: str, runs: int) -> None:
            bar.update(bar.task_ids[0], description=escape(description), advance=runs)

        for dtype in dict.fromkeys(settings.dtypes):
            say(f"loading, {dtype}", 0)
            pair = contest.load(dtype)
            models = {n: {"name": contest.names[n], **describe(pair.encoders[n])} for n in NAMES}
            for one in combinations(settings):
                if one.dtype == dtype:
                    encoder.append(_encoder(pair, one, clips, settings.repeats, say))
            if pair.modules is not None and clips is not None:
                for one in combinations(settings, ("eager",)):
                    if one.dtype == dtype:
                        heard = _transcription(pair, one, clips, settings.repeats, say)
                        transcription.append(heard)
            # Else two types would be in memory while the next is loaded.
            del pair
    found = [*encoder, *transcription]
    if all(one["skipped"] for one in found):
        raise ConfigError(sorted({f"nothing to measure: {one['skipped']}" for one in found}))
    return {
        "format": FORMAT,
        "device": settings.device,
        "hardware": hardware(),
        "packages": environment()["packages"],
        "models": models,
        "fast_dense": settings.fast_dense,
        "input": "random" if clips is None else "audio",
        "encoder": encoder,
        "transcription": transcription,
    }


def _clips(settings: Settings) -> Clips | None:
    if not settings.audio:
        return None
    processor = load_processor(settings.processor or str(settings.model))
    return load_clips(settings.audio, LogMel(processor.feature_extractor), settings.limit)


def _runs(settings: Settings, clips: Clips | None) -> int:
    """Timed runs of all combinations."""
    rounds = settings.repeats * len(combinations(settings))
    if clips is not None:
        for one in combinations(settings, ("eager",)):
            batches = len(clips.batches(one.batch_size))
            rounds += batches * passes_needed(batches, settings.repeats)
    return len(NAMES) * rounds


def _encoder(
    pair: Pair, one: Combination, clips: Clips | None, repeats: int, say: Say
) -> dict[str, Any]:
    name = f"encoder, {described(one)}"
    say(f"{name}: {'compiling' if one.mode == 'compiled' else 'warm-up'}", 0)
    size, dense = one.batch_size, pair.encoders["dense"]
    features_BMF = random_features(dense, size) if clips is None else clips.one_batch(size)
    record = {**asdict(one), "skipped": None}
    try:
        return record | measure_encoders(
            pair.encoders, features_BMF, one, repeats, lambda who: say(f"{name}: {who}", 1)
        )
    except Skipped as error:
        say(f"{name}: skipped", len(NAMES) * repeats)
        return record | {"skipped": str(error)}


def _transcription(
    pair: Pair, one: Combination, clips: Clips, repeats: int, say: Say
) -> dict[str, Any]:
    name = f"transcription, {described(one, without=('mode',))}"
    say(f"{name}: warm-up", 0)
    assert pair.modules is not None
    record = {**asdict(one), "clips": clips.count, "skipped": None}
    try:
        with out_of_memory_is_no_end():
            return record | measure_transcription(
                pair.modules, clips, one, repeats, lambda who: say(f"{name}: {who}", 1)
            )
    except Skipped as error:
        return record | {"skipped": str(error)}
