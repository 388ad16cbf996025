"""Encoders without checkpoints: published sizes, ranks from files, and ranks made up."""

import json

import pytest
import torch
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoderLayer

from liteasr.benchmarking.shapes import (
    SHAPES,
    lay_out,
    make_encoder,
    plausible_ranks,
    read_ranks,
    shape_config,
)
from liteasr.compression import CompressionPlan, encoder_parameters
from liteasr.compression.plan import LayerPlan
from liteasr.compression.surgery import collect_ranks
from liteasr.config import ConfigError
from liteasr.modeling import RankSpaceAttention
from liteasr.modeling.tiles import TiledEncoderLayer

PUBLISHED_M = {
    "tiny": 7.63,
    "base": 19.82,
    "small": 87.00,
    "medium": 305.68,
    "large-v3": 635.05,
    "large-v3-turbo": 635.05,
}


def size(config, ranks=None):
    return encoder_parameters(lay_out(config, ranks).get_encoder())


@pytest.mark.parametrize("shape", SHAPES)
def test_encoders_have_the_published_sizes(shape):
    assert size(shape_config(shape)) / 1e6 == pytest.approx(PUBLISHED_M[shape], abs=0.005)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [("tiny", "6.48M"), ("small", "63.11M"), ("large-v3", "429M"), ("large-v3", "240M")],
)
def test_made_up_ranks_reach_the_size_from_below(shape, wanted):
    config = shape_config(shape)
    ranks = plausible_ranks(config, wanted)
    target = float(wanted[:-1]) * 1e6
    assert 0.99 * target < size(config, ranks) <= target
    assert all(rank % 8 == 0 for layer in ranks for rank in layer.values())


def test_made_up_ranks_are_low_in_early_layers():
    ranks = plausible_ranks(shape_config("large-v3"), "377M")
    for early, late in zip(ranks, ranks[1:], strict=False):
        assert all(early[name] <= rank for name, rank in late.items())
    first = ranks[0]
    assert max(first["q_proj"], first["k_proj"]) < min(first["v_proj"], first["out_proj"])
    assert max(first["v_proj"], first["out_proj"]) < min(first["fc1"], first["fc2"])
    # Like the published ones: query and key 32 to 64, the MLP 208 to 368 in layers 0 to 3.
    assert 32 <= first["q_proj"] <= 64
    assert 208 <= first["fc1"] <= 368


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("0.5M", "--encoder-params: 0.5M cannot be reached"),
        ("8M", "--encoder-params: 8M is not below the 7,632,384"),
        ("many", "--encoder-params: 'many' is no number"),
    ],
)
def test_a_size_out_of_reach_is_refused(wanted, message):
    with pytest.raises(ConfigError, match=message):
        plausible_ranks(shape_config("tiny"), wanted)


def plan(rank=16, name="model.encoder.layers.3.fc2"):
    layer = LayerPlan(1536, 384, rank, kept_energy=1.0, dense_params=590_208, params=31_104)
    return CompressionPlan({name: layer})


RANKS = [{}, {}, {}, {"fc2": 16}]


@pytest.mark.parametrize(
    "text",
    [
        plan().to_json(),
        json.dumps(RANKS),
        json.dumps({"model_type": "lite-whisper", "low_rank_config": RANKS}),
    ],
    ids=["plan.json", "list", "config.json"],
)
def test_ranks_are_read_from_files(tmp_path, text):
    config = shape_config("tiny")
    (tmp_path / "ranks.json").write_text(text)
    model = lay_out(config, read_ranks(tmp_path / "ranks.json", config))
    assert collect_ranks(model) == {"model.encoder.layers.3.fc2": 16}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be used"),
        ("[1, 2]", "cannot be used"),
        ('{"format": 7}', "its format is 7"),
        (json.dumps(RANKS[:2]), "2 entries, but the encoder has 4 layers"),
        (json.dumps([{"fc3": 8}, {}, {}, {}]), "names 'fc3'"),
        (plan(name="model.encoder.layers.9.fc2").to_json(), "layers.9.fc2"),
        (None, "cannot read"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(tmp_path, text, reason):
    file = tmp_path / "ranks.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_ranks(file, shape_config("tiny"))
    assert str(caught.value).startswith("--ranks: ")
    assert str(file) in str(caught.value)


def test_only_the_encoder_is_made_and_it_runs():
    config = shape_config("tiny", encoder_layers=2, max_source_positions=20)
    model = lay_out(config, [{"fc1": 8}, {}])
    encoder = make_encoder(model, "bfloat16", "cpu")
    assert {p.device.type for p in model.get_decoder().parameters()} == {"meta"}
    assert {(p.device.type, p.dtype) for p in encoder.parameters()} == {("cpu", torch.bfloat16)}
    with torch.no_grad():
        output = encoder(torch.randn(1, 80, 40, dtype=torch.bfloat16)).last_hidden_state
    assert output.shape == (1, 20, 384)
    assert bool(torch.isfinite(output).all())
    assert float(output.float().std()) > 0.1


def test_the_dense_one_runs_as_hugging_face_does_and_the_lite_one_fast():
    config = shape_config("tiny", encoder_layers=1)
    ranks = [{"q_proj": 16, "k_proj": 16, "v_proj": 16, "fc1": 16}]
    dense, lite = (lay_out(config, one).get_encoder().layers[0] for one in (None, ranks))
    assert type(dense) is WhisperEncoderLayer
    assert type(dense.self_attn) is WhisperAttention
    assert type(lite) is TiledEncoderLayer
    assert type(lite.self_attn) is RankSpaceAttention
