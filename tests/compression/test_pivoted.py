"""Pivoted layers: the same function as their factors, in fewer numbers, wherever a model goes."""

import copy
import json

import pytest
import torch
from calibrated import calibrated
from speech_files import make_processor
from torch import nn

from liteasr.compression import (
    Budget,
    CompressionPlan,
    LinearShape,
    LowRankFactors,
    PCAMethod,
    SensitivityMethod,
    ThresholdRule,
    apply_plan,
    collect_ranks,
    encoder_flops,
    encoder_parameters,
    pivot,
    pivot_layers,
    unframe_convolution,
    unpivot_layers,
)
from liteasr.compression.surgery import install_factors
from liteasr.export import export_model
from liteasr.loading import load
from liteasr.modeling import (
    LowRankLinear,
    PivotedLinear,
    use_fast_inference,
    use_plain_inference,
    use_rank_space,
)

BUDGET = Budget("encoder_ratio", 0.75)


def random_factors(inside, outside, rank):
    # Components fall off, as those of a compressed layer do.
    scales = torch.logspace(0, -4, rank, dtype=torch.float64)
    first = torch.randn(inside, rank, dtype=torch.float64) * scales
    second = torch.randn(rank, outside, dtype=torch.float64)
    return LowRankFactors(first, second, torch.randn(outside, dtype=torch.float64))


@pytest.mark.parametrize(
    ("inside", "outside", "rank"), [(48, 64, 20), (64, 48, 20), (32, 32, 32), (32, 32, 1)]
)
def test_pivoting_is_exact_and_amplifies_nothing(inside, outside, rank):
    factors = random_factors(inside, outside, rank)
    pivoted = pivot(factors)
    layer = PivotedLinear(inside, outside, rank, dtype=torch.float64)
    install_factors(layer, pivoted)
    product = factors.weight1 @ factors.weight2
    torch.testing.assert_close(layer.weight1 @ layer.weight2, product, rtol=1e-9, atol=1e-9)
    assert pivoted.interpolation is None or pivoted.interpolation.abs().max() < 1.06
    x = torch.randn(7, inside, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ product + factors.bias)


def test_factors_that_lack_rank_are_pivoted_too():
    factors = random_factors(16, 16, 4)
    factors.weight1[:, 3] = factors.weight1[:, 2]
    pivoted = pivot(factors)
    assert all(bool(torch.isfinite(part).all()) for part in vars(pivoted).values())


def test_every_rank_saves_parameters():
    shape = LinearShape(64, 64, pivoted=True)
    assert shape.ranks(8) == [8, 16, 24, 32, 40, 48, 56]
    assert [shape.params(rank) for rank in (56, None)] == [56 * 72 + 64, 64 * 65]
    assert LinearShape(64, 64).ranks(8) == [8, 16, 24]
    assert shape.flops(56) == 2 * 56 * 72


@pytest.fixture
def plan(tiny_model, tiny_features):
    return calibrated(tiny_model, tiny_features, SensitivityMethod(BUDGET, heads=False)).allocate()


def factors_of(model, features, plan):
    method = calibrated(copy.deepcopy(model), features, SensitivityMethod(BUDGET, heads=False))
    return {name: method.factorize(name, rank) for name, rank in plan.ranks.items()}


@pytest.fixture
def compressed(tiny_model, tiny_features, plan):
    apply_plan(tiny_model, plan, factors_of(tiny_model, tiny_features, plan))
    unframe_convolution(tiny_model)
    return tiny_model.eval()


def encoded(model, features):
    with torch.no_grad():
        return model.model.encoder(features[0][0]).last_hidden_state


def test_a_budget_is_met_with_higher_ranks(tiny_model, tiny_features, plan):
    dense = encoder_parameters(tiny_model.model.encoder)
    method = SensitivityMethod(BUDGET, pivoted=False)
    plain = calibrated(tiny_model, tiny_features, method).allocate()
    assert plan.pivoted
    assert not plain.pivoted
    assert 0.74 * dense < dense - plan.saved_params <= 0.75 * dense
    assert sum(plan.ranks.values()) > sum(plain.ranks.values())
    assert plan.predicted_error < 0.9 * plain.predicted_error


def test_the_model_has_the_parameters_of_the_plan(tiny_model, tiny_features, plan):
    before = encoder_parameters(tiny_model.model.encoder)
    apply_plan(tiny_model, plan)
    assert encoder_parameters(tiny_model.model.encoder) == before - plan.saved_params
    assert collect_ranks(tiny_model) == plan.ranks
    apply_plan(tiny_model, plan)  # idempotent
    flops = sum(2 * 50 * layer.params for layer in plan.layers.values())
    assert encoder_flops(tiny_model.model.encoder) > flops > 0


def test_low_rank_layers_become_pivoted_with_the_same_output(tiny_model, tiny_features, plan):
    factors = factors_of(tiny_model, tiny_features, plan)
    steps = CompressionPlan(plan.layers)
    apply_plan(tiny_model, steps, factors)
    expected = encoded(tiny_model, tiny_features)
    other = copy.deepcopy(tiny_model)
    apply_plan(tiny_model, plan)
    apply_plan(other, plan, factors)
    for model in (tiny_model, other):
        layers = [one for one in model.modules() if isinstance(one, LowRankLinear)]
        assert {type(one) for one in layers} == {PivotedLinear}
        torch.testing.assert_close(encoded(model, tiny_features), expected, rtol=1e-4, atol=1e-4)


def test_a_plan_goes_through_json_with_a_format_of_its_own(plan):
    data = json.loads(plan.to_json())
    assert data["format"] == 4
    assert CompressionPlan.from_dict(data) == plan
    data["pivoted"] = False
    assert CompressionPlan.from_dict(data).to_dict()["format"] == 1


def test_attention_between_factors_is_the_same(compressed, tiny_features):
    encoder = compressed.model.encoder
    for layer in encoder.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            pivoted = PivotedLinear(64, 64, 8)
            nn.init.normal_(pivoted.bias)
            setattr(layer.self_attn, name, pivoted)
    use_plain_inference(encoder)
    expected = encoded(compressed, tiny_features)
    changed = use_rank_space(encoder, frames=1500)
    assert len(changed) == len(encoder.layers)
    torch.testing.assert_close(encoded(compressed, tiny_features), expected, rtol=1e-4, atol=1e-4)
    use_fast_inference(encoder)
    torch.testing.assert_close(encoded(compressed, tiny_features), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def processor():
    return make_processor(chunk_length=1)


@pytest.fixture
def with_vocabulary(compressed, processor):
    compressed.resize_token_embeddings(len(processor.tokenizer))
    return compressed


def test_a_folder_gives_the_model_back(with_vocabulary, processor, tiny_features, tmp_path):
    export_model(with_vocabulary, processor, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["pivoted"] is True
    reloaded, _ = load(str(tmp_path / "model"))
    assert collect_ranks(reloaded) == collect_ranks(with_vocabulary)
    expected = encoded(with_vocabulary, tiny_features)
    torch.testing.assert_close(encoded(reloaded, tiny_features), expected, rtol=1e-4, atol=1e-4)


def test_a_folder_in_half_precision_gives_the_model_back(with_vocabulary, processor, tmp_path):
    export_model(with_vocabulary, processor, tmp_path / "model", torch.float16)
    reloaded, _ = load(str(tmp_path / "model"), dtype="float16")
    for name, ours in reloaded.state_dict().items():
        theirs = with_vocabulary.state_dict()[name]
        assert torch.equal(ours, theirs.to(ours.dtype)), name
        assert (ours.dtype == torch.int32) == name.endswith(".order")


def test_the_published_format_gets_factors_or_dense_layers(
    with_vocabulary, processor, tiny_features, tmp_path
):
    before = encoder_parameters(with_vocabulary.model.encoder)
    export_model(with_vocabulary, processor, tmp_path / "model", published=True)
    assert encoder_parameters(with_vocabulary.model.encoder) == before, "the original is untouched"
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "pivoted" not in config
    reloaded, _ = load(str(tmp_path / "model"))
    for layer in reloaded.modules():
        assert not isinstance(layer, PivotedLinear)
        if isinstance(layer, LowRankLinear):
            assert LinearShape(layer.in_features, layer.out_features).saves(layer.rank)
    assert 0 < len(collect_ranks(reloaded)) < len(collect_ranks(with_vocabulary))
    expected = encoded(with_vocabulary, tiny_features)
    torch.testing.assert_close(encoded(reloaded, tiny_features), expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_both_kinds_is_written_pivoted(tiny_model, processor, tiny_features, tmp_path):
    tiny_model.resize_token_embeddings(len(processor.tokenizer))
    rule = ThresholdRule(attention=0.5, mlp=0.5, multiple=8)
    method = calibrated(tiny_model, tiny_features, PCAMethod(rule))
    part = method.allocate()
    assert part.ranks
    factors = {name: method.factorize(name, rank) for name, rank in part.ranks.items()}
    apply_plan(tiny_model, part, factors)
    first = next(iter(part.ranks))
    apply_plan(tiny_model, CompressionPlan({first: part.layers[first]}, pivoted=True))
    expected = encoded(tiny_model, tiny_features)
    export_model(tiny_model, processor, tmp_path / "model")
    reloaded, _ = load(str(tmp_path / "model"))
    assert collect_ranks(reloaded) == part.ranks
    torch.testing.assert_close(encoded(reloaded, tiny_features), expected, rtol=1e-4, atol=1e-4)


def test_there_and_back_again(compressed, tiny_features):
    expected, ranks = encoded(compressed, tiny_features), collect_ranks(compressed)
    unpivot_layers(compressed)
    layers = [one for one in compressed.modules() if isinstance(one, LowRankLinear)]
    assert layers
    assert not any(isinstance(one, PivotedLinear) for one in layers)
    pivot_layers(compressed)
    assert collect_ranks(compressed).items() <= ranks.items()
    torch.testing.assert_close(encoded(compressed, tiny_features), expected, rtol=1e-4, atol=1e-4)


def test_compiles_without_a_graph_break(compressed, tiny_features):
    use_plain_inference(compressed.model.encoder)
    expected = encoded(compressed, tiny_features)
    with torch.no_grad():
        exported = torch.export.export(
            compressed.model.encoder, (tiny_features[0][0],), strict=False
        )
        actual = exported.module()(tiny_features[0][0])
    torch.testing.assert_close(actual[0], expected, rtol=1e-4, atol=1e-4)
