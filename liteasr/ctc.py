"""Connectionist temporal classification beside the decoder's cross-entropy.

Shape suffixes: B windows in a batch, T encoder frames, D width, L tokens, V classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CTCHead"]


class CTCHead(nn.Module):
    """CTC loss of the transcript on the encoder's output (Graves et al., ICML 2006).

    A decoder that learns from nothing first learns the language and hardly listens; a second loss
    that needs no decoder makes the encoder tell sounds apart from the start (hybrid CTC and
    attention, Watanabe et al. 2017, IEEE JSTSP 11 (8), equation 12). The layer serves training
    only and is no part of the model.

    Args:
        width: Width D of the encoder.
        end: Id of the first token that is no text; in Whisper's vocabularies all text comes before
            it. It stands for CTC's blank here.

    Example:
        >>> import torch
        >>> head = CTCHead(width=8, end=5)
        >>> labels_BL = torch.tensor([[7, 1, 2, 5, -100]])
        >>> bool(head(torch.zeros(1, 6, 8), torch.tensor([6]), labels_BL) > 0)
        True
    """

    def __init__(self, width: int, end: int) -> None:
        super().__init__()
        self.end = end
        self.classes = nn.Linear(width, end + 1)

    def forward(self, encoded_BTD: Tensor, frames_B: Tensor, labels_BL: Tensor) -> Tensor:
        """Mean loss a token of text, a scalar.

        Args:
            encoded_BTD: The encoder's output, (B, T, D).
            frames_B: Frames of each window that hold audio, (B,).
            labels_BL: The decoder's targets, (B, L): text, special tokens, times, and −100.
                A transcript that is too long for its frames counts nothing.
        """
        is_text_BL = (labels_BL >= 0) & (labels_BL < self.end)
        lengths_B = is_text_BL.sum(dim=1)
        # CTC has neither fp16 nor bf16.
        log_probs_TBV = self.classes(encoded_BTD).float().log_softmax(dim=-1).transpose(0, 1)
        loss: Tensor = F.ctc_loss(
            log_probs_TBV,
            labels_BL[is_text_BL],
            frames_B.clamp(max=encoded_BTD.shape[1]),
            lengths_B,
            blank=self.end,
            reduction="sum",
            zero_infinity=True,
        )
        return loss / lengths_B.sum().clamp_min(1)
