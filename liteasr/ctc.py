"""Connectionist temporal classification beside the decoder's cross-entropy.

Shape suffixes: B windows in a batch, M mel bins, F mel frames, T encoder frames, D width, S bytes
of all transcripts, V classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liteasr.distributed import mean_over_processes

__all__ = ["CTCHead", "flat_alignment"]

_LOUD = 0.3


class CTCHead(nn.Module):
    """CTC loss of transcripts, byte by byte, on the encoder's output (Graves et al., ICML 2006).

    A decoder that learns from nothing first learns the language and hardly listens; a second loss
    that needs no decoder makes the encoder tell sounds apart from the start (hybrid CTC and
    attention, Watanabe et al. 2017, IEEE JSTSP 11 (8), equation 12). Bytes of UTF-8, since a few
    classes that many words share are learned sooner than many. The layer serves training only and
    is no part of the model.

    Args:
        width: Width D of the encoder.

    Example:
        >>> loss = CTCHead(width=8)(torch.zeros(1, 6, 8), torch.tensor([6]), ["hi"])
        >>> bool(loss > 0)
        True
    """

    BLANK = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.Linear(width, self.BLANK + 1)

    def forward(self, encoded_BTD: Tensor, frames_B: Tensor, texts: Sequence[str]) -> Tensor:
        """Mean loss a byte, a scalar.

        Args:
            encoded_BTD: The encoder's output, (B, T, D).
            frames_B: Frames of each window that hold audio, (B,).
            texts: Transcripts. One that is too long for its frames counts nothing.
        """
        spelled = [text.strip().encode() for text in texts]
        targets_S = torch.tensor([byte for one in spelled for byte in one], dtype=torch.long)
        log_probs_TBV = self._logits(encoded_BTD).log_softmax(dim=-1).transpose(0, 1)
        loss: Tensor = F.ctc_loss(
            log_probs_TBV,
            targets_S.to(encoded_BTD.device),
            frames_B.clamp(max=encoded_BTD.shape[1]),
            torch.tensor([len(one) for one in spelled], device=frames_B.device),
            blank=self.BLANK,
            reduction="sum",
            zero_infinity=True,
        )
        return mean_over_processes(loss, torch.tensor(len(targets_S)))

    def flat_start(
        self, encoded_BTD: Tensor, frames_B: Tensor, features_BMF: Tensor, texts: Sequence[str]
    ) -> Tensor:
        """Mean cross-entropy a frame of the same classes under a flat alignment, a scalar.

        CTC from random weights long says blank everywhere. A guess which byte is said when, however
        coarse, makes the encoder look at the sound, and CTC then finds the true alignment (the
        flat start of hidden Markov models: Young et al., The HTK Book, section 3.2).

        Args:
            encoded_BTD: The encoder's output, (B, T, D).
            frames_B: Frames of each window that hold audio, (B,).
            features_BMF: The encoder's input, log-mel energies, (B, M, F) with F = 2 T.
            texts: Transcripts.
        """
        targets_BT = torch.full(encoded_BTD.shape[:2], self.BLANK, device=encoded_BTD.device)
        for targets_T, count, features_MF, text in zip(
            targets_BT, frames_B.tolist(), features_BMF, texts, strict=True
        ):
            heard_MF = features_MF[:, : 2 * count]
            targets_T[:count] = flat_alignment(heard_MF, text.strip().encode(), self.BLANK)
        logits_NV, targets_N = self._logits(encoded_BTD).flatten(0, 1), targets_BT.flatten()
        loss = F.cross_entropy(logits_NV, targets_N, reduction="sum")
        return mean_over_processes(loss, torch.tensor(len(targets_N)))

    def _logits(self, encoded_BTD: Tensor) -> Tensor:
        # The layer keeps its type when the model has another; CTC has neither fp16 nor bf16.
        logits_BTV: Tensor = self.classes(encoded_BTD.to(self.classes.weight.dtype)).float()
        return logits_BTV


def flat_alignment(features_MF: Tensor, spelled: bytes, blank: int) -> Tensor:
    """The bytes of a transcript in equal shares of the frames that are loud; blank elsewhere.

    A frame is loud if its mean log-mel energy is above 30 % of the way from the least to the most.

    Args:
        features_MF: Log-mel energies, (M, F).
        spelled: Bytes of the transcript.
        blank: Class of the other frames.

    Returns:
        Classes of the encoder frames, (F / 2,), int64.

    Example:
        >>> energies = torch.tensor([[0.0, 0, 9, 9, 9, 9, 0, 0]])
        >>> flat_alignment(energies, b"hi", blank=256).tolist()
        [256, 104, 105, 256]
    """
    energy_T = features_MF.float().mean(dim=0).view(-1, 2).mean(dim=1)
    loud_T = energy_T > torch.lerp(energy_T.min(), energy_T.max(), _LOUD)
    targets_T = torch.full_like(loud_T, blank, dtype=torch.long)
    count = int(loud_T.sum())
    if spelled and count:
        bytes_ = torch.tensor(list(spelled), device=loud_T.device)
        targets_T[loud_T] = bytes_[torch.arange(count) * len(spelled) // count]
    return targets_T
