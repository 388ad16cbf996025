"""Whisper as a LightningModule: losses, decoding, word error rate, optimizer.

Shape suffixes: B windows in a batch, M mel bins, F mel frames, T encoder frames, D width,
L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, WhisperForConditionalGeneration, get_scheduler
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from liteasr.compression import AnyFactors, CompressionPlan, apply_plan
from liteasr.config import ConfigError
from liteasr.distillation import Teacher
from liteasr.evaluation_steps import EvaluationSteps
from liteasr.loading import load
from liteasr.modeling import LowRankLinear, ReducedAttention, use_fast_inference
from liteasr.modeling.decoder import WhisperDecoder
from liteasr.objective import LossWeights, Objective
from liteasr.sharding import is_sharded, shard
from liteasr.text import make_normalizer

__all__ = ["WhisperModule"]


class WhisperModule(EvaluationSteps):
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
        cross_entropy_weight: Weight of the cross-entropy of the transcripts.
        label_smoothing: Label smoothing of the cross-entropy.
        encoder_distillation_weight: Weight of the relative error of the encoder's output against
            that of the model of :meth:`learn_from`.
        logit_distillation_weight: Weight of the divergence of the decoder's distributions from
            those of that model.
        ctc_weight: Share of a CTC loss on the encoder's output in the training loss, from 0 to
            below 1.
        flat_start_steps: First steps in which a flat alignment stands in for CTC.
        spec_augment: ``mask_time_prob``, ``mask_time_length``, ``mask_feature_prob`` and
            ``mask_feature_length`` of transformers, for training; what the checkpoint's
            configuration says where a ``…_prob`` is absent.
        gradient_checkpointing: Compute what is inside a layer again in the backward pass.

    Attributes:
        compression_plan: How the encoder was compressed; ``None`` if it was not.

    Raises:
        ConfigError: If the checkpoint cannot be used, or a language is given for an English-only
            one.
    """

    PLAN_KEY: ClassVar[str] = "liteasr_plan"

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
        cross_entropy_weight: float = 1.0,
        label_smoothing: float = 0.0,
        encoder_distillation_weight: float = 0.0,
        logit_distillation_weight: float = 0.0,
        ctc_weight: float = 0.0,
        flat_start_steps: int = 0,
        spec_augment: Mapping[str, float | int | None] | None = None,
        gradient_checkpointing: bool = False,
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
        weights = LossWeights(
            cross_entropy=cross_entropy_weight,
            label_smoothing=label_smoothing,
            encoder_distillation=encoder_distillation_weight,
            logit_distillation=logit_distillation_weight,
            ctc=ctc_weight,
            flat_start_steps=flat_start_steps,
        )
        end = self.processor.tokenizer.eos_token_id
        self.objective = Objective(weights, self.model.config.d_model, self._texts, end)
        self.compression_plan: CompressionPlan | None = None
        self._config_before: dict[str, Any] = {}

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
        factors: Mapping[str, AnyFactors] | None = None,
    ) -> None:
        """Swap the planned layers and remember the plan for the checkpoint; idempotent."""
        apply_plan(self.model, plan, factors)
        self.compression_plan = plan

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the plan beside the weights, and optimizer states by the names of weights.

        Numbers mean the weights that are trained, or all of them where they are split over
        processes: Lightning could not go on with the one from the other.
        """
        if self.compression_plan is not None:
            checkpoint[self.PLAN_KEY] = self.compression_plan.to_dict()
        named = list(self.named_parameters())
        names = [name for name, one in named if one.requires_grad or is_sharded(self)]
        for state in checkpoint.get("optimizer_states", []):
            if "state" not in state:
                continue  # of another process than the first
            state["state"] = {names[number]: one for number, one in state["state"].items()}
            for group in state["param_groups"]:
                group["params"] = [names[number] for number in group["params"]]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild the structure before the weights are loaded into it.

        Raises:
            ConfigError: If the checkpoint is of another model or another plan.
        """
        theirs = checkpoint.get("hyper_parameters", {}).get("model_id", "another model")
        names = f"checkpoint: made from {theirs}, does not fit {self.hparams['model_id']}"
        if self.PLAN_KEY in checkpoint:
            try:
                self.apply_plan(CompressionPlan.from_dict(checkpoint[self.PLAN_KEY]))
            except ValueError as error:
                raise ConfigError(f"{names}: its plan is another one: {error}") from error
        own = self.state_dict()
        # Where weights are split over processes, Lightning has loaded and taken them out already.
        for name, saved in checkpoint.get("state_dict", {}).items():
            if name not in own:
                raise ConfigError(f"{names}, which has no {name}")
            if own[name].shape != saved.shape:
                here, there = tuple(own[name].shape), tuple(saved.shape)
                raise ConfigError(f"{names}: {name} has shape {there} there and {here} here")

    # ------------------------------------------------------------------ training

    def configure_model(self) -> None:
        """Split the weights over processes, if the strategy says so."""
        # DDP would broadcast them at each forward pass, of validation too, where one process may
        # have a batch more than another: all would wait. They are the same everywhere.
        self._ddp_params_and_buffers_to_ignore = {name for name, _ in self.named_buffers()}
        mesh = self.device_mesh
        if mesh is None or is_sharded(self):
            return
        layers = [*self.encoder.layers, *self.model.get_decoder().layers]
        shard(self, layers, mesh["data_parallel"], "training_step")

    def setup(self, stage: str) -> None:
        """Freeze what the stage does not train."""
        # Without training nothing need be frozen, and DDP refuses a model without gradients.
        if stage != "fit" or self.trainer.max_steps == 0:
            return
        self.model.requires_grad_(False)
        for parameter in self.trainable_parameters():
            parameter.requires_grad_(True)
        if self.trainer.strategy.root_device.type == "cpu":
            self._use_fast_encoder()

    def on_train_start(self) -> None:
        """Leave evaluation mode, in which checkpoints are loaded (SpecAugment looks at it)."""
        self.model.train()
        self._mask_as_asked()
        if self.hparams["gradient_checkpointing"]:
            _checkpointing(self.model, "enable")({"use_reentrant": False})
        teacher = self.objective.teacher
        if teacher is not None:
            teacher.to(self.device, self.model.dtype)
            if self.hparams["trainable"] != "all" and not is_sharded(self):
                teacher.share_decoder(self.model)

    def _mask_as_asked(self) -> None:
        """Put the hyper-parameters' SpecAugment into the configuration until training is over."""
        config, asked = self.model.config, self.hparams["spec_augment"] or {}
        changes: dict[str, Any] = {}
        for kind in ("time", "feature"):
            if asked.get(f"mask_{kind}_prob") is not None:
                names = (f"mask_{kind}_prob", f"mask_{kind}_length")
                changes |= {name: asked[name] for name in names if name in asked}
        if changes and not config.apply_spec_augment:
            # What is not asked for stays off.
            off = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "apply_spec_augment": True}
            changes = off | changes
        self._config_before = {name: getattr(config, name) for name in changes}
        config.update(changes)

    def on_train_end(self) -> None:
        """Leave the model as it was, for what is saved."""
        if self.hparams["gradient_checkpointing"]:
            _checkpointing(self.model, "disable")()
        self.model.config.update(self._config_before)

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

    def learn_from(self, dense_model: WhisperForConditionalGeneration | None) -> None:
        """Distil from a dense model in the next ``trainer.fit``.

        Args:
            dense_model: The teacher; ``None`` ends it. Not part of the state dict.
        """
        self.objective.teacher = None if dense_model is None else Teacher(dense_model)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The weighted sum of the losses; logs it, and each of them where there are several.

        Args:
            batch: ``input_features`` (B, M, F), ``frames`` (B,) that hold audio, and ``labels``
                (B, L), −100 where ignored.
            batch_idx: Number of the batch.
        """
        total: Tensor
        total, losses = self.objective(self.model, batch, self.global_step)
        options: dict[str, Any] = {"batch_size": len(batch["labels"]), "sync_dist": True}
        if len(losses) > 1:
            for name, loss in losses.items():
                self.log(f"train/{name}_loss", loss, **options)
        self.log("train/loss", total.detach(), prog_bar=True, **options)
        return total

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

    # ------------------------------------------------------------------ recognition

    def prepare_inference(self) -> None:
        """Run a compressed encoder by the plans that suit its ranks."""
        if self.compression_plan is not None:
            self._use_fast_encoder()

    def _use_fast_encoder(self) -> None:
        use_fast_inference(self.encoder, self.model.config.max_source_positions)

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
        if self.is_long(batch):
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

    def is_long(self, batch: Mapping[str, Any]) -> bool:
        """Whether a batch is an utterance over one window, given whole."""
        frames: int = batch["input_features"].shape[-1]
        return frames > 2 * int(self.model.config.max_source_positions)

    def predict_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> list[str]:
        """Recognised texts; see :meth:`decode` for the batch."""
        return self.decode(batch)


def _checkpointing(model: PreTrainedModel, what: str) -> Callable[..., None]:
    """``enable`` or ``disable``, by the name that this version of transformers has for it."""
    names = (f"activation_checkpointing_{what}", f"gradient_checkpointing_{what}")
    found: Callable[..., None] = next(
        getattr(model, name) for name in names if hasattr(model, name)
    )
    return found
