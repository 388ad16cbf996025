"""A grammar of everyday requests: what the demo speech says.

A rule is a list of alternatives, one a line; ``<name>`` stands for any alternative of that rule.
Every alternative of a rule is as likely as the others. Words that sound alike are used where their
neighbours tell them apart, and words with two pronunciations are avoided: synthesisers guess those
wrong.
"""

from __future__ import annotations

import hashlib
import random
import re
from enum import Enum
from functools import cache

from demo.rules import RULES

__all__ = ["Split", "draw_sentence", "split_of", "vocabulary"]

_SLOT = re.compile(r"<(\w+)>")
_A_BEFORE_VOWEL = re.compile(r"\ba (?=[aeiou])")
_FEWEST, _MOST = 3, 14
_EVALUATION_PERCENT = 6
_CALIBRATION_PERCENT = 6


class Split(Enum):
    """What a sentence may be used for."""

    train = "train"
    calibration = "calibration"
    evaluation = "evaluation"


def draw_sentence(random_: random.Random, split: Split) -> str:
    """A sentence of 3 to 14 lower-case words, in a split of its own.

    Args:
        random_: Where chance comes from.
        split: Which sentences may be drawn; no sentence is in two splits.

    Example:
        >>> draw_sentence(random.Random(3), Split.train) == draw_sentence(
        ...     random.Random(3), Split.train
        ... )
        True
    """
    while True:
        sentence = _expand("<sentence>", random_)
        if _FEWEST <= len(sentence.split()) <= _MOST and split_of(sentence) is split:
            return sentence


def split_of(sentence: str) -> Split:
    """The split of a sentence: by a hash of its words, so that it depends on nothing else.

    Args:
        sentence: Lower-case words.
    """
    digest = hashlib.sha256(sentence.encode()).digest()
    percent = int.from_bytes(digest[:4], "big") % 100
    if percent < _EVALUATION_PERCENT:
        return Split.evaluation
    if percent < _EVALUATION_PERCENT + _CALIBRATION_PERCENT:
        return Split.calibration
    return Split.train


@cache
def vocabulary() -> frozenset[str]:
    """Every word that the grammar knows."""
    lines = [line for lines in _alternatives().values() for line in lines]
    return frozenset(word for line in lines for word in _SLOT.sub(" ", line).split()) | {"an"}


@cache
def _alternatives() -> dict[str, tuple[str, ...]]:
    """The rules with their alternatives as lists of lines."""
    return {
        name: tuple(line.strip() for line in text.strip().splitlines() if line.strip())
        for name, text in RULES.items()
    }


def _expand(text: str, random_: random.Random) -> str:
    rules = _alternatives()
    while (slot := _SLOT.search(text)) is not None:
        chosen = random_.choice(rules[slot[1]])
        text = text[: slot.start()] + chosen + text[slot.end() :]
    return _A_BEFORE_VOWEL.sub("an ", " ".join(text.split()))
