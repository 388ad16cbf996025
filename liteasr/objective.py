"""What training makes small: a weighted sum of losses.

Shape suffixes: B windows in a batch, M mel bins, F mel frames, T encoder frames, D width,
L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from liteasr.ctc import CTCHead
from liteasr.distillation import Teacher, TeacherOutput, encoder_distance, logit_divergence
from liteasr.distributed import mean_over_processes

__all__ = ["LossWeights", "Objective"]


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts.

    Args:
        cross_entropy: Weight of the cross-entropy of the transcripts.
        label_smoothing: Share of its target that all tokens divide.
        encoder_distillation: Weight of the relative error of the encoder's output.
        logit_distillation: Weight of the divergence of the decoder's distributions.
        ctc: Share of CTC in the whole, which the others divide otherwise.
        flat_start_steps: First steps in which a flat alignment stands in for CTC.
    """

    cross_entropy: float = 1.0
    label_smoothing: float = 0.0
    encoder_distillation: float = 0.0
    logit_distillation: float = 0.0
    ctc: float = 0.0
    flat_start_steps: int = 0

    @property
    def needs_teacher(self) -> bool:
        """Whether a dense model has to be at hand."""
        return self.encoder_distillation > 0 or self.logit_distillation > 0

    @property
    def needs_decoder(self) -> bool:
        """Whether a loss looks at the decoder; without one it is not run."""
        return self.cross_entropy > 0 or self.logit_distillation > 0


class Objective(nn.Module):
    """The training loss of a Whisper model.

    Args:
        weights: What each loss counts.
        width: Width D of the encoder.
        texts: From token ids, (B, L), to transcripts, for CTC.
        end: Token that fills ignored labels for it.

    Attributes:
        teacher: Dense model of the distillation losses; set it before training if they count. A
            plain object: it is not saved, wrapped or cast with this module.
    """

    def __init__(
        self,
        weights: LossWeights,
        width: int,
        texts: Callable[[Tensor], list[str]],
        end: int,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.ctc = CTCHead(width) if weights.ctc > 0 else None
        self.teacher: Teacher | None = None
        self._texts = texts
        self._end = end

    def forward(
        self, model: WhisperForConditionalGeneration, batch: Mapping[str, Any], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, a scalar, and the losses in it by their names, detached.

        Args:
            model: The model in training mode; masks its input if its configuration says so.
            batch: ``input_features`` (B, M, F), ``labels`` (B, L), −100 where ignored, and
                for CTC and the encoder's distillation ``frames`` (B,) that hold audio; for CTC
                ``said_frames`` (B,) of which the labels tell all, if those are fewer.
            step: Optimizer steps done.

        Raises:
            RuntimeError: If a loss needs a teacher and there is none.
        """
        labels_BL, config = batch["labels"], model.config
        inputs_BL = shift_tokens_right(
            labels_BL, config.pad_token_id, config.decoder_start_token_id
        )
        # SpecAugment; here, so that the teacher hears the same.
        features_BMF = model.model._mask_input_features(
            batch["input_features"].to(model.dtype, copy=True)  # masked in place
        )
        encoded_BTD = model.get_encoder()(features_BMF).last_hidden_state
        logits_BLV = _decode(model, encoded_BTD, inputs_BL) if self.weights.needs_decoder else None
        taught = self._teach(features_BMF, inputs_BL)
        losses = {}
        if taught is not None and self.weights.encoder_distillation:
            loss = encoder_distance(encoded_BTD, taught.encoded_BTD, batch["frames"])
            losses["encoder_distillation"] = loss
        if logits_BLV is not None and taught is not None and taught.logits_BLV is not None:
            loss = logit_divergence(logits_BLV, taught.logits_BLV, labels_BL)
            losses["logit_distillation"] = loss
        if logits_BLV is not None and self.weights.cross_entropy:
            cross_entropy = F.cross_entropy(
                logits_BLV.flatten(0, 1).float(),
                labels_BL.flatten(),
                label_smoothing=self.weights.label_smoothing,
                reduction="sum",
            )
            losses["cross_entropy"] = mean_over_processes(cross_entropy, (labels_BL >= 0).sum())
        total = torch.stack([getattr(self.weights, k) * v for k, v in losses.items()]).sum()
        if self.ctc is not None:
            losses["ctc"] = self._ctc_loss(self.ctc, batch, encoded_BTD, step)
            total = (1 - self.weights.ctc) * total + self.weights.ctc * losses["ctc"]
        return total, {name: loss.detach() for name, loss in losses.items()}

    def _teach(self, features_BMF: Tensor, inputs_BL: Tensor) -> TeacherOutput | None:
        if not self.weights.needs_teacher:
            return None
        if self.teacher is None:
            raise RuntimeError("distillation needs a teacher: call learn_from before training")
        return self.teacher(
            features_BMF, inputs_BL if self.weights.logit_distillation > 0 else None
        )

    def _ctc_loss(
        self, head: CTCHead, batch: Mapping[str, Any], encoded_BTD: Tensor, step: int
    ) -> Tensor:
        labels_BL, frames_B = batch["labels"], batch.get("said_frames", batch["frames"])
        texts = self._texts(labels_BL.masked_fill(labels_BL < 0, self._end))
        if step < self.weights.flat_start_steps:
            return head.flat_start(encoded_BTD, frames_B, batch["input_features"], texts)
        loss: Tensor = head(encoded_BTD, frames_B, texts)
        return loss


def _decode(
    model: WhisperForConditionalGeneration, encoded_BTD: Tensor, inputs_BL: Tensor
) -> Tensor:
    output = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded_BTD),
        decoder_input_ids=inputs_BL,
        use_cache=False,
    )
    logits_BLV: Tensor = output.logits
    return logits_BLV
