"""Losses that draw a compressed model to the dense one it came from.

Shape suffixes: B windows in a batch, M mel bins, F mel frames, T encoder frames, D width,
L tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from liteasr.distributed import mean_over_processes, sum_over_processes
from liteasr.modeling import use_fast_inference

__all__ = ["Teacher", "TeacherOutput", "encoder_distance", "logit_divergence"]

PADDING_WEIGHT = 0.05
"""Weight of an encoder frame of padding, where a frame of speech counts 1."""


class TeacherOutput(NamedTuple):
    """What a teacher says of a batch.

    Attributes:
        encoded_BTD: Its encoder's output.
        logits_BLV: Its logits of every next token; ``None`` if they were not asked for.
    """

    encoded_BTD: Tensor
    logits_BLV: Tensor | None


class Teacher:
    """A dense model to learn from: never trained, and no part of what is saved.

    Args:
        model: The model; it is put into evaluation mode, without gradients.

    Example:
        >>> from transformers import WhisperConfig
        >>> config = WhisperConfig(
        ...     d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        ...     decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, vocab_size=10,
        ...     max_source_positions=4, pad_token_id=0,
        ... )
        >>> teacher = Teacher(WhisperForConditionalGeneration(config))
        >>> output = teacher(torch.zeros(1, 80, 8), torch.tensor([[1, 2, 3]]))
        >>> output.encoded_BTD.shape, output.logits_BLV.shape
        (torch.Size([1, 4, 8]), torch.Size([1, 3, 10]))
    """

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        self.model = model.eval().requires_grad_(False)
        use_fast_inference(model.get_encoder(), model.config.max_source_positions)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        """Itself: an average of the student's weights needs no second teacher."""
        return self

    def share_decoder(self, student: WhisperForConditionalGeneration) -> None:
        """Use the memory of what a student's decoder has in common, which must stay as it is.

        Args:
            student: A model on the same device, in the same type.
        """
        pairs = zip(
            [*self.model.model.decoder.parameters(), self.model.proj_out.weight],
            [*student.model.decoder.parameters(), student.proj_out.weight],
            strict=False,
        )
        for own, its in pairs:
            if own.shape == its.shape and torch.equal(own, its):
                own.data = its.data

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the model to where the student is."""
        self.model.to(device=device, dtype=dtype)

    @torch.no_grad()
    def __call__(self, features_BMF: Tensor, inputs_BL: Tensor | None = None) -> TeacherOutput:
        """Encode, and decode if there is something to decode.

        Args:
            features_BMF: Features, (B, M, F), in the model's type.
            inputs_BL: Tokens that the decoder reads, (B, L).
        """
        encoded_BTD = self.model.get_encoder()(features_BMF).last_hidden_state
        if inputs_BL is None:
            return TeacherOutput(encoded_BTD, None)
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded_BTD),
            decoder_input_ids=inputs_BL,
            use_cache=False,
        )
        return TeacherOutput(encoded_BTD, output.logits)


def encoder_distance(student_BTD: Tensor, teacher_BTD: Tensor, frames_B: Tensor) -> Tensor:
    """``Σ w ‖z − ẑ‖² / Σ w ‖z − z̄‖²`` of the encoder's output, a scalar.

    0 is the teacher, 1 is as good as its mean; the weight w is 1 for speech and
    :data:`PADDING_WEIGHT` for padding, which the decoder attends to as well.

    Args:
        student_BTD: ẑ, (B, T, D).
        teacher_BTD: z, (B, T, D).
        frames_B: Frames of each window that hold audio, (B,).

    Example:
        >>> z_BTD = torch.tensor([[[0.0], [2.0]]])
        >>> encoder_distance(z_BTD + 0.5, z_BTD, torch.tensor([2])).item()
        0.25
    """
    student_BTD, teacher_BTD = student_BTD.float(), teacher_BTD.float()
    positions_T = torch.arange(teacher_BTD.shape[1], device=frames_B.device)
    is_speech_BT = (positions_T < frames_B[:, None]).to(teacher_BTD.device)
    weight_BT1 = is_speech_BT.float().clamp(min=PADDING_WEIGHT)[..., None]
    sums_D = sum_over_processes((weight_BT1 * teacher_BTD).sum(dim=(0, 1)))
    mean_D = sums_D / sum_over_processes(weight_BT1.sum())
    spread = (weight_BT1 * (teacher_BTD - mean_D).square()).sum()
    error = (weight_BT1 * (teacher_BTD - student_BTD).square()).sum()
    return mean_over_processes(error, spread)


def logit_divergence(student_BLV: Tensor, teacher_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the next token's distribution, in nats, a scalar.

    ``KL(teacher ‖ student)`` as in distillation (Hinton et al., arXiv 1503.02531) at temperature
    1, over the tokens that have a label.

    Args:
        student_BLV: Logits, (B, L, V).
        teacher_BLV: Logits, (B, L, V).
        labels_BL: Labels, (B, L), negative where ignored.

    Example:
        >>> logits_BLV = torch.tensor([[[0.0, 0.0], [5.0, 0.0]]])
        >>> labels_BL = torch.tensor([[1, -100]])
        >>> logit_divergence(logits_BLV.flip(1), logits_BLV, labels_BL).item() > 1
        True
    """
    is_token_BL = labels_BL >= 0
    student_NV = student_BLV[is_token_BL].float().log_softmax(dim=-1)
    teacher_NV = teacher_BLV[is_token_BL].float().log_softmax(dim=-1)
    divergence = F.kl_div(student_NV, teacher_NV, log_target=True, reduction="sum")
    return mean_over_processes(divergence, is_token_BL.sum())
