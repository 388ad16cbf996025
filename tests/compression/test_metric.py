"""Projections in a metric against the singular value decomposition that they must equal."""

import pytest
import torch

from liteasr.compression.factorize import LowRankFactors
from liteasr.compression.metric import (
    balanced,
    pca_in_metric,
    projected_factors,
    whitening_of,
)

WIDE, NARROW, K = 7, 5, 3
OPTIONS = {"rtol": 1e-9, "atol": 1e-9}


def positive(size, generator):
    root = torch.randn(size, 2 * size, generator=generator, dtype=torch.float64)
    return root @ root.T / size


@pytest.fixture(params=["output", "input"])
def layer(request):
    """A layer with the statistics of its narrower side: weight, bias, moments, metric, side."""
    generator = torch.Generator().manual_seed(0)
    on_input = request.param == "input"
    shape = (WIDE, NARROW) if on_input else (NARROW, WIDE)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    bias = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    mean_x = torch.randn(shape[1], generator=generator, dtype=torch.float64)
    covariance_x = positive(shape[1], generator)
    metric = positive(5, generator)
    if on_input:
        return weight, bias, mean_x, covariance_x, mean_x, covariance_x, metric, on_input
    mean, covariance = weight @ mean_x + bias, weight @ covariance_x @ weight.T
    return weight, bias, mean_x, covariance_x, mean, covariance, metric, on_input


def root(symmetric):
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * values.sqrt()) @ vectors.T


def test_what_is_left_out_is_what_a_truncated_svd_leaves_out(layer):
    weight, bias, _, covariance_x, mean, covariance, metric, on_input = layer
    pca = pca_in_metric(mean, covariance, metric, damping=0.0)
    factors = projected_factors(weight, bias, pca, K, on_input=on_input)
    product = (factors.weight1 @ factors.weight2).T
    if on_input:
        # Errors of the input count by the metric; they are (1 − P) x with W (1 − P) = W − W'.
        left = torch.linalg.lstsq(weight, weight - product).solution
        cost = (root(metric) @ left @ root(covariance_x)).square().sum()
        whole = root(metric) @ root(covariance_x)
    else:
        cost = (root(metric) @ (weight - product) @ root(covariance_x)).square().sum()
        whole = root(metric) @ weight @ root(covariance_x)
    least = torch.linalg.svdvals(whole)[K:].square().sum()
    torch.testing.assert_close(cost, least, **OPTIONS)
    torch.testing.assert_close(pca.eigenvalues_R[K:].sum(), least, **OPTIONS)


def test_full_rank_is_the_layer_and_the_mean_is_exact_at_any(layer):
    weight, bias, mean_x, _, mean, covariance, metric, on_input = layer
    pca = pca_in_metric(mean, covariance, metric)
    x = torch.randn(4, len(mean_x), dtype=torch.float64)
    full = projected_factors(weight, bias, pca, 5, on_input=on_input)
    torch.testing.assert_close(x @ full.weight1 @ full.weight2 + full.bias, x @ weight.T + bias)
    for rank in (1, K):
        low = projected_factors(weight, bias, pca, rank, on_input=on_input)
        actual = mean_x @ low.weight1 @ low.weight2 + low.bias
        torch.testing.assert_close(actual, weight @ mean_x + bias, **OPTIONS)


def test_identity_metric_is_plain_pca(layer):
    *_, mean, covariance, metric, _ = layer
    pca = pca_in_metric(mean, covariance, torch.eye(len(metric)), damping=0.0)
    expected = torch.linalg.eigvalsh(covariance).flip(0)
    torch.testing.assert_close(pca.eigenvalues_R, expected, **OPTIONS)


def test_whitened_coordinates_start_at_the_projection(layer):
    weight, bias, mean_x, _, mean, covariance, metric, on_input = layer
    options = {"on_input": on_input}
    pca = pca_in_metric(mean, covariance, metric, damping=1e-2)
    direct = projected_factors(weight, bias, pca, K, **options)
    options |= {"damping": 1e-2, "covariance_damping": 0.0}
    white = whitening_of(weight, bias, mean, covariance, metric, K, **options)
    weight1, weight2, offset = white.factors(white.a_DK, white.b_DK)
    torch.testing.assert_close(weight1 @ weight2, direct.weight1 @ direct.weight2, **OPTIONS)
    torch.testing.assert_close(offset, direct.bias, **OPTIONS)
    moved = white.factors(white.a_DK + 0.1, white.b_DK - 0.1)
    actual = mean_x @ moved[0] @ moved[1] + moved[2]
    torch.testing.assert_close(actual, weight @ mean_x + bias, **OPTIONS)


def test_layers_without_bias_and_ranks_that_are_not_there(layer):
    weight, _, mean_x, _, mean, covariance, metric, on_input = layer
    if not on_input:
        mean = weight @ mean_x
    pca = pca_in_metric(mean, covariance, metric)
    low = projected_factors(weight, None, pca, 2, on_input=on_input)
    actual = mean_x @ low.weight1 @ low.weight2 + low.bias
    torch.testing.assert_close(actual, weight @ mean_x, **OPTIONS)
    with pytest.raises(ValueError, match="rank 6 is not in 1…5"):
        projected_factors(weight, None, pca, 6, on_input=on_input)


def test_a_metric_of_zeros_divides_by_nothing():
    pca = pca_in_metric(torch.zeros(3), torch.zeros(3, 3), torch.zeros(3, 3))
    assert all(bool(torch.isfinite(part).all()) for part in vars(pca).values())


def test_balanced_factors_have_equal_norms_and_the_same_product():
    factors = LowRankFactors(1e3 * torch.randn(6, 2), 1e-3 * torch.randn(2, 4), torch.zeros(4))
    after = balanced(factors)
    torch.testing.assert_close(after.weight1.norm(dim=0), after.weight2.norm(dim=1))
    before = factors.weight1 @ factors.weight2
    torch.testing.assert_close(after.weight1 @ after.weight2, before)
