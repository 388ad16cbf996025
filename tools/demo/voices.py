"""The voices of the free synthesisers, and how each is asked to speak."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from demo.grammar import Split

__all__ = ["RATE", "VOICES", "Manner", "SynthesisError", "Voice", "missing_packages", "speak"]

RATE = 16_000
"""Hz of everything that is made here."""

_PACKAGES = {
    "flite": "flite",
    "espeak-ng": "espeak-ng",
    "festival": "festival",
    "/usr/share/festival/voices/english/kal_diphone": "festvox-kallpc16k",
    "/usr/share/festival/voices/english/ked_diphone": "festvox-kdlpc16k",
    "/usr/share/festival/voices/us/cmu_us_slt_arctic_hts": "festvox-us-slt-hts",
}
"""A program or folder that must be there → the Debian package that brings it."""


class SynthesisError(RuntimeError):
    """A synthesiser that gave no sound."""


@dataclass(frozen=True)
class Manner:
    """How a sentence is spoken.

    Args:
        stretch: Duration relative to the voice's usual one.
        pitch: Fundamental frequency relative to the voice's usual one, where the voice has a way
            to change it.
    """

    stretch: float = 1.0
    pitch: float = 1.0


@dataclass(frozen=True)
class Voice:
    """One voice of one synthesiser.

    Args:
        engine: ``flite``, ``espeak`` or ``festival``.
        model: The synthesiser's name for it.
        weight: How often it speaks, relative to the others of its split.
    """

    engine: str
    model: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        """What ``speaker`` says in the metadata."""
        return f"{self.engine}-{self.model}"


def _espeak(accents: str, variants: str, weight: float) -> tuple[Voice, ...]:
    """Every accent in every variant, with a weight for all of them together."""
    models = [f"{accent}+{variant}" for accent in accents.split() for variant in variants.split()]
    return tuple(Voice("espeak", model, weight / len(models)) for model in models)


_ACCENTS = "en-us en-gb en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-gb-scotland en-us-nyc en-029"
_VARIANTS = """
    f1 f2 f3 f4 m1 m2 m3 m4 m5 m6 m7 m8 klatt klatt2 klatt3 Alex Alicia Andrea Andy Annie
    Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario Mike Nguyen adam anika announcer
    antonio aunty belinda benjamin boris caleb david ed edward grandma grandpa gustave iven
    iven2 john kaukovalta linda marcelo max michel miguel norbert pablo pedro quincy rob
    robert sandro shelby travis victor zac
"""

VOICES: dict[Split, tuple[Voice, ...]] = {
    Split.train: (
        Voice("flite", "slt", 16),
        Voice("flite", "awb", 24),
        Voice("flite", "kal16", 12),
        Voice("festival", "kal_diphone", 16),
        Voice("festival", "cmu_us_slt_arctic_hts", 12),
        *_espeak(_ACCENTS, _VARIANTS, 30),
    ),
    Split.calibration: (
        Voice("flite", "slt", 2),
        Voice("flite", "awb", 2),
        Voice("festival", "kal_diphone", 1),
        *_espeak("en-us en-gb", "steph paul", 3),
    ),
    Split.evaluation: (
        Voice("flite", "rms", 1),
        Voice("festival", "ked_diphone", 1),
        Voice("espeak", "en-us+f5", 1),
        Voice("espeak", "en-gb+michael", 1),
    ),
}
"""Who speaks in which split. The voices of the evaluation speak nowhere else."""


def missing_packages() -> list[str]:
    """Debian packages without which some voice cannot speak."""
    return [
        package
        for needed, package in _PACKAGES.items()
        if not (Path(needed).exists() if needed.startswith("/") else shutil.which(needed))
    ]


def speak(voice: Voice, sentence: str, manner: Manner) -> npt.NDArray[np.float32]:
    """A sentence as sound, without silence before and after it.

    Args:
        voice: Who speaks.
        sentence: Lower-case words.
        manner: How fast and how high.

    Returns:
        Samples at 16 kHz, (N,).

    Raises:
        SynthesisError: If the synthesiser fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        command, script = _COMMANDS[voice.engine](voice.model, sentence, manner, wav)
        result = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60)
        if result.returncode or not wav.is_file() or wav.stat().st_size < 1_000:
            raise SynthesisError(f"{voice.name}: {sentence!r}: {result.stderr.strip()}")
        samples, rate = soundfile.read(wav, dtype="float32")
    return _trim(soxr.resample(samples, rate, RATE) if rate != RATE else samples)


def _flite(model: str, sentence: str, manner: Manner, wav: Path) -> tuple[list[str], str]:
    settings = (f"duration_stretch={manner.stretch:.3f}", f"f0_shift={manner.pitch:.3f}")
    options = [word for setting in settings for word in ("--setf", setting)]
    return ["flite", "-voice", model, *options, "-t", sentence, "-o", str(wav)], ""


def _espeak_ng(model: str, sentence: str, manner: Manner, wav: Path) -> tuple[list[str], str]:
    words_a_minute = round(165 / manner.stretch)
    # 50 is the usual pitch of a voice; the scale goes to 99.
    pitch = min(99, max(0, round(50 + 110 * (manner.pitch - 1))))
    options = ["-s", str(words_a_minute), "-p", str(pitch), "-w", str(wav)]
    return ["espeak-ng", "-v", model, *options, sentence], ""


def _festival(model: str, sentence: str, manner: Manner, wav: Path) -> tuple[list[str], str]:
    # The diphone voices take their mean pitch from here; the HTS voice has its own model.
    mean = round(105 * manner.pitch)
    f0 = f"((target_f0_mean {mean}) (target_f0_std 14) (model_f0_mean 170) (model_f0_std 34))"
    script = f"""
        (voice_{model})
        (if (boundp 'int_lr_params) (set! int_lr_params '{f0}))
        (Parameter.set 'Duration_Stretch {manner.stretch:.3f})
        (utt.save.wave (utt.synth (Utterance Text "{sentence}")) "{wav}" 'riff)
    """
    return ["festival", "--pipe"], script


_COMMANDS = {"flite": _flite, "espeak": _espeak_ng, "festival": _festival}


def _trim(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Cut what is 45 dB below the loudest 10 ms at both ends, and 10 ms less than that."""
    step = RATE // 100
    steps = samples[: len(samples) // step * step].reshape(-1, step)
    energy = np.square(steps, dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-45 / 10))
    start, end = max(0, loud[0] - 1) * step, min(len(steps), loud[-1] + 2) * step
    return np.ascontiguousarray(samples[start:end])
