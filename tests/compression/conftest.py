import pytest
import torch

from liteasr.compression import find_linears


@pytest.fixture
def fp64(tiny_model, tiny_features):
    with torch.no_grad():
        for linear in find_linears(tiny_model).values():
            linear.weight.mul_(6)  # so that what a layer does is seen at the encoder's output
    return tiny_model.double(), [(x.double(), frames) for x, frames in tiny_features]
