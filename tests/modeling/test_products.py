import importlib.util

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from liteasr.modeling import (
    LowRankLinear,
    PivotedLinear,
    ReducedAttention,
    products,
    use_fast_inference,
    use_plain_inference,
)
from liteasr.modeling.linear import run
from liteasr.modeling.products import affine, by_onednn

needs_onednn = pytest.mark.skipif(
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) is None,
    reason="this torch was built without oneDNN",
)


@pytest.fixture
def onednn(monkeypatch):
    """As on a processor on which it is the faster one."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


@pytest.fixture
def mkl(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)


LAYOUTS = {
    "as it is": lambda x: x.clone(),
    "transposed": lambda x: x.T.contiguous().T,
    "columns of another": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "every other row": lambda x: x.repeat_interleave(2, dim=0)[::2],
}


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("of_weight", LAYOUTS)
@pytest.mark.parametrize("of_input", LAYOUTS)
def test_any_layout_is_multiplied(of_input, of_weight, bias):
    x, weight, bias = torch.randn(7, 40), torch.randn(40, 24), torch.randn(24) if bias else None
    expected = x @ weight + (0 if bias is None else bias)
    with torch.no_grad():
        given = LAYOUTS[of_input](x), LAYOUTS[of_weight](weight)
        assert by_onednn(given[0])
        torch.testing.assert_close(affine(*given, bias), expected)


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_only_fp32_without_gradients_is_given_to_onednn():
    x = torch.randn(2, 3)
    assert not by_onednn(x)
    with torch.no_grad():
        assert by_onednn(x)
        assert not by_onednn(x.bfloat16())
        assert not by_onednn(x.double())
        assert not by_onednn(x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not by_onednn(x)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not by_onednn(x)
        compiled = torch.compile(lambda x: x + by_onednn(x), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), x)
        traced = torch.jit.trace(lambda x: x + int(by_onednn(x)), (x,), check_trace=False)
        torch.testing.assert_close(traced(x), x)


def test_the_library_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(products, "_fastest", lambda run: tried.append(run()) or 1.0)
    products.onednn_is_faster.cache_clear()
    try:
        assert not any(products.onednn_is_faster() for _ in range(3))
    finally:
        products.onednn_is_faster.cache_clear()
    assert len(tried) in (0, 2)


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_torch_counts_its_products():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        affine(torch.randn(7, 40), torch.randn(40, 24))
    assert counter.get_total_flops() == 2 * 7 * 40 * 24


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_types_are_not_mixed():
    with torch.no_grad(), pytest.raises(RuntimeError, match="same dtype"):
        affine(torch.randn(7, 40), torch.randn(40, 24, dtype=torch.float64))


class Own(torch.Tensor):
    """As libraries of quantization have."""


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_what_others_have_put_in_a_layer_is_run():
    replaced, quantized, x = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(1, 2, 4)
    replaced.forward = lambda x: x.sum()
    quantized.weight = nn.Parameter(quantized.weight.detach().as_subclass(Own))
    with torch.no_grad():
        assert run(replaced, x).shape == ()
        assert type(run(quantized, x)) is Own
        assert not by_onednn(x.as_subclass(Own))


@pytest.mark.usefixtures("onednn")
def test_a_layer_with_hooks_is_run_by_itself():
    layer, heard = nn.Linear(4, 3), []
    layer.register_forward_hook(lambda _, inputs, output: heard.append((*inputs, output)))
    with torch.no_grad():
        assert run(layer, torch.randn(1, 2, 4)).shape == (1, 2, 3)
    assert [one.shape for one in heard[0]] == [(1, 2, 4), (1, 2, 3)]


def mixed_encoder():
    """Dense, low-rank, pivoted and reduced layers."""
    config = WhisperConfig(
        d_model=64,
        encoder_layers=4,
        encoder_attention_heads=2,
        encoder_ffn_dim=128,
        max_source_positions=600,
    )
    encoder = WhisperEncoder(config).eval()
    for number, layer in enumerate(encoder.layers):
        attention = layer.self_attn
        if number == 1:
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                setattr(attention, name, LowRankLinear(64, 64, 8 if name == "k_proj" else 24))
        elif number == 2:
            attention.v_proj, layer.fc1 = PivotedLinear(64, 64, 40), PivotedLinear(64, 128, 64)
            layer.fc2 = PivotedLinear(128, 64, 50)
        elif number == 3:
            layer.self_attn = ReducedAttention(64, 2, qk_dim=8, v_dim=24)
            layer.self_attn.q_proj = LowRankLinear(64, 16, 5)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return encoder


@needs_onednn
@pytest.mark.parametrize("library", ["onednn", "mkl"])
def test_an_encoder_computes_the_same_with_either_library(library, request):
    request.getfixturevalue(library)
    encoder, features = mixed_encoder(), torch.randn(2, 80, 1200)
    use_plain_inference(encoder)
    expected = encoder(features).last_hidden_state.detach()  # with gradients: torch's own products
    use_fast_inference(encoder, frames=600)
    with torch.no_grad():
        found = encoder(features).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@needs_onednn
def test_a_second_copy_of_the_module_can_be_loaded():
    """As the folder of a compressed model brings one."""
    spec = importlib.util.spec_from_file_location("products_lite_whisper", products.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.affine is not affine
