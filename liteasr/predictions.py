"""What a model said of each utterance: counted, kept in the run folder, read again, compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jiwer

from liteasr.files import write_text

__all__ = ["Difference", "Prediction", "differences", "read_predictions", "write_predictions"]


@dataclass(frozen=True)
class Prediction:
    """One utterance as a model heard it; a line of ``predictions/<stage>-<set>.jsonl``.

    Attributes:
        set: Name of the set.
        id: File, or row of a hub data set.
        words: Words of the reference.
        edits: Substitutions, deletions and insertions together.
        substitutions: Words heard as others.
        deletions: Words not heard.
        insertions: Words heard that nobody said.
        reference: Transcript, normalised.
        hypothesis: Recognised text, normalised.
    """

    set: str
    id: str
    words: int
    edits: int
    substitutions: int
    deletions: int
    insertions: int
    reference: str
    hypothesis: str

    @classmethod
    def of(cls, text: Mapping[str, str]) -> Prediction:
        """Count the edits of ``set``, ``id``, ``reference`` and ``hypothesis``.

        Example:
            >>> texts = {"reference": "the cat sat", "hypothesis": "a cat sat down"}
            >>> one = Prediction.of({"set": "mine", "id": "a.wav", **texts})
            >>> one.words, one.edits, one.substitutions, one.insertions
            (3, 2, 1, 1)
        """
        counts = jiwer.process_words(text["reference"], text["hypothesis"])
        changes = (counts.substitutions, counts.deletions, counts.insertions)
        words = counts.hits + counts.substitutions + counts.deletions
        return cls(
            text["set"],
            text["id"],
            words,
            sum(changes),
            *changes,
            text["reference"],
            text["hypothesis"],
        )


def write_predictions(folder: Path, stage: str, texts: Iterable[Mapping[str, str]]) -> None:
    """Write one file a set, a line an utterance, most edits first.

    Args:
        folder: Folder to write into; made if absent.
        stage: ``dense``, ``compressed`` or ``finetuned``.
        texts: ``set``, ``id``, ``reference`` and ``hypothesis`` of each utterance.
    """
    by_set: dict[str, list[Prediction]] = {}
    for text in texts:
        by_set.setdefault(text["set"], []).append(Prediction.of(text))
    for name, predictions in by_set.items():
        predictions.sort(key=lambda one: (-one.edits, one.id))
        lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in predictions]
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{stage}-{quote(name, safe=' ')}.jsonl", "".join(lines))


def read_predictions(folder: Path, stage: str) -> list[Prediction]:
    """All sets of a stage; none if there are no files.

    Raises:
        ValueError: If a file is not one of :func:`write_predictions`, named.
    """
    predictions = []
    for file in sorted(folder.glob(f"{stage}-*.jsonl")):
        try:
            for line in file.read_text(encoding="utf-8").split("\n"):
                if line:
                    predictions.append(Prediction(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file} does not hold predictions: {error}") from error
    return predictions


class Difference(NamedTuple):
    """A stretch of words, equal in both texts or not.

    ``kind`` is ``equal``, ``substitute``, ``delete`` or ``insert``.
    """

    kind: str
    reference: str
    hypothesis: str


def differences(reference: str, hypothesis: str) -> list[Difference]:
    """What was said and what was heard, side by side.

    Args:
        reference: Transcript, normalised.
        hypothesis: Recognised text, normalised.

    Example:
        >>> for one in differences("the cat sat", "a cat sat down"):
        ...     print(*one, sep="|")
        substitute|the|a
        equal|cat sat|cat sat
        insert||down
    """
    found = jiwer.process_words(reference, hypothesis)
    said, heard = found.references[0], found.hypotheses[0]
    return [
        Difference(
            chunk.type,
            " ".join(said[chunk.ref_start_idx : chunk.ref_end_idx]),
            " ".join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in found.alignments[0]
    ]
