"""Calibration clips put together into full windows, so that little is computed on padding.

Shape suffixes: M mel bins, F mel frames, N windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Windows", "pack_windows"]

_FLOOR = 2.0
"""Whisper's log-mel features end this far below the loudest one (8 of log10, scaled by 1/4)."""


@dataclass
class Windows:
    """Log-mel windows.

    Attributes:
        features_NMF: Features.
        frames_N: Encoder frames of each that hold audio (one for two mel frames).
    """

    features_NMF: Tensor
    frames_N: Tensor


def pack_windows(
    clips: Sequence[Tensor], mel_frames: int, *, single: float = 0.3, seed: int = 0
) -> Windows:
    """Put clips behind each other until a window is full; some windows keep one clip alone.

    The order is random and depends on the seed and the number of clips only. What does not fit
    into a window is cut off.

    Args:
        clips: Log-mel features of each clip without its padding, (M, F).
        mel_frames: Frames of a window, 3000 for Whisper.
        single: Share of windows that hold one clip and its padding, as short utterances do in
            use.
        seed: Seed of the order.

    Example:
        >>> windows = pack_windows([torch.zeros(2, 4), torch.ones(2, 6)], mel_frames=12)
        >>> windows.features_NMF.shape[1:]
        torch.Size([2, 12])
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(clips), generator=generator).tolist()
    features, frames = [], []
    while order:
        is_single = float(torch.rand((), generator=generator)) < single
        parts = [clips[order.pop()]]
        while order and not is_single and sum(part.shape[1] for part in parts) < mel_frames:
            parts.append(clips[order.pop()])
        audio_MF = torch.cat(parts, dim=1)[:, :mel_frames]
        floor = audio_MF.max() - _FLOOR
        window_MF = floor.expand(len(audio_MF), mel_frames).clone()
        window_MF[:, : audio_MF.shape[1]] = torch.maximum(audio_MF, floor)
        features.append(window_MF)
        frames.append((audio_MF.shape[1] + 1) // 2)
    return Windows(torch.stack(features), torch.tensor(frames))
