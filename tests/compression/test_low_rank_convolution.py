"""The encoder's second convolution among the layers that are compressed."""

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
    PCAMethod,
    RefinedMethod,
    SensitivityMethod,
    apply_plan,
    collect_ranks,
    encoder_flops,
    encoder_parameters,
    find_linears,
    frame_convolution,
    unframe_convolution,
)
from liteasr.export import export_model
from liteasr.loading import load
from liteasr.modeling import FramedConvolution

NAME = "model.encoder.conv2.linear"
BUDGET = Budget("encoder_ratio", 0.45)


@pytest.fixture(autouse=True)
def _redundant(tiny_model):
    """A convolution that has little to lose by a rank of 8."""
    weight = tiny_model.model.encoder.conv2.weight
    with torch.no_grad():
        rows = torch.randn(64, 8) @ torch.randn(8, 192) / 40 + torch.randn(64, 192) / 400
        weight.copy_(rows.view_as(weight))


@pytest.fixture
def method(tiny_model, tiny_features):
    return calibrated(tiny_model, tiny_features, SensitivityMethod(BUDGET, heads=False))


@pytest.fixture
def compressed(tiny_model, method):
    plan = method.allocate()
    factors = {name: method.factorize(name, rank) for name, rank in plan.ranks.items()}
    apply_plan(tiny_model, plan, factors)
    return tiny_model.eval()


def encoded(model, features):
    with torch.no_grad():
        return model.model.encoder(features[0][0]).last_hidden_state


def test_framing_changes_nothing_and_can_be_undone(tiny_model, tiny_features):
    encoder, before = tiny_model.model.encoder, encoded(tiny_model, tiny_features)
    sizes = encoder_parameters(encoder), encoder_flops(encoder)
    state = {name: one.clone() for name, one in tiny_model.state_dict().items()}
    for _ in range(2):  # idempotent
        frame_convolution(tiny_model)
    assert isinstance(encoder.conv2, FramedConvolution)
    assert (encoder_parameters(encoder), encoder_flops(encoder)) == sizes
    torch.testing.assert_close(encoded(tiny_model, tiny_features), before)
    unframe_convolution(tiny_model)
    assert isinstance(encoder.conv2, nn.Conv1d)
    assert tiny_model.state_dict().keys() == state.keys()
    assert all(torch.equal(one, state[name]) for name, one in tiny_model.state_dict().items())


def test_only_methods_that_ask_for_it_get_it(tiny_model):
    assert NAME not in PCAMethod().select(tiny_model)
    assert NAME not in SensitivityMethod(BUDGET, convolution=False).select(tiny_model)
    assert isinstance(tiny_model.model.encoder.conv2, nn.Conv1d)
    selected = RefinedMethod(BUDGET).select(tiny_model)
    assert selected[NAME] is tiny_model.model.encoder.conv2.linear
    assert set(selected) - {NAME} == set(find_linears(tiny_model))


def test_it_gets_a_rank_from_the_budget_of_all(tiny_model, method):
    dense = encoder_parameters(tiny_model.model.encoder)
    plan = method.allocate()
    layer = plan.layers[NAME]
    assert (layer.in_features, layer.out_features) == (192, 64)
    assert layer.rank is not None
    assert 0 < layer.predicted_error < plan.predicted_error
    assert 0.44 * dense < dense - plan.saved_params <= 0.45 * dense
    apply_plan(tiny_model, plan)
    assert encoder_parameters(tiny_model.model.encoder) == dense - plan.saved_params
    assert collect_ranks(tiny_model) == plan.ranks
    assert NAME not in str(plan.low_rank_config(2))
    assert CompressionPlan.from_dict(json.loads(plan.to_json())) == plan


def test_refinement_aims_at_the_encoder_with_the_dense_convolution(tiny_model, tiny_features):
    method = calibrated(
        tiny_model, tiny_features, RefinedMethod(BUDGET, decoder_weight=0.0, heads=False)
    )
    plan = method.allocate()
    method.before_blocks()
    dense, block = copy.deepcopy(tiny_model).model.encoder, tiny_model.model.encoder.layers[0]
    part = CompressionPlan({NAME: plan.layers[NAME]})
    apply_plan(tiny_model, part, {NAME: method.factorize(NAME, plan.ranks[NAME])})
    method.before_block(block)
    windows, seen = method._windows.features_NMF, []
    for encoder in (dense, tiny_model.model.encoder):
        handle = encoder.layers[0].register_forward_hook(
            lambda _, args, out: seen.append((args[0], out))
        )
        with torch.no_grad():
            encoder(windows[:1])
        handle.remove()
    (_, target), (compressed_input, _) = seen
    torch.testing.assert_close(method._walk.target_NTD[:1], target)
    torch.testing.assert_close(method._walk.compressed_NTD[:1], compressed_input)
    assert not torch.allclose(seen[0][0], compressed_input, rtol=1e-3, atol=1e-3)


def test_a_folder_gives_the_model_back(compressed, tiny_features, tmp_path):
    processor = make_processor(chunk_length=1)
    compressed.resize_token_embeddings(len(processor.tokenizer))
    export_model(compressed, processor, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["conv2_rank"] == collect_ranks(compressed)[NAME]
    reloaded, _ = load(str(tmp_path / "model"))
    expected = encoded(compressed, tiny_features)
    torch.testing.assert_close(encoded(reloaded, tiny_features), expected, rtol=1e-4, atol=1e-4)

    export_model(compressed, processor, tmp_path / "published", published=True)
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    assert "conv2_rank" not in config
    published, _ = load(str(tmp_path / "published"))
    assert isinstance(published.model.encoder.conv2, nn.Conv1d)
    torch.testing.assert_close(encoded(published, tiny_features), expected, rtol=1e-4, atol=1e-4)


def test_an_impossible_rank_in_the_configuration_is_named(tiny_model):
    from liteasr.modeling import LiteWhisperConfig

    settings = {**tiny_model.config.to_dict(), "conv2_rank": 65}
    with pytest.raises(ValueError, match=r"conv2_rank: 65 is not in 1…64"):
        LiteWhisperConfig(**settings)


def test_what_is_in_low_rank_already_is_refused_and_left_alone(tiny_model, tiny_features):
    method = calibrated(
        tiny_model, tiny_features, SensitivityMethod(BUDGET, convolution=False, heads=False)
    )
    plan = method.allocate()
    ranks = {name: one for name, one in plan.layers.items() if one.rank is not None}
    assert len(ranks) == len(find_linears(tiny_model))
    apply_plan(tiny_model, CompressionPlan(ranks))
    with pytest.raises(ValueError, match="is low-rank already"):
        SensitivityMethod(BUDGET, heads=False).select(tiny_model)
    assert isinstance(tiny_model.model.encoder.conv2, nn.Conv1d)


def test_a_convolution_of_low_rank_is_not_compressed_again(compressed):
    with pytest.raises(ValueError, match="is low-rank already"):
        SensitivityMethod(BUDGET, heads=False).select(compressed)
    assert collect_ranks(compressed)[NAME]
