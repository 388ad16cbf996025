"""The decoder as methods see it: its own transcripts and what it predicts for them."""

import pytest
import torch
from tiny import give_opinions

from liteasr.modeling.decoder import WhisperDecoder

END, START, PROMPT = 0, 1, 2


@pytest.fixture
def decoder(tiny_model):
    return WhisperDecoder(give_opinions(tiny_model).eval(), [END, START, PROMPT])


@pytest.fixture
def encoded(tiny_model):
    return torch.randn(5, 50, 64, generator=torch.Generator().manual_seed(0))


def test_what_it_says_is_what_it_finds_most_likely(decoder, encoded):
    tokens, predicted = decoder.transcribe(encoded)
    assert tokens.shape == predicted.shape
    likeliest = decoder.logits(encoded, tokens).argmax(-1)
    is_inner = predicted[:, :-1]
    assert predicted.any(dim=1).all()
    assert torch.equal(likeliest[:, :-1][is_inner], tokens[:, 1:][is_inner])


def test_clips_do_not_change_each_other(decoder, encoded):
    tokens, predicted = decoder.transcribe(encoded)
    for row, one in enumerate(encoded):
        alone, alone_predicted = decoder.transcribe(one[None])
        assert int(alone_predicted.sum()) == int(predicted[row].sum())
        length = alone.shape[1]
        is_one = alone_predicted[0]
        assert torch.equal(alone[0][is_one], tokens[row, :length][is_one])


class Saying:
    """Stands for a model that says given sequences."""

    class config:  # noqa: N801
        eos_token_id = END

    def __init__(self, sequences):
        self.sequences = torch.tensor(sequences)

    def generate(self, **_options):
        return self


@pytest.mark.parametrize(
    ("sequence", "predicted"),
    [
        ([START, PROMPT, 7, 8, END, END], [0, 1, 1, 1, 0]),
        ([START, PROMPT, END, END, END, END], [0, 1, 0, 0, 0]),
        ([START, PROMPT, 7, 8, 9, 7], [0, 1, 1, 1, 1]),
        ([START, 7, 8, END, END, END], [1, 1, 1, 0, 0]),
    ],
)
def test_text_and_its_end_are_predicted_and_nothing_else(sequence, predicted):
    decoder = WhisperDecoder(Saying([sequence]), [END, START, PROMPT])
    tokens, mask = decoder.transcribe(torch.zeros(1, 4, 2))
    assert tokens.tolist() == [sequence[:-1]]
    assert mask.int().tolist() == [predicted]
