import copy

import pytest
import torch

from liteasr.compression import (
    CompressionPlan,
    LayerPlan,
    LinearShape,
    LowRankFactors,
    apply_plan,
    collect_ranks,
    encoder_parameters,
    find_linears,
)
from liteasr.modeling import LowRankLinear

NAME = "model.encoder.layers.0.fc1"


def plan(rank=16, name=NAME, shape=(64, 256)):
    return CompressionPlan({name: LayerPlan(*shape, rank, 1.0, 0, 0)})


def exact_factors(linear):
    """Factors of full rank that are the layer itself."""
    identity = torch.eye(linear.in_features, dtype=torch.float64)
    return LowRankFactors(
        identity, linear.weight.detach().T.double(), linear.bias.detach().double()
    )


def test_every_encoder_linear_is_found_and_nothing_else(tiny_model):
    linears = find_linears(tiny_model)
    assert len(linears) == 2 * 6
    assert all(name.startswith("model.encoder.layers.") for name in linears)


def test_nothing_found_says_what_was_looked_for_and_what_is_there(tiny_model):
    with pytest.raises(ValueError, match=r"no linear layer matches \['\*nothing'\].*such as"):
        find_linears(tiny_model, ["*nothing"])


def test_all_low_rank_already_is_told_apart(tiny_model):
    apply_plan(tiny_model, plan())
    with pytest.raises(ValueError, match="low-rank already"):
        find_linears(tiny_model, ["*encoder.layers.0.fc1"])


def test_the_empty_plan_is_the_identity(tiny_model, tiny_features):
    before = copy.deepcopy(tiny_model)
    apply_plan(tiny_model, CompressionPlan())
    apply_plan(tiny_model, plan(rank=None))
    x = tiny_features[0][0]
    assert torch.equal(
        before.model.encoder(x).last_hidden_state, tiny_model.model.encoder(x).last_hidden_state
    )


def test_full_rank_factors_change_nothing_beyond_rounding(tiny_model, tiny_features):
    x = tiny_features[0][0]
    expected = tiny_model.model.encoder(x).last_hidden_state
    linear = tiny_model.get_submodule(NAME)
    apply_plan(tiny_model, plan(rank=64), {NAME: exact_factors(linear)})
    torch.testing.assert_close(tiny_model.model.encoder(x).last_hidden_state, expected)


def test_type_mode_and_gradient_setting_are_kept(tiny_model):
    tiny_model.to(torch.bfloat16).train().requires_grad_(False)
    apply_plan(tiny_model, plan())
    layer = tiny_model.get_submodule(NAME)
    assert isinstance(layer, LowRankLinear)
    assert layer.training
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in layer.parameters())


def test_applying_twice_keeps_the_layer(tiny_model):
    apply_plan(tiny_model, plan())
    layer = tiny_model.get_submodule(NAME)
    apply_plan(tiny_model, plan())
    assert tiny_model.get_submodule(NAME) is layer
    assert collect_ranks(tiny_model) == {NAME: 16}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (plan(name="model.encoder.layers.9.fc1"), "layers.9.fc1, which the model does not have"),
        (plan(name="model.encoder.conv1"), "wants a linear layer"),
        (plan(shape=(64, 64)), "wants a linear layer"),
    ],
)
def test_a_plan_for_another_model_is_refused(tiny_model, bad, message):
    with pytest.raises(ValueError, match=message):
        apply_plan(tiny_model, bad)


def test_another_rank_than_the_present_one_is_refused(tiny_model):
    apply_plan(tiny_model, plan(rank=16))
    with pytest.raises(ValueError, match="the plan wants"):
        apply_plan(tiny_model, plan(rank=8))


def test_factors_that_overflow_the_type_are_refused(tiny_model):
    tiny_model.half()
    factors = LowRankFactors(torch.full((64, 16), 1e6), torch.zeros(16, 256), torch.zeros(256))
    with pytest.raises(ValueError, match="not finite in torch.float16"):
        apply_plan(tiny_model, plan(), {NAME: factors})


def test_factors_of_another_shape_are_refused(tiny_model):
    factors = LowRankFactors(torch.zeros(64, 8), torch.zeros(8, 256), torch.zeros(256))
    with pytest.raises(ValueError, match="do not fit"):
        apply_plan(tiny_model, plan(), {NAME: factors})


def test_encoder_parameters_leave_the_positional_embedding_out(tiny_model):
    encoder = tiny_model.model.encoder
    everything = sum(p.numel() for p in encoder.parameters())
    assert encoder_parameters(encoder) == everything - 50 * 64


def test_parameter_counts_of_the_plan_are_those_of_the_model(tiny_model):
    before = encoder_parameters(tiny_model.model.encoder)
    shape = LinearShape(64, 256)
    layer = LayerPlan(64, 256, 16, 1.0, shape.dense_params(), shape.low_rank_params(16))
    bigger = CompressionPlan({NAME: layer})
    apply_plan(tiny_model, bigger)
    assert encoder_parameters(tiny_model.model.encoder) == before - bigger.saved_params
