"""A convolution as a linear layer: the same function, before and after it has a low rank."""

import copy

import pytest
import torch
from torch import nn

from liteasr.modeling import FramedConvolution, LowRankLinear, PivotedLinear


@pytest.mark.parametrize("frames", [20, 21, 3])
@pytest.mark.parametrize(("width", "step", "padding"), [(3, 2, 1), (3, 1, 1), (4, 3, 0), (1, 1, 0)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_computes_what_the_convolution_does(frames, width, step, padding, has_bias):
    if frames + 2 * padding < width:
        pytest.skip("no output frame")
    convolution = nn.Conv1d(5, 7, width, step, padding, bias=has_bias)
    x = torch.randn(2, 5, frames)
    framed = FramedConvolution(convolution)
    torch.testing.assert_close(framed(x), convolution(x), rtol=1e-4, atol=1e-5)
    back = framed.as_convolution(framed.linear.weight, framed.linear.bias)
    assert torch.equal(back.weight, convolution.weight)
    torch.testing.assert_close(back(x), convolution(x))


@pytest.mark.parametrize("cls", [LowRankLinear, PivotedLinear])
def test_with_a_low_rank_it_computes_what_the_linear_layer_does(cls):
    framed, x = FramedConvolution(nn.Conv1d(5, 7, 3, 2, 1)), torch.randn(2, 5, 20)
    framed.linear = cls(15, 7, 4)
    nn.init.normal_(framed.linear.bias)
    dense = copy.deepcopy(framed)
    dense.linear = nn.Linear(15, 7)
    with torch.no_grad():
        dense.linear.weight.copy_((framed.linear.weight1 @ framed.linear.weight2).T)
        dense.linear.bias.copy_(framed.linear.bias)
    torch.testing.assert_close(framed(x), dense(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(framed(x), dense(x), rtol=1e-4, atol=1e-5)
    seen, expected = [], framed(x)
    handle = framed.linear.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(framed(x), expected, rtol=1e-4, atol=1e-5)
    handle.remove()
    assert seen == [1]
    framed(x).square().sum().backward()
    assert all(one.grad is not None and one.grad.any() for one in framed.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert framed(x).dtype == dense(x).dtype == torch.bfloat16


def test_it_is_trained_or_not_as_the_convolution_was():
    convolution = nn.Conv1d(5, 7, 3).requires_grad_(False).eval()
    framed = FramedConvolution(convolution)
    assert not framed.training
    assert not any(one.requires_grad for one in framed.parameters())


def test_other_convolutions_are_refused():
    for options in ({"dilation": 2}, {"groups": 5}, {"padding": "same"}):
        with pytest.raises(ValueError, match="is not a plain convolution"):
            FramedConvolution(nn.Conv1d(5, 10, 3, **options))
