"""Reading audio files and cutting long ones; times in seconds, rates in Hz."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

__all__ = [
    "AudioError",
    "Samples",
    "audio_seconds",
    "cut_pieces",
    "decoding_error",
    "load_audio",
    "split_windows",
]

Samples: TypeAlias = npt.NDArray[np.float32]
"""Mono samples, (N,), full scale ±1."""

_SEARCH_SECONDS = 5.0
_STEP_SECONDS = 0.01
_SMOOTHING_STEPS = 5


class AudioError(ValueError):
    """An audio file that cannot be used.

    Args:
        name: The file.
        reason: What is wrong with it.

    Example:
        >>> str(AudioError("a.wav", "is empty"))
        'a.wav: is empty'
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def load_audio(
    source: str | Path | bytes, sampling_rate: int = 16_000, *, name: str | None = None
) -> Samples:
    """Decode a file of any format, rate and channel count that libsndfile reads.

    Channels are averaged and the rate is changed by soxr.

    Args:
        source: Path, or the content of a file.
        sampling_rate: Rate of the result, in Hz.
        name: What errors call the audio; the path if absent.

    Returns:
        Mono samples, (N,), N ≥ 1.

    Raises:
        AudioError: If the file is missing, empty, not audio, damaged, cut short (as far as its
            format tells), or holds no samples or infinite ones.

    Example:
        >>> file = io.BytesIO()
        >>> soundfile.write(file, np.zeros((8_000, 2)), 8_000, format="FLAC")
        >>> load_audio(file.getvalue()).shape
        (16000,)
    """
    name = name or _name(source)
    try:
        with soundfile.SoundFile(_file(source, name)) as file:
            rate, promised = file.samplerate, file.frames
            audio = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        raise decoding_error(name, error) from error
    if len(audio) == 0:
        raise AudioError(name, "holds no samples")
    if len(audio) < promised:
        raise AudioError(name, f"is cut short: {len(audio)} of {promised} samples are there")
    mono = audio[:, 0] if audio.shape[1] == 1 else audio.mean(axis=1)
    if not np.isfinite(mono).all():
        raise AudioError(name, "holds samples that are not finite")
    if rate != sampling_rate:
        mono = soxr.resample(mono, rate, sampling_rate)
    if len(mono) == 0:
        raise AudioError(name, "holds no samples")
    return np.ascontiguousarray(mono, dtype=np.float32)


def audio_seconds(source: str | Path | bytes, *, name: str | None = None) -> float:
    """Duration by the file's header, without decoding it.

    Args:
        source: Path, or the content of a file.
        name: What errors call the audio; the path if absent.

    Returns:
        Seconds, as far as the header is right.

    Raises:
        AudioError: If the file is missing, empty, not audio or holds no samples.
    """
    name = name or _name(source)
    try:
        info: Any = soundfile.info(_file(source, name))
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        raise decoding_error(name, error) from error
    if info.frames == 0:
        raise AudioError(name, "holds no samples")
    return float(info.frames / info.samplerate)


def split_windows(
    audio: Samples, max_seconds: float = 30.0, sampling_rate: int = 16_000
) -> list[Samples]:
    """Cut audio into windows, each at the quietest place in its last five seconds.

    Windows shorter than 15 s are searched in their last third.

    Args:
        audio: Samples, (N,).
        max_seconds: Longest window.
        sampling_rate: Rate of the samples, in Hz.

    Returns:
        Windows that give ``audio`` when put together again.

    Example:
        >>> noise = np.random.default_rng(0).normal(size=40 * 16_000).astype(np.float32)
        >>> noise[27 * 16_000 : 28 * 16_000] = 0
        >>> [round(len(window) / 16_000) for window in split_windows(noise)]
        [28, 12]
    """
    return list(cut_pieces([audio], max_seconds, sampling_rate))


def cut_pieces(
    blocks: Iterable[Samples], max_seconds: float = 30.0, sampling_rate: int = 16_000
) -> Iterator[Samples]:
    """Cut audio that comes in blocks where :func:`split_windows` would cut it whole.

    No more than two pieces and two blocks are held at a time.

    Args:
        blocks: Consecutive samples, (N,) each, of any lengths.
        max_seconds: Longest piece.
        sampling_rate: Rate of the samples, in Hz.

    Yields:
        Pieces that give the audio when put together again; at least one.
    """
    longest = max(1, round(max_seconds * sampling_rate))
    held: list[Samples] = []
    samples = 0
    for block in blocks:
        held.append(block)
        samples += len(block)
        if samples <= longest:
            continue
        joined = np.concatenate(held) if len(held) > 1 else block
        while len(joined) > longest:
            cut = _quietest(joined[:longest], sampling_rate)
            yield joined[:cut]
            joined = joined[cut:]
        held, samples = [joined], len(joined)
    yield np.concatenate(held or [np.zeros(0, np.float32)])


def _quietest(window: Samples, sampling_rate: int) -> int:
    """Sample at which to cut a window; of equally quiet places, the last."""
    step = max(1, round(_STEP_SECONDS * sampling_rate))
    steps = min(round(_SEARCH_SECONDS * sampling_rate), len(window) // 3) // step
    if steps <= _SMOOTHING_STEPS:
        return len(window)
    searched = window[len(window) - steps * step :].astype(np.float64)
    energy = np.square(searched).reshape(steps, step).sum(axis=1)
    smooth = np.convolve(energy, np.ones(_SMOOTHING_STEPS), mode="valid")
    # Rounding leaves silence at the end of a running sum slightly uneven.
    quiet = np.flatnonzero(smooth <= smooth.min() * (1 + 1e-9) + 1e-12)[-1]
    middle = quiet * step + _SMOOTHING_STEPS * step // 2
    return int(len(window) - steps * step + middle)


def _name(source: str | Path | bytes) -> str:
    return "audio" if isinstance(source, bytes) else str(source)


def _file(source: str | Path | bytes, name: str) -> str | io.BytesIO:
    if isinstance(source, bytes):
        if not source:
            raise AudioError(name, "is empty")
        return io.BytesIO(source)
    path = Path(source)
    if not path.exists():
        raise AudioError(name, "does not exist")
    if not path.is_file():
        raise AudioError(name, "is no file")
    if path.stat().st_size == 0:
        raise AudioError(name, "is empty")
    return str(path)


def decoding_error(name: str, error: Exception) -> AudioError:
    """What to tell the user when soundfile fails.

    Args:
        name: What to call the audio.
        error: Raised while the file was opened or read.
    """
    if isinstance(error, AudioError):
        return error
    # libsndfile's own words, without the path that soundfile puts before them.
    reason = getattr(error, "error_string", None) or str(error)
    return AudioError(name, f"cannot be decoded: {str(reason).strip().rstrip('.')}")
