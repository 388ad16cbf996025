"""Counts of a pass over evaluation sets, and speeds over several processes."""

import pytest
import torch

from liteasr import evaluation_counts
from liteasr.evaluation_counts import EncoderComparison, Evaluation


@pytest.fixture
def evaluation():
    """Ten seconds of audio in one set, two words of which one is wrong."""
    counts = Evaluation(["mine"], torch.device("cpu"))
    counts.add("mine", {"ids": ["a"], "seconds": [10.0]}, ["hello word"], ["hello world"])
    counts.recognition.seconds, counts.encoding.seconds = 4.0, 1.0
    return counts


def test_one_process(evaluation):
    result = evaluation.finish()
    assert result.results["mine"]["wer"] == 50
    assert result.predictions == [
        {"set": "mine", "id": "a", "reference": "hello world", "hypothesis": "hello word"}
    ]
    assert (result.rtfx, result.encoder_rtfx) == (2.5, 10.0)


@pytest.mark.parametrize(
    ("other", "speeds"),
    [((2.0, 2.0), (2.5, 5.0)), ((8.0, 0.5), (1.25, 10.0)), ((1.0, float("inf")), (2.5, None))],
    ids=["slower encoder", "slower in all", "encoder out of sight"],
)
def test_the_slowest_process_counts(evaluation, other, speeds, monkeypatch):
    """Audio is summed over processes by the metric; here it is all of this one."""

    def gather(items):
        is_time = bool(items) and isinstance(items[0], tuple)
        return [*items, other] if is_time else list(items)

    monkeypatch.setattr(evaluation_counts, "gather_lists", gather)
    result = evaluation.finish()
    assert (result.rtfx, result.encoder_rtfx) == speeds


def test_an_encoder_that_ran_out_of_sight_has_no_speed(evaluation):
    evaluation.lose_sight()
    result = evaluation.finish()
    assert (result.rtfx, result.encoder_rtfx) == (2.5, None)


def test_without_a_batch_there_is_no_speed_and_no_error(tiny_model):
    assert Evaluation(["mine"], torch.device("cpu")).finish().rtfx is None
    comparison = EncoderComparison(tiny_model.get_encoder(), tiny_model.config.d_model)
    comparison.start(torch.device("cpu"))
    assert comparison.compute() is None


def test_starting_again_forgets(tiny_model, tiny_features):
    encoder = tiny_model.get_encoder()
    features, frames = tiny_features[0]
    comparison = EncoderComparison(encoder, tiny_model.config.d_model)
    with torch.no_grad():
        encoded = encoder(features).last_hidden_state
        comparison.start(torch.device("cpu"))
        comparison.update(features, encoded + 1, frames, at_once=3)
        assert comparison.compute() > 0
        comparison.start(torch.device("cpu"))
        comparison.update(features, encoded, frames, at_once=4)
        assert comparison.compute() == pytest.approx(0, abs=1e-9)
