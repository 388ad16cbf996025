"""Connectionist temporal classification beside the decoder's cross-entropy.

Shape suffixes: B windows in a batch, T encoder frames, D width, S bytes of all transcripts,
V classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CTCHead"]


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
        # The layer keeps its type when the model has another; CTC has neither fp16 nor bf16.
        encoded_BTD = encoded_BTD.to(self.classes.weight.dtype)
        log_probs_TBV = self.classes(encoded_BTD).float().log_softmax(dim=-1).transpose(0, 1)
        loss: Tensor = F.ctc_loss(
            log_probs_TBV,
            targets_S.to(encoded_BTD.device),
            frames_B.clamp(max=encoded_BTD.shape[1]),
            torch.tensor([len(one) for one in spelled], device=frames_B.device),
            blank=self.BLANK,
            reduction="sum",
            zero_infinity=True,
        )
        return loss / max(len(targets_S), 1)
