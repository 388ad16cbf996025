import copy

import pytest
import torch
from tiny import tiny_config
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoderLayer

from liteasr.modeling import ReducedAttention
from liteasr.modeling.attention import TILE, attend

WIDTH, HEADS, HEAD = 64, 2, 32


def dense_attention(implementation="eager"):
    """Whisper's own with random weights."""
    torch.manual_seed(0)
    config = tiny_config()
    config._attn_implementation = implementation
    return WhisperAttention(WIDTH, HEADS, config=config).eval()


def same_weights(dense):
    """Reduced attention of full width that is the dense one."""
    reduced = ReducedAttention(WIDTH, HEADS, HEAD, HEAD).eval()
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            getattr(reduced, name).weight.copy_(getattr(dense, name).weight)
        reduced.q_proj.bias.copy_(dense.q_proj.bias)
        reduced.out_proj.bias.copy_(dense.out_proj.bias + dense.out_proj.weight @ dense.v_proj.bias)
    return reduced


def random_attention(qk_dim, v_dim, dtype=torch.float32):
    torch.manual_seed(1)
    return ReducedAttention(WIDTH, HEADS, qk_dim, v_dim, dtype=dtype).eval()


def by_definition(layer, x, mask=None):
    """Output and weights, head by head."""
    outputs, weights = [], []
    for head in range(layer.num_heads):
        rows = slice(head * layer.qk_dim, (head + 1) * layer.qk_dim)
        q = x @ layer.q_proj.weight[rows].T + layer.q_proj.bias[rows]
        k = x @ layer.k_proj.weight[rows].T
        scores = torch.einsum("btr,bsr->bts", q, k) / HEAD**0.5
        if mask is not None:
            scores = scores + mask[:, 0]
        rows = slice(head * layer.v_dim, (head + 1) * layer.v_dim)
        weights.append(scores.softmax(-1))
        mixed = weights[-1] @ (x @ layer.v_proj.weight[rows].T)
        outputs.append(mixed @ layer.out_proj.weight[:, rows].T)
    return sum(outputs) + layer.out_proj.bias, torch.stack(weights, dim=1)


def causal_mask(frames, batch=1, dtype=torch.float32):
    mask = torch.full((frames, frames), torch.finfo(dtype).min, dtype=dtype).triu(1)
    return mask.expand(batch, 1, -1, -1)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_full_width_is_whispers_own_attention(implementation):
    dense = dense_attention(implementation)
    x = torch.randn(3, 20, WIDTH)
    torch.testing.assert_close(same_weights(dense)(x)[0], dense(x)[0])


@pytest.mark.parametrize(("qk_dim", "v_dim"), [(5, 32), (32, 5), (8, 8), (40, 48)])
@pytest.mark.parametrize("need_weights", [False, True])
def test_is_the_formula_for_any_widths(qk_dim, v_dim, need_weights):
    layer = random_attention(qk_dim, v_dim, torch.float64)
    x = torch.randn(2, 20, WIDTH, dtype=torch.float64)
    expected, expected_weights = by_definition(layer, x)
    output, weights = layer(x, output_attentions=need_weights)
    torch.testing.assert_close(output, expected)
    if need_weights:
        torch.testing.assert_close(weights, expected_weights)
    else:
        assert weights is None


@pytest.mark.parametrize("need_weights", [False, True])
def test_masks_hide_frames(need_weights):
    layer = random_attention(8, 12, torch.float64)
    x = torch.randn(2, 20, WIDTH, dtype=torch.float64)
    mask = causal_mask(20, 2, torch.float64)
    expected, _ = by_definition(layer, x, mask)
    options = {"output_attentions": need_weights}
    torch.testing.assert_close(layer(x, attention_mask=mask, **options)[0], expected)
    torch.testing.assert_close(layer(x, attention_mask=mask == 0, **options)[0], expected)


def test_clips_of_a_batch_do_not_see_each_other():
    layer = random_attention(8, 12)
    x = torch.randn(3, 20, WIDTH)
    alone = torch.cat([layer(one[None])[0] for one in x])
    torch.testing.assert_close(layer(x)[0], alone)


def test_weights_are_those_that_whisper_returns():
    dense = dense_attention("eager")
    x, mask = torch.randn(2, 20, WIDTH), causal_mask(20, 2)
    expected = dense(x, attention_mask=mask, output_attentions=True)[1]
    actual = same_weights(dense)(x, attention_mask=mask, output_attentions=True)[1]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("need_weights", [False, True])
def test_half_precision_gives_half_precision(dtype, need_weights):
    exact, x = random_attention(8, 12), torch.randn(2, 20, WIDTH)
    layer = copy.deepcopy(exact).to(dtype)
    output, weights = layer(x.to(dtype), output_attentions=need_weights)
    assert output.dtype == dtype
    assert weights is None or weights.dtype == dtype
    torch.testing.assert_close(output.float(), exact(x)[0], rtol=0.05, atol=0.02)


def test_runs_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert random_attention(8, 12)(torch.randn(1, 5, WIDTH))[0].dtype == torch.bfloat16


def test_gradients_reach_every_parameter():
    layer = random_attention(8, 12)
    layer(torch.randn(2, 5, WIDTH))[0].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())


def test_dropout_is_of_the_weights_and_in_training_only():
    layer = ReducedAttention(WIDTH, HEADS, 8, 12, dropout=0.5)
    x = torch.randn(1, 20, WIDTH)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize("mask", [None, causal_mask(20)])
def test_the_encoder_layer_compiles_without_a_break(mask):
    layer = WhisperEncoderLayer(tiny_config()).eval()
    layer.self_attn = random_attention(8, 12)
    x = torch.randn(1, 20, WIDTH)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, mask), layer(x, mask))


def test_one_head_of_keys_and_values_serves_all():
    q, k, v = torch.randn(2, 4, 10, 6), torch.randn(2, 1, 10, 6), torch.randn(2, 1, 10, 9)
    shared = attend(q, k, v, scale=0.3)[0]
    torch.testing.assert_close(
        shared, attend(q, k.repeat(1, 4, 1, 1), v.repeat(1, 4, 1, 1), scale=0.3)[0]
    )
    torch.testing.assert_close(shared, attend(q, k, v, scale=0.3, need_weights=True)[0])


@pytest.mark.parametrize("dims", [(0, 4), (4, 0)])
def test_a_head_without_dimensions_is_refused(dims):
    with pytest.raises(ValueError, match="widths must be at least 1"):
        ReducedAttention(WIDTH, HEADS, *dims)


def gradients(output, *inputs):
    torch.manual_seed(2)
    weights = torch.randn(output.shape, dtype=output.dtype)
    return torch.autograd.grad((output * weights).sum(), inputs, retain_graph=True)


@pytest.mark.parametrize(("heads", "qk_dim", "v_dim"), [(3, 4, 4), (3, 2, 5), (1, 5, 3)])
def test_gradients_are_those_of_the_formula(heads, qk_dim, v_dim):
    """Over several tiles, the last of them small; of keys and values that heads share, too."""
    torch.manual_seed(0)
    frames = 2 * TILE + 3
    shapes = (3, qk_dim), (heads, qk_dim), (heads, v_dim)
    q, k, v = (
        torch.randn(2, many, frames, width, dtype=torch.float64, requires_grad=True)
        for many, width in shapes
    )
    expected = (q @ k.mT * 0.3).softmax(-1) @ v
    actual = attend(q, k, v, scale=0.3)[0]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, q, k, v), gradients(expected, q, k, v))


def test_gradients_in_half_precision_err_little_more_than_the_fused_kernels():
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, 2 * TILE, 8, dtype=torch.float64) for _ in range(3)]
    ways = {
        "exact": (torch.float64, lambda q, k, v: (q @ k.mT / 8**0.5).softmax(-1) @ v),
        "fused": (torch.bfloat16, F.scaled_dot_product_attention),
        "tiled": (torch.bfloat16, lambda *x: attend(*x, scale=8**-0.5)[0]),
    }
    found = {}
    for name, (dtype, way) in ways.items():
        inputs = [x.detach().clone().to(dtype).requires_grad_() for x in exact]
        torch.manual_seed(2)
        output = way(*inputs)
        (output * torch.randn(output.shape).to(dtype)).sum().backward()
        assert {x.grad.dtype for x in inputs} == {dtype}
        found[name] = [x.grad.double() for x in inputs]
    for true, fused, tiled in zip(*found.values(), strict=True):
        assert (tiled - true).norm() < 3 * (fused - true).norm()
        assert (tiled - true).norm() < 0.03 * true.norm()


def test_no_attention_weights_are_kept_for_the_gradients():
    kept, frames = [], TILE + 1
    q, k, v = (torch.randn(1, 2, frames, 8, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()), id):
        attend(q, k, v, scale=1.0)
    assert max(kept) == q.numel()


def test_trains_under_autocast():
    layer = random_attention(8, 12)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(torch.randn(1, 5, WIDTH))
    output.sum().backward()
    assert all(one.grad.isfinite().all() for one in layer.parameters())
