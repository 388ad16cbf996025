"""Every shipped recipe composes, and names a model of the published size."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from transformers import WhisperConfig, WhisperForConditionalGeneration

from liteasr.config import (
    Budget,
    ConfigError,
    Recipe,
    Task,
    load_recipe,
    parse_budget,
    to_yaml,
)

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
FRAGMENTS = sorted((ROOT / "configs").rglob("*.yaml"))
LOCAL = "whisper_tiny_libri"
QUICKSTART = "quickstart"
COMPARISON = "compare_whisper_tiny_libri"
ABLATION = "ablation_whisper_tiny_libri"
DISTILLED = "distilled_whisper_tiny_libri"
TRAINING = ("train_short", "train_middle", "train")
THRESHOLDS = {"acc": "0.999:0.999", "plain": "0.99:0.999", "fast": "0.99:0.995"}
BUDGETS = {
    "tiny": {"_acc": 7.41, "": 7.00, "_fast": 6.48},
    "base": {"_acc": 18.64, "": 17.44, "_fast": 16.07},
    "small": {"_acc": 76.99, "": 70.16, "_fast": 63.11},
    "medium": {"_acc": 269.93, "": 239.99, "_fast": 215.31},
    "large_v3": {"_acc": 429, "": 377, "_fast": 308},
    "large_v3_turbo": {"_acc": 421, "": 374, "_fast": 313},
}
"""Published sizes of the compressed encoders, in millions of parameters."""


class Shape(NamedTuple):
    """A Whisper checkpoint of the hub and its published sizes, in millions of parameters."""

    id: str
    width: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    mel_bins: int
    vocabulary: int
    encoder: str
    decoder: str


SHAPES = {
    "tiny": Shape("openai/whisper-tiny", 384, 4, 4, 6, 80, 51865, "7.63", "29.55"),
    "base": Shape("openai/whisper-base", 512, 6, 6, 8, 80, 51865, "19.82", "52.00"),
    "small": Shape("openai/whisper-small", 768, 12, 12, 12, 80, 51865, "87.00", "153.58"),
    "medium": Shape("openai/whisper-medium", 1024, 24, 24, 16, 80, 51865, "305.68", "456.64"),
    "large_v3": Shape("openai/whisper-large-v3", 1280, 32, 32, 20, 128, 51866, "635.05", "906.52"),
    "large_v3_turbo": Shape(
        "openai/whisper-large-v3-turbo", 1280, 32, 4, 20, 128, 51866, "635.05", "171.91"
    ),
}
HUB_RECIPES = [f"{size}{variant}" for size in SHAPES for variant in BUDGETS[size]]


@pytest.fixture(autouse=True)
def _in_the_project_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@cache
def sizes(model_id: str) -> tuple[int, int]:
    """Parameters of encoder and decoder, counted as the published tables count them.

    The encoder is counted without its (fixed, sinusoidal) positional embedding. The decoder is
    counted whole: token embedding, learned positional embedding, layers and final norm; the output
    projection is the token embedding (tied) and adds nothing.
    """
    (shape,) = (shape for shape in SHAPES.values() if shape.id == model_id)
    config = WhisperConfig(
        vocab_size=shape.vocabulary,
        num_mel_bins=shape.mel_bins,
        d_model=shape.width,
        encoder_layers=shape.encoder_layers,
        encoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_layers=shape.decoder_layers,
        decoder_attention_heads=shape.heads,
        decoder_ffn_dim=4 * shape.width,
        max_source_positions=1500,
        max_target_positions=448,
    )
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    encoder, decoder = model.model.encoder, model.model.decoder
    encoder_total = sum(parameter.numel() for parameter in encoder.parameters())
    decoder_total = sum(parameter.numel() for parameter in decoder.parameters())
    return encoder_total - encoder.embed_positions.weight.numel(), decoder_total


def test_all_recipes_are_there() -> None:
    local = {LOCAL, QUICKSTART, COMPARISON, ABLATION, DISTILLED, *TRAINING}
    assert len(RECIPES) == 26
    assert {path.stem for path in RECIPES} == {*HUB_RECIPES, *local}


def _load(path: str | Path) -> Recipe:
    """The recipe; skips the test if nothing but local files are missing."""
    try:
        return load_recipe(path)
    except ConfigError as error:
        if all(line.endswith("does not exist") for line in error.errors):
            pytest.skip(f"local files are absent: {error.errors[0]}")
        raise


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.stem not in TRAINING], ids=lambda path: path.stem
)
def test_recipe_composes(path: Path) -> None:
    recipe = _load(path)
    assert recipe.run.name == path.stem
    assert recipe.run.dir == f"runs/{path.stem}"
    assert recipe.data.test
    assert recipe.data.calibration
    assert (recipe.finetune.max_steps > 0) == (path.stem == DISTILLED)
    assert to_yaml(recipe).startswith(f"run:\n  name: {path.stem}\n")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_a_delta(path: Path) -> None:
    text = path.read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert lines[0] == "defaults:"
    longest = {COMPARISON: 30, **dict.fromkeys((DISTILLED, *TRAINING), 15)}
    assert len(lines) <= longest.get(path.stem, 10)


def test_every_fragment_is_used() -> None:
    used = {f"compression/published_{variant}" for variant in THRESHOLDS}
    for path in [*RECIPES, *FRAGMENTS]:
        used |= set(yaml.safe_load(path.read_text()).get("defaults", []))
    there = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in FRAGMENTS}
    assert used == there


@pytest.mark.parametrize("name", HUB_RECIPES)
def test_hub_recipe(name: str) -> None:
    recipe = load_recipe(name)
    size = name.removesuffix("_acc").removesuffix("_fast")
    assert recipe.model.id == SHAPES[size].id
    assert (recipe.model.language, recipe.model.task) == ("en", Task.transcribe)
    assert recipe.compression.method == "auto"
    size_m = BUDGETS[size][name.removeprefix(size)]
    expected = Budget("encoder_params", round(size_m * 1e6), 8)
    assert parse_budget(recipe.compression.budget) == expected
    assert recipe.data.calibration_clips == 100
    assert len(recipe.data.test) == 8
    evaluated = {source.path for source in recipe.data.test.values()}
    assert evaluated.isdisjoint(source.path for source in recipe.data.calibration.values())
    assert all(source.split.startswith("train") for source in recipe.data.calibration.values())


@pytest.mark.parametrize(("variant", "thresholds"), THRESHOLDS.items())
def test_fragment_of_the_published_method(tmp_path: Path, variant: str, thresholds: str) -> None:
    """For a recipe of one's own; no shipped one uses it."""
    file = tmp_path / "mine.yaml"
    fragments = f"[model/tiny, data/esb, compression/published_{variant}]"
    file.write_text(f"defaults: {fragments}\n")
    compression = load_recipe(file).compression
    assert (compression.method, compression.thresholds) == ("pca", thresholds)
    assert parse_budget(compression.budget) is None


@pytest.mark.parametrize("name", HUB_RECIPES)
def test_model_has_the_published_size(name: str) -> None:
    """To the last printed digit of the published table, at the true shape, without weights."""
    recipe = load_recipe(name)
    (shape,) = (shape for shape in SHAPES.values() if shape.id == recipe.model.id)
    encoder, decoder = sizes(recipe.model.id)
    assert f"{encoder / 1e6:.2f}" == shape.encoder
    assert f"{decoder / 1e6:.2f}" == shape.decoder


def test_local_recipe() -> None:
    recipe = _load(LOCAL)
    assert (recipe.model.language, recipe.model.task) == (None, None)
    assert recipe.data.calibration_clips == 64
    assert list(recipe.data.calibration) == ["librispeech", "common_voice", "an4"]
    assert list(recipe.data.test) == ["librispeech", "common_voice", "an4", "ljspeech"]
    assert {source.limit for source in recipe.data.test.values()} == {30}
    assert recipe.decoding.long_form.value == "windows"
    assert recipe.compression.method == "auto"
    assert parse_budget(recipe.compression.budget) == Budget("encoder_params", 6.05e6, 8)
    assert recipe.trainer.accelerator == "cpu"
    assert not recipe.data.train
    assert not recipe.data.val


def test_distillation_recipe() -> None:
    recipe = _load(DISTILLED)
    assert recipe.data.test == _load(LOCAL).data.test
    assert list(recipe.data.train) == list(recipe.data.val) == list(recipe.data.calibration)
    for name, source in recipe.data.val.items():
        assert source.limit == recipe.data.train[name].skip == recipe.data.calibration[name].skip
    assert recipe.finetune.encoder_distillation_weight == 1
    assert parse_budget(recipe.compression.budget) == Budget("encoder_params", 3.8e6, 8)


def test_comparison_recipe() -> None:
    recipe = _load(COMPARISON)
    assert {name: entry.method for name, entry in recipe.compare.methods.items()} == {
        "auto": "auto",
        "pca": "pca",
    }
    assert recipe.compare.encoder_params == ["7.1M", "6.8M", "6.05M", "5.2M", "3.8M"]
    assert recipe.compare.search.max_wer_increase is None
    assert recipe.data.calibration_clips == 100
    assert {source.limit for source in recipe.data.test.values()} == {60}
    assert recipe.model == _load(LOCAL).model
    assert recipe.decoding.long_form.value == "windows"


def test_local_recipe_follows_its_root() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(LOCAL, ["data.root=/nowhere"])
    paths = [line for line in caught.value.errors if "/nowhere/" in line]
    assert len(paths) == 7
    assert "data.test.ljspeech.path: folder /nowhere/ljspeech/dev does not exist" in paths
