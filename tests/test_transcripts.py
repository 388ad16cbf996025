"""Subtitles that players take, and transcripts that programs do."""

import html
import json
import re

import pytest

from liteasr.transcripts import FORMATS, Segment, Transcript, tidy_segments

LONG = " ".join(f"word{number}" for number in range(100))


def transcript(*segments, language="en"):
    return Transcript("a.wav", 7300.0, language, [Segment(*one) for one in segments], 12.5)


def cues(text, mark):
    """Start and end in seconds, and lines, of each subtitle; fails on what is none."""
    clock = rf"(\d\d):([0-5]\d):([0-5]\d)\{mark}(\d\d\d)"
    found = []
    for block in text.strip("\n").split("\n\n"):
        head, *lines = block.split("\n")
        times = re.fullmatch(rf"{clock} --> {clock}", head)
        assert times, head
        h1, m1, s1, t1, h2, m2, s2, t2 = map(int, times.groups())
        start, end = 3600 * h1 + 60 * m1 + s1 + t1 / 1e3, 3600 * h2 + 60 * m2 + s2 + t2 / 1e3
        found.append((start, end, lines))
    return found


def srt_cues(text):
    blocks = text.strip("\n").split("\n\n") if text else []
    assert [block.split("\n")[0] for block in blocks] == [str(i + 1) for i in range(len(blocks))]
    return cues("\n\n".join(block.split("\n", 1)[1] for block in blocks), ",") if blocks else []


def vtt_cues(text):
    head, _, rest = text.partition("\n")
    assert head == "WEBVTT"
    assert rest == "" or rest.startswith("\n")
    return cues(rest, ".") if rest else []


READERS = {"srt": srt_cues, "vtt": vtt_cues}


@pytest.mark.parametrize("name", READERS)
def test_subtitles_are_in_order_and_hold_all_words(name):
    said = transcript((0.0, 2.5, "good morning"), (2.5, 40.25, LONG), (7199.0, 7203.004, "end"))
    found = READERS[name](FORMATS[name](said))
    assert found[0] == (0.0, 2.5, ["good morning"])
    assert found[-1] == (7199.0, 7203.004, ["end"])
    assert len(found) > 8
    for (start, end, lines), after in zip(found, [*found[1:], (7300.0,)], strict=True):
        assert start < end <= after[0]
        assert 1 <= len(lines) <= 2
        assert all(0 < len(line) <= 42 for line in lines)
    assert " ".join(line for *_, lines in found for line in lines) == said.text


@pytest.mark.parametrize("name", READERS)
def test_long_text_is_shown_while_its_share_is_said(name):
    found = READERS[name](FORMATS[name](transcript((10.0, 50.0, LONG))))
    assert (found[0][0], found[-1][1]) == (10.0, 50.0)
    rates = [sum(map(len, lines)) / (end - start) for start, end, lines in found]
    assert max(rates) < 1.1 * min(rates)
    for before, after in zip(found, found[1:], strict=False):
        assert before[1] == after[0]


@pytest.mark.parametrize("name", READERS)
def test_much_text_in_a_moment_is_still_in_order(name):
    for milliseconds in (1, 3, 9, 20):
        end = 1 + milliseconds / 1e3
        found = READERS[name](FORMATS[name](transcript((1.0, end, LONG), (end, 2.0, "after"))))
        assert all(start < stop for start, stop, _ in found)
        assert all(a[1] <= b[0] for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize("name", READERS)
def test_nothing_said_is_no_subtitle(name):
    assert READERS[name](FORMATS[name](transcript())) == []
    assert FORMATS["txt"](transcript()) == "\n"


def test_marks_of_the_format_in_the_text_do_no_harm():
    said = transcript((0.0, 1.0, "a <b> & c --> d"))
    (cue,) = vtt_cues(FORMATS["vtt"](said))
    assert not set("<>") & set(cue[2][0])
    assert html.unescape(cue[2][0]) == "a <b> & c --> d"
    (cue,) = srt_cues(FORMATS["srt"](said))
    assert "-->" not in cue[2][0]


def test_json_is_the_documented_object():
    said = transcript((0.0, 1.0, "grüß"), (1.0, 2.0, "gott"), language="de")
    assert json.loads(FORMATS["json"](said)) == {
        "file": "a.wav",
        "duration": 7300.0,
        "language": "de",
        "text": "grüß gott",
        "segments": [
            {"start": 0.0, "end": 1.0, "text": "grüß"},
            {"start": 1.0, "end": 2.0, "text": "gott"},
        ],
        "rtfx": 12.5,
    }


def test_languages_without_spaces_get_none():
    assert transcript((0.0, 1.0, "你好"), (1.0, 2.0, "世界"), language="zh").text == "你好世界"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([(0.0, 4.0, "a"), (3.0, 6.0, "b")], [(1.0, 4.0, "a"), (4.0, 6.0, "b")]),
        ([(2.0, 30.0, "a")], [(2.0, 8.0, "a")]),
        ([(2.0, 3.0, " \n"), (3.0, 4.0, " a\n\nb\x00 ")], [(3.0, 4.0, "a b")]),
        ([(2.0, 2.0, "a"), (2.0, 3.0, "b")], [(2.0, 3.0, "a b")]),
        ([(2.0, 3.0, "a"), (9.0, 9.5, "b")], [(2.0, 3.0, "a b")]),
        ([(9.0, 9.5, "a"), (9.5, 9.9, "b")], [(1.0, 8.0, "a b")]),
        ([(5.0, 6.0, "a"), (2.0, 3.0, "b")], [(5.0, 6.0, "a b")]),
        ([], []),
    ],
)
def test_tidy_segments_lose_no_words_and_keep_within_their_piece(given, expected):
    tidy = tidy_segments([Segment(*one) for one in given], 1.0, 8.0)
    assert [(one.start, one.end, one.text) for one in tidy] == expected


def test_a_piece_of_a_single_sample_has_a_moment():
    (segment,) = tidy_segments([Segment(3.0, 3.00006, "a")], 3.0, 3.00006)
    assert segment.start < segment.end
