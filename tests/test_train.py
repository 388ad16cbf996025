"""Training from nothing: a shape, a tokenizer and speech become a checkpoint that transcribes."""

import csv
import json

import pytest
import torch
import yaml
from tiny import give_opinions
from trainable import make_shape, make_speech, part

from liteasr import WhisperModule, load
from liteasr.config import ConfigError, load_recipe
from liteasr.fit import main as fit


@pytest.fixture
def shape(tmp_path):
    return make_shape(tmp_path / "shape")


@pytest.fixture
def speech(tmp_path):
    return make_speech(tmp_path / "speech")


@pytest.fixture
def recipe_file(shape, speech, tmp_path):
    recipe = {
        "model": {"id": str(shape), "weights": "random"},
        "data": {
            "train": part(speech, limit=4),
            "test": part(speech, skip=4),
            "train_timestamps": 0.5,
            "train_batch_size": 2,
            "num_workers": 0,
        },
        "decoding": {"max_new_tokens": 8},
        "compression": {"method": "none"},
        "finetune": {"max_steps": 3, "trainable": "all", "warmup_steps": 1},
        "trainer": {"accelerator": "cpu", "devices": 1},
        "run": {"dir": str(tmp_path / "run")},
    }
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def test_a_shape_becomes_a_checkpoint(recipe_file, tmp_path):
    assert fit(["--config", str(recipe_file)]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["dense"] is None
    assert metrics["compressed"] is None
    assert metrics["finetuned"]["wer"] is not None
    assert metrics["encoder_relative_error"] is None
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    model, processor = load(str(tmp_path / "run" / "model"))
    assert model.generation_config.no_timestamps_token_id is not None
    assert len(processor.tokenizer) == model.config.vocab_size


def test_the_layer_of_the_ctc_loss_serves_training_only(recipe_file, tmp_path):
    """Finds that the loss is used, its layer learns, and neither stays in the model."""
    overrides = ["finetune.ctc_weight=0.5", "data.test.a=null", "trainer.log_every_n_steps=1"]
    assert fit(["--config", str(recipe_file), *overrides]) == 0
    run = tmp_path / "run"
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["train/ctc_loss"]) for row in rows) == 3
    model = load(str(run / "model"))[0]
    assert not [name for name in model.state_dict() if "ctc" in name]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    fixed_positions, weight_and_bias = 1, 2
    learned = len(list(model.parameters())) - fixed_positions + weight_and_bias
    assert len(checkpoint["optimizer_states"][0]["state"]) == learned


def test_random_weights_come_from_the_seed(shape):
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(load(str(shape), random_weights=True)[0].state_dict())
    name = "model.encoder.layers.0.fc1.weight"
    assert torch.equal(models[0][name], models[1][name])
    assert not torch.equal(models[0][name], models[2][name])


def test_without_weights_there_is_nothing_to_load(shape):
    with pytest.raises(ConfigError, match=r"model\.id: cannot load the weights"):
        load(str(shape))


def test_random_weights_are_not_compressed(recipe_file):
    with pytest.raises(ConfigError, match=r"model\.weights: random weights cannot be compressed"):
        load_recipe(recipe_file, ["compression.method=pca"])


def test_times_that_nobody_asked_for_do_no_harm(shape):
    """Clips of a batch that name different times once made transformers look for their audio."""
    torch.manual_seed(7)
    module = WhisperModule(str(shape), random_weights=True)
    ids = module.processor.tokenizer.convert_tokens_to_ids(
        ["<|0.40|>", "<|0.60|>", "<|endoftext|>"]
    )
    give_opinions(module.model)
    generator = torch.Generator().manual_seed(7)
    weight = torch.zeros_like(module.model.proj_out.weight)
    weight[ids] = torch.randn(3, 64, generator=generator)
    module.model.proj_out.weight.data = weight
    features = torch.randn(6, 80, 100, generator=generator) * 3
    assert module.decode({"input_features": features, "segments": [1] * 6}) == [""] * 6
