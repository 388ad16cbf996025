"""Log-mel spectrograms, by transformers' own extractor.

Shape suffixes: B windows in a batch, M mel bins, F mel frames (100 a second).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from liteasr.data.audio import Samples

__all__ = ["LogMel"]


class LogMel:
    """The checkpoint's feature extractor with dithering off, and the sizes that follow from it.

    Args:
        extractor: Feature extractor of the checkpoint (80 or 128 bins); it is copied.

    Attributes:
        bins: Mel bins M.
        sampling_rate: In Hz.
        window_samples: Samples in a window (30 s).

    Example:
        >>> log_mel = LogMel(WhisperFeatureExtractor(feature_size=80))
        >>> log_mel.window_samples, log_mel.frames(16_000), log_mel.frames(10**9)
        (480000, 50, 1500)
    """

    def __init__(self, extractor: WhisperFeatureExtractor) -> None:
        self._extractor: Any = copy.deepcopy(extractor)
        self._extractor.dither = 0.0
        self.bins: int = self._extractor.feature_size
        self.sampling_rate: int = self._extractor.sampling_rate
        self.window_samples: int = self._extractor.n_samples
        self._hop: int = self._extractor.hop_length
        self._max_frames: int = self._extractor.nb_max_frames

    @property
    def window_seconds(self) -> float:
        """Seconds in a window."""
        return self.window_samples / self.sampling_rate

    @property
    def settings(self) -> dict[str, int]:
        """What the spectrogram depends on."""
        return {
            "feature_size": self.bins,
            "sampling_rate": self.sampling_rate,
            "hop_length": self._hop,
            "n_fft": int(self._extractor.n_fft),
            "n_samples": self.window_samples,
        }

    def is_long(self, samples: int) -> bool:
        """Whether audio of so many samples has more mel frames than a window."""
        return samples // self._hop > self._max_frames

    def frames(self, samples: int) -> int:
        """Encoder frames that hold audio, in a window with so many samples."""
        return math.ceil(min(math.ceil(samples / self._hop), self._max_frames) / 2)

    def windows(self, audio: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """Features of windows, padded to full length.

        Args:
            audio: Windows; what one has beyond its length is cut off.

        Returns:
            Features, (B, M, F) with F = 3000, and encoder frames that hold audio, (B,), int64.
        """
        features_BMF = self._extractor(
            list(audio), sampling_rate=self.sampling_rate, return_tensors="pt"
        ).input_features
        frames_B = torch.tensor([self.frames(len(window)) for window in audio])
        return features_BMF, frames_B

    def whole(self, audio: Samples) -> tuple[Tensor, Tensor]:
        """Features of audio of any length, for Whisper's sequential decoding.

        Args:
            audio: Samples.

        Returns:
            Features (1, M, F) and their mask (1, F), int64 ones.
        """
        output = self._extractor(
            audio,
            sampling_rate=self.sampling_rate,
            truncation=False,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        return output.input_features, output.attention_mask.long()
