"""Impossible values and combinations."""

from __future__ import annotations

from pathlib import Path

import pytest

from liteasr.config import (
    METHOD_NAMES,
    ConfigError,
    Recipe,
    SourceConfig,
    SourceKind,
    parse_thresholds,
)
from liteasr.config.check import check

HUB = SourceKind.hub


@pytest.fixture
def recipe() -> Recipe:
    """One that is right."""
    recipe = Recipe()
    recipe.run.name = "mine"
    recipe.run.dir = "runs/mine"
    recipe.model.id = "openai/whisper-tiny"
    recipe.compression.budget.encoder_params = "7M"
    recipe.data.calibration = {"a": SourceConfig(HUB, "owner/set", split="train")}
    recipe.data.test = {"a": SourceConfig(HUB, "owner/set", split="test")}
    return recipe


def put(recipe: Recipe, key: str, value: object) -> None:
    *parents, name = key.split(".")
    target: object = recipe
    for parent in parents:
        target = target[parent] if isinstance(target, dict) else getattr(target, parent)
    if isinstance(target, dict):
        target[name] = value
    else:
        assert hasattr(target, name), key
        setattr(target, name, value)


def the_error(recipe: Recipe) -> str:
    (error,) = check(recipe)
    return error


def test_a_good_recipe_passes(recipe: Recipe) -> None:
    assert check(recipe) == []


@pytest.mark.parametrize(
    ("key", "bad", "good"),
    [
        ("data.calibration_clips", 0, 1),
        ("data.calibration_batch_size", 0, 1),
        ("data.train_batch_size", -1, 1),
        ("data.eval_batch_size", 0, 1),
        ("data.num_workers", -1, 0),
        ("data.max_bad_fraction", 1.0, 0.0),
        ("data.max_bad_fraction", -0.1, 0.99),
        ("data.test.a.skip", -1, 0),
        ("data.test.a.limit", 0, 1),
        ("decoding.num_beams", 0, 1),
        ("decoding.max_new_tokens", 0, None),
        ("compression.rank_multiple", 0, 1),
        ("compression.max_rank_attention", 0.0, 1.0),
        ("compression.max_rank_mlp", 1.1, 0.1),
        ("compression.padding_weight", -0.1, 0.0),
        ("compression.padding_weight", 1.1, None),
        ("compression.budget.granularity", 0, 1),
        ("compression.budget.encoder_params", "six", "6M"),
        ("compression.save_every", -1, 0),
        ("finetune.max_steps", -1, 0),
        ("finetune.learning_rate", 0.0, 1e-9),
        ("finetune.learning_rate", float("nan"), 1.0),
        ("finetune.warmup_steps", -1, 0),
        ("finetune.weight_decay", -0.1, 0.0),
        ("finetune.label_smoothing", 1.0, 0.0),
        ("finetune.ctc_weight", 1.0, 0.99),
        ("finetune.val_every", 0, 1),
        ("trainer.num_nodes", 0, 1),
        ("trainer.accumulate_grad_batches", 0, 1),
        ("trainer.gradient_clip_val", -1.0, None),
        ("trainer.log_every_n_steps", 0, 1),
        ("trainer.num_threads", 0, None),
        ("trainer.devices", 0, -1),
        ("trainer.devices", True, 2),
        ("trainer.devices", [], [0, 1]),
        ("trainer.devices", 1.5, "auto"),
        ("run.seed", -1, 0),
        ("run.name", "", "x"),
        ("run.dir", " ", "x"),
        ("model.id", "", "owner/name"),
        ("model.processor", "", None),
    ],
)
def test_value_out_of_range(recipe: Recipe, key: str, bad: object, good: object) -> None:
    put(recipe, key, bad)
    assert the_error(recipe).startswith(f"{key}: ")
    put(recipe, key, good)
    assert check(recipe) == []


def test_several_errors_at_once(recipe: Recipe) -> None:
    recipe.compression.method = "pca"
    recipe.data.calibration_clips = 0
    recipe.data.num_workers = -1
    recipe.compression.thresholds = "2"
    assert len(check(recipe)) == 3


# ---------------------------------------------------------------------------- thresholds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.99:0.999", (0.99, 0.999)), ("0.5", (0.5, 0.5)), ("1:1", (1.0, 1.0)), ("1", (1.0, 1.0))],
)
def test_parse_thresholds(text: str, expected: tuple[float, float]) -> None:
    assert parse_thresholds(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0:1", "1.1", "0.9:0.9:0.9", "a:b", "0.9:", "nan", "-1"])
def test_bad_thresholds(recipe: Recipe, text: str) -> None:
    with pytest.raises(ConfigError, match=r"compression\.thresholds: .*attention:mlp"):
        parse_thresholds(text)
    recipe.compression.method = "pca"
    recipe.compression.thresholds = text
    assert the_error(recipe).startswith("compression.thresholds: ")


# ---------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", [*METHOD_NAMES, "my.module.Method", "my.module:Method"])
def test_known_methods(recipe: Recipe, name: str) -> None:
    recipe.compression.method = name
    recipe.finetune.max_steps = 1
    recipe.data.train = {"a": SourceConfig(HUB, "owner/other")}
    assert check(recipe) == []


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("pcaa", "pca"),
        ("non", "none"),
        ("PCA", "pca"),
        ("Auto", "auto"),
        ("sensitive", "sensitivity"),
        ("sensitivty", "sensitivity"),
    ],
)
def test_unknown_method(recipe: Recipe, name: str, guess: str) -> None:
    recipe.compression.method = name
    error = the_error(recipe)
    assert error.startswith(f"compression.method: {name!r} is none of auto, sensitivity, pca, none")
    assert f"did you mean {guess!r}?" in error


@pytest.mark.parametrize("path", ["Callback", "my..Callback", ".Callback", "my callback.C"])
def test_callback_that_is_no_dotted_path(recipe: Recipe, path: str) -> None:
    recipe.compression.callback = path
    assert the_error(recipe).startswith(f"compression.callback: {path!r}")


def test_unknown_precision(recipe: Recipe) -> None:
    recipe.trainer.precision = "bf16-mix"
    error = the_error(recipe)
    assert error.startswith("trainer.precision: 'bf16-mix' is none of")
    assert "did you mean 'bf16-mixed'?" in error


# ---------------------------------------------------------------------------- goals

SHARES = ("encoder_ratio", "encoder_flops_ratio", "encoder_time_ratio", "max_error")
GOALS = {
    "encoder_params": "7M",
    "encoder_ratio": 0.9,
    "encoder_flops_ratio": 0.9,
    "encoder_time_ratio": 0.9,
    "max_error": 0.1,
}
BUDGETED = ("auto", "sensitivity")
OTHERS = ("pca", "none", "my.module.Method")


def set_goal(recipe: Recipe, method: str, *goals: str) -> None:
    """The method and these goals, no others."""
    recipe.compression.method = method
    recipe.finetune.max_steps = 1
    recipe.data.train = {"a": SourceConfig(HUB, "owner/other")}
    for key, value in GOALS.items():
        setattr(recipe.compression.budget, key, value if key in goals else None)


@pytest.mark.parametrize("key", GOALS)
@pytest.mark.parametrize("method", [*BUDGETED, "none", "my.module.Method"])
def test_any_one_goal(recipe: Recipe, method: str, key: str) -> None:
    set_goal(recipe, method, key)
    assert check(recipe) == []


@pytest.mark.parametrize(
    "key", ["encoder_ratio", "encoder_flops_ratio", "encoder_time_ratio", "max_error"]
)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5])
def test_goals_are_strictly_between_0_and_1(recipe: Recipe, key: str, value: float) -> None:
    set_goal(recipe, "auto", key)
    setattr(recipe.compression.budget, key, value)
    assert the_error(recipe) == f"compression.budget.{key}: {value} is not above 0 and below 1"


@pytest.mark.parametrize("method", BUDGETED)
def test_these_methods_need_a_goal(recipe: Recipe, method: str) -> None:
    set_goal(recipe, method)
    assert the_error(recipe) == (
        f"compression.budget: method {method} needs one of "
        "encoder_params, encoder_ratio, encoder_flops_ratio, encoder_time_ratio, max_error"
    )


@pytest.mark.parametrize("method", OTHERS)
def test_these_methods_need_no_goal(recipe: Recipe, method: str) -> None:
    set_goal(recipe, method)
    assert check(recipe) == []


@pytest.mark.parametrize("method", ["auto", "my.module.Method"])
def test_two_goals(recipe: Recipe, method: str) -> None:
    set_goal(recipe, method, "encoder_params", "max_error")
    error = the_error(recipe)
    assert error.startswith("compression.budget.encoder_params, compression.budget.max_error: ")
    assert "only one goal can be set" in error


@pytest.mark.parametrize("method", BUDGETED)
def test_thresholds_belong_to_pca(recipe: Recipe, method: str) -> None:
    recipe.compression.method = method
    recipe.compression.thresholds = "0.99"
    error = the_error(recipe)
    assert error.startswith("compression.thresholds: thresholds belong to method pca")
    assert method in error


@pytest.mark.parametrize("method", OTHERS)
def test_thresholds_with_a_goal(recipe: Recipe, method: str) -> None:
    set_goal(recipe, method, "encoder_ratio")
    recipe.compression.thresholds = "0.99:0.999"
    assert check(recipe) == []


@pytest.mark.parametrize("key", ["encoder_flops_ratio", "encoder_time_ratio", "max_error"])
def test_pca_knows_only_sizes(recipe: Recipe, key: str) -> None:
    set_goal(recipe, "pca", key)
    error = the_error(recipe)
    assert error.startswith(f"compression.budget.{key}: method pca knows only sizes")
    assert "encoder_params, encoder_ratio" in error


# ---------------------------------------------------------------------------- stages


def test_calibration_is_needed(recipe: Recipe) -> None:
    recipe.data.calibration = {}
    assert the_error(recipe).startswith("data.calibration: names no source")


def test_calibration_is_not_needed_without_compression(recipe: Recipe) -> None:
    recipe.data.calibration = {}
    recipe.compression.method = "none"
    recipe.finetune.max_steps = 10
    recipe.data.train = {"b": SourceConfig(HUB, "owner/other")}
    assert check(recipe) == []


def test_training_needs_data(recipe: Recipe) -> None:
    recipe.finetune.max_steps = 10
    assert the_error(recipe).startswith("data.train: names no source, but finetune.max_steps")


def test_nothing_to_do(recipe: Recipe) -> None:
    recipe.compression.method = "none"
    error = the_error(recipe)
    assert error.startswith("compression.method, finetune.max_steps: nothing to do")


def test_absent_parts_are_no_error_of_an_incomplete_recipe(recipe: Recipe) -> None:
    recipe.data.calibration = {}
    recipe.compression.budget.encoder_params = None
    recipe.compression.thresholds = "1"
    assert check(recipe, complete=False) == []


def test_resume_and_overwrite_exclude_each_other(recipe: Recipe) -> None:
    recipe.run.resume = recipe.run.overwrite = True
    assert the_error(recipe).startswith("run.resume, run.overwrite: ")


@pytest.mark.parametrize("folder", [".", "..", "/"])
def test_overwrite_spares_the_current_folder(recipe: Recipe, folder: str) -> None:
    recipe.run.dir = folder
    assert check(recipe) == []
    recipe.run.overwrite = True
    assert the_error(recipe).startswith(f"run.dir: {folder!r} holds the current folder")


# ---------------------------------------------------------------------------- paths


@pytest.mark.parametrize("key", ["model.id", "model.processor"])
@pytest.mark.parametrize("path", ["./none", "../none", "/none", "~/none", "a/b/none"])
def test_local_model_that_is_not_there(recipe: Recipe, key: str, path: str) -> None:
    put(recipe, key, path)
    assert the_error(recipe) == f"{key}: {path} does not exist"


def test_local_model_that_is_there(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/b/c").mkdir(parents=True)
    for path in (str(tmp_path), "./a", "a/b/c", "a/b", "owner/name"):
        recipe.model.id = path
        assert check(recipe) == []


def test_source_needs_a_path(recipe: Recipe) -> None:
    recipe.data.test["a"].path = ""
    assert the_error(recipe) == "data.test.a.path: must be set"


def test_demo_has_two_splits_and_no_path(recipe: Recipe) -> None:
    recipe.data.test["a"] = SourceConfig(SourceKind.demo, split="evaluation")
    assert check(recipe) == []
    recipe.data.test["a"].split = "evaluations"
    error = the_error(recipe)
    assert error.startswith("data.test.a.split: the built-in demo data has no 'evaluations'")
    assert "did you mean 'evaluation'" in error
    recipe.data.test["a"] = SourceConfig(SourceKind.demo, "some/where", split="evaluation")
    assert the_error(recipe).startswith("data.test.a.path: ")


def test_demo_splits_are_apart(recipe: Recipe) -> None:
    recipe.data.test["a"] = SourceConfig(SourceKind.demo, split="evaluation")
    recipe.data.calibration["b"] = SourceConfig(SourceKind.demo, split="calibration")
    assert check(recipe) == []
    recipe.data.calibration["b"].split = "evaluation"
    assert the_error(recipe).startswith("data.calibration.b, data.test.a: both read utterances")


def test_source_without_columns(recipe: Recipe) -> None:
    recipe.data.test["a"].text = []
    assert the_error(recipe).startswith("data.test.a.text: ")


def test_local_sources(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file.jsonl").touch()
    folder, manifest = SourceKind.folder, SourceKind.manifest
    there, file, nowhere = (str(tmp_path / name) for name in (".", "file.jsonl", "nowhere"))
    expected = {
        (folder, there): None,
        (folder, file): f"data.test.a.path: {file} is no folder",
        (folder, nowhere): f"data.test.a.path: folder {nowhere} does not exist",
        (manifest, file): None,
        (manifest, there): f"data.test.a.path: {there} is no file",
        (manifest, nowhere): f"data.test.a.path: manifest {nowhere} does not exist",
        (HUB, nowhere): f"data.test.a.path: {nowhere} does not exist",
        (HUB, there): None,
    }
    for (kind, path), error in expected.items():
        recipe.data.test["a"] = SourceConfig(kind, path)
        assert check(recipe) == ([error] if error else [])


# ---------------------------------------------------------------------------- disjoint roles


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("calibration", "val"),
        ("calibration", "test"),
        ("train", "val"),
        ("train", "test"),
    ],
)
def test_roles_must_not_share_utterances(recipe: Recipe, one: str, other: str) -> None:
    recipe.data.calibration = {"x": SourceConfig(HUB, "owner/unrelated")}
    getattr(recipe.data, one)["p"] = SourceConfig(HUB, "owner/same", "clean", "train")
    getattr(recipe.data, other)["q"] = SourceConfig(HUB, "owner/same", "clean", "train")
    error = the_error(recipe)
    assert error.startswith(f"data.{one}.p, data.{other}.q: both read")
    assert "owner/same" in error


@pytest.mark.parametrize(("one", "other"), [("val", "test"), ("train", "calibration")])
def test_what_is_learned_and_what_is_measured_may_coincide(
    recipe: Recipe, one: str, other: str
) -> None:
    setattr(recipe.data, one, dict(getattr(recipe.data, other)))
    assert check(recipe) == []


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        ((0, 10), (10, None), None),
        ((0, 11), (10, None), "10 to 10"),
        ((0, None), (10, None), "from 10 on"),
        ((20, 5), (0, 20), None),
        ((20, 5), (0, 22), "20 to 21"),
        ((0, 5), (5, 5), None),
    ],
)
def test_ranges_of_one_set(
    recipe: Recipe,
    first: tuple[int, int | None],
    second: tuple[int, int | None],
    overlap: str | None,
) -> None:
    same = ("owner/set", "clean", "train")
    recipe.data.calibration = {"x": SourceConfig(HUB, *same, skip=first[0], limit=first[1])}
    recipe.data.val = {"y": SourceConfig(HUB, *same, skip=second[0], limit=second[1])}
    if overlap is None:
        assert check(recipe) == []
    else:
        assert overlap in the_error(recipe)


@pytest.mark.parametrize(
    "other", [("owner/set", "b", "s"), ("owner/set", "a", "t"), ("o/x", "a", "s")]
)
def test_other_subset_split_or_set_is_disjoint(recipe: Recipe, other: tuple[str, str, str]) -> None:
    recipe.data.calibration = {"x": SourceConfig(HUB, "owner/set", "a", "s")}
    recipe.data.test = {"y": SourceConfig(HUB, *other)}
    assert check(recipe) == []


def test_one_folder_by_two_paths(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    kind = SourceKind.folder
    recipe.data.calibration = {"x": SourceConfig(kind, str(folder), split="train")}
    recipe.data.test = {"y": SourceConfig(kind, str(tmp_path / "link"), split="test")}
    assert the_error(recipe).startswith("data.calibration.x, data.test.y: both read")
