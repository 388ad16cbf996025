"""Log-mel is transformers' own; frames count what holds audio."""

import numpy as np
import pytest
import torch
from speech_files import RATE, noise
from transformers import WhisperFeatureExtractor, WhisperProcessor

from liteasr.data import LogMel


@pytest.mark.parametrize("bins", [80, 128])
def test_windows_are_those_of_the_extractor(bins):
    extractor = WhisperFeatureExtractor(feature_size=bins, dither=0.1)
    audio = [noise(1.0), noise(2.5, seed=1)]
    features, frames = LogMel(extractor).windows(audio)
    expected = WhisperFeatureExtractor(feature_size=bins)(
        audio, sampling_rate=RATE, return_tensors="pt"
    ).input_features
    assert features.shape == (2, bins, 3000)
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)
    assert frames.tolist() == [50, 125]
    assert frames.dtype == torch.int64
    assert extractor.dither == 0.1


@pytest.mark.parametrize(
    ("samples", "frames"),
    [
        (1, 1),
        (160, 1),
        (161, 1),
        (320, 1),
        (321, 2),
        (480_000, 1500),
        (479_840, 1500),
        (10**7, 1500),
    ],
)
def test_frames(samples, frames):
    assert LogMel(WhisperFeatureExtractor()).frames(samples) == frames


def test_long_is_what_has_more_frames_than_a_window():
    log_mel = LogMel(WhisperFeatureExtractor())
    for samples in (480_000, 480_159, 480_160):
        features, mask = log_mel.whole(np.zeros(samples, np.float32))
        assert log_mel.is_long(samples) == (features.shape[-1] > 3000)
        assert mask.shape == (1, features.shape[-1])
        assert mask.all()


def test_real_extractor(real_model):
    extractor = WhisperProcessor.from_pretrained(real_model).feature_extractor
    features, _ = LogMel(extractor).windows([noise(0.5)])
    assert features.shape == (1, 80, 3000)
