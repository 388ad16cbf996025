import copy
import io

import pytest
import torch

from liteasr.modeling import LowRankLinear, PivotedLinear

CLASSES = [LowRankLinear, PivotedLinear]
WIDTHS = [(6, 4), (4, 6), (5, 5)]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("widths", WIDTHS)
def test_is_the_product_of_its_factors(cls, widths):
    layer = cls(*widths, 2)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, widths[0])
    expected = torch.einsum("btd,dk,ko->bto", x, layer.weight1, layer.weight2) + layer.bias
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 5, 6)])
def test_takes_any_leading_shape(cls, shape):
    layer = cls(6, 4, 2)
    assert layer(torch.zeros(shape)).shape == (*shape[:-1], 4)
    with torch.no_grad():
        assert layer(torch.zeros(shape)).shape == (*shape[:-1], 4)


@pytest.mark.parametrize("cls", CLASSES)
def test_takes_a_view_that_is_not_contiguous(cls):
    layer = cls(6, 4, 2)
    x = torch.randn(6, 5).T
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_reach_every_parameter(cls):
    layer = cls(6, 4, 2)
    layer(torch.randn(5, 6)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("widths", WIDTHS)
def test_runs_under_autocast_and_in_bfloat16(cls, widths):
    layer, x = cls(*widths, 2), torch.randn(2, 5, widths[0])
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [layer(x)]
        with torch.no_grad():
            outputs.append(layer(x))
    with torch.no_grad():
        outputs.append(layer.bfloat16()(x.bfloat16()))
    for y in outputs:
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), exact.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_rank_of_zero_is_refused(cls):
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        cls(6, 4, 0)


def test_a_pivoted_rank_is_at_most_the_narrower_width():
    assert PivotedLinear(6, 4, 4)(torch.zeros(2, 6)).shape == (2, 4)
    with pytest.raises(ValueError, match="rank must be at most 4, got 5"):
        PivotedLinear(6, 4, 5)


@pytest.mark.parametrize("widths", WIDTHS)
def test_pivots_go_on_as_they_are(widths):
    layer = PivotedLinear(*widths, 2)
    factor = layer.weight1 if layer.pivots_inputs else layer.weight2.T
    assert int((factor == 1).sum()) == int((factor == 0).sum()) == 2
    assert sum(one.numel() for one in layer.parameters()) == 2 * (sum(widths) - 2) + widths[1]
    assert sorted(layer.order.tolist()) == list(range(min(widths)))


@pytest.mark.parametrize("widths", [(6, 9), (9, 6), (6, 6)])
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("way", ["selection", "factors", "product"])
def test_every_way_computes_the_same(widths, rank, way):
    layer = PivotedLinear(*widths, rank, dtype=torch.float64)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(7, widths[0], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer._by(way)(x), LowRankLinear.forward(layer, x))
        torch.testing.assert_close(layer(x), LowRankLinear.forward(layer, x))


@pytest.mark.parametrize(
    ("rank", "frames", "dtype", "device", "way"),
    [
        (48, 1500, torch.float32, "cpu", "factors"),
        (192, 1500, torch.float32, "cpu", "selection"),
        (192, 1500, torch.bfloat16, "cpu", "factors"),
        (320, 1500, torch.float32, "cpu", "selection"),
        (320, 12000, torch.float32, "cpu", "product"),
        (320, 1500, torch.bfloat16, "cpu", "product"),
        (192, 1500, torch.float32, "meta", "factors"),
        (320, 1500, torch.float32, "meta", "product"),
        (320, 100, torch.float32, "meta", "factors"),
    ],
)
def test_the_way_follows_rank_frames_type_and_device(rank, frames, dtype, device, way):
    layer = PivotedLinear(384, 384, rank, device="meta")
    assert layer._least_time(torch.empty(0, dtype=dtype, device=device), frames) == way


def test_under_autocast_the_way_is_that_of_its_type():
    layer = PivotedLinear(384, 384, 192, device="meta")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer._least_time(torch.empty(0), 1500) == "factors"


@pytest.mark.parametrize("rank", [4, 24, 56])
def test_a_pivoted_layer_is_exported_for_any_batch(rank):
    layer, batch = PivotedLinear(64, 64, rank), torch.export.Dim("batch")
    x = torch.randn(3, 100, 64)
    with torch.no_grad():
        program = torch.export.export(layer, (x[:2],), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("rank", [4, 24, 56])
def test_a_pivoted_layer_compiles_without_a_break(rank):
    layer = PivotedLinear(64, 64, rank)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for clips in (1, 2, 3):
            x = torch.randn(clips, 100, 64)
            torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("widths", WIDTHS)
def test_on_other_devices_shapes_are_the_same(widths):
    layer = PivotedLinear(*widths, 2, device="meta")
    with torch.no_grad():
        assert layer(torch.empty(2, 7, widths[0], device="meta")).shape == (2, 7, widths[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_a_gpu_agrees_with_the_cpu(widths, dtype, tolerance):
    layer = PivotedLinear(*widths, 2)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 40, widths[0])
    with torch.no_grad():
        expected = layer(x)
        found = layer.to("cuda", dtype)(x.to("cuda", dtype)).float().cpu()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def kept(layer):
    return layer._kept is not None


def product_layer():
    """One that a CPU runs as a product, which is kept."""
    layer = PivotedLinear(384, 384, 376)
    layer.eval().keep_weights()
    return layer


def agrees(layer, x):
    with torch.no_grad():
        torch.testing.assert_close(
            layer(x), LowRankLinear.forward(layer, x), rtol=1e-3, atol=1e-3 * layer.rank
        )
    return True


def test_weights_are_put_together_once(monkeypatch):
    layer, x, made = product_layer(), torch.randn(2, 9, 384), []
    weight1 = PivotedLinear.weight1.fget
    monkeypatch.setattr(
        PivotedLinear, "weight1", property(lambda self: (made.append(1), weight1(self))[1])
    )
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(layer(x), first)
        assert len(made) == 1
        layer.keep_weights(False)
        torch.testing.assert_close(layer(x), first, rtol=1e-3, atol=1e-3)
        assert not kept(layer)


def change_in_place(layer):
    with torch.no_grad():
        layer.skeleton.mul_(2)


def step(layer):
    layer(torch.ones(1, 384)).sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()


def fused_step(layer):
    """Which torch does not count as a change."""
    layer(torch.ones(1, 384)).sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()


def replace(layer):
    layer.skeleton = torch.nn.Parameter(-layer.skeleton.detach())


def load(layer):
    layer.load_state_dict(PivotedLinear(384, 384, 376).state_dict())


def reorder(layer):
    layer.order.copy_(layer.order.flip(0))


def move(layer):
    layer.interpolation.data.neg_()
    layer.double().float()


def swap_data(layer):
    layer.interpolation.data.neg_()
    layer.keep_weights()


@pytest.mark.parametrize(
    "change", [change_in_place, step, fused_step, replace, load, reorder, move, swap_data]
)
def test_kept_weights_follow_the_parameters(change):
    layer, x = product_layer(), torch.randn(9, 384)
    assert agrees(layer, x)
    assert kept(layer)
    change(layer)
    assert agrees(layer, x)
    assert kept(layer)


def test_nothing_is_kept_in_training_under_autocast_and_of_inference_tensors():
    layer, x = product_layer(), torch.randn(9, 384)
    assert agrees(layer, x)
    layer.train()
    assert not kept(layer)
    with torch.no_grad():
        layer(x)
    assert not kept(layer)
    layer.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert not kept(layer)
    with torch.inference_mode():
        other = product_layer()
        other(x)
    assert not kept(other)


def test_parameters_that_come_and_go_are_told_apart():
    """The next ones may lie where the last ones were."""
    layer, x = product_layer(), torch.randn(9, 384)

    def times(factor):
        parts = {name: factor * one for name, one in layer.named_parameters()}
        return torch.func.functional_call(layer, parts, x)

    with torch.no_grad():
        one, two = times(1.0), times(2.0)
    assert float(two.norm()) > 1.5 * float(one.norm())


def test_a_layer_compiled_in_place_can_be_copied():
    layer = product_layer()
    layer.compile(backend="eager")
    assert "_compiled_call_impl" not in layer.__getstate__()


def test_copies_do_not_share_what_is_kept():
    layer, x = product_layer(), torch.randn(9, 384)
    assert agrees(layer, x)
    copied, saved = copy.deepcopy(layer), io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    for other in (copied, torch.load(saved, weights_only=False)):
        assert not kept(other)
        change_in_place(other)
        assert agrees(other, x)
    assert agrees(layer, x)
