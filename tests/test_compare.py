"""Several methods and sizes in one run, on the real checkpoint, a few clips long."""

import json
import shutil

import pytest
import yaml
from runs import DENSE_PARAMS, ROOT, without

from liteasr import LiteWhisperForConditionalGeneration, load
from liteasr.cli import main as liteasr_main
from liteasr.compare import main as compare
from liteasr.compare_report import best_entries, comparison_markdown
from liteasr.comparison import Comparison, entry_config, smallest_accepted
from liteasr.config import ConfigError, check_comparison, load_recipe, to_yaml
from liteasr.fit import main as fit
from liteasr.module import WhisperModule

SPEED = ("rtfx", "encoder_rtfx", "ran_on")
RECIPE = str(ROOT / "recipes" / "compare_whisper_tiny_libri.yaml")


def _common(real_model, real_speech):
    return [
        *("--config", RECIPE, f"model.id={real_model}", f"data.root={real_speech}"),
        *("data.calibration_clips=4", "data.calibration_batch_size=2", "data.num_workers=0"),
        *("data.test.librispeech=null", "data.test.common_voice=null"),
        *("data.test.ljspeech=null", "data.test.an4.limit=1", "trainer.num_threads=1"),
        *("compare.methods.auto=null", "compare.methods.sens.method=sensitivity"),
    ]


@pytest.fixture
def arguments(real_model, real_speech, tmp_path):
    return [*_common(real_model, real_speech), f"run.dir={tmp_path / 'run'}"]


@pytest.fixture(scope="session")
def compared(real_model, real_speech, tmp_path_factory):
    """One finished comparison; the smaller size cannot be reached."""
    run = tmp_path_factory.mktemp("compared") / "run"
    sizes = "compare.encoder_params=[6.8M,0.2M]"
    arguments = [*_common(real_model, real_speech), f"run.dir={run}", sizes, "--keep-models"]
    assert compare(arguments) == 0
    return run


def _content(run):
    return json.loads((run / "compare.json").read_text())


def test_compare_json_follows_the_contract(compared):
    content = _content(compared)
    assert set(content) == {"dense", "calibration", "results", "best", "search"}
    assert set(content["dense"]) == {"encoder_params", "wer", "datasets", *SPEED}
    assert content["dense"]["encoder_rtfx"] > content["dense"]["rtfx"] > 0
    assert content["dense"]["encoder_params"] == DENSE_PARAMS
    assert content["calibration"]["clips"] == 4
    assert content["calibration"]["fingerprint"]
    assert content["search"] is None
    pairs = [(one["name"], one["wanted_params"]) for one in content["results"]]
    assert pairs == [("pca", 6.8e6), ("pca", 2e5), ("sens", 6.8e6), ("sens", 2e5)]
    for one in content["results"]:
        assert set(one) == {
            *("name", "method", "wanted_params", "encoder_params", "wer", "datasets"),
            *("encoder_relative_error", "predicted_error", "seconds", "plan", "heads", "reason"),
            *SPEED,
        }
        assert set(one["seconds"]) == {"calibrate", "compress"}


def test_what_was_reached_is_measured(compared):
    pca, sens = (one for one in _content(compared)["results"] if one["reason"] is None)
    for one in (pca, sens):
        assert 6.6e6 < one["encoder_params"] <= 6.8e6
        assert 0 <= one["wer"] == one["datasets"]["an4"]
        assert one["plan"]
        assert all(rank % 8 == 0 for rank in one["plan"].values())
    assert sens["encoder_relative_error"] < pca["encoder_relative_error"] < 1
    assert sens["method"] == "sensitivity"
    assert 0 < sens["predicted_error"] < 1
    assert pca["predicted_error"] is None
    assert _content(compared)["best"]["6.8M"] in ("pca", "sens")


def test_what_cannot_be_reached_is_told_with_its_reason(compared):
    missed = [one for one in _content(compared)["results"] if one["wanted_params"] == 2e5]
    for one in missed:
        assert "200,000" in one["reason"]
        assert one["encoder_params"] is one["wer"] is one["encoder_relative_error"] is None
        assert one["plan"] == {}
    assert _content(compared)["best"]["0.2M"] is None


def test_each_entry_calibrates_once(compared):
    for name in ("pca", "sens"):
        assert (compared / "statistics" / name / "total.pt").is_file()
        first, second = (one for one in _content(compared)["results"] if one["name"] == name)
        assert second["seconds"]["calibrate"] < first["seconds"]["calibrate"] / 2


def test_the_report_says_the_same(compared):
    text = (compared / "report" / "compare.md").read_text()
    assert "| 0.2M | not reached | not reached |" in text
    best = next(one for one in _content(compared)["results"] if one["name"] == "sens")
    assert f"{best['wer']:.2f} ({best['encoder_relative_error']:.4f})" in text
    assert "- sens, 0.20M: encoder_params: 200,000 parameters cannot be reached" in text
    assert (compared / "report" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (compared / "report" / "report.html").read_text()


def test_models_are_kept_when_asked(compared):
    assert {folder.name for folder in (compared / "models").iterdir()} == {"pca-6.8M", "sens-6.8M"}
    model, _ = load(str(compared / "models" / "sens-6.8M"))
    assert isinstance(model, LiteWhisperForConditionalGeneration)
    assert "WER an4" in (compared / "models" / "sens-6.8M" / "README.md").read_text()


def test_the_stored_recipe_is_that_of_the_run(compared):
    stored = yaml.safe_load((compared / "recipe.yaml").read_text())
    assert stored["compare"]["encoder_params"] == ["6.8M", "0.2M"]
    recipe = load_recipe(compared / "recipe.yaml")
    assert list(recipe.compare.methods) == ["pca", "sens"]
    assert to_yaml(recipe) == (compared / "recipe.yaml").read_text()


def _never(*_args, **_kwargs):
    raise AssertionError("done again")


def test_resuming_repeats_nothing(compared, monkeypatch, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(compared, run)
    before = _content(run)
    (run / "compare.json").unlink()
    monkeypatch.setattr(WhisperModule, "decode", _never)
    monkeypatch.setattr(Comparison, "_compressed", _never)
    command = ["--config", str(run / "recipe.yaml"), f"run.dir={run}", "run.resume=true"]
    assert compare([*command, "--keep-models"]) == 0
    assert _content(run) == before


def test_resuming_with_another_size_computes_that_alone(compared, monkeypatch, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(compared, run)
    measured = []

    def measure(self, name, config, role):
        measured.append((name, config.budget.encoder_params))
        size = round(float(config.budget.encoder_params[:-1]) * 1e6)
        return {**_result(name, size, 20.0), "calibration": {"clips": 4}}

    monkeypatch.setattr(Comparison, "_measure", measure)
    command = ["--config", str(run / "recipe.yaml"), f"run.dir={run}", "run.resume=true"]
    changed = "compare.methods.sens.options.damping=0.1"
    assert compare([*command, "compare.encoder_params=[7.1M,6.8M]", changed]) == 0
    assert measured == [("pca", "7.1M"), ("sens", "7.1M"), ("sens", "6.8M")]


def test_a_run_that_was_interrupted_goes_on(arguments, tmp_path, monkeypatch, capsys):
    def measure(self, name, config, role):
        if name == "sens":
            raise KeyboardInterrupt
        return _result(name, 6_800_000, 20.0)

    monkeypatch.setattr(Comparison, "dense", lambda self, role="test": _dense(18.0))
    monkeypatch.setattr(Comparison, "_measure", measure)
    options = [*arguments, "compare.encoder_params=[6.8M]"]
    assert compare(options) == 1
    assert "interrupted (compare goes on with run.resume=true)" in capsys.readouterr().err
    monkeypatch.setattr(Comparison, "_measure", lambda s, name, c, r: _result(name, 6.8e6, 19.0))
    assert compare([*options, "run.resume=true"]) == 0
    assert [one["wer"] for one in _content(tmp_path / "run")["results"]] == [20.0, 19.0]


# ---------------------------------------------------------------------------- search


def _dense(wer):
    return {"encoder_params": DENSE_PARAMS, "wer": wer, "datasets": {"an4": wer}}


def _result(name, size, wer, reason=None):
    return {
        **{"name": name, "method": name, "wanted_params": size, "wer": wer, "reason": reason},
        **{"encoder_params": size, "datasets": {"an4": wer}, "encoder_relative_error": 0.1},
        **{"predicted_error": None, "plan": {}, "calibration": {"clips": 4}},
        "seconds": {"calibrate": 1.0, "compress": 1.0},
    }


@pytest.fixture
def searching(arguments, monkeypatch, real_speech):
    """Arguments of a search, where WER is 18 and a point more for each million taken away."""
    calls = []

    def measure(self, name, config, role):
        size = int(config.budget.encoder_params)
        calls.append((name, role))
        return _result(name, size, 18 + (DENSE_PARAMS - size) / 1e6)

    monkeypatch.setattr(Comparison, "dense", lambda self, role="test": _dense(18.0))
    monkeypatch.setattr(Comparison, "_measure", measure)
    val = ["data.val.an4.kind=folder", f"data.val.an4.path={real_speech}/an4/dev"]
    search = ["compare.search.max_wer_increase=1.5", "compare.search.method=sens"]
    return [*arguments, *val, *search, "compare.encoder_params=[]"], calls


def test_search_finds_the_smallest_that_is_near_enough(searching, tmp_path):
    arguments, calls = searching
    assert compare(arguments) == 0
    search = _content(tmp_path / "run")["search"]
    found = search["result"]["encoder_params"]
    assert DENSE_PARAMS - 1.5e6 <= found <= DENSE_PARAMS - 1.5e6 + 0.01 * DENSE_PARAMS
    assert [one["accepted"] for one in search["tried"]] == [
        one["encoder_params"] >= DENSE_PARAMS - 1.5e6 for one in search["tried"]
    ]
    assert len(search["tried"]) <= 8
    assert calls == [("sens", "val")] * len(search["tried"]) + [("sens", "test")]
    assert "near enough" in (tmp_path / "run" / "report" / "compare.md").read_text()
    assert (tmp_path / "run" / "report" / "search.png").is_file()


def test_a_search_resumes_step_by_step(searching, monkeypatch, tmp_path):
    arguments, calls = searching
    assert compare(arguments) == 0
    calls.clear()
    assert compare([*arguments, "run.resume=true"]) == 0
    assert calls == []
    assert compare([*arguments, "run.resume=true", "compare.search.tolerance=0.005"]) == 0
    assert calls == [("sens", "val"), ("sens", "test")] or calls == [("sens", "val")]


def test_a_search_may_find_nothing(searching, tmp_path, monkeypatch):
    arguments, _ = searching
    monkeypatch.setattr(Comparison, "_measure", lambda s, n, c, r: _result(n, 7e6, None, "why"))
    assert compare(arguments) == 0
    assert _content(tmp_path / "run")["search"]["result"] is None
    assert "none of those tried" in (tmp_path / "run" / "report" / "compare.md").read_text()


def test_validation_sets_are_decoded(compared, real_speech, tmp_path):
    """The one thing of a search that is not computed for a comparison."""
    from liteasr.builders import build_datamodule, build_module
    from liteasr.stages import evaluate_module

    val = ["data.val.an4.kind=folder", f"data.val.an4.path={real_speech}/an4/dev"]
    recipe = load_recipe(compared / "recipe.yaml", [*val, "data.val.an4.limit=1"])
    module = build_module(recipe)
    datamodule = build_datamodule(recipe, module)
    result = evaluate_module(recipe, module, datamodule, "val")
    assert result["wer"] == _content(compared)["dense"]["wer"]


@pytest.mark.parametrize(("least", "expected"), [(1, None), (0.5, 0.5), (0.0, 0.0)])
def test_bisection_ends_within_the_tolerance(least, expected):
    found = smallest_accepted(0, 10_000, 50, lambda size: size >= least * 10_000)
    assert found is expected is None or expected * 10_000 <= found <= expected * 10_000 + 50


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compare.encoder_params=[]"], "compare.encoder_params, compare.search"),
        (["compare.encoder_params=[6.8M,sixM]"], "compare.encoder_params: 'sixM' is no number"),
        (["compare.encoder_params=[6.8M,6800000]"], "6.8M and 6800000 are the same size"),
        (["compare.methods=null"], "compare.methods: names no method"),
        (["compare.methods.pca.method=pcaa"], "compare.methods.pca.method: 'pcaa' is none of"),
        (["compare.methods.pca.method=none"], "compare.methods.pca.method: none compresses"),
        (["compare.methods.x.padding_weight=1"], "compare.methods.x.method: must be set"),
        (["compare.methods.sens.thresholds=0.9"], "compare.methods.sens.thresholds: belong"),
        (["compare.methods.pca.thresholds=2"], "compare.methods.pca.thresholds: '2' is neither"),
        (["compare.methods.pca.padding_weight=2"], "compare.methods.pca.padding_weight: 2"),
        (["compare.methods.pca.options.shape=1"], "compare.methods.pca: method 'pca'"),
        (["compare.methods.a/b.method=pca"], "compare.methods.a/b: the name must be"),
        (["compare.methods.nobody=null"], "compare.methods.nobody: no such entry to remove"),
        (["compare.search.max_wer_increase=1"], "data.val: names no source"),
        (["compare.search.max_wer_increase=-1"], "compare.search.max_wer_increase: -1"),
        (["compare.search.tolerance=0"], "compare.search.tolerance: 0"),
        (["compare.search.method=sen"], "did you mean 'sens'"),
        (["data.test=null"], "data.test: names no source"),
        (["data.calibration=null"], "data.calibration: names no source"),
        (["compare.sizes=[1M]"], "compare.sizes: unknown key"),
    ],
)
def test_bad_input_is_exit_code_2_and_leaves_nothing(
    arguments, tmp_path, capsys, overrides, message
):
    assert compare([*arguments, *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_touched_without_leave(compared, arguments, capsys):
    assert compare([*without(arguments, "run.dir"), f"run.dir={compared}"]) == 2
    assert "run.resume=true" in capsys.readouterr().err


def test_what_all_entries_share_must_not_change_on_resume(compared, arguments, capsys):
    again = [*without(arguments, "run.dir"), f"run.dir={compared}", "run.resume=true"]
    assert compare([*again, "data.calibration_clips=5"]) == 2
    assert "data.calibration_clips (4 → 5)" in capsys.readouterr().err


def test_fit_asks_for_a_goal_of_its_own(arguments, tmp_path, capsys):
    assert fit(arguments) == 2
    assert "compression.budget: method auto needs one of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_dry_run_and_print_config(arguments, capsys, tmp_path):
    assert liteasr_main(["compare", *arguments, "--dry-run", "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert "encoder_params:\n  - 7.1M" in shown
    assert "everything but the weights is in order" in shown
    assert compare([*arguments, "--dry-run", "compare.methods.pca.options.shape=1"]) == 2
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------- small parts


def test_an_entry_starts_from_the_section(arguments):
    overrides = [
        *("compression.method=pca", "compression.thresholds=0.95", "compression.save_every=3"),
        *("compression.padding_weight=0.5", "compression.budget.granularity=4"),
        *("compare.methods.sens.padding_weight=0", "compare.methods.sens.options.damping=0.1"),
    ]
    given = [argument for argument in arguments if "=" in argument]
    recipe = load_recipe(RECIPE, [*given, *overrides])
    pca, sens = (entry_config(recipe, name, "7M") for name in ("pca", "sens"))
    assert (pca.method, pca.thresholds, pca.padding_weight) == ("pca", "0.95", 0.5)
    assert (sens.method, sens.thresholds, sens.padding_weight) == ("sensitivity", None, 0.0)
    assert sens.options == {"damping": 0.1}
    for config in (pca, sens):
        assert config.save_every == 3
        assert (config.budget.encoder_params, config.budget.granularity) == ("7M", 4)
    assert recipe.compression.budget.encoder_params is None


def test_the_defaults_compare_auto_with_pca():
    recipe = load_recipe("tiny")
    assert [entry.method for entry in recipe.compare.methods.values()] == ["auto", "pca"]
    assert "nothing to compare" in next(check_comparison(recipe))


def test_removing_a_default_that_is_not_written_is_refused():
    with pytest.raises(ConfigError, match="no such entry"):
        load_recipe("tiny", ["compare.methods.pca=null"])


def test_ties_go_to_the_smaller_error():
    results = [
        {**_result("a", 7_000_000, 20.00), "encoder_relative_error": 0.3},
        {**_result("b", 7_000_000, 20.05), "encoder_relative_error": 0.1},
        {**_result("c", 7_000_000, 20.06), "encoder_relative_error": 0.0},
        _result("a", 6_000_000, None, "why"),
    ]
    best = best_entries(results, ["7M", "6M"])
    assert best == {"7M": "b", "6M": None}
    results += [_result(name, 6_000_000, None, "why") for name in "bc"]
    content = {"dense": _dense(18.0), "results": results, "best": best, "search": None}
    text = comparison_markdown({**content, "calibration": {}}, ["7M", "6M"], "some/model")
    assert r"| 7M | 20.00 (0.3000) | 20.05 (0.1000)\* | 20.06 (0.0000) |" in text
