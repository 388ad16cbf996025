"""What the gradients say an error costs, against what it costs when it is made."""

import copy

import calibrated as helpers
import pytest
import torch
from tiny import give_opinions

from liteasr.compression import (
    Budget,
    CalibrationBatch,
    SensitivityMethod,
    apply_plan,
    build_method,
    encoder_flops,
    encoder_parameters,
    find_linears,
    gradients,
)
from liteasr.modeling.decoder import WhisperDecoder

HALF = Budget("encoder_ratio", 0.7)


def calibrated(model, features, method=None, batch_size=4):
    return helpers.calibrated(model, features, method or SensitivityMethod(HALF), batch_size)


def compressed(model, method):
    plan = method.allocate()
    copied = copy.deepcopy(model)
    apply_plan(copied, plan, {n: method.factorize(n, rank) for n, rank in plan.ranks.items()})
    return copied, plan


def relative_error(model, other, features):
    error, outputs = 0.0, []
    for x, frames in features:
        with torch.no_grad():
            z, hat = (m.model.encoder(x).last_hidden_state for m in (model, other))
        mask = torch.arange(z.shape[1]) < frames[:, None]
        error += (z - hat)[mask].square().sum()
        outputs.append(z[mask])
    z = torch.cat(outputs)
    return float(error / (z - z.mean(0)).square().sum())


@pytest.mark.parametrize("name", ["self_attn.v_proj", "fc1", "fc2"])
def test_the_metric_says_what_an_independent_error_costs(fp64, name):
    """White noise at a layer's output or input must cost its variance times the trace of G."""
    model, features = fp64
    method = calibrated(model, features, SensitivityMethod(HALF, probes=64))
    full_name = f"model.encoder.layers.1.{name}"
    expected = 1e-6 * float(method.metric_of(full_name).trace())
    noisy, generator = copy.deepcopy(model), torch.Generator().manual_seed(2)

    def noise(tensor):
        return tensor + 1e-3 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    layer = noisy.get_submodule(full_name)
    if method.on_input(full_name):
        layer.register_forward_pre_hook(lambda _m, args: (noise(args[0]),))
    else:
        layer.register_forward_hook(lambda _m, _a, output: noise(output))
    actual = sum(relative_error(model, noisy, features) for _ in range(64)) / 64
    assert actual == pytest.approx(expected, rel=0.1)


def test_with_the_decoder_the_metric_says_what_an_error_costs_there_too(fp64):
    model, features = fp64
    give_opinions(model)
    weight, name = 50.0, "model.encoder.layers.1.fc2"
    method = SensitivityMethod(HALF, probes=64, decoder_weight=weight)
    method.decoder = WhisperDecoder(model, [0, 1])
    method = calibrated(model, features, method)
    alone = calibrated(model, features, SensitivityMethod(HALF, probes=64))
    noisy, generator = copy.deepcopy(model), torch.Generator().manual_seed(2)
    noisy.get_submodule(name).register_forward_hook(
        lambda _m, _a, y: y + 1e-3 * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    )
    divergence = frames = 0.0
    for x, length in features * 32:
        with torch.no_grad():
            z, hat = (m.model.encoder(x).last_hidden_state for m in (model, noisy))
            tokens, predicted = method.decoder.transcribe(z)
            p, q = (method.decoder.logits(e, tokens).log_softmax(-1) for e in (z, hat))
        per_token = (p.exp() * (p - q)).sum(-1) * predicted
        divergence += float((per_token.sum(1) / predicted.sum(1) * length).sum())
        frames += float(length.sum())
    added = float((method.metric_of(name) - alone.metric_of(name)).trace())
    assert added > 0.2 * float(alone.metric_of(name).trace())
    assert weight * divergence / frames == pytest.approx(1e-6 * added, rel=0.15)


def test_the_decoder_is_probed_with_noise_of_its_own(fp64, monkeypatch):
    model, features = fp64
    drawn = []
    noise = gradients._noise

    def draw(shape, seed):
        drawn.append(seed)
        return noise(shape, seed)

    monkeypatch.setattr(gradients, "_noise", draw)
    method = SensitivityMethod(HALF, decoder_weight=1.0, probes=2)
    method.decoder = WhisperDecoder(give_opinions(model), [0, 1])
    calibrated(model, features[:1], method)
    assert len(drawn) == len(set(drawn)) == 2 * 2 * len(features[0][0])


def test_a_weight_for_the_decoder_needs_one(fp64):
    model, features = fp64
    with pytest.raises(ValueError, match="needs a decoder"):
        calibrated(model, features, SensitivityMethod(HALF, decoder_weight=1.0))


def test_scalar_diagonal_and_full_metrics_agree_on_the_whole(fp64):
    model, features = fp64
    name = "model.encoder.layers.0.self_attn.v_proj"
    traces = {
        metric: float(
            calibrated(model, features, SensitivityMethod(HALF, metric=metric))
            .metric_of(name)
            .trace()
        )
        for metric in ("scalar", "diagonal", "full")
    }
    assert traces["scalar"] == pytest.approx(traces["full"], rel=1e-5)
    assert traces["diagonal"] == pytest.approx(traces["full"], rel=1e-5)


def test_metric_none_counts_each_layer_against_its_own_variance(fp64):
    model, features = fp64
    method = calibrated(model, features, SensitivityMethod(HALF, metric="none"))
    for name in find_linears(model):
        assert float(method.metric_pca(name).eigenvalues_R.sum()) == pytest.approx(1.0, rel=1e-6)


def test_sums_do_not_depend_on_how_clips_are_put_into_batches(fp64):
    model, features = fp64
    one, four = (
        calibrated(model, features, SensitivityMethod(HALF, block_dtype=torch.float64), size)
        for size in (1, 4)
    )
    for name in find_linears(model):
        expected = four.metric_of(name)
        rounding = 1e-12 * float(expected.abs().max())  # sums that cancel
        torch.testing.assert_close(one.metric_of(name), expected, rtol=1e-9, atol=rounding)
    assert all(map(torch.equal, one.clips, four.clips))


def test_the_model_is_as_it_was(tiny_model, tiny_features):
    tiny_model.model.encoder.conv1.weight.requires_grad_(False)
    wanted = [p.requires_grad for p in tiny_model.parameters()]
    calibrated(tiny_model, tiny_features)
    assert [p.requires_grad for p in tiny_model.parameters()] == wanted
    assert all(p.grad is None for p in tiny_model.parameters())
    modules = tiny_model.model.encoder.modules()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in modules)


@pytest.mark.parametrize("kind", ["encoder_params", "encoder_ratio", "encoder_flops_ratio"])
def test_budgets_are_met_from_below(fp64, kind):
    model, features = fp64
    encoder = model.model.encoder
    amount = 0.75 * encoder_parameters(encoder) if kind == "encoder_params" else 0.75
    method = calibrated(model, features, SensitivityMethod(Budget(kind, amount, granularity=1)))
    small, plan = compressed(model, method)
    measure = encoder_flops if kind == "encoder_flops_ratio" else encoder_parameters
    ratio = measure(small.model.encoder) / measure(encoder)
    assert 0.745 < ratio <= 0.75
    assert (
        encoder_parameters(encoder) - encoder_parameters(small.model.encoder) == plan.saved_params
    )


def test_a_budget_by_error_is_met_on_the_calibration_clips(fp64, caplog):
    model, features = fp64
    sizes = []
    for wanted in (0.02, 0.1):
        # What the trial takes for padding is noise here, which convolutions would hear.
        budget = Budget("max_error", wanted, 1)
        method = calibrated(model, features, SensitivityMethod(budget, convolution=False))
        small, plan = compressed(model, method)
        assert plan.predicted_error <= wanted
        assert relative_error(model, small, features) == pytest.approx(wanted, rel=0.5)
        sizes.append(encoder_parameters(small.model.encoder))
    assert sizes[1] < sizes[0]
    assert f"with so few of them, {len(method.clips)}, the error on other speech" in caplog.text


def test_the_plan_says_what_each_layer_brings(fp64):
    model, features = fp64
    method = calibrated(model, features)
    _, plan = compressed(model, method)
    parts = [*plan.layers.values(), *plan.attention.values()]
    assert sum(one.predicted_error for one in parts) == pytest.approx(plan.predicted_error)
    for layer in plan.layers.values():
        full = min(layer.in_features, layer.out_features)
        assert (layer.predicted_error > 0) == (layer.rank not in (None, full))
    assert plan.options["budget"] == {"encoder_ratio": 0.7}
    assert type(plan).from_dict(plan.to_dict()) == plan


def test_choosing_ranks_together_beats_thresholds_at_the_same_size(fp64):
    model, features = fp64
    errors = {}
    for name in ("pca", "sensitivity"):
        method = calibrated(model, features, build_method(name, budget=HALF))
        small, _ = compressed(model, method)
        assert encoder_parameters(small.model.encoder) <= 0.7 * encoder_parameters(
            model.model.encoder
        )
        errors[name] = relative_error(model, small, features)
    assert errors["sensitivity"] < 0.7 * errors["pca"]


def test_statistics_go_on_after_a_stop(fp64):
    model, features = fp64
    whole = calibrated(model, features)
    first, second = SensitivityMethod(HALF), SensitivityMethod(HALF)
    first.prepare(model.model.encoder, first.select(model))
    first.observe(CalibrationBatch(*features[0]))
    second.prepare(model.model.encoder, second.select(model))
    second.load_state_dict(first.state_dict())
    for x, frames in features[1:]:
        second.observe(CalibrationBatch(x, frames))
    second.reduce(lambda tensor: tensor)
    assert second.allocate() == whole.allocate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "fll"}, "none of none, scalar, diagonal, full"),
        ({"damping": 0}, "damping"),
        ({"probes": 0}, "probes"),
        ({"decoder_weight": -1.0}, "decoder_weight"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SensitivityMethod(HALF, **options)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget("encoder_params", 1e9), "not below the"),
        (Budget("encoder_ratio", 0.01), "cannot be reached"),
    ],
)
def test_budgets_out_of_reach_say_what_is_in_reach(fp64, budget, message):
    model, features = fp64
    with pytest.raises(ValueError, match=message):
        calibrated(model, features, SensitivityMethod(budget)).allocate()
