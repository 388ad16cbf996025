"""From transcripts to the tokens that a decoder learns to say."""

from __future__ import annotations

import copy
import logging
from typing import Any

from transformers import WhisperTokenizer

from liteasr.text import is_english_only

__all__ = ["LabelEncoder"]

log = logging.getLogger(__name__)


class LabelEncoder:
    """From a transcript to the tokens that the decoder should say.

    Args:
        tokenizer: The checkpoint's tokenizer; it is copied.
        language: Spoken language of a multilingual checkpoint.
        task: Task of a multilingual checkpoint; ``transcribe`` if absent.

    Raises:
        ValueError: If the tokenizer does not know the language.
    """

    def __init__(
        self, tokenizer: WhisperTokenizer, language: str | None = None, task: str | None = None
    ) -> None:
        self._tokenizer: Any = copy.deepcopy(tokenizer)
        name = None if language is None else language.removeprefix("<|").removesuffix("|>")
        if name is not None:
            task = task or "transcribe"
        elif not is_english_only(tokenizer):
            log.warning("model.language: not set, so the labels of training name no language")
        self._tokenizer.set_prefix_tokens(language=name, task=task, predict_timestamps=False)
        self._start = self._tokenizer.convert_tokens_to_ids("<|startoftranscript|>")

    def __call__(self, text: str) -> list[int]:
        """Prefix tokens but the first, text, end token; the model itself puts the first before."""
        tokens: list[int] = self._tokenizer(text).input_ids
        return tokens[1:] if tokens[0] == self._start else tokens
