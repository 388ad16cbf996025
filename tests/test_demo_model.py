"""The demo model's way from nothing: shape, training on short windows, whole windows."""

import shutil

import pytest
import torch
from runs import ROOT

import make_demo_model
from liteasr import load
from liteasr.config import ConfigError, load_recipe
from liteasr.fit import main as fit

CLIPS = ROOT / "liteasr" / "demo" / "speech" / "calibration"
QUICK = [
    f"data.train.demo.path={CLIPS}",
    "data.val=null",
    "data.test.demo.limit=1",
    "data.train_batch_size=2",
    "data.num_workers=0",
    "decoding.max_new_tokens=4",
    "finetune.max_steps=1",
    "trainer.precision=32-true",
]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder in which the commands of the recipes are run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(name):
    return str(ROOT / "recipes" / "demo" / f"{name}.yaml")


def test_recipes_lead_from_a_shape_to_a_model_for_whole_windows(work):
    make_demo_model.main(["shape", "--window", "4", "--output", "runs/demo/shape"])
    assert fit(["--config", recipe("train_short"), *QUICK]) == 0
    window = ["--window", "8", "--output", "runs/demo/middle"]
    make_demo_model.main(["lengthen", "runs/train_short/model", *window])
    assert fit(["--config", recipe("train_middle"), *QUICK]) == 0
    make_demo_model.main(["lengthen", "runs/train_middle/model", "--output", "runs/demo/long"])
    assert fit(["--config", recipe("train"), *QUICK]) == 0
    short, _ = load("runs/demo/shape", random_weights=True)
    middle, _ = load("runs/train_middle/model")
    trained, processor = load("runs/train/model")
    positions = trained.model.encoder.embed_positions.weight
    assert len(positions) == 1500
    assert processor.feature_extractor.chunk_length == 30
    assert torch.equal(positions[:400], middle.model.encoder.embed_positions.weight)
    assert torch.equal(positions[:200], short.model.encoder.embed_positions.weight)
    stamp = processor.tokenizer.convert_tokens_to_ids("<|0.00|>")
    assert trained.generation_config.no_timestamps_token_id == stamp - 1


def test_the_weights_fit_the_package(work):
    make_demo_model.main(["shape", "--output", "shape"])
    model, _ = load("shape", random_weights=True)
    assert 2 * model.num_parameters() < make_demo_model.LARGEST


def test_a_model_for_short_windows_is_not_packed(work):
    make_demo_model.main(["shape", "--window", "2", "--output", "shape"])
    load("shape", random_weights=True)[0].save_pretrained("short")
    with pytest.raises(SystemExit, match="lengthen and train it first"):
        make_demo_model.main(["pack", "short"])


def test_an_average_is_the_mean_of_all_weights(work):
    make_demo_model.main(["shape", "--window", "2", "--output", "shape"])
    _, processor = load("shape", random_weights=True)
    weights = {}
    for seed in range(3):
        torch.manual_seed(seed)
        model, _ = load("shape", random_weights=True)
        model.save_pretrained(str(seed))
        processor.save_pretrained(str(seed))
        weights[seed] = model.state_dict()
    make_demo_model.main(["average", "0", "1", "2", "--output", "average"])
    for name, mean in load("average")[0].state_dict().items():
        torch.testing.assert_close(mean, sum(one[name] for one in weights.values()) / 3)


def test_a_packed_model_can_be_loaded_with_its_windows(work, monkeypatch):
    shutil.copytree(make_demo_model.PACKAGED, work / "package")
    monkeypatch.setattr(make_demo_model, "PACKAGED", work / "package")
    make_demo_model.main(["shape", "--window", "9", "--output", "shape"])
    load("shape", random_weights=True)[0].save_pretrained("trained")
    make_demo_model.main(["pack", "trained"])
    model, processor = load("package", dtype="float16")
    assert model.config.max_source_positions == 450
    assert processor.feature_extractor.chunk_length == 9


@pytest.mark.parametrize("name", ["train_short", "train"])
def test_recipes_of_training_name_what_must_be_made_first(work, name):
    with pytest.raises(ConfigError, match=r"runs/demo/.* does not exist"):
        load_recipe(recipe(name))
