"""The demo speech: what the grammar says, that a set can be made again, and what is shipped."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

import make_demo_speech
from demo import voices
from demo.clips import plan_clips
from demo.effects import add_noise, in_room, pink_noise, set_peak, white_noise
from demo.grammar import Split, draw_sentence, split_of, vocabulary
from demo.oggfile import write_ogg
from demo.voices import RATE, VOICES, Manner, Voice, speak
from liteasr.data import load_audio

SHIPPED = Path(__file__).resolve().parents[2] / "liteasr" / "demo" / "speech"
MISSING = voices.missing_packages()
needs_voices = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {' '.join(MISSING)}")


def sentences(split, count=2000):
    random_ = random.Random(0)
    return [draw_sentence(random_, split) for _ in range(count)]


def shipped(name):
    return [json.loads(line) for line in (SHIPPED / name / "metadata.jsonl").open()]


def spoken(rows):
    return {segment["text"] for row in rows for segment in row["segments"]}


def tone(seconds=1.0):
    return np.sin(np.arange(round(seconds * RATE)) / 20).astype(np.float32)


# ---------------------------------------------------------------------------- grammar


def test_sentences_are_plain_words():
    for sentence in sentences(Split.train):
        assert 3 <= len(sentence.split()) <= 14
        assert all(word.replace("'", "").isalpha() and word.islower() for word in sentence.split())


def test_sentences_of_a_split_are_of_no_other():
    drawn = {split: set(sentences(split)) for split in Split}
    for split, texts in drawn.items():
        assert len(texts) > 800
        assert all(split_of(text) is split for text in texts)
    for one, other in itertools.combinations(drawn.values(), 2):
        assert not one & other


def test_training_has_every_word():
    heard = {word for sentence in sentences(Split.train, 30_000) for word in sentence.split()}
    assert heard == vocabulary()
    assert 500 < len(heard) < 1000


def test_article_before_a_vowel():
    text = " ".join(sentences(Split.train, 5000))
    assert " an orange " in text
    assert " a orange " not in text


# ---------------------------------------------------------------------------- clips


def test_clips_depend_on_the_seed_alone():
    def take(seed, count):
        return list(itertools.islice(plan_clips(seed, Split.train), count))

    assert take(1, 20)[:5] == take(1, 5)
    assert take(1, 5) != take(2, 5)


def test_voices_of_the_evaluation_speak_nowhere_else():
    names = {split: {voice.name for voice in VOICES[split]} for split in Split}
    assert not names[Split.evaluation] & (names[Split.train] | names[Split.calibration])
    variants = {split: {name.split("+")[-1] for name in names[split]} for split in Split}
    assert not variants[Split.evaluation] & (variants[Split.train] | variants[Split.calibration])


def test_voices_speak_as_often_as_their_weights():
    clips = list(itertools.islice(plan_clips(0, Split.train), 2000))
    total = sum(voice.weight for voice in VOICES[Split.train])
    for voice in VOICES[Split.train][:5]:
        share = sum(clip.voice == voice for clip in clips) / len(clips)
        assert share == pytest.approx(voice.weight / total, abs=0.01)


def test_noise_is_as_loud_as_asked():
    rng = np.random.default_rng(0)
    for noise in (white_noise(RATE, rng), pink_noise(RATE, rng)):
        added = add_noise(tone(), noise, 20) - tone()
        assert 10 * np.log10(0.5 / np.square(added).mean()) == pytest.approx(20, abs=0.1)


def test_room_and_level():
    click = np.zeros(RATE, np.float32)
    click[1000] = 1
    wet = in_room(click, 0.3, 0.1, np.random.default_rng(0))
    assert np.square(wet[1001:]).sum() == pytest.approx(0.1, rel=1e-3)
    assert np.abs(wet[:1000]).max() < 1e-6
    assert np.abs(set_peak(tone(), -6)).max() == pytest.approx(10**-0.3, rel=1e-4)


def test_files_have_the_same_bytes_again(tmp_path):
    for name in ("a.ogg", "b.ogg"):
        write_ogg(tmp_path / name, 0.5 * tone(), RATE)
    assert (tmp_path / "a.ogg").read_bytes() == (tmp_path / "b.ogg").read_bytes()
    decoded = load_audio(tmp_path / "a.ogg")
    assert len(decoded) == RATE
    assert np.corrcoef(decoded, tone())[0, 1] > 0.99


def test_missing_packages_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_demo_speech.main(["train", "--output", str(tmp_path / "out")]) == 2
    assert "apt-get install flite espeak-ng festival" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@needs_voices
@pytest.mark.parametrize("voice", [*VOICES[Split.evaluation][:3], Voice("flite", "kal16")])
def test_voices_obey(voice):
    usual, slow = (speak(voice, "the answer is fifty", Manner(s)) for s in (1.0, 1.3))
    assert 0.5 < len(usual) / RATE < 3
    assert len(slow) > 1.1 * len(usual)
    assert 0.05 < np.abs(usual).max() <= 1


@needs_voices
def test_interrupted_set_goes_on(tmp_path):
    def make(name, clips, *options):
        command = ["train", "--output", str(tmp_path / name), "--clips", str(clips), *options]
        assert make_demo_speech.main(command) == 0
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {path.relative_to(tmp_path / name): path.read_bytes() for path in files}

    whole = make("whole", 4)
    make("parts", 2)
    listing = tmp_path / "parts" / "metadata.jsonl"
    listing.write_bytes(listing.read_bytes()[:-10])
    assert make("parts", 4, "--processes", "2") == whole
    assert len(whole) == 6

    command = ["train", "--output", str(tmp_path / "whole"), "--seed", "1"]
    assert make_demo_speech.main(command) == 2


def test_a_set_of_other_voices_does_not_go_on(tmp_path, monkeypatch, capsys):
    """Not with some clips by the old plan and some by the new one."""
    monkeypatch.setattr(make_demo_speech, "missing_packages", list)
    monkeypatch.setattr(make_demo_speech, "_write_all", lambda *args: iter(()))
    command = ["train", "--output", str(tmp_path / "set"), "--clips", "1"]
    assert make_demo_speech.main(command) == make_demo_speech.main(command) == 0
    monkeypatch.setitem(VOICES, Split.train, VOICES[Split.train][1:])
    assert make_demo_speech.main(command) == 2
    assert "holds a set of" in capsys.readouterr().err


# ---------------------------------------------------------------------------- what is shipped


def test_shipped_sets_share_nothing():
    calibration, evaluation = shipped("calibration"), shipped("evaluation")
    assert len(calibration) == len(evaluation) == 64
    assert not spoken(calibration) & spoken(evaluation)
    assert {split_of(text) for text in spoken(calibration)} == {Split.calibration}
    assert {split_of(text) for text in spoken(evaluation)} == {Split.evaluation}
    heard = {voice.name for voice in VOICES[Split.train]}
    assert not {row["speaker"] for row in evaluation} & heard
    assert {row["speaker"] for row in evaluation} == {v.name for v in VOICES[Split.evaluation]}


@pytest.mark.parametrize("name", ["calibration", "evaluation"])
def test_shipped_files_are_as_listed(name):
    rows = shipped(name)
    assert {row["file_name"] for row in rows} == {
        file.name for file in SHIPPED.glob(f"{name}/*.ogg")
    }
    for row in rows:
        info = soundfile.info(SHIPPED / name / row["file_name"])
        assert (info.samplerate, info.channels) == (RATE, 1)
        assert info.duration == pytest.approx(row["duration"], abs=1e-3)
        assert row["text"] == " ".join(segment["text"] for segment in row["segments"])
        times = [t for segment in row["segments"] for t in (segment["start"], segment["end"])]
        assert times == sorted(times)
        assert times[-1] <= row["duration"]
        audio = load_audio(SHIPPED / name / row["file_name"])
        assert 0.05 < np.abs(audio).max() < 1


def test_shipped_speech_is_where_its_segments_say():
    quiet, loud = [], []
    for row in shipped("evaluation"):
        audio = load_audio(SHIPPED / "evaluation" / row["file_name"])
        marks = np.zeros(len(audio), bool)
        for segment in row["segments"]:
            marks[round(segment["start"] * RATE) : round(segment["end"] * RATE)] = True
        loud.append(np.square(audio[marks]).mean())
        quiet.append(np.square(audio[~marks]).mean())
    assert np.median(np.divide(loud, quiet)) > 30


def test_shipped_speech_is_small():
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) < 3_000_000
