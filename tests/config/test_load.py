"""Reading, merging, resolving and typing of recipes, and the messages about what is wrong."""

from __future__ import annotations

import ast
import dataclasses
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, ListConfig

from liteasr.config import (
    Budget,
    ConfigError,
    Dtype,
    Recipe,
    SourceKind,
    Task,
    load_recipe,
    parse_budget,
    parse_overrides,
    to_yaml,
)

BASE = {
    "configs/model/tiny.yaml": "model:\n  id: openai/whisper-tiny\n  language: en\n",
    "configs/model/small.yaml": "defaults:\n  - model/tiny\nmodel:\n  id: openai/whisper-small\n",
    "configs/data/two.yaml": (
        "data:\n"
        "  root: here\n"
        "  calibration:\n"
        "    a: {kind: hub, path: '${data.root}/train', split: train}\n"
        "  test:\n"
        "    one: {kind: hub, path: '${data.root}/one', limit: 5}\n"
        "    two: {kind: hub, path: '${data.root}/two'}\n"
        "compression:\n"
        "  method: pca\n"
    ),
    "recipes/plain.yaml": "defaults:\n  - model/tiny\n  - data/two\n",
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a recipe beside the fragments of ``BASE`` and return its path."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "mine", **files: str) -> Path:
        for path, content in {**BASE, **files, f"recipes/{name}.yaml": text}.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
        return tmp_path / "recipes" / f"{name}.yaml"

    return write


def errors_of(path: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return caught.value.errors


def the_error(path: Any, *overrides: str) -> str:
    (error,) = errors_of(path, *overrides)
    return error


PLAIN = BASE["recipes/plain.yaml"]


# ---------------------------------------------------------------------------- merging


def test_a_recipe_is_plain_dataclasses(write: Write) -> None:
    recipe = load_recipe(write(PLAIN), ["compression.options.deep={a: [1, 2]}"])
    assert isinstance(recipe, Recipe)
    assert recipe.model.id == "openai/whisper-tiny"
    assert recipe.data.test["one"].kind is SourceKind.hub
    assert recipe.data.test["one"].limit == 5
    assert recipe.data.test["two"].limit is None

    def walk(value: Any) -> None:
        assert not isinstance(value, DictConfig | ListConfig)
        if isinstance(value, dict):
            for item in value.values():
                walk(item)

    walk(dataclasses.asdict(recipe))


def test_later_fragment_wins_over_earlier(write: Write) -> None:
    text = "defaults: [model/tiny, model/other, data/two]\n"
    other = "model:\n  id: openai/whisper-base\n"
    recipe = load_recipe(write(text, **{"configs/model/other.yaml": other}))
    assert recipe.model.id == "openai/whisper-base"
    assert recipe.model.language == "en", "keys that the later one lacks stay"


def test_a_fragments_own_keys_win_over_its_defaults(write: Write) -> None:
    recipe = load_recipe(write("defaults: [model/small, data/two]\n"))
    assert recipe.model.id == "openai/whisper-small"
    assert recipe.model.language == "en"


def test_own_keys_win_over_fragments_and_overrides_over_all(write: Write) -> None:
    path = write("model:\n  id: openai/whisper-base\n  language: de\n" + PLAIN)
    assert load_recipe(path).model.id == "openai/whisper-base"
    recipe = load_recipe(path, ["model.id=openai/whisper-medium", "model.id=openai/whisper-large"])
    assert recipe.model.id == "openai/whisper-large"
    assert recipe.model.language == "de"


def test_interpolations_are_resolved_after_overrides(write: Write) -> None:
    recipe = load_recipe(write(PLAIN), ["data.root=there", "run.name=other"])
    assert recipe.data.test["one"].path == "there/one"
    assert recipe.data.calibration["a"].path == "there/train"
    assert recipe.run.dir == "runs/other"


def test_environment_interpolation(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECH", "elsewhere")
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    path = write(PLAIN + "data:\n  root: ${oc.env:SPEECH}\n")
    assert load_recipe(path).data.test["two"].path == "elsewhere/two"
    recipe = load_recipe(path, ["data.eval_batch_size=${oc.env:NO_SUCH_VARIABLE,7}"])
    assert recipe.data.eval_batch_size == 7


def test_a_section_can_refer_to_another(write: Write) -> None:
    recipe = load_recipe(write(PLAIN), ["data.val=${data.test}"])
    assert recipe.data.val == recipe.data.test


def test_null_removes_a_source_and_empties_a_role(write: Write) -> None:
    path = write(PLAIN)
    assert list(load_recipe(path, ["data.test.one=null"]).data.test) == ["two"]
    recipe = load_recipe(path, ["data.test=null", "data.test.new={kind: hub, path: a/b}"])
    assert list(recipe.data.test) == ["new"]
    path = write(PLAIN + "data:\n  test:\n    two: null\n")
    assert list(load_recipe(path).data.test) == ["one"]


def test_overrides_reach_into_sources(write: Write) -> None:
    recipe = load_recipe(write(PLAIN), ["data.test.two.limit=3", "data.test.two.skip=1"])
    assert (recipe.data.test["two"].limit, recipe.data.test["two"].skip) == (3, 1)


def test_run_name_defaults_to_the_stem(write: Write) -> None:
    assert load_recipe(write(PLAIN, name="fast_one")).run.name == "fast_one"
    assert load_recipe(write("run:\n  name: given\n" + PLAIN)).run.name == "given"


def test_shipped_recipe_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("small_acc").model.id == "openai/whisper-small"
    assert load_recipe("recipes/small_acc.yaml") == load_recipe("small_acc")


def test_shipped_fragments_serve_a_recipe_of_ones_own(write: Write) -> None:
    recipe = load_recipe(write("defaults: [model/tiny, data/two, compression/published_fast]\n"))
    assert recipe.compression.method == "pca"
    assert recipe.compression.thresholds == "0.99:0.995"
    assert recipe.model.task is None, "the fragment beside the recipe goes before the shipped one"


def test_fragments_are_found_from_a_folder_further_down(write: Write) -> None:
    write(PLAIN)
    path = write("defaults: [model/tiny, data/two]\n", name="group/deeper/mine")
    assert load_recipe(path).model.id == "openai/whisper-tiny"


def test_recipes_inside_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).resolve().parents[2]
    for kind in ("configs", "recipes"):
        shutil.copytree(root / kind, tmp_path / "liteasr" / f"_{kind}")
        (tmp_path / kind).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("liteasr.config.compose._PACKAGE", tmp_path / "liteasr")
    assert load_recipe("tiny_fast").compression.budget.encoder_params == "6.48M"


# ---------------------------------------------------------------------------- types


def test_values_are_typed(write: Write) -> None:
    recipe = load_recipe(
        write(PLAIN),
        [
            "model.task=translate",
            "model.dtype=bfloat16",
            "finetune.learning_rate=1e-4",
            "compression.thresholds=0.990",
            "run.resume=yes",
            "trainer.precision=32",
            "trainer.devices=[0, 1]",
            "compression.max_rank_mlp=1",
            "compression.budget.encoder_params=7_410_000",
        ],
    )
    assert recipe.model.task is Task.translate
    assert recipe.model.dtype is Dtype.bfloat16
    assert recipe.finetune.learning_rate == 1e-4
    assert recipe.compression.thresholds == "0.990"
    assert recipe.run.resume is True
    assert recipe.trainer.precision == "32"
    assert recipe.trainer.devices == [0, 1]
    assert isinstance(recipe.compression.max_rank_mlp, float)
    assert recipe.compression.budget.encoder_params == "7_410_000"


@pytest.mark.parametrize("text", ["0123456", "1234567", "12e4567", "2024-01-01", "0x1f", "1_0"])
def test_text_that_looks_like_a_number_stays_as_written(write: Write, text: str) -> None:
    assert load_recipe(write(PLAIN), [f"model.revision={text}"]).model.revision == text
    assert load_recipe(write(PLAIN + f"run:\n  name: {text}\n")).run.name == text


def test_yaml_1_1_surprises_are_absent(write: Write) -> None:
    recipe = load_recipe(write(PLAIN), ["model.language=no", "compression.thresholds=1:1"])
    assert recipe.model.language == "no"
    assert recipe.compression.thresholds == "1:1"


@pytest.mark.parametrize(
    ("text", "amount"), [("7410000", 7.41e6), ("429e6", 429e6), ("4.29e8", 429e6), ("0.4B", 4e8)]
)
def test_a_size_is_read_as_written(write: Write, text: str, amount: float) -> None:
    recipe = load_recipe(write(PLAIN), [f"compression.budget.encoder_params={text}"])
    assert recipe.compression.budget.encoder_params == text
    assert parse_budget(recipe.compression.budget) == Budget("encoder_params", amount, 8)


def test_null_takes_the_budget_of_a_recipe_away() -> None:
    recipe = load_recipe(
        "tiny_fast", ["compression.method=pca", "compression.budget.encoder_params=null"]
    )
    assert parse_budget(recipe.compression.budget) is None


# ---------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("name", ["tiny", "large_v3_turbo_fast"])
def test_round_trip_of_shipped_recipes(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name, ["finetune.learning_rate=1e-5", "model.language=no"])
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe))
    assert load_recipe(file) == recipe


def test_round_trip_of_awkward_values(write: Write, tmp_path: Path) -> None:
    path = write(
        PLAIN + "run:\n"
        '  name: "1e5"\n'
        "  dir: 'runs/\\${x} and \\\\\\${y}'\n"
        "compression:\n"
        "  options: {a: 'no', b: '1:1', c: 1e-4, d: null, e: [true, '007', '0x1'], f: ''}\n",
    )
    recipe = load_recipe(path, ["compression.thresholds=1:1", "compression.method=my.own.Method"])
    assert recipe.run.dir == "runs/${x} and \\${y}"
    assert recipe.compression.options["c"] == 1e-4
    file = tmp_path / "again.yaml"
    file.write_text(to_yaml(recipe))
    assert load_recipe(file) == recipe
    assert "!!" not in file.read_text()
    assert "&" not in file.read_text()


# ---------------------------------------------------------------------------- messages


def test_unknown_key_of_a_file(write: Write) -> None:
    error = the_error(write(PLAIN + "compression:\n  threshold: 0.9\n"))
    assert error.startswith("compression.threshold: unknown key (recipes/mine.yaml, line 5)")
    assert "did you mean 'thresholds'?" in error
    assert "rank_multiple" in error, "the allowed keys are told"


def test_unknown_key_of_a_fragment_names_the_fragment(write: Write) -> None:
    path = write("defaults: [model/odd, data/two]\n", **{"configs/model/odd.yaml": ODD})
    assert the_error(path).startswith("model.idd: unknown key (configs/model/odd.yaml, line 3)")


ODD = "model:\n  id: openai/whisper-tiny\n  idd: openai/whisper-tiny\n"


@pytest.mark.parametrize(
    ("override", "key", "suggestion"),
    [
        ("modle.id=x", "modle", "model"),
        (
            "compression.budget.max_eror=1",
            "compression.budget.max_eror",
            "max_error",
        ),
        ("data.test.one.limits=1", "data.test.one.limits", "limit"),
        ("learning_rate=1", "learning_rate", "finetune.learning_rate"),
    ],
)
def test_unknown_key_of_the_command_line(
    write: Write, override: str, key: str, suggestion: str
) -> None:
    error = the_error(write(PLAIN), override)
    assert error.startswith(f"{key}: unknown key (command line)")
    assert f"did you mean {suggestion!r}?" in error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.max_steps=many", "'many' is no whole number"),
        ("finetune.max_steps=1.5", "1.5 is no whole number"),
        ("run.seed=true", "True is no whole number"),
        ("run.seed=null", "None is no whole number"),
        ("finetune.learning_rate=fast", "'fast' is no number"),
        ("finetune.learning_rate=true", "True is no number"),
        ("finetune.learning_rate=.nan", "nan is no number"),
        ("run.resume=2", "2 is neither true nor false"),
        ("model.language=true", "True is no text"),
        ("model.id=null", "None is no text"),
        ("model.id=[a]", "['a'] is no text"),
        ("data.test.one.text=sentence", "'sentence' is no list"),
        ("data.test=5", "5 is no set of named entries"),
        ("data.test.one=5", "is 5; it must be a section with keys among kind, path"),
        ("model=tiny", "is 'tiny'; it must be a section with keys among id"),
        ("compression=null", "is empty; it must be a section"),
    ],
)
def test_wrong_type(write: Write, override: str, message: str) -> None:
    error = the_error(write(PLAIN), override)
    assert error.startswith(f"{override.split('=')[0]}: {message}")
    assert "(command line)" in error


@pytest.mark.parametrize(
    ("override", "allowed", "suggestion"),
    [
        ("model.task=transcrib", "transcribe, translate", "transcribe"),
        ("model.dtype=float23", "float32, bfloat16, float16", "float32"),
        ("data.test.one.kind=foldr", "hub, folder, manifest, demo", "folder"),
        ("decoding.long_form=window", "timestamps, windows", "windows"),
    ],
)
def test_bad_enum_value(write: Write, override: str, allowed: str, suggestion: str) -> None:
    key, value = override.split("=")
    error = the_error(write(PLAIN), override)
    assert error.startswith(f"{key}: {value!r} is none of {allowed} (command line)")
    assert f"did you mean {suggestion!r}?" in error


def test_missing_mandatory_value(write: Write) -> None:
    assert the_error(write("defaults: [data/two]\n")).startswith("model.id: must be set")
    assert the_error(write(PLAIN), "model.id=???").startswith("model.id: must be set")


def test_misspelt_source_name_is_told_from_a_new_source(write: Write) -> None:
    error = the_error(write(PLAIN), "data.test.twoo.limit=5")
    assert error.startswith("data.test.twoo.kind: must be set")
    assert "did you mean 'two'?" in error


def test_removing_a_source_that_is_not_there(write: Write) -> None:
    error = the_error(write(PLAIN), "data.test.onne=null")
    assert error.startswith("data.test.onne: no such source to remove (command line)")
    assert "did you mean 'one'?" in error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.dir=${run.nam}", "refers to 'run.nam', which is not set; did you mean 'run.name'?"),
        ("run.dir=${run.name", "'${run.name' is no valid interpolation"),
        ("run.dir=${run.dir}", "Recursive interpolation"),
        ("run.dir=${oc.env:NO_SUCH_VARIABLE}", "Environment variable 'NO_SUCH_VARIABLE' not found"),
        ("run.dir=${nonsense:1}", "Unsupported interpolation type nonsense"),
        ("data.test.one.limit=${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
        ("data.test.one.text=['${run.nam}']", "did you mean 'run.name'?"),
        ("compression.options.x=['${run.nam}']", "did you mean 'run.name'?"),
        ("data.test.one=${data.test.onne}", "did you mean 'data.test.one'?"),
        ("data.val=${data}", "cannot be resolved"),
    ],
)
def test_bad_interpolation(
    write: Write, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    error = the_error(write(PLAIN), override)
    assert error.startswith(override.split("=")[0])
    assert message in error
    assert "(command line)" in error


def test_interpolations_in_a_circle_of_sections(write: Write) -> None:
    overrides = ["compression.options.a={b: '${.c}', c: {d: '${...a}'}}"]
    assert any("compression.options.a" in error for error in errors_of(write(PLAIN), *overrides))


def test_missing_fragment(write: Write) -> None:
    error = the_error(write("model:\n  id: a/b\ndefaults:\n  - data/two\n  - model/tinny\n"))
    assert error.startswith("defaults: no fragment 'model/tinny' in configs")
    assert "(recipes/mine.yaml, line 5)" in error
    assert "did you mean 'model/tiny'?" in error


def test_fragment_given_with_its_ending(write: Write) -> None:
    assert "did you mean 'model/tiny'?" in the_error(write("defaults: [model/tiny.yaml]\n"))


def test_fragments_in_a_circle(write: Write) -> None:
    loop = {
        "configs/model/a.yaml": "defaults: [model/b]\n",
        "configs/model/b.yaml": "defaults: [model/a]\n",
    }
    error = the_error(write("defaults: [model/a]\n", **loop))
    assert "defaults: 'model/a' includes itself: a → b → a" in error
    assert "configs/model/b.yaml, line 1" in error


def test_the_same_fragment_twice_is_no_circle(write: Write) -> None:
    recipe = load_recipe(write("defaults: [model/tiny, data/two, model/tiny]\n"))
    assert recipe.model.language == "en"


@pytest.mark.parametrize("text", ["defaults: model/tiny\n", "defaults: [{model: tiny}]\n"])
def test_malformed_defaults(write: Write, text: str) -> None:
    error = the_error(write(text))
    assert error.startswith("defaults: ")
    assert "such as model/tiny" in error
    assert "recipes/mine.yaml, line 1" in error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.id", "model.id: has no '='"),
        ("=5", "=5: the key before '=' is incomplete"),
        ("model..id=5", "model..id=5: the key before '=' is incomplete"),
        ("defaults=[model/small]", "defaults: cannot be overridden"),
        ("run.name=[1", "run.name: is not valid YAML"),
        ("run.name=!!python/object:os.system x", "run.name: is not valid YAML"),
        ("data.test.one={limit: 1, limit: 2}", "data.test.one.limit: is given twice"),
        ("run.name.first=x", "run.name: is 'mine', so no keys can be set below it"),
    ],
)
def test_malformed_override(write: Write, override: str, message: str) -> None:
    path = write("run:\n  name: mine\n" + PLAIN)
    (first, *_) = errors_of(path, override)
    assert message in first.replace(" (recipes/mine.yaml, line 2)", "")
    assert "(command line)" in first


def test_parse_overrides() -> None:
    parsed = parse_overrides(["a.b=1e-4", "a.c=null", "a.d=x=y", "a.e=", "a.b=[1, on]"])
    assert parsed == {"a.b": [1, "on"], "a.c": None, "a.d": "x=y", "a.e": None}
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["one", "a=1", "two"])
    assert [error.split(":")[0] for error in caught.value.errors] == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipes/mine.yaml: is empty"),
        ("# only a comment\n", "recipes/mine.yaml: is empty"),
        ("- model\n- data\n", "recipes/mine.yaml: holds a list"),
        ("just words\n", "recipes/mine.yaml: holds only 'just words'"),
        ("model:\n  id: [1\nrun: 2\n", "recipes/mine.yaml, line 3: is not valid YAML"),
        ("model:\n\tid: x\n", "recipes/mine.yaml, line 2: is not valid YAML"),
        ("a: 1\n---\nb: 2\n", "recipes/mine.yaml, line 2: is not valid YAML"),
        ("run: !!timestamp 2001-01-01\n", "recipes/mine.yaml, line 1: the YAML tag"),
        ("? [a]\n: 1\n", "recipes/mine.yaml, line 1: a key must be a plain word"),
        ("run: &x {name: *x}\n", "recipes/mine.yaml, line 1: an alias contains itself"),
    ],
)
def test_unreadable_yaml(write: Write, text: str, message: str) -> None:
    assert the_error(write(text)).startswith(message)


def test_unreadable_bytes(write: Write) -> None:
    path = write(PLAIN)
    path.write_bytes(b"model: \xff\xfe\n")
    assert the_error(path).startswith("recipes/mine.yaml: cannot be read")


def test_duplicate_keys_all_at_once(write: Write) -> None:
    errors = errors_of(write(PLAIN + "run:\n  seed: 1\n  seed: 2\nrun:\n  seed: 3\n"))
    assert errors == [
        "run.seed: is given twice (recipes/mine.yaml, line 6)",
        "run: is given twice (recipes/mine.yaml, line 7)",
    ]


def test_broken_fragment(write: Write) -> None:
    path = write("defaults: [model/odd, data/two]\n", **{"configs/model/odd.yaml": "model: [\n"})
    assert the_error(path).startswith("configs/model/odd.yaml, line 2: is not valid YAML")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal_acc", "smal_acc: no such recipe file; did you mean 'small_acc'?"),
        ("recipes/smal_acc.yaml", "did you mean 'small_acc'?"),
        ("elsewhere/small_acc.yaml", "elsewhere/small_acc.yaml: no such recipe file"),
        ("recipes", "recipes: is a folder"),
    ],
)
def test_missing_recipe(write: Write, name: str, message: str) -> None:
    write(PLAIN)
    assert message in the_error(name)


def test_all_errors_at_once(write: Write) -> None:
    path = write(
        "defaults: [model/tiny, data/two, model/tinny]\n"
        "model:\n  tasks: translate\n"
        "run:\n  seed: zero\n  seed: 1\n"
        "data:\n  num_workers: -1\n"
    )
    errors = errors_of(
        path,
        "model.dtype=float23",
        "compression.thresholds=2:3",
        "nonsense",
        "run.dir=${run.nam}",
        "data.test.onne=null",
        "data.val.x.kind=demo",
    )
    starts = [
        "run.seed: is given twice",
        "defaults: no fragment 'model/tinny'",
        "nonsense: has no '='",
        "run.seed: 'zero' is no whole number",
        "run.dir: '${run.nam}'",
        "model.tasks: unknown key",
        "model.dtype: 'float23'",
        "data.num_workers: -1",
        "compression.thresholds: '2:3'",
        "data.val.x.split: the built-in demo data has no 'test'",
    ]
    for start in starts:
        assert sum(error.startswith(start) for error in errors) == 1, (start, errors)
    assert len(errors) == len(starts), errors


def test_what_follows_from_an_error_is_not_told_twice(write: Write) -> None:
    overrides = ["compression.method=none", "finetune.max_steps=many"]
    assert the_error(write(PLAIN), *overrides).startswith("finetune.max_steps: 'many'")
    assert the_error(write("defaults: [model/tiny, data/twoo]\n")).startswith("defaults:")


def test_a_wrong_goal_is_not_told_as_a_missing_one(write: Write) -> None:
    path = write(PLAIN + "compression:\n  method: auto\n")
    for override in ("budget.max_error=low", "budget.max_eror=0.1", "budget=small"):
        assert the_error(path, f"compression.{override}").startswith("compression.budget")
    assert the_error(path).startswith("compression.budget: method auto needs one of")


def test_an_unknown_key_hides_no_other_error(write: Write) -> None:
    errors = errors_of(write(PLAIN), "a=1", "data.num_workers=-1")
    assert [error.split(":")[0] for error in errors] == ["a", "data.num_workers"]


def test_a_broken_source_is_not_told_as_a_missing_one(write: Write) -> None:
    error = the_error(write(PLAIN), "data.calibration.a=${nothing}")
    assert error.startswith("data.calibration.a: '${nothing}' refers to")


def test_config_error_takes_one_message_or_several() -> None:
    one, two = ConfigError("model.id: wrong"), ConfigError(["a: x", "b: y"])
    assert isinstance(one, ValueError)
    assert (one.errors, str(one)) == (["model.id: wrong"], "model.id: wrong")
    assert (two.errors, str(two)) == (["a: x", "b: y"], "a: x\nb: y")
    again = pickle.loads(pickle.dumps(two))
    assert again.errors == two.errors


# ---------------------------------------------------------------------------- architecture


def test_config_imports_nothing_else_of_the_package() -> None:
    folder = Path(__file__).resolve().parents[2] / "liteasr" / "config"
    files = sorted(folder.glob("*.py"))
    assert len(files) > 3
    allowed = {*sys.stdlib_module_names, "omegaconf", "yaml"}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                is_own = name.startswith("liteasr.config")
                assert is_own or name.split(".")[0] in allowed, (file.name, name)
