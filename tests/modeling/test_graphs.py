"""CUDA graphs of an encoder; what needs a GPU is skipped where there is none."""

import copy

import pytest
import torch

from liteasr.modeling import use_cuda_graphs, use_no_cuda_graphs

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture
def encoder(tiny_model):
    return tiny_model.model.encoder.eval()


def outputs(encoder, features):
    with torch.no_grad():
        return [encoder(x).last_hidden_state for x, _ in features]


def test_without_a_gpu_nothing_changes(encoder, tiny_features):
    expected = outputs(encoder, tiny_features)
    use_cuda_graphs(encoder)
    use_cuda_graphs(encoder)
    for one, other in zip(outputs(encoder, tiny_features), expected, strict=True):
        assert torch.equal(one, other)
    x = tiny_features[0][0]
    states = encoder(x, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert encoder(x).last_hidden_state.requires_grad


def test_it_is_undone(encoder):
    use_cuda_graphs(encoder)
    assert "forward" in vars(encoder)
    use_no_cuda_graphs(encoder)
    use_no_cuda_graphs(encoder)
    assert "forward" not in vars(encoder)
    copy.deepcopy(encoder)


def test_a_recorded_encoder_is_not_copied(encoder):
    use_cuda_graphs(encoder)
    with pytest.raises(TypeError, match="use_no_cuda_graphs"):
        copy.deepcopy(encoder)


@on_gpu
def test_replayed_outputs_are_those_of_the_kernels(encoder, tiny_features):
    encoder.cuda()
    features = [(x.cuda(), frames) for x, frames in tiny_features]
    features += [(x[:2], frames) for x, frames in features]
    expected = outputs(encoder, features)
    use_cuda_graphs(encoder, most_shapes=1)
    for one, other in zip(outputs(encoder, features), expected, strict=True):
        torch.testing.assert_close(one, other)
    use_cuda_graphs(encoder)
    with torch.inference_mode():
        encoder(features[0][0])
    for one, other in zip(outputs(encoder, features), expected, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        encoder.layer_norm.weight.mul_(2.0)  # in place: the graph sees it
        encoder.layer_norm.bias.mul_(2.0)
    for one, other in zip(outputs(encoder, features), expected, strict=True):
        torch.testing.assert_close(one, 2 * other)
