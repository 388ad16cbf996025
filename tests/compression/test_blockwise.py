"""Refinement: what a block gives gets closer to the dense block's, on any number of processes."""

import pytest
import torch
from torch import nn

from liteasr.compression import (
    Budget,
    CalibrationBatch,
    CompressionPlan,
    Processes,
    RefinedMethod,
    apply_plan,
    find_linears,
)
from liteasr.compression.blocks import BlockWalk, run_block
from liteasr.compression.refine import Refinement
from liteasr.compression.windows import Windows, pack_windows

BUDGET = Budget("encoder_ratio", 0.4)
OPTIONS = {
    **{"refine_steps": 30, "learning_rate": 5e-3, "decoder_weight": 0.0, "joint_steps": 0},
    # With lower ranks there is more to refine.
    **{"pivoted": False, "convolution": False},
}


def compress(model, features, **options):
    """The steps of the callback, on one process."""
    method = RefinedMethod(BUDGET, **OPTIONS | options)
    encoder = model.model.encoder
    method.prepare(encoder, find_linears(model))
    for x, frames in features:
        method.observe(CalibrationBatch(x, frames))
    method.reduce(lambda tensor: tensor)
    plan = method.allocate()
    method.before_blocks()
    installed = {}
    for index, block in enumerate(encoder.layers):
        prefix = f"model.encoder.layers.{index}."
        names = [name for name in plan.ranks if name.startswith(prefix)]
        part = CompressionPlan({name: plan.layers[name] for name in names})
        method.before_block(block)
        factors = {name: method.factorize(name, plan.ranks[name]) for name in names}
        apply_plan(model, part, factors)
        within = {name.removeprefix(prefix): one for name, one in factors.items()}
        after = method.after_block(block, within)
        apply_plan(model, part, {prefix + name: one for name, one in after.items()})
        method.block_done(block)
        installed |= {prefix + name: one for name, one in after.items()}
    prefix = "model.encoder."
    within = {name.removeprefix(prefix): one for name, one in installed.items()}
    final = method.after_blocks(within)
    assert (final is within) == (method.joint.steps == 0)
    apply_plan(model, plan, {prefix + name: one for name, one in final.items()})
    return plan


def encoded(model, features):
    with torch.no_grad():
        outputs = [model.model.encoder(x).last_hidden_state for x, _ in features]
    masks = [torch.arange(50) < frames[:, None] for _, frames in features]
    return torch.cat([output[mask] for output, mask in zip(outputs, masks, strict=True)])


@pytest.fixture
def two_models(tiny_model):
    import copy

    return tiny_model, copy.deepcopy(tiny_model)


def test_refinement_lowers_the_error_at_the_same_ranks(two_models, tiny_features):
    plain, refined = two_models
    dense = encoded(plain, tiny_features)
    plans = [
        compress(plain, tiny_features, refine_steps=0),
        compress(refined, tiny_features),
    ]
    assert plans[0].ranks == plans[1].ranks
    errors = [(encoded(model, tiny_features) - dense).square().sum() for model in two_models]
    assert errors[1] < 0.9 * errors[0]


def test_all_factors_together_lower_it_too(two_models, tiny_features):
    one, both = two_models
    # Of the range that log-mel features have, which windows are cut to.
    features = [(x.clamp(-1, 1), frames) for x, frames in tiny_features]
    dense = encoded(one, features)
    options = {"refine_steps": 0, "joint_learning_rate": 0.2}
    plan = compress(one, features, **options)
    assert compress(both, features, **options, joint_steps=20).ranks == plan.ranks
    errors = [(encoded(model, features) - dense).square().sum() for model in two_models]
    assert errors[1] < 0.9 * errors[0]


def test_only_the_layers_of_the_plan_change(tiny_model, tiny_features):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    plan = compress(tiny_model, tiny_features)
    for name, value in tiny_model.state_dict().items():
        if name.rpartition(".")[0] not in plan.ranks:
            assert torch.equal(value, before[name])
    assert all(p.grad is None for p in tiny_model.parameters())


def test_the_walk_gives_the_hidden_states_of_both_encoders(tiny_model, tiny_features):
    encoder = tiny_model.model.encoder
    x, frames = tiny_features[0]
    expected = []
    handles = [
        block.register_forward_hook(lambda _m, _a, output: expected.append(output))
        for block in encoder.layers
    ]
    with torch.no_grad():
        encoder(x)
    for handle in handles:
        handle.remove()
    walk = BlockWalk(encoder, Windows(x, frames), Processes(), padding_weight=0.05)
    for block, output in zip(encoder.layers, expected, strict=True):
        walk.start_block(block)
        torch.testing.assert_close(walk.target_NTD, output, rtol=1e-4, atol=1e-5)
        walk.finish_block(block)
        torch.testing.assert_close(walk.compressed_NTD, output, rtol=1e-4, atol=1e-5)


def test_large_states_go_to_a_file(tiny_model, tiny_features, monkeypatch):
    monkeypatch.setattr("liteasr.compression.blocks._IN_MEMORY_BYTES", 0)
    x, frames = tiny_features[0]
    walk = BlockWalk(tiny_model.model.encoder, Windows(x, frames), Processes(), 0.05)
    block = tiny_model.model.encoder.layers[0]
    walk.start_block(block)
    with torch.no_grad():
        expected = run_block(block, walk.dense_NTD[:1])
    torch.testing.assert_close(walk.target_NTD[:1], expected, rtol=1e-4, atol=1e-5)


def test_windows_hold_every_clip_once_and_some_hold_one_alone():
    clips = [torch.full((2, 2 + index), float(index)) for index in range(40)]
    windows = pack_windows(clips, mel_frames=100)
    assert windows.features_NMF.shape[1:] == (2, 100)
    audio = int(2 * windows.frames_N.sum())
    assert audio == pytest.approx(sum(clip.shape[1] for clip in clips), rel=0.3)
    alone = [len(window.unique()) <= 2 for window in windows.features_NMF]
    assert 0 < sum(alone) < len(alone)
    # Nothing is further below the loudest than Whisper's features are.
    spans = windows.features_NMF.amax((1, 2)) - windows.features_NMF.amin((1, 2))
    assert float(spans.max()) <= 2.0
    again = pack_windows(clips, mel_frames=100)
    assert torch.equal(windows.features_NMF, again.features_NMF)


@pytest.mark.parametrize("options", [{"steps": -1}, {"learning_rate": 0.0}, {"windows": 0}])
def test_impossible_refinements_are_refused(options):
    with pytest.raises(ValueError, match="Refinement"):
        Refinement(**options)


def test_a_block_without_low_rank_layers_is_passed(tiny_model, tiny_features):
    method = RefinedMethod(BUDGET, **OPTIONS)
    encoder = tiny_model.model.encoder
    method.prepare(encoder, find_linears(tiny_model))
    for x, frames in tiny_features:
        method.observe(CalibrationBatch(x, frames))
    method.reduce(lambda tensor: tensor)
    block: nn.Module = encoder.layers[0]
    method.before_blocks()
    method.before_block(block)
    assert method.after_block(block, {}) == {}
    method.block_done(block)


@pytest.mark.parametrize(
    "options",
    [
        {"refine_steps": 6, "learning_rate": 1e3},
        {"refine_steps": 0, "joint_steps": 5, "joint_learning_rate": 1e6},
        {"refine_steps": 6, "joint_steps": 5, "joint_learning_rate": 1e6},
    ],
)
def test_a_refinement_that_does_harm_is_left_aside(two_models, tiny_features, caplog, options):
    plain, wild = two_models
    does_harm_in_blocks = "joint_steps" not in options
    kept = 0 if does_harm_in_blocks else options["refine_steps"]
    compress(plain, tiny_features, refine_steps=kept)
    compress(wild, tiny_features, **options)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, wild.state_dict()[name])
    assert "refinement did not help" in caplog.text
