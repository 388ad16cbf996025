"""Faster orders of the same work give the same output, and stand aside where they would not."""

import pytest
import torch
from tiny import tiny_config
from torch import nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import (
    WhisperAttention,
    WhisperEncoder,
    WhisperEncoderLayer,
)

from liteasr import LiteWhisperConfig, LiteWhisperForConditionalGeneration
from liteasr.modeling import LowRankLinear, use_fast_inference, use_plain_inference
from liteasr.modeling.attention import attend
from liteasr.modeling.rank_space import RankSpaceAttention
from liteasr.modeling.tiles import TILE, TiledAttention, TiledEncoderLayer

RANKS = {"q_proj": 4, "k_proj": 4, "v_proj": 8, "fc1": 12, "fc2": 12}


def encoder_of(dtype=torch.float64, **changes):
    torch.manual_seed(1)
    encoder = WhisperEncoder(tiny_config(**changes)).eval()
    for layer in encoder.layers:
        for name, rank in RANKS.items():
            parent = layer if name in ("fc1", "fc2") else layer.self_attn
            dense = getattr(parent, name)
            setattr(parent, name, LowRankLinear(dense.in_features, dense.out_features, rank))
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return encoder.to(dtype)


def features(encoder, batch):
    config = encoder.config
    shape = (batch, config.num_mel_bins, 2 * config.max_source_positions)
    return torch.randn(shape, dtype=encoder.dtype)


@pytest.mark.parametrize("positions", [30, TILE // 2, TILE + 1])
def test_the_output_is_the_same_however_frames_fall_into_tiles(positions):
    encoder = encoder_of(max_source_positions=positions)
    clips = features(encoder, batch=3)
    with torch.no_grad():
        plain = encoder(clips).last_hidden_state
        use_fast_inference(encoder, positions)
        fast = encoder(clips).last_hidden_state
    assert {type(layer) for layer in encoder.layers} == {TiledEncoderLayer}
    assert {type(layer.self_attn) for layer in encoder.layers} == {RankSpaceAttention}
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_of_less_precision_err_no_more_than_they_did(dtype):
    exact, clips = encoder_of(), features(encoder_of(), batch=2)
    encoder = encoder_of(dtype)
    with torch.no_grad():
        true = exact(clips).last_hidden_state
        plain = encoder(clips.to(dtype)).last_hidden_state
        use_fast_inference(encoder, encoder.config.max_source_positions)
        fast = encoder(clips.to(dtype)).last_hidden_state
    assert fast.dtype == dtype
    assert (fast - true).abs().max() <= 2 * (plain - true).abs().max()


@pytest.mark.parametrize("heads_are_dense", [False, True])
def test_training_gives_every_parameter_the_gradient_that_it_had(heads_are_dense):
    """One without a gradient would stop DistributedDataParallel."""
    encoder, clips = encoder_of().train(), features(encoder_of(), batch=1)
    if heads_are_dense:
        width = encoder.config.d_model
        encoder.layers[0].self_attn.v_proj = nn.Linear(width, width).double()
    gradients = []
    for use in (use_plain_inference, use_fast_inference):
        use(encoder)
        encoder.zero_grad()
        encoder(clips).last_hidden_state.square().sum().backward()
        trained = (one for one in encoder.named_parameters() if one[1].requires_grad)
        gradients.append({name: parameter.grad for name, parameter in trained})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-7, atol=1e-7)


def test_hooks_of_the_mlp_see_whole_clips():
    encoder, clips = encoder_of(), features(encoder_of(), batch=2)
    use_fast_inference(encoder)
    seen = []
    encoder.layers[0].fc1.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    with torch.no_grad():
        encoder(clips)
    width = encoder.config.d_model
    assert seen == [(2, encoder.config.max_source_positions, width)]


def test_the_input_is_left_alone():
    encoder = encoder_of()
    use_fast_inference(encoder)
    frames = torch.randn(2, 30, encoder.config.d_model, dtype=torch.float64)
    before = frames.clone()
    with torch.no_grad():
        encoder.layers[0](frames)
    assert torch.equal(frames, before)


def of_auto():
    """An encoder with all that the method auto makes: pivots, reduced heads, a low-rank conv2."""
    base = {k: v for k, v in tiny_config().to_dict().items() if k != "model_type"}
    config = LiteWhisperConfig(
        low_rank_config=[RANKS] * base["encoder_layers"],
        pivoted=True,
        conv2_rank=16,
        reduced_attention=[{"qk_dim": 8, "v_dim": 12}, {}],
        **base,
    )
    torch.manual_seed(1)
    return LiteWhisperForConditionalGeneration(config).eval().double().model.encoder


@pytest.mark.parametrize("make", [encoder_of, of_auto])
def test_the_whole_encoder_compiles_without_a_break(make):
    encoder, clips = make(), features(encoder_of(), batch=1)
    use_fast_inference(encoder)
    with torch.no_grad():
        expected = encoder(clips).last_hidden_state
        torch.compiler.reset()
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)
        actual = compiled(clips).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_hidden_states_and_weights_are_recorded_as_before():
    encoder, clips = encoder_of(attn_implementation="eager"), features(encoder_of(), batch=1)
    outputs = []
    for use in (use_plain_inference, use_fast_inference):
        use(encoder)
        with torch.no_grad():
            outputs.append(encoder(clips, output_hidden_states=True, output_attentions=True))
    for key in ("hidden_states", "attentions"):
        plain, fast = outputs[0][key], outputs[1][key]
        assert len(plain) == len(fast) > 1
        for one, other in zip(plain, fast, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


def test_a_lite_whisper_is_fast_by_itself_and_can_be_made_plain():
    base = {k: v for k, v in tiny_config().to_dict().items() if k != "model_type"}
    config = LiteWhisperConfig(low_rank_config=[RANKS] * base["encoder_layers"], **base)
    model = LiteWhisperForConditionalGeneration(config)
    names = list(model.state_dict())
    layers = model.model.encoder.layers
    assert {type(layer) for layer in layers} == {TiledEncoderLayer}
    use_plain_inference(model)
    assert {type(layer) for layer in layers} == {WhisperEncoderLayer}
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(("heads", "width"), [(4, 16), (1, 24)])
def test_attention_in_tiles_errs_little_more_than_the_fused_kernel(heads, width):
    """Of one head of keys and values for all, too, and of values of another width."""
    torch.manual_seed(0)
    frames = 2 * TILE + 3
    q = torch.randn(2, 4, frames, 16)
    k, v = torch.randn(2, heads, frames, 16), torch.randn(2, heads, frames, width)
    exact = attend(q, k, v, scale=0.25)[0]
    half = [x.bfloat16() for x in (q, k, v)]
    alike = [F.pad(x, (0, width - x.shape[-1])).expand(-1, 4, -1, -1) for x in half]
    fused = F.scaled_dot_product_attention(*alike, scale=0.25)
    with torch.no_grad():
        tiled = attend(*half, scale=0.25)[0]
    assert tiled.shape == exact.shape
    assert (tiled - exact).norm() < 3 * (fused - exact).norm()
    assert (tiled - exact).norm() < 0.02 * exact.norm()


def test_dense_heads_of_a_fast_encoder_are_tiled_too():
    encoder, clips = encoder_of(), features(encoder_of(), batch=2)
    layer = encoder.layers[0]
    width = encoder.config.d_model
    layer.self_attn.v_proj = nn.Linear(width, width).double()
    with torch.no_grad():
        plain = encoder(clips).last_hidden_state
        use_fast_inference(encoder)
        fast = encoder(clips).last_hidden_state
    assert type(layer.self_attn) is TiledAttention
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)
    use_plain_inference(encoder)
    assert type(layer.self_attn) is WhisperAttention
