import pytest
import torch

from liteasr.modeling import LowRankLinear


def test_is_the_product_of_its_factors():
    layer = LowRankLinear(6, 4, 2)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, 6)
    expected = torch.einsum("btd,dk,ko->bto", x, layer.weight1, layer.weight2) + layer.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 5, 6)])
def test_takes_any_leading_shape(shape):
    assert LowRankLinear(6, 4, 2)(torch.zeros(shape)).shape == (*shape[:-1], 4)


def test_takes_a_view_that_is_not_contiguous():
    layer = LowRankLinear(6, 4, 2)
    x = torch.randn(6, 5).T
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


def test_gradients_reach_every_parameter():
    layer = LowRankLinear(6, 4, 2)
    layer(torch.randn(5, 6)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())


def test_runs_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        y = LowRankLinear(6, 4, 2)(torch.randn(2, 5, 6))
    assert y.dtype == torch.bfloat16


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LowRankLinear(6, 4, 0)
