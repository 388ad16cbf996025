import copy
import pickle

import pytest
import torch
from tiny import tiny_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoder

from liteasr.compression import encoder_flops
from liteasr.modeling import (
    LowRankLinear,
    RankSpaceAttention,
    ReducedAttention,
    use_plain_attention,
    use_rank_space,
)
from liteasr.modeling.rank_space import AttentionRanks, RankSpacePlan

WIDTH, HEAD = 64, 32
KEYS = {"q_proj": 12, "k_proj": 8, "v_proj": 40, "out_proj": 16}
QUERIES = {"q_proj": 4, "k_proj": 40, "v_proj": 40}
VALUES = {"q_proj": 48, "k_proj": 48, "v_proj": 10}
VALUES_LOW_RANK_OUT = {**VALUES, "out_proj": 16}
ALL = {"q_proj": 8, "k_proj": 8, "v_proj": 12}
NONE = {"q_proj": 60, "k_proj": 60, "v_proj": 60}
PLANS = [
    (KEYS, RankSpacePlan("keys", values=False)),
    (QUERIES, RankSpacePlan("queries", values=False)),
    (VALUES, RankSpacePlan("heads", values=True)),
    (VALUES_LOW_RANK_OUT, RankSpacePlan("heads", values=True)),
    (ALL, RankSpacePlan("keys", values=True)),
    (NONE, RankSpacePlan("heads", values=False)),
]


def low_rank_encoder(ranks=ALL, dtype=torch.float64, **changes):
    """An encoder whose self-attention has these ranks, and random biases everywhere."""
    torch.manual_seed(2)
    encoder = WhisperEncoder(tiny_config(**changes)).eval()
    for layer in encoder.layers:
        for name, rank in ranks.items():
            setattr(layer.self_attn, name, LowRankLinear(WIDTH, WIDTH, rank))
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return encoder.to(dtype)


def attention_of(encoder):
    return encoder.layers[0].self_attn


def frames(dtype=torch.float64, batch=2):
    return torch.randn(batch, 30, WIDTH, dtype=dtype)


def close(actual, expected):
    """Equal to the rounding of fp64."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("ranks", "plan"), PLANS)
def test_equals_the_plain_attention_of_the_same_factors(ranks, plan):
    encoder, x = low_rank_encoder(ranks), frames()
    expected = attention_of(encoder)(x)[0]
    use_rank_space(encoder, frames=1500, fuse_all=True)
    assert attention_of(encoder).rank_space == plan
    close(attention_of(encoder)(x)[0], expected)


@pytest.mark.parametrize(("ranks", "plan"), PLANS)
def test_masks_and_weights_are_those_of_the_plain_attention(ranks, plan):
    encoder, x = low_rank_encoder(ranks, attn_implementation="eager"), frames()
    mask = torch.full((30, 30), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)[None, None]
    options = {"attention_mask": mask, "output_attentions": True}
    expected, weights = attention_of(encoder)(x, **options)
    use_rank_space(encoder, frames=1500, fuse_all=True)
    actual, actual_weights = attention_of(encoder)(x, **options)
    close(actual, expected)
    close(actual_weights, weights)
    close(attention_of(encoder)(x, attention_mask=mask)[0], expected)


def test_scores_are_those_of_the_reference_formula():
    """Scores of the projections, up to what is the same for all keys of a query."""
    encoder, x = low_rank_encoder(KEYS), frames()
    use_rank_space(encoder)
    layer = attention_of(encoder)
    weights = layer(x, output_attentions=True)[1]
    q, k = layer.q_proj(x), layer.k_proj(x)
    for head in range(2):
        part = slice(head * HEAD, (head + 1) * HEAD)
        scores = q[..., part] @ k[..., part].mT / HEAD**0.5
        close(weights[:, head].log().diff(dim=-1), scores.diff(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types_err_as_much_as_the_plain_attention(dtype):
    exact = low_rank_encoder(ALL)
    encoder, x = copy.deepcopy(exact).to(dtype), frames()
    expected = attention_of(exact)(x)[0]
    plain = (attention_of(encoder)(x.to(dtype))[0] - expected).norm()
    use_rank_space(encoder)
    output = attention_of(encoder)(x.to(dtype))[0]
    assert output.dtype == dtype
    assert (output - expected).norm() < 2 * plain


def test_the_state_dict_and_the_parameters_stay_as_they_are():
    encoder = low_rank_encoder()
    before = {name: id(parameter) for name, parameter in encoder.named_parameters()}
    names = list(encoder.state_dict())
    use_rank_space(encoder)
    assert isinstance(attention_of(encoder), RankSpaceAttention)
    assert list(encoder.state_dict()) == names
    assert {name: id(parameter) for name, parameter in encoder.named_parameters()} == before
    use_plain_attention(encoder)
    assert list(encoder.state_dict()) == names


def test_new_weights_are_used_at_once():
    encoder, x = low_rank_encoder(), frames()
    use_rank_space(encoder)
    attention_of(encoder)(x)
    with torch.no_grad():
        attention_of(encoder).k_proj.weight2.mul_(2)
        attention_of(encoder).v_proj.bias.add_(1)
    actual = attention_of(encoder)(x)[0]
    use_plain_attention(encoder)
    close(actual, attention_of(encoder)(x)[0])


def test_on_and_off_any_number_of_times():
    encoder = low_rank_encoder()
    use_plain_attention(encoder)
    first = use_rank_space(encoder)
    assert first.keys() == {"layers.0.self_attn", "layers.1.self_attn"}
    assert use_rank_space(encoder) == first
    use_plain_attention(encoder)
    use_plain_attention(encoder)
    assert type(attention_of(encoder)) is WhisperAttention
    assert not hasattr(attention_of(encoder), "rank_space")


def test_a_layer_that_would_not_gain_is_left_alone():
    encoder = low_rank_encoder(NONE)
    assert use_rank_space(encoder) == {}
    assert type(attention_of(encoder)) is WhisperAttention
    use_rank_space(encoder, fuse_all=True)
    use_rank_space(encoder)
    assert type(attention_of(encoder)) is WhisperAttention


def test_dense_reduced_and_decoder_attention_are_left_alone(tiny_model):
    tiny_model.model.encoder.layers[0].self_attn = ReducedAttention(WIDTH, 2, 8, 8)
    decoder = tiny_model.model.decoder.layers[0].self_attn
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(decoder, name, LowRankLinear(WIDTH, WIDTH, 4))
    assert use_rank_space(tiny_model, fuse_all=True) == {}
    assert type(decoder) is WhisperAttention


def test_gradients_are_those_of_the_plain_attention():
    encoder, x = low_rank_encoder(), frames()
    attention_of(encoder)(x)[0].square().sum().backward()
    # The bias of the keys has none in exact arithmetic.
    plain = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    use_rank_space(encoder)
    encoder.train()
    attention_of(encoder)(x)[0].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        if name in plain and not name.endswith("k_proj.bias"):
            torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-8, atol=1e-8)


def test_dropout_of_the_weights_in_training_goes_the_plain_way():
    encoder, x = low_rank_encoder(attention_dropout=0.5), frames()
    encoder.train()
    torch.manual_seed(3)
    expected = attention_of(encoder)(x)[0]
    use_rank_space(encoder)
    torch.manual_seed(3)
    close(attention_of(encoder)(x)[0], expected)


@pytest.mark.parametrize("ranks", [QUERIES, VALUES_LOW_RANK_OUT, ALL])
def test_the_encoder_layer_compiles_without_a_break(ranks):
    encoder, x = low_rank_encoder(ranks, torch.float32), frames(torch.float32)
    use_rank_space(encoder, fuse_all=True)
    layer = encoder.layers[0]
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, None), layer(x, None))


def test_runs_under_autocast():
    encoder, x = low_rank_encoder(dtype=torch.float32), frames(torch.float32)
    use_rank_space(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention_of(encoder)(x)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_compute_the_same(copied):
    encoder, x = low_rank_encoder(), frames()
    use_rank_space(encoder)
    other = copied(encoder)
    assert isinstance(attention_of(other), RankSpaceAttention)
    assert torch.equal(attention_of(other)(x)[0], attention_of(encoder)(x)[0])
    use_plain_attention(other)
    assert isinstance(attention_of(encoder), RankSpaceAttention)


LARGE_V3 = [
    ((32, 32, 48, 32), RankSpacePlan("keys", values=True)),
    ((64, 64, 128, 112), RankSpacePlan("keys", values=False)),
    ((48, 48, 160, 160), RankSpacePlan("keys", values=False)),
    ((48, 48, 192, 160), RankSpacePlan("keys", values=False)),
]


@pytest.mark.parametrize(("ranks", "plan"), LARGE_V3)
def test_published_layers_of_large_v3_gain(ranks, plan):
    shape = AttentionRanks(1280, 20, *ranks)
    assert shape.best_plan(1500) == plan
    assert shape.flops(plan, 1500) < shape.flops(RankSpacePlan(), 1500)


def test_the_gates_are_independent_where_ranks_are():
    wide = AttentionRanks(1280, 20, 200, 200, 200, None)
    assert wide.best_plan(1500) == RankSpacePlan()
    narrow = AttentionRanks(1280, 20, 32, 200, 200, None)
    assert narrow.best_plan(1500).scores == "queries"
    assert AttentionRanks(1280, 20, 200, 200, 32, None).best_plan(1500).values


@pytest.mark.parametrize(("ranks", "plan"), PLANS)
def test_the_arithmetic_is_counted(ranks, plan):
    encoder = low_rank_encoder(ranks, torch.float32)
    plain = encoder_flops(encoder)
    use_rank_space(encoder, fuse_all=True)
    attention = attention_of(encoder)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attention(torch.randn(1, 50, WIDTH), output_attentions=True)
    assert counter.get_total_flops() == pytest.approx(attention.ranks.flops(plan, 50), rel=0.02)
    saved = attention.ranks.flops(RankSpacePlan(), 50) - attention.ranks.flops(plan, 50)
    assert plain - encoder_flops(encoder) == len(encoder.layers) * saved
