"""Validation and test of a LightningModule that recognises speech: decode, count, time, log.

Shape suffixes: B windows in a batch, M mel bins, F mel frames, T encoder frames, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from liteasr.distributed import raise_together
from liteasr.evaluation_counts import EncoderComparison, Evaluation
from liteasr.metrics import macro_average
from liteasr.sharding import whole

__all__ = ["EvaluationSteps"]


class EvaluationSteps(L.LightningModule):
    """Decodes in validation and test, and logs corpus WER of every set and their mean.

    Attributes:
        results: WER and the counts behind it for each set of the last evaluation, summed over
            processes.
        predictions: Normalised texts of the last evaluation, with ``set`` and ``id``: of this
            process while it runs, of all processes once it is over.
        encoder_relative_error: Error that the last ``trainer.test`` measured after
            :meth:`compare_with`.
        rtfx: Seconds of audio that the last evaluation recognised in a second of running encoder
            and decoder, all processes together; reading audio and making features not counted.
        encoder_rtfx: The same for the encoder alone; ``None`` where audio over one window was
            decoded by Whisper's sequential algorithm.
        validated_step: Optimizer steps that were done at the last validation; ``None`` before one.
    """

    WINDOWS_AT_ONCE: ClassVar[int] = 32

    model: WhisperForConditionalGeneration
    normalizer: Callable[[str], str]

    def __init__(self) -> None:
        super().__init__()
        self.predictions: list[dict[str, str]] = []
        self.results: dict[str, dict[str, float | int]] = {}
        self.encoder_relative_error: float | None = None
        self.rtfx: float | None = None
        self.encoder_rtfx: float | None = None
        self.validated_step: int | None = None
        # Plain objects: no part of the model, so neither saved, wrapped nor cast.
        self._evaluation = Evaluation([], self.device)
        self._comparison: EncoderComparison | None = None
        self._whole = ExitStack()

    @abstractmethod
    def encode(self, features_BMF: Tensor) -> Tensor:
        """Output of the encoder for windows, (B, T, D)."""

    @abstractmethod
    def decode(self, batch: Mapping[str, Any], encoded_BTD: Tensor | None = None) -> list[str]:
        """One text for each utterance of a batch, not normalised."""

    @abstractmethod
    def is_long(self, batch: Mapping[str, Any]) -> bool:
        """Whether a batch is an utterance over one window, given whole."""

    def prepare_inference(self) -> None:
        """Called at the start of an evaluation, on every process; does nothing here."""

    def compare_with(self, dense_encoder: nn.Module | None) -> None:
        """Measure the relative error of the encoder's output in the next ``trainer.test``.

        Args:
            dense_encoder: Encoder to compare with; ``None`` ends it. Not part of the state dict.
        """
        width = self.model.config.d_model
        self._comparison = (
            None if dense_encoder is None else EncoderComparison(dense_encoder, width)
        )

    def _evaluate(self, batch: Mapping[str, Any], stage: str, dataloader_idx: int) -> None:
        evaluation, encoded_BTD = self._evaluation, None
        if not evaluation.is_warm:
            self._warm_up(batch)
            evaluation.is_warm = True
        if self.is_long(batch):
            evaluation.lose_sight()
        else:
            with evaluation.recognition.running(), evaluation.encoding.running():
                encoded_BTD = self.encode(batch["input_features"])
            self._compare(batch, encoded_BTD)
        with evaluation.recognition.running():
            hypotheses = self.decode(batch, encoded_BTD)
        evaluation.add(
            self._set_names(stage)[dataloader_idx],
            batch,
            [self.normalizer(text) for text in hypotheses],
            [self.normalizer(text) for text in batch["references"]],
        )

    def _warm_up(self, batch: Mapping[str, Any]) -> None:
        """One window ahead of the clock, which must not count what happens once."""
        frames = 2 * int(self.model.config.max_source_positions)
        self.decode({"input_features": batch["input_features"][:1, :, :frames], "segments": [1]})

    def _compare(self, batch: Mapping[str, Any], encoded_BTD: Tensor) -> None:
        if self._comparison is not None:
            features_BMF = batch["input_features"].to(self.model.dtype)
            self._comparison.update(
                features_BMF,
                encoded_BTD,
                batch["frames"],
                self.WINDOWS_AT_ONCE,
            )

    @property
    def _metrics_device(self) -> torch.device:
        # Apple's GPUs have no fp64, and no other process to sum with.
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def _set_names(self, stage: str) -> Sequence[str]:
        loaders = getattr(self.trainer, f"{stage}_dataloaders")
        count = len(loaders) if isinstance(loaders, Sequence) else 1
        names = getattr(self.trainer.datamodule, f"{stage}_names", None)  # type: ignore[attr-defined]
        return names or [f"set{index}" for index in range(count)]

    def _start(self, stage: str) -> None:
        self._evaluation = Evaluation(self._set_names(stage), self._metrics_device)
        if self._comparison is not None:
            self._comparison.start(self._metrics_device)
        self.predictions = self._evaluation.predictions
        self.prepare_inference()

    def _finish(self, stage: str) -> None:
        problems = getattr(self.trainer.datamodule, "problems", None)  # type: ignore[attr-defined]
        raise_together(problems(stage) if problems else [])
        # Sums over processes are taken here, where every process is.
        result = self._evaluation.finish()
        self.results, self.predictions = result.results, result.predictions
        self.rtfx, self.encoder_rtfx = result.rtfx, result.encoder_rtfx
        wers = {name: float(summary["wer"]) for name, summary in self.results.items()}
        for name, wer in wers.items():
            self.log(f"{stage}/wer/{name}", wer)
        self.log(f"{stage}/wer", macro_average(wers), prog_bar=True)
        comparison = self._comparison
        self.encoder_relative_error = None if comparison is None else comparison.compute()

    def on_validation_epoch_start(self) -> None:
        """Reset the counts; gather weights that are split over processes."""
        self._whole.enter_context(whole(self))
        self._start("val")

    def validation_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Decode and count edits; see :meth:`decode` for the batch."""
        self._evaluate(batch, "val", dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log WER; weights go back to where they were."""
        self._finish("val")
        self._whole.close()
        # A callback may have put other weights in for the validation, and has taken them out again.
        self.prepare_inference()
        self.validated_step = self.global_step

    def on_test_epoch_start(self) -> None:
        """Reset the counts."""
        self._start("test")

    def test_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Decode and count edits; see :meth:`decode` for the batch."""
        self._evaluate(batch, "test", dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Log WER, and the encoder's error where it is measured."""
        self._finish("test")
        if self.encoder_relative_error is not None:
            self.log("test/encoder_relative_error", self.encoder_relative_error)
