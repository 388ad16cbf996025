"""Whisper's decoder as compression methods see it: what it says, and how sure it is.

Shape suffixes: B clips, T encoder frames, D width, L tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

__all__ = ["WhisperDecoder"]


class WhisperDecoder:
    """A model's decoder on given outputs of the encoder.

    Args:
        model: The whole model; it is not changed.
        special_tokens: Ids of the tokens that are no text; those at the start are the prompt.
        options: Arguments of ``generate``, such as ``language``.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        special_tokens: Collection[int],
        **options: Any,
    ) -> None:
        self._model = model
        self._special = torch.tensor(sorted(special_tokens))
        self._end: int = model.config.eos_token_id
        self._options = options

    @torch.no_grad()
    def transcribe(self, encoded_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Greedy transcripts.

        Args:
            encoded_BTD: Output of the encoder for whole windows.

        Returns:
            Prompt and text, as the decoder's input, (B, L), and a mask of the positions at which
            it predicts text or the end of it, (B, L).
        """
        mask_BT = torch.ones(encoded_BTD.shape[:2], dtype=torch.long, device=encoded_BTD.device)
        output: Any = self._model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded_BTD.detach()),
            attention_mask=mask_BT,
            num_beams=1,
            do_sample=False,
            return_timestamps=False,
            return_dict_in_generate=True,
            force_unique_generate_call=True,
            **self._options,
        )
        tokens_BL: Tensor = output.sequences
        is_end_BL = tokens_BL == self._end
        is_special_BL = torch.isin(tokens_BL, self._special.to(tokens_BL)) & ~is_end_BL
        in_prompt_BL = is_special_BL.cumprod(dim=1).bool()
        # The first end token is predicted too; those after it are padding.
        is_text_BL = ~in_prompt_BL & (is_end_BL.cumsum(dim=1) - is_end_BL.long() == 0)
        return tokens_BL[:, :-1], is_text_BL[:, 1:]

    def logits(self, encoded_BTD: Tensor, tokens_BL: Tensor) -> Tensor:
        """Logits of the next token after each one, (B, L, V), differentiable."""
        output = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded_BTD),
            decoder_input_ids=tokens_BL,
            use_cache=False,
        )
        logits_BLV: Tensor = output.logits
        return logits_BLV
