import json

import pytest
import torch

from liteasr.compression import CompressionPlan, LayerPlan


def layer(rank):
    return LayerPlan(
        8, 8, rank, kept_energy=0.5, dense_params=72, params=72 if rank is None else 40
    )


@pytest.fixture
def plan():
    return CompressionPlan(
        {
            "model.encoder.layers.0.self_attn.q_proj": layer(2),
            "model.encoder.layers.0.fc1": layer(None),
            "model.encoder.layers.11.fc2": layer(2),
        },
        method="pca",
        options={"mlp": 0.999},
        calibration={"clips": 3},
    )


def test_json_round_trip(plan, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    assert CompressionPlan.load(file) == plan


def test_survives_weights_only_loading(plan, tmp_path):
    torch.save(plan.to_dict(), tmp_path / "plan.pt")
    loaded = torch.load(tmp_path / "plan.pt", weights_only=True)
    assert CompressionPlan.from_dict(loaded) == plan


def test_published_format_leaves_dense_layers_out(plan):
    config = plan.low_rank_config(12)
    assert config[0] == {"q_proj": 2}
    assert config[11] == {"fc2": 2}
    assert config[1:11] == [{}] * 10


def test_savings(plan):
    assert plan.saved_params == 2 * 32
    assert plan.ranks.keys() == {
        "model.encoder.layers.0.self_attn.q_proj",
        "model.encoder.layers.11.fc2",
    }


def test_modules_outside_the_encoder_have_no_place_in_the_format():
    plan = CompressionPlan({"model.decoder.layers.0.fc1": layer(2)})
    with pytest.raises(ValueError, match="model.decoder.layers.0.fc1"):
        plan.low_rank_config(1)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}', '{"format": 1}'])
def test_anything_else_is_refused_by_name(tmp_path, content):
    file = tmp_path / "plan.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"plan\.json is not a compression plan"):
        CompressionPlan.load(file)


def test_is_plain_json(plan):
    assert json.loads(plan.to_json()) == plan.to_dict()
