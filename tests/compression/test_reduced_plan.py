"""Plans with reduced attention: record, surgery, counting."""

import json

import pytest
import torch

from liteasr.compression import (
    AttentionPlan,
    CompressionPlan,
    LayerPlan,
    LinearShape,
    LowRankFactors,
    apply_plan,
    attention_weights,
    collect_head_dims,
    collect_ranks,
    encoder_flops,
    encoder_parameters,
    head_factors,
    score_modes,
    value_modes,
)
from liteasr.compression.surgery import encoder_frames
from liteasr.modeling import LowRankLinear, ReducedAttention, use_plain_attention, use_rank_space

NAME = "model.encoder.layers.0.self_attn"
OTHER = "model.encoder.layers.1.self_attn"


def attention_plan(qk_dim=8, v_dim=12, **changes):
    dense = 4 * 64 * 64 + 3 * 64
    params = dense if qk_dim is None else 2 * 64 * 2 * (qk_dim + v_dim) + 2 * qk_dim + 64
    options = {"predicted_error": 0.01, **changes}
    return AttentionPlan(
        **{
            "embed_dim": 64,
            "num_heads": 2,
            "qk_dim": qk_dim,
            "v_dim": v_dim,
            "dense_params": dense,
            "params": params,
            **options,
        }
    )


@pytest.fixture
def plan():
    return CompressionPlan(
        {"model.encoder.layers.0.fc1": LayerPlan(64, 256, 8, 0.9, 16640, 2816)},
        attention={NAME: attention_plan(), OTHER: attention_plan(None, None)},
    )


def factors_of(model, qk_dim, v_dim):
    weights = attention_weights(model.get_submodule(NAME))
    mean, covariance = torch.zeros(64), torch.eye(64)
    scores, values = score_modes(weights, mean, covariance), value_modes(weights, mean, covariance)
    return head_factors(weights, mean, scores, values, qk_dim, v_dim)


def encode(model, features):
    with torch.no_grad():
        return model.model.encoder(features[0][0]).last_hidden_state


def test_json_and_weights_only_round_trip(plan, tmp_path):
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert CompressionPlan.load(tmp_path / "plan.json") == plan
    torch.save(plan.to_dict(), tmp_path / "plan.pt")
    loaded = torch.load(tmp_path / "plan.pt", weights_only=True)
    assert CompressionPlan.from_dict(loaded) == plan


def test_a_plan_without_attention_is_written_as_before(plan):
    record = CompressionPlan(plan.layers).to_dict()
    assert record["format"] == 1
    assert "attention" not in record
    assert plan.to_dict()["format"] != 1, "or an older reader would ignore the attention"


def test_an_old_plan_still_loads(tmp_path):
    record = {
        "format": 1,
        "layers": {
            "model.encoder.layers.0.fc1": {
                "in_features": 64,
                "out_features": 256,
                "rank": 8,
                "kept_energy": 0.9,
                "dense_params": 16640,
                "params": 2816,
            }
        },
        "method": "pca",
        "options": {},
        "calibration": {},
    }
    (tmp_path / "plan.json").write_text(json.dumps(record))
    loaded = CompressionPlan.load(tmp_path / "plan.json")
    assert loaded.ranks == {"model.encoder.layers.0.fc1": 8}
    assert loaded.attention == {}


def test_one_dimension_without_the_other_is_refused():
    with pytest.raises(ValueError, match="either both or none"):
        AttentionPlan(64, 2, 8, None, dense_params=0, params=0)


def test_a_plan_replaces_attention_and_layers_and_leaves_dense_heads(tiny_model, plan):
    apply_plan(tiny_model, plan)
    reduced = tiny_model.get_submodule(NAME)
    assert isinstance(reduced, ReducedAttention)
    assert (reduced.qk_dim, reduced.v_dim) == (8, 12)
    assert collect_head_dims(tiny_model) == plan.head_dims == {NAME: (8, 12)}
    assert collect_ranks(tiny_model) == plan.ranks
    apply_plan(tiny_model, plan)
    assert tiny_model.get_submodule(NAME) is reduced


def test_parameter_counts_of_the_plan_are_those_of_the_model(tiny_model, plan):
    before = encoder_parameters(tiny_model.model.encoder)
    apply_plan(tiny_model, plan)
    assert encoder_parameters(tiny_model.model.encoder) == before - plan.saved_params


def test_arithmetic_is_that_of_the_narrower_heads(tiny_model, plan):
    encoder = tiny_model.model.encoder
    before, frames = encoder_flops(encoder), encoder_frames(encoder)
    apply_plan(tiny_model, CompressionPlan(attention=plan.attention))
    projections = 2 * frames * (4 * 64 * 64 - 2 * 64 * 2 * (8 + 12))
    scores_and_values = 2 * frames * frames * 2 * (32 + 32 - 8 - 12)
    assert before - encoder_flops(encoder) == projections + scores_and_values


def test_full_width_factors_change_nothing_beyond_rounding(tiny_model, tiny_features):
    expected = encode(tiny_model, tiny_features)
    factors = {NAME: factors_of(tiny_model, 32, 32)}
    apply_plan(tiny_model, CompressionPlan(attention={NAME: attention_plan(32, 32)}), factors)
    assert isinstance(tiny_model.get_submodule(NAME), ReducedAttention)
    torch.testing.assert_close(encode(tiny_model, tiny_features), expected, rtol=1e-4, atol=1e-4)


def test_a_projection_of_reduced_heads_may_get_a_low_rank(tiny_model):
    before = encoder_parameters(tiny_model.model.encoder)
    shape = LinearShape(64, 24, bias=False)
    layer = LayerPlan(64, 24, 4, 0.9, shape.dense_params(), shape.low_rank_params(4))
    plan = CompressionPlan({f"{NAME}.v_proj": layer}, attention={NAME: attention_plan()})
    for _ in range(2):
        apply_plan(tiny_model, plan)
        value = tiny_model.get_submodule(f"{NAME}.v_proj")
        assert isinstance(value, LowRankLinear)
        assert (value.in_features, value.out_features, value.rank) == (64, 24, 4)
    assert encoder_parameters(tiny_model.model.encoder) == before - plan.saved_params
    tiny_model.get_submodule(NAME)(torch.randn(1, 5, 64))


def test_type_mode_and_gradient_setting_are_kept(tiny_model, plan):
    tiny_model.to(torch.bfloat16).train().requires_grad_(False)
    apply_plan(tiny_model, plan)
    reduced = tiny_model.get_submodule(NAME)
    assert reduced.training
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in reduced.parameters())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("model.encoder.layers.9.self_attn", {}, "layers.9.self_attn, which the model does not"),
        ("model.encoder.layers.0.fc1", {}, "wants a self-attention"),
        (NAME, {"num_heads": 4}, "width 64 and 4 heads"),
        (NAME, {"embed_dim": 32}, "width 32 and 2 heads"),
    ],
)
def test_a_plan_for_another_model_is_refused(tiny_model, name, changes, message):
    with pytest.raises(ValueError, match=message):
        apply_plan(tiny_model, CompressionPlan(attention={name: attention_plan(**changes)}))


def test_low_rank_projections_are_not_overwritten(tiny_model):
    layer = LayerPlan(64, 64, 4, 0.9, 0, 0)
    apply_plan(tiny_model, CompressionPlan({f"{NAME}.q_proj": layer}))
    with pytest.raises(ValueError, match="self-attention of dense projections"):
        apply_plan(tiny_model, CompressionPlan(attention={NAME: attention_plan()}))


def test_other_dimensions_than_the_present_ones_are_refused(tiny_model, plan):
    apply_plan(tiny_model, plan)
    with pytest.raises(ValueError, match="the plan wants"):
        apply_plan(tiny_model, CompressionPlan(attention={NAME: attention_plan(8, 16)}))


def test_factors_of_the_wrong_kind_are_refused(tiny_model, plan):
    heads = factors_of(tiny_model, 8, 12)
    wrong = LowRankFactors(torch.zeros(64, 8), torch.zeros(8, 64), torch.zeros(64))
    with pytest.raises(ValueError, match="self_attn is a self-attention"):
        apply_plan(tiny_model, plan, {NAME: wrong})
    with pytest.raises(ValueError, match="fc1 is a linear layer"):
        apply_plan(tiny_model, plan, {"model.encoder.layers.0.fc1": heads})


def test_rank_space_and_a_plan_do_not_disturb_each_other(tiny_model, tiny_features):
    """Layers that are swapped after the switch are used by it."""
    low = {
        f"{OTHER}.{name}": LayerPlan(64, 64, 8, 0.9, 0, 0)
        for name in ("q_proj", "k_proj", "v_proj")
    }
    plan = CompressionPlan(low, attention={NAME: attention_plan()})
    apply_plan(tiny_model, plan)
    expected = encode(tiny_model, tiny_features)
    assert use_rank_space(tiny_model).keys() == {OTHER}
    apply_plan(tiny_model, plan)
    torch.testing.assert_close(encode(tiny_model, tiny_features), expected, rtol=1e-4, atol=1e-4)
    apply_plan(tiny_model, CompressionPlan({f"{OTHER}.out_proj": LayerPlan(64, 64, 8, 1, 0, 0)}))
    expected = encode(tiny_model, tiny_features)
    use_plain_attention(tiny_model)
    torch.testing.assert_close(encode(tiny_model, tiny_features), expected, rtol=1e-4, atol=1e-4)
