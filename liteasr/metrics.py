"""Measures of quality that add over batches and processes.

Shape suffixes: B batch, T encoder frames, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import jiwer
import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["CorpusWER", "EncoderRelativeError", "macro_average"]


class CorpusWER(Metric):
    """Word error rate of a whole set: all edits over all reference words, in percent.

    Edits are counted by jiwer on texts that are normalised already, and summed over batches and
    processes before the one division.

    Example:
        >>> wer = CorpusWER()
        >>> wer.update(["the cat sat", "a b"], ["the cat sat down", "a c"], seconds=[1.0, 2.0])
        >>> round(wer.compute().item(), 2)
        33.33
        >>> wer.summary()["words"], wer.summary()["seconds"]
        (6, 3.0)
    """

    higher_is_better = False
    full_state_update = False
    substitutions: Tensor
    deletions: Tensor
    insertions: Tensor
    words: Tensor
    utterances: Tensor
    seconds: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("substitutions", "deletions", "insertions", "words", "utterances"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("seconds", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str],
        seconds: Sequence[float] = (),
    ) -> None:
        """Add utterances.

        Args:
            hypotheses: Recognised texts, normalised.
            references: Transcripts, normalised, as many, none of them empty.
            seconds: Durations, for the record.
        """
        counts = jiwer.process_words(list(references), list(hypotheses))
        self.substitutions += counts.substitutions
        self.deletions += counts.deletions
        self.insertions += counts.insertions
        self.words += counts.hits + counts.substitutions + counts.deletions
        self.utterances += len(references)
        self.seconds += sum(seconds)

    def compute(self) -> Tensor:
        """WER in percent, a scalar; not a number where there were no words."""
        errors = self.substitutions + self.deletions + self.insertions
        return 100.0 * errors / self.words

    def summary(self) -> dict[str, float | int]:
        """WER in percent with the counts behind it, summed over processes.

        Every process must call it.
        """
        wer = self.compute()
        with self.sync_context(should_sync=self._to_sync and self._is_distributed()):
            return {
                "wer": round(float(wer), 4),
                "utterances": int(self.utterances),
                "words": int(self.words),
                "substitutions": int(self.substitutions),
                "deletions": int(self.deletions),
                "insertions": int(self.insertions),
                "seconds": round(float(self.seconds), 3),
            }

    def _is_distributed(self) -> bool:
        return torch.distributed.is_available() and torch.distributed.is_initialized()


class EncoderRelativeError(Metric):
    """``Σ ‖z − ẑ‖² / Σ ‖z − z̄‖²`` of the encoder's output over the frames that hold audio.

    0 is the dense encoder, 1 is as good as its mean.

    Args:
        dim: Width D of the encoder.

    Example:
        >>> error = EncoderRelativeError(dim=1)
        >>> z_BTD = torch.tensor([[[0.0], [2.0], [9.0]]])
        >>> error.update(z_BTD, z_BTD + 0.5, frames=torch.tensor([2]))
        >>> error.compute().item()
        0.25
    """

    higher_is_better = False
    full_state_update = False
    count: Tensor
    sum_D: Tensor
    squares: Tensor
    errors: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sum_D", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("errors", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, dense_BTD: Tensor, compressed_BTD: Tensor, frames: Tensor) -> None:
        """Add a batch.

        Args:
            dense_BTD: Output of the dense encoder.
            compressed_BTD: Output of the compressed encoder.
            frames: Frames of each window that hold audio, (B,).
        """
        positions_T = torch.arange(dense_BTD.shape[1], device=frames.device)
        is_audio_BT = (positions_T < frames[:, None]).to(dense_BTD.device)
        dense_ND = dense_BTD[is_audio_BT].to(self.sum_D.device).double()
        compressed_ND = compressed_BTD[is_audio_BT].to(self.sum_D.device).double()
        self.count += dense_ND.shape[0]
        self.sum_D += dense_ND.sum(dim=0)
        self.squares += dense_ND.square().sum()
        self.errors += (dense_ND - compressed_ND).square().sum()

    def compute(self) -> Tensor:
        """Relative error, a scalar."""
        return self.errors / (self.squares - self.sum_D.square().sum() / self.count)


def macro_average(wers: Mapping[str, float]) -> float:
    """Mean of the sets' WERs, each counting alike; not a number where there are no sets.

    >>> macro_average({"a": 10.0, "b": 20.0})
    15.0
    """
    return fmean(wers.values()) if wers else float("nan")
