"""Heads in fewer dimensions as options of a budget: their cost, and that they are what they say."""

import copy
import itertools

import pytest
import torch
from calibrated import calibrated
from tiny import tiny_config
from transformers import WhisperForConditionalGeneration

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
    expand_heads,
    find_linears,
    pivot,
    spending,
    unframe_convolution,
    unpivot_layers,
)
from liteasr.compression.allocate import combine, undominated
from liteasr.compression.attention_factors import modes_in_metric
from liteasr.compression.heads import PROJECTIONS, AttentionView, LayerView, padded
from liteasr.compression.metric import pca_in_metric, spectrum_in_metric
from liteasr.compression.surgery import install_factors
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


def test_heads_of_full_width_are_the_dense_ones(view):
    assert view.scores(8).first is view.layers["q_proj"]
    assert view.values(8).second is view.layers["out_proj"]
    assert view.scores(8).damage == view.values(8).damage == 0


def maps_of(view, name, pair_layer):
    """The map that a reduced projection was made with, from its weight."""
    weight = view.layers[name].weight_OI
    return torch.linalg.lstsq(weight.T, pair_layer.weight_OI.T).solution.T


def test_an_error_of_the_scores_costs_what_it_costs_the_queries(view):
    """``q̂ᵀ k̂ = (q + δ)ᵀ k``, and the damage is the mean of ``δᵀ G δ`` in the metric."""
    pair = view.scores(5)
    query, key = view.layers["q_proj"], view.layers["k_proj"]
    to_q, to_k = maps_of(view, "q_proj", pair.first), maps_of(view, "k_proj", pair.second)
    kept = to_q.T @ to_k
    for one in range(HEADS):
        other = torch.ones(WIDTH, dtype=torch.bool)
        other[8 * one : 8 * one + 8] = False
        assert kept[8 * one : 8 * one + 8, other].abs().max() < 1e-9, "heads stay apart"
    delta = kept.T - torch.eye(WIDTH, dtype=torch.float64)
    moment_DD = query.covariance_DD + torch.outer(query.mean_D, query.mean_D)
    first_order = (delta @ moment_DD @ delta.T * query.metric_DD).sum()
    all_keys = 0.0
    for start in range(0, WIDTH, 8):
        head = slice(start, start + 8)
        share = query.metric_DD[head, head].trace() / key.covariance_DD[head, head].trace()
        error = (delta @ moment_DD @ delta.T)[head, head]
        all_keys += share * (error * key.covariance_DD[head, head]).sum()
    assert pair.damage == pytest.approx(float(first_order + all_keys), rel=1e-4)
    assert view.scores(6).damage < pair.damage < view.scores(4).damage


def test_what_values_lose_is_counted_exactly_and_their_mean_stays(view):
    pair, out = view.values(5), view.layers["out_proj"]
    mean_D, covariance_DD = view._mixed_mean_D, view._mixed_covariance_DD
    to_v = maps_of(view, "v_proj", pair.first)
    before = out.weight_OI @ mean_D + out.bias_O
    after = pair.second.weight_OI @ (to_v @ mean_D) + pair.second.bias_O
    torch.testing.assert_close(after, before)
    lost_OD = out.weight_OI - pair.second.weight_OI @ to_v
    counted = (lost_OD @ covariance_DD * (out.metric_DD @ lost_OD)).sum()
    inner_DD = out.weight_OI.T @ out.metric_DD @ out.weight_OI
    lost_DD = torch.linalg.lstsq(out.weight_OI, lost_OD).solution
    beside = inner_DD.diagonal().mean() * (lost_DD @ covariance_DD @ lost_DD.T).trace()
    assert pair.damage == pytest.approx(float(counted + beside), rel=1e-4)
    torch.testing.assert_close(pair.second.covariance_DD, to_v @ covariance_DD @ to_v.T)


def test_both_projections_of_a_dimension_have_equal_norms(view):
    scores, values = view.scores(5), view.values(5)
    rows = scores.first.weight_OI.norm(dim=1), scores.second.weight_OI.norm(dim=1)
    torch.testing.assert_close(*rows)
    torch.testing.assert_close(
        values.first.weight_OI.norm(dim=1), values.second.weight_OI.norm(dim=0)
    )


def test_no_more_dimensions_than_there_are(view):
    with pytest.raises(ValueError, match="9 dimensions are not in 1…8"):
        view.scores(9)


def test_components_of_a_head_are_the_best_there_are():
    a_DD, metric_DD = moment(1, 6), moment(2, 6) + torch.eye(6, dtype=torch.float64)
    modes = modes_in_metric(a_DD, metric_DD, heads=1, damping=0.0)
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
        assert set(layer.state_dict()) == {"skeleton", "bias"}
        install_factors(layer, pivoted)
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


@pytest.mark.parametrize("pivoted", [False, True])
def test_no_pivots_no_heads(fp64, pivoted):
    method = SensitivityMethod(Budget("encoder_flops_ratio", 0.8), pivoted=pivoted)
    assert bool(calibrated(*fp64, method).allocate().head_dims) == pivoted


def test_a_budget_of_parameters_counts_the_bias_that_dense_keys_gain(fp64, monkeypatch):
    """Values reduced, scores dense, whatever it costs."""

    def choose(items, budget):
        dense = {name: min(one, key=lambda o: o.damage) for name, one in items.items()}
        narrow = {
            name: min((o for o in one if o.value.dim), key=lambda o: o.damage)
            for name, one in items.items()
            if name.endswith(":values")
        }
        return dense | narrow

    monkeypatch.setattr(spending, "allocate_budget", choose)
    method = calibrated(*fp64, SensitivityMethod(Budget("encoder_ratio", 0.9, 4)))
    choice = method._choose_size()
    plan = method.allocate()
    assert all(dims[0] == 32 > dims[1] for dims in plan.head_dims.values())
    dense = method._choices().dense_cost
    assert dense - choice.cost == plan.saved_params


def test_times_of_other_widths_of_heads_are_not_reused():
    methods = [SensitivityMethod(Budget("encoder_time_ratio", 0.8, one)) for one in (8, 16)]
    model = WhisperForConditionalGeneration(tiny_config())
    options = []
    for method in methods:
        method.prepare(model.model.encoder, find_linears(model))
        options.append(method.statistics_options())
    assert options[0] != options[1]


def test_reduced_heads_can_be_trained_whole(fp64):
    """Every parameter has a gradient: processes that train together wait for all of them."""
    encoder, _ = compressed(fp64, SensitivityMethod(Budget("encoder_flops_ratio", 0.6, 4)))
    encoder(fp64[1][0][0])[0].square().sum().backward()
    missing = [name for name, one in encoder.named_parameters() if one.grad is None]
    assert [name for name in missing if "embed_positions" not in name] == []
    assert all(one.numel() for one in encoder.parameters())


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


def some_lite_whisper(fp64):
    model = copy.deepcopy(fp64[0])
    encoder, plan = compressed(fp64, SensitivityMethod(Budget("encoder_flops_ratio", 0.6, 4)))
    model.model.encoder = encoder
    unframe_convolution(model)
    return model, plan


@pytest.mark.parametrize("undo", [unpivot_layers, expand_heads])
def test_other_forms_of_reduced_heads_are_the_same_function(fp64, undo):
    model, plan = some_lite_whisper(fp64)
    x = fp64[1][0][0]
    with torch.no_grad():
        expected = model.model.encoder(x)[0]
    undo(model)
    with torch.no_grad():
        torch.testing.assert_close(model.model.encoder(x)[0], expected, rtol=1e-7, atol=1e-8)
    if undo is expand_heads:
        assert collect_head_dims(model) == {}
    else:
        assert len(collect_head_dims(model)) == len(plan.head_dims) > 0
        kinds = {type(one) for one in model.model.encoder.modules()}
        assert PivotedLinear not in kinds
        # As a reduced attention has it that is read from a folder.
        for attention in collect_head_dims(model):
            values = model.get_submodule(attention).v_proj
            assert not isinstance(values, torch.nn.Linear) or values.bias is None
