"""Normalisation of texts before words are compared: Whisper's own, nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["UNSPACED_LANGUAGES", "is_english_only", "is_scorable", "make_normalizer"]

_ENGLISH = ("en", "english")
_NOT_SCORED = "ignore time segment in scoring"
_UNSPACED = frozenset(
    ("zh", "chinese", "mandarin", "ja", "japanese", "th", "thai", "lo", "lao")
    + ("my", "myanmar", "burmese", "yue", "cantonese")
)
UNSPACED_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Codes of languages that are written without spaces between words."""

_GPT2_END_OF_TEXT = 50256


def make_normalizer(tokenizer: Any, language: str | None) -> Callable[[str], str]:
    """Whisper's text normaliser for a language.

    English gets Whisper's English normaliser: with the spellings of the tokenizer's own
    ``normalizer.json`` where it has one, else with those of the ``whisper-normalizer`` package.
    Any other language, and an unknown one, gets the basic normaliser, which puts spaces between
    the letters of languages that are written without spaces (appendix C of the Whisper paper).

    Args:
        tokenizer: The checkpoint's ``WhisperTokenizer``.
        language: Name, code or token (``english``, ``en``, ``<|en|>``); ``None`` is English for
            an English-only checkpoint and unknown otherwise.

    Returns:
        A picklable function from text to normalised text.

    Example:
        >>> from types import SimpleNamespace
        >>> tokenizer = SimpleNamespace(english_spelling_normalizer={"colour": "color"})
        >>> make_normalizer(tokenizer, "en")("Twenty-five COLOUR charts, Mr. Smith!")
        '25 color charts mister smith'
        >>> make_normalizer(tokenizer, "fr")("Dix couleurs, monsieur !").strip()
        'dix couleurs monsieur'
    """
    from transformers.models.whisper import english_normalizer

    code = None if language is None else language.strip().lower().removeprefix("<|")
    code = None if code is None else code.removesuffix("|>")
    if code in _ENGLISH or (code is None and is_english_only(tokenizer)):
        spellings = getattr(tokenizer, "english_spelling_normalizer", None)
        if spellings:
            own: Callable[[str], str] = english_normalizer.EnglishTextNormalizer(spellings)
            return own
        from whisper_normalizer.english import EnglishTextNormalizer

        packaged: Callable[[str], str] = EnglishTextNormalizer()
        return packaged
    basic: Callable[[str], str] = english_normalizer.BasicTextNormalizer(
        split_letters=code in _UNSPACED
    )
    return basic


def is_english_only(tokenizer: Any) -> bool:
    """Whether a tokenizer belongs to an English-only checkpoint.

    OpenAI's English-only vocabularies name all languages too, but end a text with GPT-2's token.

    Args:
        tokenizer: A ``WhisperTokenizer``.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    if tokenizer.eos_token_id == _GPT2_END_OF_TEXT:
        return True
    tokens = tokenizer.get_added_vocab()
    return not any(f"<|{code}|>" in tokens for code in LANGUAGES if code != "en")


def is_scorable(normalized_reference: str, raw: str = "") -> bool:
    """Whether an utterance counts for the word error rate.

    The public ASR leaderboard drops utterances with nothing to recognise and those that the
    transcriber marked to be ignored; so do we.

    Args:
        normalized_reference: Transcript, normalised.
        raw: Transcript as it came, where the normaliser may have changed the mark.

    Example:
        >>> is_scorable("hello"), is_scorable(" "), is_scorable("", "(laughs)")
        (True, False, False)
        >>> is_scorable("ignore time segment in scoring", "ignore_time_segment_in_scoring")
        False
    """
    texts = (normalized_reference, raw.lower().replace("_", " "))
    return bool(normalized_reference.strip()) and _NOT_SCORED not in (t.strip() for t in texts)
