"""Reading audio of any length a block at a time; times in seconds, rates in Hz."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
import soxr

from liteasr.data.audio import AudioError, Samples, audio_seconds, decoding_error

__all__ = ["AudioStream"]

# A damaged file loses the block that it breaks in.
_BLOCK_SAMPLES = 2**16
# What libsndfile says of a file whose header, written to a pipe, does not know its length.
_UNKNOWN_FRAMES = 2**62


class _SequentialFile(soundfile.SoundFile):
    """A file that is read from front to back, without the seek that soundfile adds to each read.

    That seek fails at the end of a file of unknown length and of a damaged one, and takes the
    samples just read with it.
    """

    def seekable(self) -> bool:
        return False


class AudioStream:
    """A file as mono blocks of one rate, in memory that does not grow with its length.

    Channels are averaged and the rate is changed by soxr, as in :func:`load_audio`. A file that
    ends early or is damaged is read up to there.

    Args:
        path: File of any format, rate and channel count that libsndfile reads.
        sampling_rate: Rate of the blocks, in Hz.
        name: What errors call the audio; the path if absent.

    Attributes:
        expected_seconds: Duration by the header; ``None`` if it does not say.
        seconds: Duration of what was read.
        shortfall: What is wrong with the end of the file, once it is reached; ``None`` if nothing.

    Raises:
        AudioError: If the file is missing, empty or not audio.

    Example:
        >>> import io, tempfile
        >>> with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        ...     soundfile.write(file.name, np.zeros((8_000, 2)), 8_000)
        ...     with AudioStream(file.name) as stream:
        ...         sum(len(block) for block in stream)
        16000
    """

    def __init__(
        self, path: str | Path, sampling_rate: int = 16_000, *, name: str | None = None
    ) -> None:
        self.name = name or str(path)
        self.sampling_rate = sampling_rate
        audio_seconds(path, name=self.name)
        try:
            self._file = _SequentialFile(str(path))
        except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
            raise decoding_error(self.name, error) from error
        self._promised: int | None = self._file.frames
        if self._file.frames >= _UNKNOWN_FRAMES:
            self._promised = None
        self._rate: int = self._file.samplerate
        self._read = 0
        self.shortfall: str | None = None

    @property
    def expected_seconds(self) -> float | None:
        """Duration by the header; ``None`` if it does not say."""
        return None if self._promised is None else self._promised / self._rate

    @property
    def seconds(self) -> float:
        """Duration of what was read so far."""
        return self._read / self._rate

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Samples]:
        """Blocks, (N,), N ≥ 1.

        Raises:
            AudioError: If there are no samples, or infinite ones.
        """
        empty, given = np.zeros(0, np.float32), 0
        resampler = None
        if self._rate != self.sampling_rate:
            resampler = soxr.ResampleStream(self._rate, self.sampling_rate, 1, dtype="float32")
        while True:
            mono = self._next_mono()
            block = mono
            if resampler is not None:
                is_last = len(mono) == 0
                block = resampler.resample_chunk(empty if is_last else mono, last=is_last)
            if len(block):
                given += len(block)
                yield block
            if len(mono) == 0:
                break
        if given == 0:
            raise AudioError(self.name, self.shortfall or "holds no samples")

    def _next_mono(self) -> Samples:
        """The next samples at the file's own rate; none at its end."""
        frames = max(1, _BLOCK_SAMPLES // self._file.channels)
        reason = None
        try:
            audio = self._file.read(frames, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            reason = decoding_error(self.name, error).reason
            audio = np.zeros((0, 1), np.float32)
        if not np.isfinite(audio).all():
            raise AudioError(self.name, "holds samples that are not finite")
        self._read += len(audio)
        if len(audio) == 0:
            self.shortfall = self._missing(reason)
        mono = audio[:, 0] if audio.shape[1] == 1 else audio.mean(axis=1)
        return np.ascontiguousarray(mono, dtype=np.float32)

    def _missing(self, reason: str | None) -> str | None:
        if reason is not None:
            return f"{reason} after {self.seconds:.1f} s"
        if self._promised is not None and self._read < self._promised:
            whole = self._promised / self._rate
            return f"is cut short: {self.seconds:.1f} of {whole:.1f} s are there"
        return None
