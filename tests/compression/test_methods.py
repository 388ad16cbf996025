"""``pca`` against an independent formulation: an SVD of the stored, centred activations."""

import copy

import pytest
import torch

from liteasr.compression import (
    CalibrationBatch,
    CompressionPlan,
    LayerPlan,
    PCAMethod,
    ThresholdRule,
    apply_plan,
    build_method,
    find_linears,
)

RULE = ThresholdRule(attention=0.9999, mlp=0.995, multiple=8)


def stored_outputs(model, features):
    """Every layer's outputs over all frames, (N, O), as the published script keeps them."""
    outputs = {name: [] for name in find_linears(model)}
    handles = [
        linear.register_forward_hook(lambda _m, _i, y, name=name: outputs[name].append(y))
        for name, linear in find_linears(model).items()
    ]
    with torch.no_grad():
        for x, _ in features:
            model.model.encoder(x)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(ys).flatten(0, 1) for name, ys in outputs.items()}


def published(model, features, rule):
    """Ranks, bases and a compressed copy of the model by the published recipe."""
    compressed, ranks, bases = copy.deepcopy(model), {}, {}
    for name, y in stored_outputs(model, features).items():
        linear = model.get_submodule(name)
        is_mlp = name.endswith(("fc1", "fc2"))
        mean = y.mean(0)
        _, values, right = torch.linalg.svd(y - mean, full_matrices=False)
        energy = values.square()
        threshold = rule.mlp if is_mlp else rule.attention
        rank = next(
            (
                k
                for k in range(0, len(energy), rule.multiple)
                if energy[:k].sum() / energy.sum() > threshold
            ),
            None,
        )
        if rank is None or rank > (0.8 if is_mlp else 0.5) * 64:
            continue
        if rank * (linear.in_features + linear.out_features) >= linear.weight.numel():
            continue
        v = right[:rank].T
        bias = torch.zeros_like(mean) if linear.bias is None else linear.bias
        dense = torch.nn.Linear(linear.in_features, linear.out_features, dtype=y.dtype)
        with torch.no_grad():
            dense.weight.copy_((linear.weight.T @ v @ v.T).T)
            dense.bias.copy_(mean + (bias - mean) @ v @ v.T)
        parent, _, child = name.rpartition(".")
        setattr(compressed.get_submodule(parent), child, dense)
        ranks[name], bases[name] = rank, v
    return ranks, bases, compressed


def calibrated(model, features, method):
    method.prepare(model.model.encoder, find_linears(model))
    for x, frames in features:
        method.observe(CalibrationBatch(x, frames))
    return method


@pytest.fixture
def fp64(tiny_model, tiny_features):
    return tiny_model.double(), [(x.double(), frames) for x, frames in tiny_features]


def test_ranks_subspaces_and_encoder_output_equal_the_published_method(fp64):
    model, features = fp64
    ranks, bases, expected = published(model, features, RULE)
    method = calibrated(model, features, PCAMethod(RULE, block_dtype=torch.float64))
    plan = method.allocate()

    assert plan.ranks == ranks
    assert 4 <= len(ranks) < 12, "some layers must be compressed and some stay dense"
    for name, basis in bases.items():
        overlap = method.pca(name).basis_OR[:, : ranks[name]].T @ basis
        # The smallest cosine of the principal angles between the two subspaces.
        assert torch.linalg.svdvals(overlap).min() > 1 - 1e-10

    factors = {name: method.factorize(name, rank) for name, rank in plan.ranks.items()}
    apply_plan(model, plan, factors)
    x = features[0][0]
    torch.testing.assert_close(
        model.model.encoder(x).last_hidden_state,
        expected.model.encoder(x).last_hidden_state,
        rtol=1e-8,
        atol=1e-8,
    )


def test_mean_output_of_a_swapped_layer_stays_exact(fp64):
    model, features = fp64
    method = calibrated(model, features, PCAMethod(RULE, block_dtype=torch.float64))
    before = stored_outputs(model, features)
    name = "model.encoder.layers.0.fc1"  # nothing before it changes, so its inputs do not
    plan = CompressionPlan({name: LayerPlan(64, 256, 5, 1.0, 0, 0)})
    apply_plan(model, plan, {name: method.factorize(name, 5)})
    after = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, _i, y: after.append(y))
    with torch.no_grad():
        for x, _ in features:
            model.model.encoder(x)
    handle.remove()
    y = torch.cat(after).flatten(0, 1)
    torch.testing.assert_close(y.mean(0), before[name].mean(0), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(y, before[name])


def test_four_grams_a_layer(fp64):
    model, features = fp64
    method = calibrated(model, features, PCAMethod(RULE))
    assert len(method.statistics) == 2 * 4
    assert {statistics.dim for statistics in method.statistics.values()} == {64}


def test_hooks_are_gone_afterwards_even_after_a_failure(fp64):
    model, features = fp64
    method = calibrated(model, features, PCAMethod(RULE))
    with pytest.raises(ValueError, match="length"):
        method.observe(CalibrationBatch(torch.zeros(1, 80, 7).double(), torch.tensor([3])))
    assert all(
        not m._forward_hooks and not m._forward_pre_hooks for m in model.model.encoder.modules()
    )


def test_padding_weight_zero_equals_dropping_the_padding(fp64):
    model, features = fp64
    method = calibrated(
        model, features, PCAMethod(RULE, padding_weight=0.0, block_dtype=torch.float64)
    )
    kept = {name: [] for name in find_linears(model)}
    for x, frames in features:
        mask = torch.arange(50) < frames[:, None]
        for name, y in stored_outputs(model, [(x, frames)]).items():
            kept[name].append(y.unflatten(0, (4, 50))[mask])
    for name, blocks in kept.items():
        y = torch.cat(blocks)
        expected = torch.linalg.svdvals(y - y.mean(0)).square() / len(y)
        actual = method.pca(name).eigenvalues_R
        torch.testing.assert_close(actual[:20], expected[:20], rtol=1e-8, atol=1e-10)


def test_statistics_go_on_after_a_stop(fp64):
    model, features = fp64
    whole = calibrated(model, features, PCAMethod(RULE))
    first = calibrated(model, features[:1], PCAMethod(RULE))
    second = PCAMethod(RULE)
    second.prepare(model.model.encoder, find_linears(model))
    second.load_state_dict(first.state_dict())
    for x, frames in features[1:]:
        second.observe(CalibrationBatch(x, frames))
    for name in find_linears(model):
        assert torch.equal(whole.pca(name).eigenvalues_R, second.pca(name).eigenvalues_R)


def test_statistics_of_other_layers_are_refused(fp64):
    model, features = fp64
    method = calibrated(model, features, PCAMethod(RULE))
    other = PCAMethod(RULE)
    other.prepare(model.model.encoder, find_linears(model, ["*.fc1"]))
    with pytest.raises(ValueError, match="other layers"):
        other.load_state_dict(method.state_dict())


def test_plan_records_where_it_comes_from(fp64):
    model, features = fp64
    plan = calibrated(model, features, PCAMethod(RULE, padding_weight=0.5)).allocate()
    assert plan.method == "pca"
    assert plan.options["mlp"] == 0.995
    assert plan.options["padding_weight"] == 0.5
    assert plan.layers.keys() == find_linears(model).keys()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pcaa", {}, "no method 'pcaa'"),
        ("no.such.Method", {}, "cannot import"),
        ("torch.nn.Linear", {}, "not a CompressionMethod"),
        ("pca", {"thresholds": 1}, "unexpected keyword"),
    ],
)
def test_unknown_methods_and_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_method(name, **options)


def test_a_method_by_dotted_path():
    assert isinstance(build_method("liteasr.compression.methods.PCAMethod"), PCAMethod)
    assert isinstance(build_method("liteasr.compression.methods:PCAMethod"), PCAMethod)
