"""A budget by time: what is measured, and that ranks follow it."""

import pytest
import torch
from calibrated import calibrated
from tiny import tiny_config
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from liteasr.compression import Budget, SensitivityMethod, sensitivity
from liteasr.compression.allocate import LinearShape, rank_options
from liteasr.compression.layer_times import EncoderTimes, LayerTimes, measure_times, widths_of


def test_each_shape_is_timed_once_and_more_rank_never_takes_less():
    encoder = WhisperEncoder(tiny_config()).eval()
    shapes = {
        name: LinearShape(
            one.in_features, one.out_features, one.bias is not None, pivoted="fc" in name
        )
        for name, one in encoder.named_modules()
        if isinstance(one, nn.Linear)
    }
    config = encoder.config
    features = torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions)
    asked = []

    def ranks(shape):
        asked.append(shape)
        return shape.ranks(4)

    times = measure_times(encoder, shapes, ranks, features)
    assert times.layers.keys() == shapes.keys()
    assert len(asked) == len(set(asked)) < len(shapes)
    assert times.encoder > 0
    for name, one in times.layers.items():
        possible = shapes[name].ranks(4)
        assert (one.ranks[0], one.ranks[-1]) == (possible[0], possible[-1])
        assert one.dense > 0
        assert one.low_rank == tuple(sorted(one.low_rank))


def test_times_between_and_beyond_what_was_measured_lie_on_a_line():
    times = LayerTimes(dense=100, ranks=(8, 16, 32), low_rank=(20, 30, 40))
    assert [times.at(rank) for rank in (4, 8, 12, 16, 24, 32, 48)] == [15, 20, 25, 30, 35, 40, 50]


def test_a_rank_that_saves_parameters_but_no_time_is_no_option():
    shape = LinearShape(64, 64)
    cost = LayerTimes(dense=100, ranks=(8, 16, 24), low_rank=(60, 99, 120)).at
    options = rank_options(torch.ones(64), shape, granularity=8, cost=cost)
    assert [one.value for one in options] == [None, 8, 16]
    assert [one.cost for one in options] == [100, 60, 99]
    assert [one.value for one in rank_options(torch.ones(64), shape)] == [None, 8, 16, 24]


HEAD_NS = 1000


def fake_times(monkeypatch, speed):
    """Time that is ``speed(name)`` nanoseconds a parameter; the rest of the encoder takes 1000.

    Attention takes 1000 for each dimension of a head, of queries and keys and of values.
    """
    measured = []

    def times_of(shape, count):
        tried = shape.ranks(1)
        low_rank = tuple(count * shape.low_rank_params(rank) for rank in tried)
        return LayerTimes(3 * shape.dense_params(), tuple(tried), low_rank)

    def measure(encoder, shapes, ranks, features, reduced, head_dims):
        layers = {name: times_of(shape, speed(name)) for name, shape in shapes.items()}
        core = {f"{qk_dim}/{v_dim}": HEAD_NS * (qk_dim + v_dim) for qk_dim, v_dim in head_dims}
        whole = 2 * max(core.values(), default=0)
        measured.append(1000 + whole + sum(one.dense for one in layers.values()))
        narrower = {widths_of(shape): times_of(shape, 3) for shape in reduced}
        return EncoderTimes(measured[-1], layers, narrower, core)

    monkeypatch.setattr(sensitivity, "measure_times", measure)
    return measured


def time_of(plan, measured, speed):
    saved = sum(
        3 * one.dense_params - speed(name) * one.params
        for name, one in plan.layers.items()
        if one.rank is not None
    )
    return measured[0] - saved


def test_the_budget_is_met_and_layers_that_would_not_be_faster_stay_dense(fp64, monkeypatch):
    def speed(name):
        return 30 if "fc1" in name else 3

    measured = fake_times(monkeypatch, speed)
    model, features = fp64
    method = SensitivityMethod(Budget("encoder_time_ratio", 0.8, 1), heads=False)
    plan = calibrated(model, features, method).allocate()
    assert 0.77 * measured[0] < time_of(plan, measured, speed) <= 0.8 * measured[0]
    for name, one in plan.layers.items():
        if "fc1" in name:
            assert one.rank is None or one.params * 10 < one.dense_params
    assert plan.options["budget"] == {"encoder_time_ratio": 0.8}
    assert len(measured) == 1


def test_heads_get_narrower_where_attention_takes_the_time(fp64, monkeypatch):
    measured = fake_times(monkeypatch, lambda name: 3)
    budget = Budget("encoder_time_ratio", 0.7)
    plans = {
        heads: calibrated(*fp64, SensitivityMethod(budget, heads=heads)).allocate()
        for heads in (False, True)
    }
    assert not plans[False].attention
    dims = list(plans[True].head_dims.values())
    assert dims
    assert all(qk_dim <= v_dim for qk_dim, v_dim in dims)
    assert any(qk_dim < v_dim for qk_dim, v_dim in dims), "values bear less"
    saved = HEAD_NS * sum(64 - sum(one) for one in dims) + 3 * plans[True].saved_params
    assert 0.68 * measured[1] < measured[1] - saved <= 0.7 * measured[1]


def test_what_cannot_be_reached_is_said(fp64, monkeypatch):
    fake_times(monkeypatch, lambda name: 3)
    method = SensitivityMethod(Budget("encoder_time_ratio", 0.01))
    with pytest.raises(ValueError, match=r"encoder_time_ratio: .* ns a window cannot be reached"):
        calibrated(*fp64, method).allocate()


def test_saved_statistics_bring_their_times(fp64, monkeypatch):
    measured = fake_times(monkeypatch, lambda name: 3)
    budget = Budget("encoder_time_ratio", 0.8, 1)
    method = calibrated(*fp64, SensitivityMethod(budget))
    other = SensitivityMethod(budget)
    other.prepare(fp64[0].model.encoder, dict(method.linears))
    other.load_state_dict(method.state_dict())
    assert other.allocate() == method.allocate()
    assert len(measured) == 1
