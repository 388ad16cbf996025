"""A budget by time: what is measured, and that ranks follow it."""

from dataclasses import replace

import pytest
import torch
from calibrated import calibrated
from tiny import tiny_config
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from liteasr.compression import (
    Budget,
    SensitivityMethod,
    collect_ranks,
    spending,
    time_trial,
)
from liteasr.compression.allocate import rank_options
from liteasr.compression.layer_times import EncoderTimes, LayerTimes, measure_times, widths_of
from liteasr.compression.shapes import LinearShape
from liteasr.modeling import PivotedLinear


def test_each_shape_is_timed_once_and_more_rank_never_takes_less():
    encoder = WhisperEncoder(tiny_config()).eval()
    shapes = {
        name: LinearShape(
            one.in_features, one.out_features, one.bias is not None, pivoted="fc" in name
        )
        for name, one in encoder.named_modules()
        if isinstance(one, nn.Linear)
    }
    asked = []

    def ranks(shape):
        asked.append(shape)
        return shape.ranks(4)

    times = measure_times(encoder, shapes, ranks, encoder.config.max_source_positions)
    assert times.layers.keys() == shapes.keys()
    assert len(asked) == len(set(asked)) < len(shapes)
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


def test_whole_encoders_say_what_their_pieces_may_take():
    times = EncoderTimes({}, encoder=100, pieces=90, tried=((40, 50), (60, 80)))
    assert [times.pieces_within(whole) for whole in (50, 65, 80, 90)] == [40, 50, 60, 75]
    assert [times.whole_of(pieces) for pieces in (40, 50, 60, 70)] == [50, 65, 80, 95]
    assert EncoderTimes.from_dict(times.to_dict()) == times


@pytest.mark.parametrize("wholes", [(65, 65), (80, 50)])
def test_noise_in_two_encoders_does_not_make_more_pieces_faster(wholes):
    tried = tuple(zip((40, 60), wholes, strict=True))
    times = EncoderTimes({}, encoder=70, pieces=80, tried=tried)
    assert [times.pieces_within(whole) for whole in (55, 65)] == [30, 50]
    assert 50 < times.pieces_within(69.99) <= 80


HEAD_NS = 1000


def fake_times(monkeypatch, speed, *, trials=False):
    """Time that is ``speed(name)`` nanoseconds a parameter; the rest of the encoder takes 1000.

    Attention takes 1000 for each dimension of a head, of queries and keys and of values. With
    ``trials`` whole encoders are built and timed.
    """
    measured = []

    def times_of(shape, count):
        tried = shape.ranks(1)
        low_rank = tuple(count * shape.low_rank_params(rank) for rank in tried)
        return LayerTimes(3 * shape.dense_params(), tuple(tried), low_rank)

    def measure(encoder, shapes, ranks, frames, reduced, head_dims):
        layers = {name: times_of(shape, speed(name)) for name, shape in shapes.items()}
        core = {f"{qk_dim}/{v_dim}": HEAD_NS * (qk_dim + v_dim) for qk_dim, v_dim in head_dims}
        whole = 2 * max(core.values(), default=0)
        measured.append(1000 + whole + sum(one.dense for one in layers.values()))
        narrower = {widths_of(shape): times_of(shape, 3) for shape in reduced}
        return EncoderTimes(layers, narrower, core, measured[-1], measured[-1] - 1000)

    def tried(times, *_):
        return replace(times, tried=((0, 1000), (1000, 2000)))

    monkeypatch.setattr(spending, "measure_times", measure)
    if not trials:
        monkeypatch.setattr(spending, "with_trials", tried)
    return measured


@pytest.mark.parametrize("heads", [True, False])
def test_two_compressed_encoders_are_timed_beside_the_dense_one(fp64, monkeypatch, heads):
    fake_times(monkeypatch, lambda name: 3, trials=True)
    model, features = fp64
    before = {name: one.clone() for name, one in model.model.encoder.state_dict().items()}
    built = []
    apply_plan = time_trial.apply_plan
    monkeypatch.setattr(
        time_trial, "apply_plan", lambda *given: (built.append(given), apply_plan(*given))
    )
    method = SensitivityMethod(Budget("encoder_time_ratio", 0.7), heads=heads, convolution=False)
    times = calibrated(model, features, method).state_dict()["times"]
    blocks = len(model.model.encoder.layers)
    dense = sum(one["dense"] for one in times["layers"].values())
    dense += blocks * max(times["heads"].values(), default=0)
    (pieces0, whole0), (pieces1, whole1) = times["tried"]
    assert times["pieces"] == dense
    assert 0.3 * dense < pieces0 < 0.6 * dense < pieces1 < 0.8 * dense
    assert min(whole0, whole1, times["encoder"]) > 0
    for holder, plan in built:
        assert len(plan.ranks) == len(times["layers"])
        assert len(plan.head_dims) == (blocks if heads else 0)
        assert dict(collect_ranks(holder)) == plan.ranks
    after = model.model.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_what_is_timed_keeps_its_weights_as_a_compressed_encoder_does(fp64, monkeypatch):
    timed, put_together = [], PivotedLinear._make_weights

    def make_weights(self, way):
        timed.append(self)
        return put_together(self, way)

    monkeypatch.setattr(PivotedLinear, "_make_weights", make_weights)
    method = SensitivityMethod(Budget("encoder_time_ratio", 0.7), heads=False, convolution=False)
    assert calibrated(*fp64, method).state_dict()["times"]["tried"]
    assert timed
    assert len(timed) == len(set(timed)), "each layer once, in however many rounds"


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


def test_a_little_less_time_asks_for_a_little(fp64, monkeypatch):
    measured = fake_times(monkeypatch, lambda name: 3)
    method = SensitivityMethod(Budget("encoder_time_ratio", 0.99, 1), heads=False)
    plan = calibrated(*fp64, method).allocate()
    assert 0.95 * measured[0] < time_of(plan, measured, lambda name: 3) <= 0.99 * measured[0]


@pytest.mark.parametrize("pivoted", [True, False])
def test_ranks_too_coarse_for_heads_and_for_some_layers_are_timed(fp64, pivoted):
    granularity = fp64[0].config.d_model // 2
    budget = Budget("encoder_time_ratio", 0.9, granularity)
    method = calibrated(*fp64, SensitivityMethod(budget, pivoted=pivoted))
    times = method.state_dict()["times"]
    assert not times["heads"]
    assert len(times["tried"]) == 2


def test_saved_statistics_bring_their_times(fp64, monkeypatch):
    measured = fake_times(monkeypatch, lambda name: 3)
    budget = Budget("encoder_time_ratio", 0.8, 1)
    method = calibrated(*fp64, SensitivityMethod(budget))
    other = SensitivityMethod(budget)
    other.prepare(fp64[0].model.encoder, dict(method.linears))
    other.load_state_dict(method.state_dict())
    assert other.allocate() == method.allocate()
    assert len(measured) == 1
