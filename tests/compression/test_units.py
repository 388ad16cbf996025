"""MLPs with fewer hidden units: which go, and what is fitted to those that stay."""

import itertools
import json

import calibrated as helpers
import pytest
import torch

from liteasr.compression import (
    Budget,
    CompressionPlan,
    LayerPlan,
    LowRankFactors,
    Option,
    PCAMethod,
    RefinedMethod,
    SensitivityMethod,
    UnitFactors,
    allocate_budget,
    apply_plan,
    collect_ranks,
    collect_units,
    eliminate_units,
    encoder_flops,
    encoder_parameters,
    fit_to_units,
    units,
)
from liteasr.compression.allocate import joint_options
from liteasr.modeling import ReducedLinear

FC1, FC2 = "model.encoder.layers.0.fc1", "model.encoder.layers.0.fc2"


@pytest.fixture
def hidden(monkeypatch):
    """Weight (3, 7), mean and covariance of activations that depend on each other, and them."""
    monkeypatch.setattr(units, "_RIDGE", 1e-12)
    generator = torch.Generator().manual_seed(0)
    h_NH = torch.randn(500, 7, generator=generator, dtype=torch.float64)
    h_NH = h_NH @ torch.randn(7, 7, generator=generator, dtype=torch.float64) + 1.0
    weight_OH = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    return weight_OH, h_NH.mean(0), torch.cov(h_NH.T, correction=0), h_NH


def left_out(hidden, kept):
    """Mean squared error of the output fitted to some units, measured on the activations."""
    weight_OH, mean_H, covariance_HH, h_NH = hidden
    bias_O = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    layer, share = fit_to_units(weight_OH, bias_O, mean_H, covariance_HH, torch.tensor(kept))
    y_NO = h_NH @ weight_OH.T + bias_O
    error_NO = h_NH[:, kept] @ layer.weight.T + layer.bias - y_NO
    assert error_NO.mean(0).abs().max() < 1e-9
    error = float(error_NO.square().sum(1).mean())
    total = float((y_NO - y_NO.mean(0)).square().sum(1).mean())
    assert share == pytest.approx(1 - error / total, abs=1e-9)
    return error


def test_all_units_give_the_layer_itself(hidden):
    assert left_out(hidden, list(range(7))) < 1e-5


def test_each_step_takes_the_unit_that_costs_least(hidden):
    weight_OH, _, covariance_HH, _ = hidden
    elimination = eliminate_units(weight_OH, covariance_HH, torch.eye(3), damping=0.0)
    kept = list(range(7))
    for count in range(6, 2, -1):
        costs = {unit: left_out(hidden, [one for one in kept if one != unit]) for unit in kept}
        kept.remove(min(costs, key=costs.__getitem__))
        assert elimination.kept(count).tolist() == kept
        assert elimination.damage(count) == pytest.approx(min(costs.values()), rel=2e-3)
    assert elimination.damage(7) == 0.0


def test_a_metric_decides_which_outputs_count(hidden):
    weight_OH, _, _, _ = hidden
    alone = torch.zeros(3, 7, dtype=torch.float64)
    alone[0, 0] = alone[1, 1] = 1.0
    first = eliminate_units(alone, torch.eye(7), torch.diag(torch.tensor([9.0, 1.0, 1.0])), 0.0)
    second = eliminate_units(alone, torch.eye(7), torch.diag(torch.tensor([1.0, 9.0, 1.0])), 0.0)
    assert first.kept(1).tolist() == [0]
    assert second.kept(1).tolist() == [1]
    assert first.damage(0) == pytest.approx(10.0, rel=1e-3)


def test_units_that_say_the_same_cost_nothing():
    h_NH = torch.randn(100, 2, generator=torch.Generator().manual_seed(1)).double()
    covariance_HH = torch.cov(h_NH[:, [0, 1, 0]].T)
    elimination = eliminate_units(torch.ones(1, 3), covariance_HH, torch.eye(1), 0.0)
    assert elimination.damage(2) < 1e-2 < elimination.damage(1)
    assert 1 in elimination.kept(2).tolist()


def test_the_fit_stays_near_the_weights_that_were(hidden, monkeypatch):
    """Without evidence, which is what a large ridge means, nothing is made up for."""
    weight_OH, mean_H, covariance_HH, _ = hidden
    monkeypatch.setattr(units, "_RIDGE", 1e9)
    kept_S = torch.tensor([0, 3, 5])
    layer, _ = fit_to_units(weight_OH, torch.zeros(3), mean_H, covariance_HH, kept_S)
    torch.testing.assert_close(layer.weight, weight_OH[:, kept_S], rtol=1e-6, atol=1e-6)


def test_many_units_go_in_groups():
    generator = torch.Generator().manual_seed(2)
    weight_OH = torch.randn(4, 1000, generator=generator)
    elimination = eliminate_units(weight_OH, torch.eye(1000), torch.eye(4))
    assert sorted(elimination.order_H.tolist()) == list(range(1000))
    assert (elimination.damage_H.diff() >= 0).all()


def test_joint_options_are_the_best_pairs():
    """At every budget, no pair of options on the hulls is better than those that are listed."""
    generator = torch.Generator().manual_seed(3)
    items = []
    for _ in range(2):
        drops = torch.rand(6, generator=generator).cumsum(0).cumsum(0).tolist()
        items.append([Option(60 - 10 * i, d, i) for i, d in enumerate([0.0, *drops])])
    pairs = joint_options(*items)
    assert [pair.cost for pair in pairs] == sorted({pair.cost for pair in pairs}, reverse=True)
    assert pairs[0].value == (0, 0)
    for pair in pairs:
        at_most = [
            one.damage + two.damage
            for one, two in itertools.product(*items)
            if one.cost + two.cost <= pair.cost
        ]
        assert pair.damage == pytest.approx(min(at_most))
        one, two = pair.value
        assert pair.cost == items[0][one].cost + items[1][two].cost


def test_the_dense_pair_stays_first_though_a_rank_costs_nothing():
    free = [Option(9, 0.0, None), Option(6, 0.0, 8), Option(3, 1.0, 4)]
    pairs = joint_options(free, free)
    assert [(pair.cost, pair.value) for pair in pairs[:2]] == [(18, (None, None)), (12, (8, 8))]


def test_options_off_the_hull_are_left_out():
    bumpy = [Option(9, 0.0, 0), Option(8, 5.0, 1), Option(7, 4.0, 2), Option(3, 6.0, 3)]
    pairs = joint_options(bumpy, [Option(1, 0.0, None)])
    assert [pair.value[0] for pair in pairs] == [0, 3]
    assert allocate_budget({"a": pairs}, 5)["a"].value == (3, None)


# ---------------------------------------------------------------------- plans and surgery


def unit_plan(count=100):
    return CompressionPlan(
        {
            FC1: LayerPlan(64, 256, None, 0.9, 16640, count * 65, units=count),
            FC2: LayerPlan(256, 64, None, 0.9, 16448, count * 64 + 64, units=count),
            "model.encoder.layers.1.fc1": LayerPlan(64, 256, 8, 0.9, 16640, 2816),
        }
    )


def test_a_plan_with_units_is_another_format():
    plan = unit_plan()
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["format"] == 3
    assert CompressionPlan.from_dict(data) == plan
    assert plan.units == {FC1: 100, FC2: 100}
    assert plan.compressed == [FC1, FC2, "model.encoder.layers.1.fc1"]


def test_a_plan_without_is_as_it_was():
    data = CompressionPlan({FC1: LayerPlan(64, 256, 8, 0.9, 16640, 2816)}).to_dict()
    assert data["format"] == 1
    assert "units" not in data["layers"][FC1]


def test_a_layer_has_a_rank_or_units():
    with pytest.raises(ValueError, match="at most one of them"):
        LayerPlan(64, 256, 8, 0.9, 16640, 2816, units=8)


def test_surgery_counts_and_is_idempotent(tiny_model):
    before = encoder_parameters(tiny_model.model.encoder), encoder_flops(tiny_model.model.encoder)
    plan = unit_plan()
    apply_plan(tiny_model, plan)
    fc1, fc2 = tiny_model.get_submodule(FC1), tiny_model.get_submodule(FC2)
    assert isinstance(fc1, ReducedLinear)
    assert (fc1.out_features, fc2.in_features) == (100, 100)
    assert encoder_parameters(tiny_model.model.encoder) == before[0] - plan.saved_params
    assert encoder_flops(tiny_model.model.encoder) < before[1]
    assert collect_units(tiny_model) == plan.units
    assert collect_ranks(tiny_model) == plan.ranks
    values = UnitFactors(torch.full((100, 64), 2.0), torch.zeros(100))
    apply_plan(tiny_model, plan, {FC1: values})
    assert tiny_model.get_submodule(FC1) is fc1
    assert (fc1.weight == 2.0).all()


def test_surgery_refuses_what_does_not_fit(tiny_model):
    apply_plan(tiny_model, unit_plan())
    with pytest.raises(ValueError, match=r"the plan wants a linear layer of \(64, 256\)"):
        apply_plan(tiny_model, unit_plan(90))
    low_rank = LowRankFactors(torch.zeros(64, 4), torch.zeros(4, 256), torch.zeros(256))
    with pytest.raises(ValueError, match="keeps 100 hidden units, not LowRankFactors"):
        apply_plan(tiny_model, unit_plan(), {FC1: low_rank})


def test_an_mlp_may_get_smaller_twice(tiny_model):
    apply_plan(tiny_model, unit_plan())
    again = CompressionPlan(
        {
            FC1: LayerPlan(64, 100, None, 0.9, 6500, 2600, units=40),
            FC2: LayerPlan(100, 64, None, 0.9, 6464, 2624, units=40),
        }
    )
    apply_plan(tiny_model, again)
    assert collect_units(tiny_model) == again.units
    low_rank = CompressionPlan({FC1: LayerPlan(64, 40, 8, 0.9, 2600, 872)})
    apply_plan(tiny_model, low_rank)
    assert collect_units(tiny_model) == again.units
    assert collect_ranks(tiny_model)[FC1] == 8


# ---------------------------------------------------------------------- the method


def factors_of(method, plan, name):
    count = plan.layers[name].units
    if count is not None:
        return method.reduce_mlp(name, count)
    return method.factorize(name, plan.ranks[name])


def installed(model, method, plan):
    factors = {name: factors_of(method, plan, name) for name in plan.compressed}
    apply_plan(model, plan, factors)


def test_units_take_part_in_the_budget(fp64):
    model, features = fp64
    budget = Budget("encoder_ratio", 0.6, granularity=4)
    whole = encoder_parameters(model.model.encoder)
    plans = {}
    for mlp_units in (False, True):
        method = SensitivityMethod(budget, mlp_units=mlp_units)
        helpers.calibrated(model, features, method, 4)
        plans[mlp_units] = method.allocate()
    plan = plans[True]
    assert plan.units, "random weights have no low rank"
    assert set(plan.layers) == set(plans[False].layers)
    assert 0.98 * 0.6 * whole < whole - plan.saved_params <= 0.6 * whole
    assert plan.predicted_error < plans[False].predicted_error
    assert plan.layers[FC1].units == plan.layers[FC2].units
    installed(model, method, plan)
    assert encoder_parameters(model.model.encoder) == whole - plan.saved_params


def test_statistics_of_units_are_saved_with_the_others(fp64):
    model, features = fp64
    budget = Budget("encoder_ratio", 0.6, granularity=4)
    one = helpers.calibrated(model, features, SensitivityMethod(budget, mlp_units=True), 4)
    other = SensitivityMethod(budget, mlp_units=True)
    other.prepare(model.model.encoder, one.linears)
    other.load_state_dict(one.state_dict())
    assert other.allocate().to_dict() == one.allocate().to_dict()
    assert one.statistics_options() != SensitivityMethod(budget).statistics_options()


def test_auto_refines_units_too(fp64):
    """Refinement moves the weights of both kinds, and the error of its own clips falls."""
    model, features = fp64
    budget = Budget("encoder_ratio", 0.6, granularity=4)
    options = {"mlp_units": True, "refine_steps": 4, "joint_steps": 4, "decoder_weight": 0.0}
    method = RefinedMethod(budget, **options)
    helpers.calibrated(model, features, method, 4)
    plan = method.allocate()
    assert plan.units
    first = {}
    for index, block in enumerate(model.model.encoder.layers):
        prefix = f"model.encoder.layers.{index}."
        names = [name for name in plan.compressed if name.startswith(prefix)]
        method.before_block(block)
        factors = {name: factors_of(method, plan, name) for name in names}
        part = CompressionPlan({name: plan.layers[name] for name in names})
        apply_plan(model, part, factors)
        within = {name.removeprefix(prefix): one for name, one in factors.items()}
        refined = method.after_block(block, within)
        assert {name: type(one) for name, one in refined.items()} == {
            name: type(one) for name, one in within.items()
        }
        apply_plan(model, part, {prefix + name: one for name, one in refined.items()})
        first |= {prefix + name: one for name, one in refined.items()}
        method.block_done(block)
    inside = {name.removeprefix("model.encoder."): one for name, one in first.items()}
    last = method.after_blocks(inside)
    apply_plan(model, plan, {f"model.encoder.{name}": one for name, one in last.items()})
    moved = [name for name in last if isinstance(last[name], UnitFactors)]
    assert moved
    assert any((last[name].weight != inside[name].weight).any() for name in moved)


def test_methods_that_plan_for_none_say_so():
    with pytest.raises(NotImplementedError, match="pca keeps all hidden units"):
        PCAMethod().reduce_mlp(FC1, 8)
