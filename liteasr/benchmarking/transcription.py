"""Both checkpoints as a whole: the same clips recognised by each, batch by batch in turn.

Shape suffixes: B windows in a batch, M mel bins, F mel frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import set_torch_threads

from liteasr.benchmarking.settings import Combination
from liteasr.benchmarking.timing import NAMES, Round, alternate, spread
from liteasr.config import ConfigError
from liteasr.data import (
    AudioError,
    LogMel,
    Samples,
    load_audio,
    load_source,
    parse_sources,
    split_windows,
)
from liteasr.data.utterances import audio_source
from liteasr.module import WhisperModule
from liteasr.speed import rounded

__all__ = ["Clips", "load_clips", "measure_transcription", "passes_needed"]


class Clips:
    """Audio in windows, as the recognition takes it.

    Args:
        audio: Clips of any length; long ones are cut at quiet places.
        log_mel: Feature extractor of the checkpoints.

    Attributes:
        count: Number of clips.
        windows: Their windows, one clip after another.
    """

    def __init__(self, audio: Sequence[Samples], log_mel: LogMel) -> None:
        self._log_mel = log_mel
        self.count = len(audio)
        seconds, rate = log_mel.window_seconds, log_mel.sampling_rate
        self.windows = [part for clip in audio for part in split_windows(clip, seconds, rate)]

    def seconds(self, windows: Sequence[Samples]) -> float:
        """Seconds of audio in windows."""
        return sum(len(window) for window in windows) / self._log_mel.sampling_rate

    def batches(self, batch_size: int) -> list[list[Samples]]:
        """All windows, so many at a time."""
        starts = range(0, len(self.windows), batch_size)
        return [self.windows[start : start + batch_size] for start in starts]

    def features(self, windows: Sequence[Samples]) -> Tensor:
        """Log-mel features, (B, M, F)."""
        features_BMF, _ = self._log_mel.windows(windows)
        return features_BMF

    def one_batch(self, batch_size: int) -> Tensor:
        """Features of the first windows, from the start again where there are too few."""
        count = len(self.windows)
        return self.features([self.windows[index % count] for index in range(batch_size)])


def load_clips(audio: Sequence[str], log_mel: LogMel, limit: int | None = None) -> Clips:
    """Read files and sets.

    Args:
        audio: Each a file that libsndfile reads, or a set as ``evaluate --data`` takes it.
        log_mel: Feature extractor of the checkpoints.
        limit: Utterances a set at most.

    Raises:
        ConfigError: If one cannot be used.
    """
    rate, clips = log_mel.sampling_rate, []
    try:
        for argument in audio:
            path = Path(argument).expanduser()
            if path.is_file() and path.suffix != ".jsonl":
                clips.append(load_audio(path, rate))
            else:
                clips += [load_audio(source, rate) for source in _sources(argument, limit)]
    except AudioError as error:
        raise ConfigError(f"--audio: {error}") from error
    return Clips(clips, log_mel)


def _sources(argument: str, limit: int | None) -> Iterator[str | bytes]:
    try:
        sources = parse_sources(argument)
    except ConfigError as error:
        messages = [message.replace("--data", "--audio", 1) for message in error.errors]
        raise ConfigError(messages) from error
    for source in sources.values():
        source.limit = limit
        for row in load_source(source, "--audio"):
            yield audio_source(row)


@torch.inference_mode()
def measure_transcription(
    modules: Mapping[str, WhisperModule],
    clips: Clips,
    combination: Combination,
    repeats: int,
    on_run: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Recognise the clips with both, greedily, window by window.

    A round is a batch; the clips are gone through until there are enough rounds. Reading audio and
    making features is not timed, as in ``evaluate``.

    Args:
        modules: ``dense`` and ``lite``.
        clips: The audio.
        combination: Batch size and threads; the mode is ``eager``.
        repeats: Rounds at least.
        on_run: Told before each timed run who runs.

    Returns:
        ``dense`` and ``lite`` (``seconds`` of each round, ``rtfx``, and ``characters`` of all
        texts, for who says more takes longer), ``audio_s`` of each round, ``speed_up`` (total time
        of dense over that of lite), and ``by_round`` (the same within a round: median and
        quartiles).
    """
    batches = clips.batches(combination.batch_size)
    passes = passes_needed(len(batches), repeats)
    heard: dict[str, list[str]] = {name: [] for name in NAMES}
    with set_torch_threads(combination.threads):
        for name in NAMES:
            _recognise(modules[name], clips.features(batches[0]), [])
        rounds = _rounds(modules, clips, batches * passes, heard)
        seconds = alternate(rounds, on_run)
    audio_s = [clips.seconds(batch) for batch in batches] * passes
    totals = {name: sum(seconds[name]) for name in NAMES}
    ratios = [dense / lite for dense, lite in zip(*(seconds[n] for n in NAMES), strict=True)]
    result: dict[str, Any] = {
        name: {
            "seconds": seconds[name],
            "rtfx": rounded(sum(audio_s) / totals[name]),
            "characters": sum(map(len, heard[name][: len(clips.windows)])),
        }
        for name in NAMES
    }
    speed_up = totals["dense"] / totals["lite"]
    return {**result, "audio_s": audio_s, "speed_up": speed_up, "by_round": spread(ratios)}


def passes_needed(batches: int, repeats: int) -> int:
    """How often to go through the clips for so many rounds.

    >>> passes_needed(batches=4, repeats=10)
    3
    """
    return math.ceil(repeats / batches)


def _rounds(
    modules: Mapping[str, WhisperModule],
    clips: Clips,
    batches: Sequence[Sequence[Samples]],
    heard: Mapping[str, list[str]],
) -> Iterator[Round]:
    """One batch after another; its features are made when its turn comes."""
    for batch in batches:
        features_BMF = clips.features(batch)
        yield {
            name: partial(_recognise, modules[name], features_BMF, heard[name]) for name in NAMES
        }


def _recognise(module: WhisperModule, features_BMF: Tensor, heard: list[str]) -> None:
    features_BMF = features_BMF.to(module.device)
    heard += module.decode({"input_features": features_BMF, "segments": [1] * len(features_BMF)})
