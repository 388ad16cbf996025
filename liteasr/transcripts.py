"""What was said and when, and the formats it is written in; times in seconds."""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from liteasr.text import UNSPACED_LANGUAGES

__all__ = ["FORMATS", "Segment", "Transcript", "tidy_segments"]

LINE_CHARACTERS = 42
"""Longest line of a subtitle."""
CUE_LINES = 2
"""Lines of a subtitle shown together."""

_MILLISECOND = 0.001
_NO_TEXT = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class Segment:
    """A stretch of speech.

    Attributes:
        start: Its beginning.
        end: Its end.
        text: What was said in it.
    """

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """What was said in one file.

    Attributes:
        file: Name of the file.
        duration: Its length.
        language: Code of the spoken language, such as ``en``, given or recognised; ``None`` if the
            checkpoint does not say.
        segments: In order, without overlap; silence is left out.
        rtfx: Seconds of audio per second of work.
        warning: What is wrong with the file, if only a part of it could be read.

    Example:
        >>> said = Transcript("a.wav", 2.0, "en", [Segment(0.0, 2.0, "good morning")], 50.0)
        >>> said.text
        'good morning'
        >>> print(FORMATS["srt"](said), end="")
        1
        00:00:00,000 --> 00:00:02,000
        good morning
    """

    file: str
    duration: float
    language: str | None
    segments: list[Segment] = field(default_factory=list)
    rtfx: float = 0.0
    warning: str | None = None

    @property
    def text(self) -> str:
        """All that was said, on one line."""
        space = "" if self.language in UNSPACED_LANGUAGES else " "
        return space.join(segment.text for segment in self.segments)

    def to_dict(self) -> dict[str, Any]:
        """``file``, ``duration``, ``language``, ``text``, ``segments`` and ``rtfx``, plain.

        ``warning`` too, where there is one.
        """
        return {
            "file": self.file,
            "duration": self.duration,
            "language": self.language,
            "text": self.text,
            "segments": [asdict(segment) for segment in self.segments],
            "rtfx": self.rtfx,
            **({} if self.warning is None else {"warning": self.warning}),
        }


def tidy_segments(segments: Iterable[Segment], start: float, end: float) -> list[Segment]:
    """Segments in order, in milliseconds, without overlap, blank text or control characters.

    The text of a segment without duration goes to its neighbour.

    Args:
        segments: As the model gives them.
        start: Where the audio they are of begins; none begins earlier.
        end: Where it ends; none ends later.

    Example:
        >>> tidy_segments([Segment(0, 9, " a "), Segment(8, 9, "b"), Segment(9, 9, "")], 0, 8.5)
        [Segment(start=0, end=8.5, text='a b')]
    """
    tidy: list[Segment] = []
    early = ""
    at, end = round(start, 3), round(end, 3)
    for segment in segments:
        text = _NO_TEXT.sub(" ", segment.text).strip()
        first, last = max(at, round(segment.start, 3)), min(end, round(segment.end, 3))
        if not text:
            continue
        if last > first:
            tidy.append(Segment(first, last, f"{early} {text}".strip()))
            early, at = "", last
        elif tidy:
            tidy[-1] = replace(tidy[-1], text=f"{tidy[-1].text} {text}")
        else:
            early = f"{early} {text}".strip()
    if early:
        tidy.append(Segment(at, max(end, round(at + _MILLISECOND, 3)), early))
    return tidy


def _cues(transcript: Transcript) -> Iterator[tuple[int, int, list[str]]]:
    """Subtitles: start and end in milliseconds, and lines.

    A segment too long to be read at once becomes several, each as long as its share of the text.
    """
    for segment in transcript.segments:
        lines = textwrap.wrap(segment.text, LINE_CHARACTERS)
        groups = [lines[i : i + CUE_LINES] for i in range(0, len(lines), CUE_LINES)]
        start, end = round(1000 * segment.start), round(1000 * segment.end)
        if end - start < len(groups):
            groups = [lines]
        total, done, at = sum(map(len, lines)), 0, start
        for index, group in enumerate(groups):
            done += sum(map(len, group))
            # Every subtitle to come needs a millisecond.
            latest = end - (len(groups) - 1 - index)
            until = min(max(start + round((end - start) * done / total), at + 1), latest)
            yield at, until, group
            at = until


def _clock(milliseconds: int, mark: str) -> str:
    seconds, thousandths = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{thousandths:03}"


def _txt(transcript: Transcript) -> str:
    return transcript.text + "\n"


def _json(transcript: Transcript) -> str:
    return json.dumps(transcript.to_dict(), indent=2, ensure_ascii=False) + "\n"


def _srt(transcript: Transcript) -> str:
    blocks = []
    for number, (start, end, lines) in enumerate(_cues(transcript), 1):
        # The format has no escapes; the arrow is what its readers look for.
        text = "\n".join(lines).replace("-->", "->")
        blocks.append(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n")
    return "\n".join(blocks)


def _vtt(transcript: Transcript) -> str:
    blocks = ["WEBVTT\n"]
    for start, end, lines in _cues(transcript):
        text = html.escape("\n".join(lines), quote=False)
        blocks.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n")
    return "\n".join(blocks)


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": _txt,
    "json": _json,
    "srt": _srt,
    "vtt": _vtt,
}
"""Format → its writer. A file of the format ends in its name."""
