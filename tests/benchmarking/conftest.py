"""A tiny checkpoint and a lite one that was made from it."""

import pytest
from checkpoints import save_checkpoint

from liteasr.compression import CompressionPlan, apply_plan, find_linears
from liteasr.compression.plan import LayerPlan
from liteasr.export import export_model
from liteasr.loading import load


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    """Folder of a dense checkpoint over windows of one second."""
    return str(save_checkpoint(tmp_path_factory.mktemp("dense") / "model"))


@pytest.fixture(scope="session")
def lite(dense, tmp_path_factory):
    """Folder of the same with low-rank MLPs."""
    model, processor = load(dense)
    layers = {
        name: LayerPlan(one.in_features, one.out_features, 8, 1.0, 0, 0)
        for name, one in find_linears(model, ["*encoder.layers.*fc?"]).items()
    }
    apply_plan(model, CompressionPlan(layers))
    folder = tmp_path_factory.mktemp("lite") / "model"
    export_model(model, processor, folder)
    return str(folder)
