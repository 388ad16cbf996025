"""What lies between a voice and a microphone: room, noise, level.

Samples are float32 at 16 kHz, (N,); ``rng`` is the only source of chance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from demo.voices import RATE

__all__ = ["add_noise", "in_room", "pink_noise", "set_peak", "white_noise"]

Samples = npt.NDArray[np.float32]


def in_room(samples: Samples, seconds: float, wetness: float, rng: np.random.Generator) -> Samples:
    """The sound with a diffuse echo that starts 5 ms after it.

    Args:
        samples: Dry sound, (N,).
        seconds: Time in which the echo falls by 60 dB.
        wetness: Energy of the echo relative to that of the direct sound.
        rng: Draws the echo.
    """
    times = np.arange(round(seconds * RATE)) / RATE
    echo = rng.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    echo[: RATE // 200] = 0
    response = echo * np.sqrt(wetness / np.square(echo).sum())
    response[0] = 1
    size = len(samples) + len(response)
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32)


def white_noise(count: int, rng: np.random.Generator) -> Samples:
    """Noise of equal power at all frequencies, (count,)."""
    return rng.standard_normal(count).astype(np.float32)


def pink_noise(count: int, rng: np.random.Generator) -> Samples:
    """Noise of equal power in all octaves above 40 Hz, (count,)."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequencies = np.fft.rfftfreq(count, 1 / RATE)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(frequencies, 40)), count).astype(np.float32)


def add_noise(samples: Samples, noise: Samples, snr: float) -> Samples:
    """Sound and noise together.

    Args:
        samples: Sound, (N,); its power is that of its louder parts, so that pauses do not count.
        noise: Noise, (N,).
        snr: Power of the sound over that of the noise, in dB.
    """
    step = RATE // 50
    powers = np.square(samples[: len(samples) // step * step], dtype=np.float64)
    powers = powers.reshape(-1, step).mean(axis=1)
    speech_power = powers[powers > powers.max() / 1000].mean()
    noise_power = np.square(noise, dtype=np.float64).mean()
    return samples + noise * np.float32(np.sqrt(speech_power / noise_power) * 10 ** (-snr / 20))


def set_peak(samples: Samples, level: float) -> Samples:
    """The sound at another level.

    Args:
        samples: Sound, (N,).
        level: Largest amplitude of the result, in dB of full scale, at most 0.
    """
    return samples * np.float32(10 ** (level / 20) / np.abs(samples).max())
