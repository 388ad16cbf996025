import dataclasses

import pytest
import torch
from tiny import tiny_config
from transformers.models.whisper.modeling_whisper import WhisperAttention

from liteasr.compression import (
    AttentionWeights,
    attention_weights,
    head_factors,
    score_modes,
    value_modes,
)
from liteasr.compression.surgery import install_attention_factors
from liteasr.modeling import ReducedAttention

WIDTH, HEADS, HEAD = 24, 3, 8


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def weights():
    return AttentionWeights(
        q_weight=random(WIDTH, WIDTH, seed=1),
        q_bias=random(WIDTH, seed=2),
        k_weight=random(WIDTH, WIDTH, seed=3),
        v_weight=random(WIDTH, WIDTH, seed=4),
        v_bias=random(WIDTH, seed=5),
        out_weight=random(WIDTH, WIDTH, seed=6),
        out_bias=random(WIDTH, seed=7),
        heads=HEADS,
    )


@pytest.fixture
def inputs():
    """Frames with a mean and some directions far stronger than others, (N, I)."""
    mixing = random(WIDTH, WIDTH, seed=8) * torch.exp(-torch.arange(WIDTH) / 4)[:, None]
    return random(400, WIDTH, seed=9) @ mixing + random(WIDTH, seed=10)


def moments(x):
    return x.mean(0), torch.cov(x.T, correction=0)


def head_of(weights, head):
    rows = slice(head * HEAD, (head + 1) * HEAD)
    return (
        weights.q_weight[rows],
        weights.q_bias[rows],
        weights.k_weight[rows],
        weights.v_weight[rows],
        weights.v_bias[rows],
        weights.out_weight[:, rows],
    )


def centred_scores(weights, x, head):
    """Scores of all pairs of frames, of which the softmax ignores each query's mean."""
    q_weight, q_bias, k_weight, *_ = head_of(weights, head)
    scores = (x @ q_weight.T + q_bias) @ (x @ k_weight.T).T / HEAD**0.5
    return scores - scores.mean(dim=1, keepdim=True)


def reduced_scores(factors, x, head, dim):
    rows = slice(head * dim, (head + 1) * dim)
    q = x @ factors.q_weight[rows].T + factors.q_bias[rows]
    scores = q @ (x @ factors.k_weight[rows].T).T / HEAD**0.5
    return scores - scores.mean(dim=1, keepdim=True)


def value_path(weights, x, head):
    _, _, _, v_weight, v_bias, out = head_of(weights, head)
    return (x @ v_weight.T + v_bias) @ out.T


def reduced_value_path(factors, x, head, dim):
    rows = slice(head * dim, (head + 1) * dim)
    return x @ factors.v_weight[rows].T @ factors.out_weight[:, rows].T


def make(weights, x, qk_dim, v_dim, metric=None, damping=0.0):
    mean, covariance = moments(x)
    scores = score_modes(weights, mean, covariance, damping)
    values = value_modes(weights, mean, covariance, metric, damping)
    return head_factors(weights, mean, scores, values, qk_dim, v_dim), scores, values


def test_full_width_is_the_dense_attention():
    torch.manual_seed(0)
    config = tiny_config()
    config._attn_implementation = "eager"
    dense = WhisperAttention(64, 2, config=config).double().eval()
    x = torch.randn(2, 30, 64, dtype=torch.float64)
    # Fewer frames than dimensions: most directions were never used.
    factors, _, _ = make(attention_weights(dense), x[0], 32, 32, damping=1e-6)
    reduced = ReducedAttention(64, 2, 32, 32, dtype=torch.float64).eval()
    install_attention_factors(reduced, factors)
    torch.testing.assert_close(reduced(x)[0], dense(x)[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dim", [1, 3, 6])
def test_scores_are_the_best_of_their_rank(weights, inputs, dim):
    """Against a singular value decomposition of the scores themselves."""
    factors, modes, _ = make(weights, inputs, dim, HEAD)
    for head in range(HEADS):
        exact = centred_scores(weights, inputs, head)
        error = (reduced_scores(factors, inputs, head, dim) - exact).square().mean()
        least = torch.linalg.svdvals(exact)[dim:].square().sum() / exact.numel()
        assert float(error) == pytest.approx(float(least), rel=1e-6)
        assert float(modes.discarded(dim)[head]) == pytest.approx(float(least), rel=1e-6)


@pytest.mark.parametrize("dim", [1, 3, 6])
@pytest.mark.parametrize("with_metric", [False, True])
def test_the_value_path_is_the_best_of_its_rank(weights, inputs, dim, with_metric):
    root = random(WIDTH, WIDTH, seed=11)
    metric = root.T @ root if with_metric else None
    factors, _, modes = make(weights, inputs, HEAD, dim, metric)
    for head in range(HEADS):
        exact = value_path(weights, inputs, head)
        exact = exact - exact.mean(dim=0)
        reduced = reduced_value_path(factors, inputs, head, dim)
        difference = reduced - reduced.mean(dim=0) - exact
        seen = root.T if with_metric else torch.eye(WIDTH, dtype=torch.float64)
        error = (difference @ seen).square().sum() / len(inputs)
        least = torch.linalg.svdvals(exact @ seen)[dim:].square().sum() / len(inputs)
        assert float(error) == pytest.approx(float(least), rel=1e-6)
        assert float(modes.discarded(dim)[head]) == pytest.approx(float(least), rel=1e-6)


def test_no_random_change_of_the_factors_is_better(weights, inputs):
    dim, exact = 3, centred_scores(weights, inputs, 1)
    factors, _, _ = make(weights, inputs, dim, HEAD)
    error = (reduced_scores(factors, inputs, 1, dim) - exact).square().mean()
    for seed in range(30):
        changed = dataclasses.replace(
            factors,
            q_weight=factors.q_weight * (1 + 1e-3 * random(dim * HEADS, WIDTH, seed=seed)),
            k_weight=factors.k_weight * (1 + 1e-3 * random(dim * HEADS, WIDTH, seed=100 + seed)),
        )
        assert (reduced_scores(changed, inputs, 1, dim) - exact).square().mean() > error


def test_what_all_keys_share_is_not_paid_for(weights, inputs):
    """A large constant in the keys changes neither the softmax nor the factors' error."""
    direction = random(WIDTH, seed=12)
    constant = 100 * torch.outer(random(WIDTH, seed=13), direction)
    onto = inputs - torch.outer(inputs @ direction - 1, direction) / direction.square().sum()
    shifted = dataclasses.replace(weights, k_weight=weights.k_weight + constant)
    _, plain, _ = make(weights, onto, 3, HEAD)
    _, modes, _ = make(shifted, onto, 3, HEAD)
    torch.testing.assert_close(modes.discarded(3), plain.discarded(3), rtol=1e-6, atol=0)


def test_a_bias_of_the_keys_does_not_pass_the_softmax(weights, inputs):
    q_weight, q_bias, k_weight, *_ = head_of(weights, 0)
    q, k = inputs @ q_weight.T + q_bias, inputs @ k_weight.T
    with_bias = (q @ (k + 3 * random(HEAD, seed=14)).T).softmax(-1)
    torch.testing.assert_close(with_bias, (q @ k.T).softmax(-1), rtol=1e-9, atol=1e-12)


def test_the_mean_of_the_values_is_exact_at_any_width(weights, inputs):
    factors, _, _ = make(weights, inputs, HEAD, 2)
    exact = sum(value_path(weights, inputs, head) for head in range(HEADS)) + weights.out_bias
    reduced = sum(reduced_value_path(factors, inputs, head, 2) for head in range(HEADS))
    torch.testing.assert_close((reduced + factors.out_bias).mean(0), exact.mean(0))


def test_more_dimensions_leave_out_less(weights, inputs):
    _, scores, values = make(weights, inputs, HEAD, HEAD)
    for modes in (scores, values):
        left = torch.stack([modes.discarded(dim) for dim in range(HEAD + 1)])
        assert bool((left.diff(dim=0) <= 0).all())
        assert not left[-1].any()


def test_queries_and_keys_are_of_equal_size(weights, inputs):
    factors, _, _ = make(weights, inputs, 3, HEAD)
    q = inputs @ factors.q_weight.T + factors.q_bias
    k = inputs @ factors.k_weight.T
    torch.testing.assert_close(q.square().mean(0), (k - k.mean(0)).square().mean(0))


def test_a_head_of_zeros_stays_one(weights, inputs):
    nothing = {
        name: torch.cat([torch.zeros_like(one[:HEAD]), one[HEAD:]])
        for name, one in vars(weights).items()
        if name in ("q_weight", "q_bias", "k_weight", "v_weight", "v_bias")
    }
    factors, _, _ = make(dataclasses.replace(weights, **nothing), inputs, 4, 4, damping=1e-6)
    for name, value in vars(factors).items():
        assert bool(torch.isfinite(value).all()), name
    assert not factors.q_weight[:4].any()
    assert not factors.v_weight[:4].any()


@pytest.mark.parametrize("dims", [(0, 4), (4, 9)])
def test_more_dimensions_than_there_are_is_refused(weights, inputs, dims):
    with pytest.raises(ValueError, match="must be in 1…8"):
        make(weights, inputs, *dims)
