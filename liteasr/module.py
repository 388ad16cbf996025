"""Whisper as a LightningModule: losses, decoding, word error rate, optimizer.

Shape suffixes: B windows in a batch, M mel bins, F mel frames, T encoder frames, D width,
L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, get_scheduler
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import shift_tokens_right
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from liteasr.compression import AttentionFactors, CompressionPlan, LowRankFactors, apply_plan
from liteasr.config import ConfigError
from liteasr.ctc import CTCHead
from liteasr.distributed import raise_together
from liteasr.evaluation_counts import EncoderComparison, Evaluation
from liteasr.loading import load
from liteasr.metrics import macro_average
from liteasr.modeling import LowRankLinear, ReducedAttention, use_fast_inference
from liteasr.modeling.decoder import WhisperDecoder
from liteasr.text import make_normalizer

__all__ = ["WhisperModule"]


class WhisperModule(L.LightningModule):
    """A Whisper checkpoint in Lightning.

    Validation and test decode with ``generate`` and report corpus WER in percent, for each set
    (``val/wer/<set>``) and as the mean of the sets (``val/wer``), summed over processes.

    All arguments are plain values, so that a checkpoint opens with ``weights_only=True``. A
    compressed encoder is remembered as a plan in the checkpoint and rebuilt from it.

    Args:
        model_id: Folder or hub id, dense Whisper or lite-whisper, or ``demo``.
        revision: Branch, tag or commit on the hub.
        processor_id: Where tokenizer and feature extractor are, if not with the model.
        language: Spoken language of a multilingual checkpoint.
        task: ``transcribe`` or ``translate``, for a multilingual checkpoint.
        dtype: Type of the weights.
        attention: Attention implementation of transformers.
        random_weights: Draw the weights from torch's seed instead of loading any; a checkpoint of
            Lightning's brings its own.
        num_beams: Beams; 1 is greedy.
        max_new_tokens: Tokens for one window at most.
        trainable: ``factors``, ``encoder`` or ``all``.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Steps of linear warm-up.
        schedule: ``cosine``, ``linear`` or ``constant`` after the warm-up.
        label_smoothing: Label smoothing of the cross-entropy.
        ctc_weight: Share of a CTC loss on the encoder's output in the training loss, from 0 to
            below 1.
        flat_start_steps: First steps in which a flat alignment stands in for CTC.

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
        compression_plan: How the encoder was compressed; ``None`` if it was not.

    Raises:
        ConfigError: If the checkpoint cannot be used, or a language is given for an English-only
            one.
    """

    PLAN_KEY: ClassVar[str] = "liteasr_plan"
    WINDOWS_AT_ONCE: ClassVar[int] = 32

    def __init__(
        self,
        model_id: str,
        *,
        revision: str | None = None,
        processor_id: str | None = None,
        language: str | None = None,
        task: str | None = None,
        dtype: str = "float32",
        attention: str = "sdpa",
        random_weights: bool = False,
        num_beams: int = 1,
        max_new_tokens: int | None = None,
        trainable: str = "factors",
        learning_rate: float = 2e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 50,
        schedule: str = "cosine",
        label_smoothing: float = 0.0,
        ctc_weight: float = 0.0,
        flat_start_steps: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model, self.processor = load(
            model_id,
            revision=revision,
            processor_id=processor_id,
            dtype=dtype,
            attention=attention,
            random_weights=random_weights,
        )
        self._check_language(language, task)
        self._check_length(max_new_tokens)
        self.normalizer = make_normalizer(self.processor.tokenizer, language)
        self.ctc = CTCHead(self.model.config.d_model) if ctc_weight > 0 else None
        self.compression_plan: CompressionPlan | None = None
        self.predictions: list[dict[str, str]] = []
        self.results: dict[str, dict[str, float | int]] = {}
        self.encoder_relative_error: float | None = None
        self.rtfx: float | None = None
        self.encoder_rtfx: float | None = None
        # Plain objects: no part of the model, so neither saved, wrapped nor cast.
        self._evaluation = Evaluation([], self.device)
        self._comparison: EncoderComparison | None = None

    def _check_language(self, language: str | None, task: str | None) -> None:
        self.is_multilingual = bool(
            getattr(self.model.generation_config, "is_multilingual", language is not None)
        )
        if not self.is_multilingual and (language or task):
            raise ConfigError(
                f"model.language, model.task: {self.hparams['model_id']} is an English-only "
                "checkpoint and takes neither"
            )
        known = getattr(self.model.generation_config, "lang_to_id", None) or {}
        code = TO_LANGUAGE_CODE.get((language or "").lower(), (language or "").lower())
        if language is not None and known and f"<|{code.strip('<|>')}|>" not in known:
            codes = ", ".join(sorted(token.strip("<|>") for token in known))
            raise ConfigError(f"model.language: {language!r} is none of {codes}")

    def _check_length(self, max_new_tokens: int | None) -> None:
        # The prompt takes up to four of the positions.
        most = self.model.config.max_target_positions - 4
        if max_new_tokens is not None and max_new_tokens > most:
            raise ConfigError(
                f"decoding.max_new_tokens: {max_new_tokens} is more than the {most} that "
                f"{self.hparams['model_id']} has room for"
            )

    @property
    def encoder(self) -> PreTrainedModel:
        """The Hugging Face encoder."""
        return self.model.get_encoder()

    # ------------------------------------------------------------------ structure

    def apply_plan(
        self,
        plan: CompressionPlan,
        factors: Mapping[str, LowRankFactors | AttentionFactors] | None = None,
    ) -> None:
        """Swap the planned layers and remember the plan for the checkpoint; idempotent."""
        apply_plan(self.model, plan, factors)
        self.compression_plan = plan

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the plan beside the weights."""
        if self.compression_plan is not None:
            checkpoint[self.PLAN_KEY] = self.compression_plan.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild the structure before the weights are loaded into it."""
        if self.PLAN_KEY in checkpoint:
            self.apply_plan(CompressionPlan.from_dict(checkpoint[self.PLAN_KEY]))

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Freeze what the stage does not train."""
        # Without training nothing need be frozen, and DDP refuses a model without gradients.
        if stage != "fit" or self.trainer.max_steps == 0:
            return
        self.model.requires_grad_(False)
        for parameter in self.trainable_parameters():
            parameter.requires_grad_(True)

    def on_train_start(self) -> None:
        """Leave evaluation mode, in which checkpoints are loaded (SpecAugment looks at it)."""
        self.model.train()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Parameters of the model that the optimizer updates.

        Raises:
            ConfigError: If there are none.
        """
        trainable = self.hparams["trainable"]
        if trainable == "all":
            parameters = list(self.model.parameters())
        elif trainable == "encoder":
            parameters = list(self.encoder.parameters())
        else:
            compressed = nn.ModuleList(
                module
                for module in self.encoder.modules()
                if isinstance(module, LowRankLinear | ReducedAttention)
            )
            parameters = list(compressed.parameters())
        # The encoder's positional embedding is a fixed sinusoid.
        fixed = {id(parameter) for parameter in self.encoder.embed_positions.parameters()}
        parameters = [parameter for parameter in parameters if id(parameter) not in fixed]
        if not parameters:
            raise ConfigError("finetune.trainable: factors, but no layer of the encoder has any")
        return parameters

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Cross-entropy of the transcripts, with a CTC loss if there is a weight for it.

        Args:
            batch: ``input_features`` (B, M, F), ``frames`` (B,) that hold audio, and ``labels``
                (B, L), −100 where ignored.
            batch_idx: Number of the batch.
        """
        labels_BL, config = batch["labels"], self.model.config
        inputs_BL = shift_tokens_right(
            labels_BL, config.pad_token_id, config.decoder_start_token_id
        )
        output = self.model(
            input_features=batch["input_features"].to(self.model.dtype),
            decoder_input_ids=inputs_BL,
        )
        loss = F.cross_entropy(
            output.logits.flatten(0, 1).float(),
            labels_BL.flatten(),
            label_smoothing=self.hparams["label_smoothing"],
        )
        if self.ctc is not None:
            weight = self.hparams["ctc_weight"]
            end = self.processor.tokenizer.eos_token_id
            texts = self._texts(labels_BL.masked_fill(labels_BL < 0, end))
            encoded_BTD, frames_B = output.encoder_last_hidden_state, batch["frames"]
            if self.global_step < self.hparams["flat_start_steps"]:
                ctc = self.ctc.flat_start(encoded_BTD, frames_B, batch["input_features"], texts)
            else:
                ctc = self.ctc(encoded_BTD, frames_B, texts)
            self.log("train/ctc_loss", ctc, batch_size=len(labels_BL))
            loss = (1 - weight) * loss + weight * ctc
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels_BL))
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with linear warm-up and the schedule of the hyper-parameters."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self.hparams["learning_rate"],
            weight_decay=self.hparams["weight_decay"],
        )
        schedule = self.hparams["schedule"]
        scheduler = get_scheduler(
            "constant_with_warmup" if schedule == "constant" else schedule,
            optimizer,
            num_warmup_steps=self.hparams["warmup_steps"],
            num_training_steps=max(self.trainer.max_steps, 1),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # ------------------------------------------------------------------ evaluation

    def compare_with(self, dense_encoder: nn.Module | None) -> None:
        """Measure the relative error of the encoder's output in the next ``trainer.test``.

        Args:
            dense_encoder: Encoder to compare with; ``None`` ends it. Not part of the state dict.
        """
        width = self.model.config.d_model
        self._comparison = (
            None if dense_encoder is None else EncoderComparison(dense_encoder, width)
        )

    def decode(self, batch: Mapping[str, Any], encoded_BTD: Tensor | None = None) -> list[str]:
        """Recognise the utterances of an evaluation batch.

        Args:
            batch: ``input_features`` (B, M, F), ``segments`` (windows of each utterance), and
                ``attention_mask`` (B, F) where F exceeds one window.
            encoded_BTD: The encoder's output, if it is known already and F is one window.
                Windows are decoded :attr:`WINDOWS_AT_ONCE` at a time.

        Returns:
            One text an utterance, not normalised.
        """
        texts: list[str] = []
        if self._is_long(batch):
            features_BMF = batch["input_features"].to(self.model.dtype)
            mask_BF = batch["attention_mask"]
            texts = self._generate(
                input_features=features_BMF, attention_mask=mask_BF, return_timestamps=True
            )
        else:
            if encoded_BTD is None:
                encoded_BTD = self.encode(batch["input_features"])
            for part_BTD in torch.split(encoded_BTD, self.WINDOWS_AT_ONCE):
                # The mask hides nothing: Whisper attends to padding. It keeps generate quiet.
                mask_BT = torch.ones(part_BTD.shape[:2], dtype=torch.long, device=part_BTD.device)
                encoded = BaseModelOutput(last_hidden_state=part_BTD)
                texts += self._generate(
                    encoder_outputs=encoded,
                    attention_mask=mask_BT,
                    # A window is decoded once, even if the model speaks of times unasked.
                    force_unique_generate_call=True,
                )
        windows = iter(texts)
        return [
            " ".join(next(windows).strip() for _ in range(count)).strip()
            for count in batch["segments"]
        ]

    def encode(self, features_BMF: Tensor) -> Tensor:
        """Output of the encoder for windows, (B, T, D), a few at a time."""
        parts = torch.split(features_BMF.to(self.model.dtype), self.WINDOWS_AT_ONCE)
        return torch.cat([self.encoder(part).last_hidden_state for part in parts])

    def decoder(self) -> WhisperDecoder:
        """The model's decoder by itself, for compression methods."""
        special_tokens = self.processor.tokenizer.all_special_ids
        return WhisperDecoder(self.model, special_tokens, **self.decoding_options())

    def decoding_options(self) -> dict[str, Any]:
        """Arguments of ``generate`` that the hyper-parameters ask for, beams aside."""
        options: dict[str, Any] = {}
        if self.is_multilingual:
            options |= {"language": self.hparams["language"], "task": self.hparams["task"]}
        if self.hparams["max_new_tokens"] is not None:
            options["max_new_tokens"] = self.hparams["max_new_tokens"]
        return options

    def _generate(self, **options: Any) -> list[str]:
        options |= {"num_beams": self.hparams["num_beams"], **self.decoding_options()}
        return self._texts(self.model.generate(**options))

    def _texts(self, tokens_BL: Tensor) -> list[str]:
        texts: list[str] = self.processor.batch_decode(tokens_BL, skip_special_tokens=True)
        return texts

    def _is_long(self, batch: Mapping[str, Any]) -> bool:
        frames: int = batch["input_features"].shape[-1]
        return frames > 2 * int(self.model.config.max_source_positions)

    def _evaluate(self, batch: Mapping[str, Any], stage: str, dataloader_idx: int) -> None:
        evaluation, encoded_BTD = self._evaluation, None
        if not evaluation.is_warm:
            self._warm_up(batch)
            evaluation.is_warm = True
        if self._is_long(batch):
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
        if self.compression_plan is not None:
            use_fast_inference(self.encoder, self.model.config.max_source_positions)

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
        """Reset the counts."""
        self._start("val")

    def validation_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Decode and count edits; see :meth:`decode` for the batch."""
        self._evaluate(batch, "val", dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log WER."""
        self._finish("val")

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

    def predict_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> list[str]:
        """Recognised texts; see :meth:`decode` for the batch."""
        return self.decode(batch)
