"""What a pass over evaluation sets adds up to: errors, texts, speed.

Shape suffixes: B windows in a batch, M mel bins, F mel frames, T encoder frames, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from liteasr.distributed import gather_lists
from liteasr.metrics import CorpusWER, EncoderRelativeError
from liteasr.speed import Stopwatch

__all__ = ["EncoderComparison", "Evaluation", "EvaluationResult"]


@dataclass(frozen=True)
class EvaluationResult:
    """Sums over all processes.

    Attributes:
        results: Set → WER in percent and the counts behind it.
        predictions: Normalised texts with ``set`` and ``id``.
        rtfx: Seconds of audio recognised in a second of running encoder and decoder, all processes
            together; ``None`` if nothing ran.
        encoder_rtfx: The same for the encoder alone; ``None`` where it ran out of sight.
    """

    results: dict[str, dict[str, float | int]]
    predictions: list[dict[str, str]]
    rtfx: float | None
    encoder_rtfx: float | None


class Evaluation:
    """Counts of one pass.

    Args:
        names: Names of the sets.
        device: Where counts are kept, and summed over processes.

    Attributes:
        predictions: Texts of this process so far.
        recognition: Runs while encoder or decoder does.
        encoding: Runs while the encoder does.
        is_warm: Whether the model has run once, off the clock.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._wer = {name: CorpusWER().to(device) for name in names}
        self.predictions: list[dict[str, str]] = []
        self.recognition = Stopwatch()
        self.encoding = Stopwatch()
        self._lost_sight = False
        self.is_warm = False

    def add(
        self,
        name: str,
        batch: Mapping[str, Any],
        hypotheses: Sequence[str],
        references: Sequence[str],
    ) -> None:
        """Count a batch of a set.

        Args:
            name: Name of the set.
            batch: ``ids`` and ``seconds`` of the utterances.
            hypotheses: Recognised texts, normalised.
            references: Transcripts, normalised.
        """
        self._wer[name].update(hypotheses, references, batch["seconds"])
        self.predictions += [
            {"set": name, "id": id_, "reference": reference, "hypothesis": hypothesis}
            for id_, reference, hypothesis in zip(batch["ids"], references, hypotheses, strict=True)
        ]

    def lose_sight(self) -> None:
        """Note that the encoder ran where it could not be timed."""
        self._lost_sight = True

    def finish(self) -> EvaluationResult:
        """Sum over processes; every process must call it."""
        results = {name: metric.summary() for name, metric in self._wer.items()}
        audio_seconds = sum(float(summary["seconds"]) for summary in results.values())
        encoding = math.inf if self._lost_sight else self.encoding.seconds
        spent = gather_lists([(self.recognition.seconds, encoding)])
        whole, encoder = (max(seconds) for seconds in zip(*spent, strict=True))
        return EvaluationResult(
            results,
            gather_lists(self.predictions),
            rtfx=audio_seconds / whole if whole > 0 else None,
            encoder_rtfx=audio_seconds / encoder if 0 < encoder < math.inf else None,
        )


class EncoderComparison:
    """Relative error of an encoder's output against the dense encoder's.

    Args:
        dense_encoder: The dense encoder.
        width: D.
    """

    def __init__(self, dense_encoder: nn.Module, width: int) -> None:
        self._dense = dense_encoder.eval()
        self._error = EncoderRelativeError(width)

    def update(
        self,
        features_BMF: Tensor,
        encoded_BTD: Tensor,
        frames_B: Tensor,
        at_once: int,
    ) -> None:
        """Compare a batch, as many windows at once as the encoder itself takes.

        Args:
            features_BMF: Features in the encoder's type.
            encoded_BTD: What the compressed encoder gave.
            frames_B: Frames of each window that hold audio.
            at_once: Windows that go through the encoder together.
        """
        dense = self._dense.to(encoded_BTD.device, features_BMF.dtype)
        parts = (torch.split(each, at_once) for each in (features_BMF, encoded_BTD, frames_B))
        for features, encoded, frames in zip(*parts, strict=True):
            self._error.update(dense(features).last_hidden_state, encoded, frames)

    def start(self, device: torch.device) -> None:
        """Forget what was compared; on every process, also on one that will compare nothing.

        Args:
            device: Where sums are kept, and summed over processes.
        """
        self._error.to(device).reset()

    def compute(self) -> float | None:
        """The error, summed over processes; ``None`` if there was nothing to compare."""
        error = float(self._error.compute())
        return error if math.isfinite(error) else None
