import math

import pytest
import torch

from liteasr.ctc import CTCHead

END = 3
TIMES = 7
"""An id after the special tokens, as those of timestamps are."""


@pytest.fixture
def head():
    torch.manual_seed(0)
    return CTCHead(width=4, end=END)


def test_one_frame_is_the_log_probability_of_its_token(head):
    encoded = torch.randn(1, 1, 4)
    expected = -head.classes(encoded).log_softmax(-1)[0, 0, 2]
    loss = head(encoded, torch.tensor([1]), torch.tensor([[2]]))
    torch.testing.assert_close(loss, expected)


def test_two_frames_are_the_sum_over_all_alignments(head):
    encoded = torch.randn(1, 2, 4)
    p = head.classes(encoded).softmax(-1)[0]
    paths = p[0, 1] * p[1, 1] + p[0, 1] * p[1, END] + p[0, END] * p[1, 1]
    loss = head(encoded, torch.tensor([2]), torch.tensor([[1]]))
    assert float(loss) == pytest.approx(-math.log(float(paths)), rel=1e-5)


def test_only_text_and_frames_with_audio_count(head):
    encoded = torch.randn(2, 9, 4)
    frames = torch.tensor([6, 9])
    bare = head(encoded, frames, torch.tensor([[1, 2, 0], [2, -100, -100]]))
    dressed = torch.tensor([[TIMES, 1, 2, 0, TIMES, END], [5, 2, END, -100, -100, -100]])
    encoded[0, 6:] = 1e3
    torch.testing.assert_close(head(encoded, frames, dressed), bare)


def test_a_transcript_too_long_for_its_frames_counts_nothing(head):
    loss = head(torch.randn(1, 2, 4), torch.tensor([2]), torch.tensor([[1, 2, 1]]))
    loss.backward()
    assert float(loss) == 0
    assert not head.classes.weight.grad.any()


def test_no_text_at_all_is_no_error(head):
    assert float(head(torch.randn(1, 2, 4), torch.tensor([2]), torch.tensor([[END]]))) >= 0
