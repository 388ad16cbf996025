import pytest
import torch
import torch.nn.functional as F

from liteasr.compression import low_rank_factors, pca_of_image, pca_of_output


@pytest.fixture(params=[(12, 12), (12, 40), (40, 12)], ids=["square", "wide", "narrow"])
def layer(request):
    """Weight, bias, inputs and outputs of a linear layer in fp64."""
    inner, outer = request.param
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outer, inner, generator=generator, dtype=torch.float64)
    bias = torch.randn(outer, generator=generator, dtype=torch.float64)
    mixing = torch.randn(inner, inner, generator=generator, dtype=torch.float64)
    x = torch.randn(500, inner, generator=generator, dtype=torch.float64) @ mixing + 3
    return weight, bias, x, F.linear(x, weight, bias)


def pca(layer):
    weight, bias, x, _ = layer
    return pca_of_image(x.mean(0), torch.cov(x.T, correction=0), weight, bias)


def apply(factors, x):
    return x @ factors.weight1 @ factors.weight2 + factors.bias


def test_spectrum_is_that_of_the_centred_outputs(layer):
    y = layer[3]
    expected = torch.linalg.svdvals(y - y.mean(0)).square() / len(y)
    actual = pca(layer).eigenvalues_R
    count = min(len(expected), len(actual), 12)
    torch.testing.assert_close(actual[:count], expected[:count], rtol=1e-9, atol=1e-9)


def test_moments_of_input_and_of_output_give_the_same_components(layer):
    y = layer[3]
    from_input = pca(layer)
    from_output = pca_of_output(y.mean(0), torch.cov(y.T, correction=0))
    torch.testing.assert_close(from_input.mean_O, from_output.mean_O)
    overlap = from_input.basis_OR[:, :5].T @ from_output.basis_OR[:, :5]
    assert torch.linalg.svdvals(overlap).min() > 1 - 1e-9


def test_full_rank_is_the_dense_layer(layer):
    weight, bias, x, y = layer
    full = min(weight.shape)
    torch.testing.assert_close(apply(low_rank_factors(weight, bias, pca(layer), full), x), y)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_mean_output_is_exact_and_error_is_the_discarded_variance(layer, rank):
    weight, bias, x, y = layer
    components = pca(layer)
    approximation = apply(low_rank_factors(weight, bias, components, rank), x)
    torch.testing.assert_close(approximation.mean(0), y.mean(0))
    error = (approximation - y).square().sum(1).mean()
    torch.testing.assert_close(error, components.eigenvalues_R[rank:].sum())


def test_no_other_rank_k_layer_is_better(layer):
    """Eckart–Young: the truncated SVD of the centred outputs is the optimum of method.md §1."""
    weight, bias, x, y = layer
    approximation = apply(low_rank_factors(weight, bias, pca(layer), 4), x)
    left, values, right = torch.linalg.svd(y - y.mean(0), full_matrices=False)
    optimum = (left[:, :4] * values[:4]) @ right[:4] + y.mean(0)
    torch.testing.assert_close(approximation, optimum)


def test_a_layer_without_bias_gains_one(layer):
    weight, _, x, _ = layer
    components = pca_of_image(x.mean(0), torch.cov(x.T, correction=0), weight, None)
    approximation = apply(low_rank_factors(weight, None, components, 3), x)
    torch.testing.assert_close(approximation.mean(0), F.linear(x, weight).mean(0))


def test_impossible_rank_is_refused(layer):
    with pytest.raises(ValueError, match="rank 99"):
        low_rank_factors(layer[0], layer[1], pca(layer), 99)
