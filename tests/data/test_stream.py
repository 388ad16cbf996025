"""Audio read a block at a time is the audio read whole, in memory that does not grow."""

import tracemalloc

import numpy as np
import pytest
import soundfile
from speech_files import RATE, audio_bytes, noise

from liteasr.data import AudioError, AudioStream, cut_pieces, load_audio, split_windows


def read(path, rate=RATE):
    with AudioStream(path, rate) as stream:
        return np.concatenate(list(stream)), stream


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_blocks_are_the_file(tmp_path, rate, channels):
    file = tmp_path / "noise.wav"
    soundfile.write(file, noise(9.3, rate, channels=channels), rate)
    audio, stream = read(file)
    np.testing.assert_allclose(audio, load_audio(file), atol=1e-6)
    assert stream.seconds == pytest.approx(9.3, abs=1e-3)
    assert stream.expected_seconds == stream.seconds
    assert stream.shortfall is None


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "aiff", "au"])
def test_any_format(tmp_path, suffix):
    file = tmp_path / f"noise.{suffix}"
    soundfile.write(file, noise(10.0), RATE)
    assert np.array_equal(read(file)[0], load_audio(file))


@pytest.mark.parametrize("seconds", [0.5, 3.0, 10.0, 61.3])
@pytest.mark.parametrize("block", [400, 16_000, 70_000])
def test_pieces_of_blocks_are_the_windows_of_the_whole(seconds, block):
    audio = noise(seconds)
    blocks = [audio[i : i + block] for i in range(0, len(audio), block)]
    pieces = list(cut_pieces(blocks, 3.0))
    windows = split_windows(audio, 3.0)
    assert len(pieces) == len(windows)
    assert all(np.array_equal(p, w) for p, w in zip(pieces, windows, strict=True))


def test_memory_does_not_grow_with_length(tmp_path):
    """Twenty minutes, 77 MB of samples once resampled."""
    file = tmp_path / "long.wav"
    second = (1e4 * noise(1.0, 8_000, channels=2)).astype(np.int16)
    with soundfile.SoundFile(file, "w", 8_000, 2) as writer:
        for _ in range(1_200):
            writer.write(second)
    tracemalloc.start()
    with AudioStream(file) as stream:
        samples = sum(len(piece) for piece in cut_pieces(stream))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples == 1_200 * RATE
    assert peak < 16e6


def test_a_length_that_the_header_does_not_know(tmp_path):
    """As encoders write it that write to a pipe."""
    content = bytearray(audio_bytes(10.0))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    file = tmp_path / "piped.flac"
    file.write_bytes(content)
    audio, stream = read(file)
    assert len(audio) == 10 * RATE
    assert stream.expected_seconds is None
    assert stream.shortfall is None


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_what_is_left_of_a_file_cut_short_is_read(tmp_path, suffix):
    file = tmp_path / f"half.{suffix}"
    soundfile.write(file, noise(20.0), RATE)
    whole = load_audio(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    audio, stream = read(file)
    assert 4.0 <= stream.seconds <= 11.0
    assert len(audio) == round(stream.seconds * RATE)
    np.testing.assert_allclose(audio[: 4 * RATE], whole[: 4 * RATE], atol=1e-6)
    assert f"{stream.seconds:.1f}" in stream.shortfall


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"no audio at all\n" * 200, "cannot be decoded"),
        (audio_bytes(2.0)[:100], "cannot be decoded|no samples"),
        (audio_bytes(0.0, format="WAV"), "no samples"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, content, reason):
    file = tmp_path / "bad.flac"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(AudioError, match=f"bad.flac: .*({reason})"):
        read(file)


def test_samples_that_are_not_finite_are_refused(tmp_path):
    samples = noise(10.0)
    samples[9 * RATE] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav: .*not finite"):
        read(tmp_path / "nan.wav")
