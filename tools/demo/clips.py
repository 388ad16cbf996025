"""Clips: first what each one is to be, drawn from a seed, then its sound."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from demo.effects import Samples, add_noise, in_room, pink_noise, set_peak, white_noise
from demo.grammar import Split, draw_sentence
from demo.oggfile import write_ogg
from demo.voices import RATE, VOICES, Manner, Voice, speak

__all__ = ["Clip", "plan_clips", "render", "write_clip"]

_BABBLERS = 3
_WINDOW_SECONDS = 30.0


@dataclass(frozen=True)
class Clip:
    """One clip before it is made.

    Args:
        name: File name, relative to the folder of its set.
        voice: Who speaks.
        manner: How fast and how high.
        warp: Factor on all frequencies (and on speed), as of a smaller or larger speaker.
        sentences: What is said.
        silences: Seconds before, between and after the sentences.
        room: Seconds of echo and its energy relative to the direct sound, or none.
        noise: ``white``, ``pink`` or ``babble``.
        snr: Speech over noise, in dB.
        level: Largest amplitude, in dB of full scale.
        babble: Who says what in the background, if ``noise`` is ``babble``.
        seed: Seed of the noise.
    """

    name: str
    voice: Voice
    manner: Manner
    warp: float
    sentences: tuple[str, ...]
    silences: tuple[float, ...]
    room: tuple[float, float] | None
    noise: str
    snr: float
    level: float
    babble: tuple[tuple[Voice, str], ...]
    seed: int


def plan_clips(seed: int, split: Split) -> Iterator[Clip]:
    """Clips without end; the first ones are the same however many are taken.

    Sentences of calibration and evaluation do not repeat; those of training do in other clips.

    Args:
        seed: Seed of everything that is drawn.
        split: Decides on sentences, voices and variety.
    """
    said: set[str] = set()
    index = 0
    while True:
        if split is Split.train:
            said = set()
        yield _plan(random.Random(f"{seed}/{split.value}/{index}"), index, split, said)
        index += 1


def _plan(random_: random.Random, index: int, split: Split, said: set[str]) -> Clip:
    is_training = split is Split.train
    voices = VOICES[split]
    count = random_.choices((1, 2, 3), (0.5, 0.35, 0.15) if is_training else (0.75, 0.2, 0.05))[0]
    sentences = tuple(_new_sentence(random_, split, said) for _ in range(count))
    pauses = [random_.uniform(0.3, 1.4) for _ in range(count - 1)]
    noise = random_.choice(("white", "pink", "pink", "babble"))
    babblers = VOICES[Split.train] if is_training else voices
    fast = [voice for voice in babblers if voice.engine == "espeak"]
    return Clip(
        name=f"{index // 1000:03}/{index:06}.flac" if is_training else f"{index:03}.ogg",
        voice=_turn(voices, index),
        manner=Manner(
            1.06 * _around(random_, 0.3 if is_training else 0.2),
            _around(random_, 0.3 if is_training else 0.18),
        ),
        warp=_around(random_, 0.2) if is_training else 1.0,
        sentences=sentences,
        silences=(random_.uniform(0.05, 0.6), *pauses, random_.uniform(0.1, 0.6)),
        room=(random_.uniform(0.1, 0.45), random_.uniform(0.02, 0.25))
        if random_.random() < 0.5
        else None,
        noise=noise,
        snr=random_.uniform(15, 35),
        level=random_.uniform(-18, -1),
        babble=tuple(
            (random_.choice(fast), " ".join(draw_sentence(random_, split) for _ in range(2)))
            for _ in range(_BABBLERS)
        )
        if noise == "babble"
        else (),
        seed=random_.getrandbits(63),
    )


def _turn(voices: tuple[Voice, ...], index: int) -> Voice:
    """Voices by turns, as often as their weights say."""
    total = sum(voice.weight for voice in voices)
    # The golden ratio spreads the turns of a voice evenly over any number of clips.
    place = (index * (math.sqrt(5) - 1) / 2) % 1 * total
    for voice in voices:
        place -= voice.weight
        if place < 0:
            return voice
    return voices[-1]


def _new_sentence(random_: random.Random, split: Split, said: set[str]) -> str:
    while True:
        sentence = draw_sentence(random_, split)
        if sentence not in said:
            said.add(sentence)
            return sentence


def _around(random_: random.Random, spread: float) -> float:
    """A factor around 1, as likely above as below."""
    return (1 + spread) ** random_.uniform(-1, 1)


def render(clip: Clip) -> tuple[Samples, list[dict[str, Any]]]:
    """The sound of a clip, (N,), and start and end of each sentence in seconds."""
    parts: list[Samples] = [np.zeros(round(clip.silences[0] * RATE), np.float32)]
    segments = []
    for sentence, silence in zip(clip.sentences, clip.silences[1:], strict=True):
        speech = _warped(speak(clip.voice, sentence, clip.manner), clip.warp)
        start = sum(map(len, parts)) / RATE
        end = start + len(speech) / RATE
        segments.append({"start": round(start, 2), "end": round(end, 2), "text": sentence})
        parts += [set_peak(speech, -3), np.zeros(round(silence * RATE), np.float32)]
    samples = np.concatenate(parts)
    assert len(samples) < _WINDOW_SECONDS * RATE, clip
    rng = np.random.default_rng(clip.seed)
    if clip.room is not None:
        samples = in_room(samples, *clip.room, rng)
    samples = add_noise(samples, _noise(clip, len(samples), rng), clip.snr)
    return set_peak(samples, clip.level), segments


def _warped(speech: Samples, warp: float) -> Samples:
    return speech if warp == 1 else soxr.resample(speech, RATE * warp, RATE)


def _noise(clip: Clip, count: int, rng: np.random.Generator) -> Samples:
    if clip.noise == "white":
        return white_noise(count, rng)
    if clip.noise == "pink":
        return pink_noise(count, rng)
    babble = np.zeros(count, np.float32)
    for voice, text in clip.babble:
        speech = set_peak(speak(voice, text, Manner()), -3)
        # From a random place on and over again, so that it fills the clip.
        babble += np.resize(np.roll(speech, int(rng.integers(len(speech)))), count)
    return babble


def write_clip(clip: Clip, folder: Path) -> dict[str, Any]:
    """Write a clip's file, replacing one that is there, and return its line of metadata.

    Args:
        clip: What to make.
        folder: Folder of its set.
    """
    samples, segments = render(clip)
    file = folder / clip.name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".flac":
        soundfile.write(file, samples, RATE, subtype="PCM_16")
    else:
        write_ogg(file, samples, RATE)
    return {
        "file_name": clip.name,
        "text": " ".join(segment["text"] for segment in segments),
        "speaker": clip.voice.name,
        "duration": round(len(samples) / RATE, 3),
        "segments": segments,
    }
