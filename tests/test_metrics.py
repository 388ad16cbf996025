import math

import jiwer
import pytest
import torch

from liteasr.metrics import CorpusWER, EncoderRelativeError, macro_average

REFERENCES = ["the cat sat on the mat", "one two three", "hello"]
HYPOTHESES = ["the cat sat on mat", "one too three four", ""]


def test_corpus_wer_is_not_the_mean_of_utterances():
    wer = CorpusWER()
    wer.update(HYPOTHESES, REFERENCES)
    assert wer.compute().item() == pytest.approx(100 * jiwer.wer(REFERENCES, HYPOTHESES))
    assert wer.compute().item() == pytest.approx(40.0)


def test_batches_add_up():
    whole, parts = CorpusWER(), CorpusWER()
    whole.update(HYPOTHESES, REFERENCES, [1.0, 2.0, 3.0])
    for hypothesis, reference, seconds in zip(HYPOTHESES, REFERENCES, (1.0, 2.0, 3.0), strict=True):
        parts.update([hypothesis], [reference], [seconds])
    assert whole.summary() == parts.summary()
    assert whole.summary() == {
        "wer": 40.0,
        "utterances": 3,
        "words": 10,
        "substitutions": 1,
        "deletions": 2,
        "insertions": 1,
        "seconds": 6.0,
    }


def test_more_insertions_than_words_go_over_a_hundred_percent():
    wer = CorpusWER()
    wer.update(["a b c d"], ["a"])
    assert wer.compute().item() == 300.0


def test_macro_average_weighs_sets_alike():
    assert macro_average({"big": 10.0, "small": 30.0}) == 20.0
    assert math.isnan(macro_average({}))


def test_encoder_error_is_relative_to_the_variance_of_audio_frames():
    torch.manual_seed(0)
    z, noise = torch.randn(3, 20, 4) + 7, 0.1 * torch.randn(3, 20, 4)
    frames = torch.tensor([20, 5, 11])
    metric = EncoderRelativeError(4)
    for index in range(3):
        metric.update(z[index, None], (z + noise)[index, None], frames[index, None])
    mask = torch.arange(20) < frames[:, None]
    kept = z[mask].double()
    expected = noise[mask].double().square().sum() / (kept - kept.mean(0)).square().sum()
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_mean_as_output_has_an_error_of_one():
    z = torch.randn(1, 50, 4)
    metric = EncoderRelativeError(4)
    metric.update(z, z.mean(1, keepdim=True).expand_as(z), torch.tensor([50]))
    assert metric.compute().item() == pytest.approx(1.0, rel=1e-5)
