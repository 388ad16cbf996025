"""Any file libsndfile reads becomes 16 kHz mono; anything else says why not."""

import io

import numpy as np
import pytest
import soundfile
from speech_files import RATE, audio_bytes, noise

from liteasr.data import AudioError, audio_seconds, load_audio, split_windows


def tone(seconds, rate, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f4")


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_any_rate(tmp_path, rate):
    file = tmp_path / "tone.wav"
    soundfile.write(file, tone(1.0, rate), rate)
    audio = load_audio(file)
    assert audio.dtype == np.float32
    assert audio.shape == (RATE,)
    inner = slice(500, -500)  # the filter rings at the ends
    np.testing.assert_allclose(audio[inner], tone(1.0, RATE)[inner], atol=2e-3)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_any_format(tmp_path, suffix):
    file = tmp_path / f"tone.{suffix}"
    soundfile.write(file, tone(1.0, RATE), RATE)
    audio = load_audio(file)
    assert abs(len(audio) - RATE) < 0.1 * RATE
    assert np.abs(audio).max() == pytest.approx(0.5, abs=0.05)
    assert audio_seconds(file) == pytest.approx(len(audio) / RATE, abs=1e-3)


def test_channels_are_averaged(tmp_path):
    file = tmp_path / "stereo.wav"
    stereo = noise(0.5, 8_000, channels=2)
    soundfile.write(file, stereo, 8_000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(file, 8_000), stereo.mean(axis=1), atol=1e-6)
    assert load_audio(file).shape == (8_000,)


def test_bytes_are_as_good_as_a_file():
    content = audio_bytes(0.5)
    assert load_audio(content).shape == (8_000,)
    assert audio_seconds(content) == 0.5


def broken(tmp_path, kind):
    path = tmp_path / f"{kind}.wav"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no audio\n" * 100)
    elif kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        content = audio_bytes(2.0)
        path.write_bytes(content[: len(content) // 2])
    elif kind == "corrupted":
        content = bytearray(audio_bytes(2.0))
        content[len(content) // 3 : len(content) // 3 + 2_000] = b"\x55" * 2_000
        path.write_bytes(content)
    elif kind == "silent":
        soundfile.write(path, np.zeros(0, "f4"), RATE)
    elif kind == "infinite":
        samples = noise(0.1)
        samples[5] = np.inf
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "does not exist"),
        ("folder", "is no file"),
        ("empty", "is empty"),
        ("text", "cannot be decoded"),
        ("truncated", "cut short|cannot be decoded"),
        ("corrupted", "cut short|cannot be decoded"),
        ("silent", "no samples"),
        ("infinite", "not finite"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, kind, reason):
    path = broken(tmp_path, kind)
    with pytest.raises(AudioError, match=reason) as caught:
        load_audio(path)
    assert caught.value.name == str(path)
    if path.is_file():
        with pytest.raises(AudioError, match=f"row 7: .*({reason})"):
            load_audio(path.read_bytes(), name="row 7")


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "silent"])
def test_headers_tell_too(tmp_path, kind):
    with pytest.raises(AudioError, match=kind):
        audio_seconds(broken(tmp_path, kind))


def test_errors_do_not_depend_on_the_file_name(tmp_path):
    file = tmp_path / "speech.raw"
    file.write_bytes(audio_bytes(0.1))
    with pytest.raises(AudioError, match="speech.raw"):
        load_audio(file)


@pytest.mark.parametrize("seconds", [0.01, 29.9, 30.0, 30.001, 61.3, 95.0])
def test_windows_put_together_are_the_input(seconds):
    audio = noise(seconds)
    windows = split_windows(audio)
    assert all(0 < len(window) <= 30 * RATE for window in windows)
    assert np.array_equal(np.concatenate(windows), audio)
    assert len(windows) == 1 if seconds <= 30 else len(windows) >= seconds / 30


def test_cuts_are_at_quiet_places():
    audio = noise(70.0)
    for start, stop in ((26.0, 26.3), (52.5, 53.0), (10.0, 12.0)):
        audio[round(start * RATE) : round(stop * RATE)] *= 1e-3
    cuts = np.cumsum([len(window) / RATE for window in split_windows(audio)])[:-1]
    assert 26.0 <= cuts[0] <= 26.3
    assert 52.5 <= cuts[1] <= 53.0


def test_silence_makes_windows_as_long_as_they_may_be():
    lengths = [len(window) / RATE for window in split_windows(np.zeros(65 * RATE, np.float32))]
    assert lengths[0] == pytest.approx(30.0, abs=0.05)
    assert len(lengths) == 3


@pytest.mark.parametrize("longest", [1.0, 0.2, 0.01])
def test_short_windows(longest):
    audio = noise(3.0)
    windows = split_windows(audio, longest)
    assert max(map(len, windows)) <= longest * RATE
    assert np.array_equal(np.concatenate(windows), audio)


def test_windows_at_another_rate():
    audio = noise(5.0, 8_000)
    windows = split_windows(audio, 2.0, 8_000)
    assert max(map(len, windows)) <= 16_000
    assert np.array_equal(np.concatenate(windows), audio)


def test_a_closed_file_is_not_left_open(tmp_path):
    file = io.BytesIO(audio_bytes(0.1))
    assert len(load_audio(file.getvalue())) == 1_600
