import math

import pytest
import torch

from liteasr.ctc import CTCHead
from liteasr.objective import LossWeights, Objective

BLANK = CTCHead.BLANK


@pytest.fixture
def head():
    torch.manual_seed(0)
    return CTCHead(width=4)


def test_one_frame_is_the_log_probability_of_its_byte(head):
    encoded = torch.randn(1, 1, 4)
    expected = -head.classes(encoded).log_softmax(-1)[0, 0, ord("b")]
    torch.testing.assert_close(head(encoded, torch.tensor([1]), ["b"]), expected)


def test_two_frames_are_the_sum_over_all_alignments(head):
    encoded, a = torch.randn(1, 2, 4), ord("a")
    p = head.classes(encoded).softmax(-1)[0].detach()
    paths = p[0, a] * p[1, a] + p[0, a] * p[1, BLANK] + p[0, BLANK] * p[1, a]
    loss = head(encoded, torch.tensor([2]), ["a"])
    assert loss.item() == pytest.approx(-math.log(float(paths)), rel=1e-5)


def test_it_is_a_mean_over_the_bytes_of_all_clips(head):
    """Spaces around a transcript are none of it; ü has two bytes."""
    encoded, frames = torch.randn(2, 9, 4), torch.tensor([6, 9])
    first = head(encoded[:1], frames[:1], ["ab"]).item()
    second = head(encoded[1:], frames[1:], ["über"]).item()
    both = head(encoded, frames, [" ab ", "über"]).item()
    assert both == pytest.approx((2 * first + 5 * second) / 7, rel=1e-5)


def test_padding_does_not_count(head):
    encoded = torch.randn(1, 9, 4)
    before = head(encoded, torch.tensor([6]), ["ab"])
    encoded[:, 6:] = 1e3
    torch.testing.assert_close(head(encoded, torch.tensor([6]), ["ab"]), before)


def test_a_transcript_too_long_for_its_frames_counts_nothing(head):
    loss = head(torch.randn(1, 2, 4), torch.tensor([2]), ["abc"])
    loss.backward()
    assert loss.item() == 0
    assert not head.classes.weight.grad.any()


def test_no_text_at_all_is_no_error(head):
    assert head(torch.randn(1, 2, 4), torch.tensor([2]), [""]).isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_trains(head, dtype):
    encoded = torch.randn(1, 9, 4, dtype=dtype, requires_grad=True)
    head(encoded, torch.tensor([9]), ["ab"]).backward()
    assert encoded.grad.abs().max() > 0


def test_a_flat_start_counts_every_frame_and_blank_where_it_is_quiet(head):
    """Bytes in equal shares of the loud frames; padding is blank whatever it holds."""
    loud = torch.tensor([False, True, True, False, True, True, False])
    features = torch.where(loud, 1.0, -1.0).repeat_interleave(2).expand(1, 3, -1).clone()
    features[:, :, 12:] = 5.0
    encoded = torch.randn(1, 7, 4)
    classes = torch.tensor([BLANK, ord("a"), ord("a"), BLANK, ord("b"), ord("b"), BLANK])
    expected = torch.nn.functional.cross_entropy(head.classes(encoded)[0], classes)
    loss = head.flat_start(encoded, torch.tensor([6]), features, [" ab "])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("text", ["", "far more bytes than frames"])
def test_a_flat_start_takes_any_text(head, text):
    features = torch.randn(2, 3, 10)
    loss = head.flat_start(torch.randn(2, 5, 4), torch.tensor([3, 5]), features, [text, "a"])
    assert loss.isfinite()


@pytest.mark.parametrize("flat_start_steps", [0, 1])
def test_what_the_labels_do_not_say_is_not_heard(tiny_model, flat_start_steps):
    """Speech after ``said_frames`` is of a segment that the window cuts: nothing to be aligned."""
    torch.manual_seed(0)
    model = tiny_model.eval()
    weights = LossWeights(ctc=0.5, flat_start_steps=flat_start_steps)
    objective = Objective(weights, model.config.d_model, lambda _: ["ab"], end=0)
    frames = model.config.max_source_positions
    features = torch.randn(1, model.config.num_mel_bins, 2 * frames)
    batch = {"input_features": features, "labels": torch.tensor([[1, 2]])}

    def ctc(**counts):
        held = {name: torch.tensor([count]) for name, count in counts.items()}
        return objective(model, {**batch, **held}, step=0)[1]["ctc"].item()

    assert ctc(frames=frames, said_frames=20) == ctc(frames=20) != ctc(frames=frames)
