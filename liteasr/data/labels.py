"""From transcripts to the tokens that a decoder learns to say."""

from __future__ import annotations

import copy
import logging
import unicodedata
from collections.abc import Sequence
from typing import Any, TypedDict

from transformers import WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from liteasr.text import UNSPACED_LANGUAGES, is_english_only

__all__ = ["LabelEncoder", "Segment", "plain_text"]

log = logging.getLogger(__name__)

_TICK = 0.02
"""Seconds between two timestamp tokens."""


def plain_text(text: str) -> str:
    """Lower case, without punctuation but what is within words and numbers.

    Example:
        >>> plain_text("\u201cDON\u2019T,\u201d SAID THE WELL-READ 'MAN'.")
        "don't said the well-read man"
        >>> plain_text("3.5, 1,000")
        '3.5 1,000'
        >>> plain_text("हिन्दी में।")
        'हिन्दी में'
    """
    text = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'")
    kept = "".join(
        one if one.isalnum() or _is_part(text, at) else " " for at, one in enumerate(text)
    )
    return " ".join(kept.split())


def _is_part(text: str, at: int) -> bool:
    """Whether a character that is no letter or digit belongs to a word or a number."""
    # Vowel signs and accents: of category M in scripts that do not compose them.
    if unicodedata.category(text[at]).startswith("M"):
        return True
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if text[at] in "'-":
        return before.isalnum() and after.isalnum()
    return text[at] in ".,:" and before.isdigit() and after.isdigit()


class Segment(TypedDict):
    """A part of a clip, in seconds from its start, and what is said there."""

    start: float
    end: float
    text: str


class LabelEncoder:
    """From a transcript to the tokens that the decoder should say.

    As Whisper's own, texts begin with a space in languages that have any.

    Args:
        tokenizer: The checkpoint's tokenizer; it is copied.
        language: Spoken language of a multilingual checkpoint.
        task: Task of a multilingual checkpoint; ``transcribe`` if absent.
        plain: Write texts by :func:`plain_text`.

    Raises:
        ValueError: If the tokenizer does not know the language.
    """

    def __init__(
        self,
        tokenizer: WhisperTokenizer,
        language: str | None = None,
        task: str | None = None,
        *,
        plain: bool = False,
    ) -> None:
        self._plain = plain
        self._tokenizer: Any = copy.deepcopy(tokenizer)
        name = None if language is None else language.removeprefix("<|").removesuffix("|>")
        if name is not None:
            task = task or "transcribe"
        elif not is_english_only(tokenizer):
            log.warning("model.language: not set, so the labels of training name no language")
        self._tokenizer.set_prefix_tokens(language=name, task=task, predict_timestamps=False)
        code = TO_LANGUAGE_CODE.get((name or "en").lower(), name)
        self._lead = "" if code in UNSPACED_LANGUAGES else " "
        # The model itself puts the first of the prompt before the labels.
        self._prompt: list[int] = list(self._tokenizer.prefix_tokens[1:])
        self._no_timestamps: int = self._tokenizer.convert_tokens_to_ids("<|notimestamps|>")
        self._end: int = self._tokenizer.eos_token_id
        self._zero: int = self._tokenizer.convert_tokens_to_ids("<|0.00|>")

    @property
    def has_timestamps(self) -> bool:
        """Whether the tokenizer has tokens for times."""
        return self._zero not in (None, self._tokenizer.unk_token_id)

    def __call__(self, text: str) -> list[int]:
        """Prompt but its first token, text, end token."""
        return [*self._prompt, *self._text(text), self._end]

    def joined(self, texts: Sequence[str]) -> list[int]:
        """The same for texts that are said one after another."""
        stripped = [text.strip() for text in texts]
        return self(self._lead.join(text for text in stripped if text))

    def with_timestamps(
        self, segments: Sequence[Segment], seconds: float, open_at: float | None = None
    ) -> list[int]:
        """The same, with the time at which each segment starts and ends around its text.

        Args:
            segments: Parts of the clip.
            seconds: Length of the clip, which no time exceeds.
            open_at: Where a segment starts that does not end in the clip, in seconds.

        Raises:
            ValueError: If the tokenizer has no tokens for times.
        """
        if not self.has_timestamps:
            raise ValueError("the tokenizer has no timestamp tokens such as <|0.00|>")
        labels = [token for token in self._prompt if token != self._no_timestamps]
        for segment in segments:
            start, end = (min(segment[key], seconds) for key in ("start", "end"))
            labels += [self._time(start), *self._text(segment["text"]), self._time(end)]
        if open_at is not None:
            labels.append(self._time(min(open_at, seconds)))
        return [*labels, self._end]

    def _text(self, text: str) -> list[int]:
        text = plain_text(text) if self._plain else text.strip()
        tokens: list[int] = self._tokenizer.encode(
            self._lead + text if text else "", add_special_tokens=False
        )
        return tokens

    def _time(self, seconds: float) -> int:
        return self._zero + round(seconds / _TICK)
