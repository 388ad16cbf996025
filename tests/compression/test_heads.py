"""Heads in fewer dimensions as options of a budget: their cost, and that they are what they say."""

import copy
import itertools

import pytest
import torch
from calibrated import calibrated

from liteasr.compression import (
    Budget,
    CompressionPlan,
    LowRankFactors,
    Option,
    RefinedMethod,
    SensitivityMethod,
    apply_plan,
    collect_head_dims,
    encoder_flops,
    encoder_parameters,
    pivot,
)
from liteasr.compression.allocate import combine, undominated
from liteasr.compression.attention_factors import modes_in_metric
from liteasr.compression.heads import PROJECTIONS, AttentionView, LayerView, padded
from liteasr.compression.metric import pca_in_metric, spectrum_in_metric
from liteasr.compression.windows import pack_windows
from liteasr.modeling import PivotedLinear, ReducedAttention

WIDTH, HEADS = 24, 3


def some_matrix(seed, rows, columns):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def moment(seed, width=WIDTH):
    # Dimensions of very different importance.
    root = some_matrix(seed, width, width) * torch.logspace(0, -2, width, dtype=torch.float64)
    return root @ root.T


@pytest.fixture
def view():
    layers = {
        name: LayerView(
            some_matrix(number, WIDTH, WIDTH),
            None if name == "k_proj" else some_matrix(10 + number, WIDTH, 1)[:, 0],
            some_matrix(20 + number, WIDTH, 1)[:, 0],
            moment(30 + number),
            moment(40 + number),
        )
        for number, name in enumerate(PROJECTIONS)
    }
    return AttentionView(layers, some_matrix(50, WIDTH, 1)[:, 0], moment(51), HEADS)


def per_head(tensor):
    return tensor.reshape(HEADS, -1, *tensor.shape[1:])


def test_heads_of_full_width_are_the_dense_ones(view):
    assert view.scores(8).first is view.layers["q_proj"]
    assert view.values(8).second is view.layers["out_proj"]
    assert view.scores(8).damage == view.values(8).damage == 0


def test_an_error_of_the_scores_costs_what_it_costs_the_queries(view):
    """``q̂ᵀ k̂ = (q + δ)ᵀ k``, and the damage is the mean of ``δᵀ G δ`` in the metric."""
    pair = view.scores(5)
    dense = view.layers["q_proj"], view.layers["k_proj"]
    x, y = some_matrix(60, 7, WIDTH), some_matrix(61, 7, WIDTH)
    q, k = (x @ dense[0].weight_OI.T + dense[0].bias_O), y @ dense[1].weight_OI.T
    q_hat = x @ pair.first.weight_OI.T + pair.first.bias_O
    k_hat = y @ pair.second.weight_OI.T
    assert q_hat.shape == k_hat.shape == (7, 5 * HEADS)
    back = torch.linalg.lstsq(dense[1].weight_OI, torch.eye(WIDTH, dtype=torch.float64)).solution
    moved_q = torch.empty_like(q)
    for head, (a, b) in enumerate(zip(per_head(q_hat.T), per_head(k_hat.T), strict=True)):
        rows = slice(8 * head, 8 * head + 8)
        # Keys of every input: what queries would give these scores?
        keys = per_head(pair.second.weight_OI @ back)[head]
        moved_q[:, rows] = a.T @ keys[:, rows]
        scores = moved_q[:, rows] @ k.T[rows]
        torch.testing.assert_close(a.T @ b, scores)
    # Left as it is by what the head keeps, a query near the mean query errs little.
    assert pair.damage > 0
    assert view.scores(6).damage < pair.damage < view.scores(4).damage


def test_what_values_lose_is_counted_exactly_and_their_mean_stays(view):
    pair, out = view.values(5), view.layers["out_proj"]
    mean_D, covariance_DD = view._mixed_mean_D, view._mixed_covariance_DD
    to_v = torch.linalg.lstsq(view.layers["v_proj"].weight_OI.T, pair.first.weight_OI.T).solution.T
    before = out.weight_OI @ mean_D + out.bias_O
    after = pair.second.weight_OI @ (to_v @ mean_D) + pair.second.bias_O
    torch.testing.assert_close(after, before)
    lost = out.weight_OI - pair.second.weight_OI @ to_v
    undamped = (lost @ covariance_DD * (out.metric_DD @ lost)).sum()
    assert undamped < pair.damage
    torch.testing.assert_close(pair.second.covariance_DD, to_v @ covariance_DD @ to_v.T)


def test_components_of_a_head_are_the_best_there_are():
    a_DD, metric_DD = moment(1, 6), moment(2, 6) + torch.eye(6, dtype=torch.float64)
    modes = modes_in_metric(a_DD, metric_DD, heads=1)
    best = pca_in_metric(torch.zeros(6), a_DD, metric_DD, damping=0.0).eigenvalues_R
    torch.testing.assert_close(modes.energy_HE[0], best)
    left, right = modes.maps(2)
    lost = torch.eye(6, dtype=torch.float64) - left.T @ right
    damage = (lost.T @ a_DD @ lost * metric_DD).sum()
    torch.testing.assert_close(damage, best[2:].sum())


def test_the_spectrum_alone_is_that_of_the_components():
    covariance, metric = moment(3), moment(4)
    slow = pca_in_metric(torch.zeros(WIDTH), covariance, metric, damping=0.1).eigenvalues_R
    torch.testing.assert_close(spectrum_in_metric(covariance, metric, damping=0.1), slow)


def test_options_of_two_items_together_are_the_best_for_every_price():
    first = [Option(9 - i, float(i * i), i) for i in range(8)]
    second = [Option(3 * (5 - i), [0.0, 4.0, 5.0, 11.0, 40.0][i], i) for i in range(5)]
    together = combine(first, second, cost=100, damage=7.0)
    for price in (0.1, 0.5, 1.0, 2.0, 5.0, 20.0):

        def worth(option, price=price):
            return option.damage + price * option.cost

        single = min(worth(a) + worth(b) for a, b in itertools.product(first, second))
        assert min(map(worth, together)) == pytest.approx(single + 7 + 100 * price)
    for option in together:
        a, b = option.value
        assert (option.cost, option.damage) == (100 + a.cost + b.cost, 7 + a.damage + b.damage)
    assert undominated([*together, Option(10**6, 8.0)]) == together


def test_a_layer_of_full_rank_is_dense():
    weight1, weight2 = some_matrix(1, 12, 8), some_matrix(2, 8, 8)
    for one, two in ((weight1, weight2), (weight2.T, weight1.T)):
        factors = LowRankFactors(one.contiguous(), two.contiguous(), torch.zeros(two.shape[1]))
        layer = PivotedLinear(len(one), two.shape[1], 8, dtype=torch.float64)
        pivoted = pivot(factors)
        layer.load_state_dict({name: getattr(pivoted, name) for name in layer.state_dict()})
        x = some_matrix(3, 5, len(one))
        with torch.no_grad():
            torch.testing.assert_close(layer(x), x @ one @ two)
        torch.testing.assert_close(layer.weight1 @ layer.weight2, one @ two)
        assert sum(p.numel() for p in layer.parameters()) == 12 * 8 + two.shape[1]


def compressed(fp64, method):
    """A copy's encoder with the plan of a method, and the plan."""
    model = copy.deepcopy(fp64[0])
    method = calibrated(model, fp64[1], method)
    plan = method.allocate()
    factors = {name: pivot(method.factorize(name, rank)) for name, rank in plan.ranks.items()}
    method.release()
    apply_plan(model, plan, factors)
    return model.model.encoder, plan


@pytest.mark.parametrize("kind", ["encoder_flops_ratio", "encoder_ratio"])
def test_the_plan_is_what_the_encoder_becomes(fp64, kind):
    dense = fp64[0].model.encoder
    encoder, plan = compressed(fp64, SensitivityMethod(Budget(kind, 0.7, 4)))
    assert plan.pivoted
    assert encoder_parameters(encoder) == encoder_parameters(dense) - plan.saved_params
    assert collect_head_dims(encoder.layers) == {
        name.split("layers.")[1]: dims for name, dims in plan.head_dims.items()
    }
    if kind == "encoder_flops_ratio":
        assert plan.head_dims
        ratio = encoder_flops(encoder) / encoder_flops(dense)
        assert 0.68 < ratio <= 0.7
    assert CompressionPlan.from_dict(plan.to_dict()) == plan


def test_the_trial_sees_what_the_encoder_becomes(fp64):
    method = SensitivityMethod(Budget("encoder_flops_ratio", 0.6, 4))
    dense = fp64[0].model.encoder
    encoder, plan = compressed(fp64, method)
    windows = pack_windows(calibrated(*fp64, method).clips, mel_frames=100, single=1.0)
    error, outputs = 0.0, []
    for x, frames in zip(windows.features_NMF[:16], windows.frames_N.tolist(), strict=False):
        with torch.no_grad():
            z, z_hat = (one(x[None].double())[0][0, :frames] for one in (dense, encoder))
        error += (z - z_hat).square().sum()
        outputs.append(z)
    z = torch.cat(outputs)
    assert plan.predicted_error == pytest.approx(float(error / (z - z.mean(0)).square().sum()))


def test_heads_cost_less_than_ranks_where_attention_counts(fp64):
    plans = {
        heads: compressed(
            fp64, SensitivityMethod(Budget("encoder_flops_ratio", 0.6, 4), heads=heads)
        )
        for heads in (False, True)
    }
    assert not plans[False][1].attention
    assert plans[True][1].predicted_error < plans[False][1].predicted_error


def test_a_projection_filled_up_with_zeros_is_the_same_attention(fp64):
    encoder, plan = compressed(fp64, SensitivityMethod(Budget("encoder_flops_ratio", 0.6, 4)))
    name, attention = next(
        (name, one) for name, one in encoder.named_modules() if isinstance(one, ReducedAttention)
    )
    full = ReducedAttention(64, 2, 32, 32, dtype=torch.float64)
    for last in PROJECTIONS:
        layer = getattr(attention, last)
        whole = padded(layer, last, heads=2, width=32)
        linear = torch.nn.Linear(64, 64, dtype=torch.float64)
        linear.weight.data, linear.bias.data = (whole.weight1 @ whole.weight2).T, whole.bias.data
        setattr(full, last, linear)
    x = some_matrix(5, 9, 64)[None]
    with torch.no_grad():
        torch.testing.assert_close(full(x)[0], attention(x)[0])


def test_no_pivots_no_heads(fp64):
    _, plan = compressed_plan(fp64, SensitivityMethod(Budget("encoder_ratio", 0.7), pivoted=False))
    assert not plan.attention


def compressed_plan(fp64, method):
    return method, calibrated(*fp64, method).allocate()


def test_heads_are_refined_with_all_else(fp64):
    method = RefinedMethod(
        Budget("encoder_flops_ratio", 0.7, 4), decoder_weight=0.0, refine_steps=2, joint_steps=0
    )
    plan = calibrated(*fp64, method).allocate()
    name = next(iter(plan.head_dims))
    qk_dim, _ = plan.head_dims[name]
    factors = method.factorize(f"{name}.q_proj", plan.ranks[f"{name}.q_proj"])
    assert factors.weight2.shape[1] == 2 * qk_dim
    assert factors.whitening is not None
    weight1, weight2, bias = factors.whitening.factors(
        factors.whitening.a_DK, factors.whitening.b_DK
    )
    torch.testing.assert_close(weight1 @ weight2, factors.weight1 @ factors.weight2)
    torch.testing.assert_close(bias, factors.bias)
