"""The whole path on the real checkpoint and real speech, a few clips long."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from runs import DENSE_PARAMS, ROOT, without

from liteasr import LiteWhisperForConditionalGeneration, load
from liteasr.cli import main as liteasr
from liteasr.compression import CompressionPlan, collect_ranks, encoder_parameters
from liteasr.fit import main as fit

SPEED = ("rtfx", "encoder_rtfx", "ran_on")


def test_the_run_folder_holds_what_the_contract_says(finished):
    present = {path.name for path in finished.iterdir()}
    assert {"recipe.yaml", "plan.json", "statistics", "model", "metrics.json"} <= present
    assert not [name for name in present if name.startswith(".")], "no temporary files"
    assert yaml.safe_load((finished / "recipe.yaml").read_text())["data"]["calibration_clips"] == 6


def test_metrics_follow_the_contract(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) == {
        "dense",
        "compressed",
        "finetuned",
        "encoder_relative_error",
        "timing_s",
        "peak_memory_mb",
    }
    assert metrics["finetuned"] is None
    for part in ("dense", "compressed"):
        assert set(metrics[part]) == {"encoder_params", "wer", "datasets", *SPEED}
        assert metrics[part]["encoder_rtfx"] > metrics[part]["rtfx"] > 0
        assert set(metrics[part]["datasets"]) == {"an4", "ljspeech"}
        mean = sum(metrics[part]["datasets"].values()) / 2
        assert metrics[part]["wer"] == pytest.approx(mean, abs=1e-3)
    assert metrics["dense"]["encoder_params"] == DENSE_PARAMS
    assert metrics["compressed"]["encoder_params"] < DENSE_PARAMS
    assert metrics["dense"]["wer"] < 40, "a real recogniser reads a real sentence"
    assert 0 < metrics["encoder_relative_error"] < 1
    assert set(metrics["timing_s"]) == {"calibrate", "factorize", "finetune", "evaluate"}
    assert metrics["timing_s"]["calibrate"] > 0
    assert metrics["peak_memory_mb"] > 100


def test_the_report_is_there_and_can_be_made_again(finished, capsys):
    page = finished / "report" / "report.html"
    before = page.read_bytes()
    metrics = json.loads((finished / "metrics.json").read_text())
    for stage in ("dense", "compressed"):
        assert f"{metrics[stage]['encoder_params'] / 1e6:.3f}" in before.decode()
        assert f"{metrics[stage]['wer']:.2f}" in before.decode()
    assert f"{metrics['encoder_relative_error']:.4f}" in before.decode()
    pictures = {file.name for file in page.parent.glob("*.png")}
    assert pictures == {"layers.png", "outcome.png", "spectra.png", "timings.png"}
    assert liteasr(["report", str(finished)]) == 0
    assert page.read_bytes() == before


def test_predictions_are_kept_and_hold_the_wer(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    for stage in ("dense", "compressed"):
        for name, wer in metrics[stage]["datasets"].items():
            file = finished / "predictions" / f"{stage}-{name}.jsonl"
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            assert len(rows) == {"an4": 3, "ljspeech": 1}[name]
            edits, words = (sum(row[key] for row in rows) for key in ("edits", "words"))
            assert 100 * edits / words == pytest.approx(wer, abs=1e-3)


def test_a_report_that_fails_loses_nothing(finished, monkeypatch, caplog):
    def broken(*_args):
        raise RuntimeError("no ink")

    metrics = finished / "metrics.json"
    metrics.unlink()
    monkeypatch.setattr("liteasr.reporting.page.timings_plot", broken)
    assert fit(["--config", str(finished / "recipe.yaml"), "run.resume=true"]) == 0
    assert "no ink" in caplog.text
    assert json.loads(metrics.read_text())["compressed"] is not None


def test_plan_model_and_metrics_agree(finished):
    plan = CompressionPlan.load(finished / "plan.json")
    model, _ = load(str(finished / "model"))
    metrics = json.loads((finished / "metrics.json").read_text())
    assert isinstance(model, LiteWhisperForConditionalGeneration)
    assert collect_ranks(model) == plan.ranks
    size = encoder_parameters(model.get_encoder())
    assert size == metrics["compressed"]["encoder_params"] == DENSE_PARAMS - plan.saved_params
    assert plan.calibration["clips"] == 6
    assert all(rank % 8 == 0 for rank in plan.ranks.values())


def test_weights_are_stored_as_the_original_stores_them(finished):
    config = json.loads((finished / "model" / "config.json").read_text())
    assert config["dtype"] == "float16"


def test_the_model_card_has_the_measured_numbers(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    card = (finished / "model" / "README.md").read_text()
    assert f"{metrics['compressed']['wer']:.2f}" in card
    assert f"{metrics['dense']['datasets']['an4']:.2f}" in card


def test_the_pipeline_reads_the_folder(finished, real_speech):
    from transformers import pipeline

    from liteasr.data.audio import load_audio

    row = json.loads((real_speech / "ljspeech/dev/metadata.jsonl").read_text().splitlines()[0])
    audio = load_audio(real_speech / "ljspeech/dev" / row["file_name"])
    recognise = pipeline("automatic-speech-recognition", str(finished / "model"))
    text = recognise({"raw": audio, "sampling_rate": 16000}, generate_kwargs={"num_beams": 1})
    heard = set(text["text"].lower().split())
    assert len(heard & set(row["text"].lower().split())) >= 4


def test_resuming_a_finished_run_repeats_nothing(finished, monkeypatch, capsys):
    from liteasr.module import WhisperModule

    def never(*_args, **_kwargs):
        raise AssertionError("decoded again")

    before = json.loads((finished / "metrics.json").read_text())
    monkeypatch.setattr(WhisperModule, "decode", never)
    assert fit(["--config", str(finished / "recipe.yaml"), "run.resume=true"]) == 0
    after = json.loads((finished / "metrics.json").read_text())
    for part in ("dense", "compressed", "encoder_relative_error"):
        assert before[part] == after[part]


def test_a_run_killed_after_compression_goes_on(arguments, tmp_path, monkeypatch):
    import liteasr.fit

    real = liteasr.fit.evaluate_against_dense
    monkeypatch.setattr(liteasr.fit, "evaluate_against_dense", _interrupted)
    assert fit(arguments) == 1
    calibrated = (tmp_path / "run" / "statistics" / "total.pt").stat().st_mtime_ns
    monkeypatch.setattr(liteasr.fit, "evaluate_against_dense", real)
    assert fit([*arguments, "run.resume=true"]) == 0
    assert (tmp_path / "run" / "statistics" / "total.pt").stat().st_mtime_ns == calibrated
    assert (tmp_path / "run" / "metrics.json").is_file()


def _interrupted(*_args, **_kwargs):
    raise KeyboardInterrupt


def test_an_interrupt_within_a_trainer_says_how_to_go_on(arguments, monkeypatch, capsys):
    from liteasr.module import WhisperModule

    monkeypatch.setattr(WhisperModule, "decode", _interrupted)
    assert fit(arguments) == 1
    assert "interrupted (fit goes on with run.resume=true)" in capsys.readouterr().err


def test_a_run_without_test_sets_compresses_and_says_sizes(arguments, tmp_path):
    rest = without(arguments, "data.test")
    assert fit([*rest, "data.test=null", "trainer.precision=bf16-mixed"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["compressed"]["wer"] is None
    assert metrics["compressed"]["encoder_params"] < DENSE_PARAMS
    assert (tmp_path / "run" / "model" / "README.md").is_file()


def test_the_stored_recipe_does_not_delete_when_run_again(arguments, tmp_path):
    rest = without(arguments, "data.test")
    options = ["data.test=null", "run.overwrite=true", "evaluation.dense=false"]
    assert fit([*rest, *options]) == 0
    assert fit(["--config", str(tmp_path / "run" / "recipe.yaml")]) == 2
    assert (tmp_path / "run" / "model").is_dir()


def test_low_precision_evaluates_too(arguments, tmp_path):
    rest = without(arguments, "data.test")
    options = ["data.test.librispeech=null", "data.test.common_voice=null", "data.test.an4.limit=1"]
    options += ["data.test.ljspeech=null", "trainer.precision=bf16-true", "evaluation.dense=false"]
    assert fit([*rest, *options]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 < metrics["encoder_relative_error"] < 1


def test_a_budget_out_of_reach_is_refused_and_leaves_nothing(arguments, tmp_path, capsys):
    rest = [*without(arguments, "data.test"), "data.test=null", "evaluation.dense=false"]
    assert fit([*rest, "compression.budget.encoder_params=0.2M"]) == 2
    error = capsys.readouterr().err
    assert "compression.budget: encoder_params: 200,000 parameters cannot be reached" in error
    assert not (tmp_path / "run").exists()


def test_print_config_shows_the_resolved_recipe(arguments, capsys, tmp_path):
    assert fit([*arguments, "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["run"]["name"] == "whisper_tiny_libri"
    assert "${" not in json.dumps(shown)
    assert not (tmp_path / "run").exists()


def test_dry_run_does_not_need_the_weights(arguments, real_model, tmp_path):
    light = tmp_path / "light"
    light.mkdir()
    for file in real_model.iterdir():
        if file.suffix == ".json":
            (light / file.name).write_bytes(file.read_bytes())
    assert fit([*without(arguments, "model.id"), f"model.id={light}", "--dry-run"]) == 0


def test_fine_tuning_runs_and_is_reported(arguments, tmp_path, real_speech):
    extra = [
        "finetune.max_steps=2",
        "data.train_batch_size=2",
        "data.train.an4.kind=folder",
        f"data.train.an4.path={real_speech}/an4/train",
        "data.calibration.an4=null",
    ]
    assert fit([*arguments, *extra]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["finetuned"]["encoder_params"] == metrics["compressed"]["encoder_params"]
    assert metrics["timing_s"]["finetune"] > 0
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert (tmp_path / "run" / "metrics.csv").is_file()


def test_the_console_script_reaches_the_same_main(arguments, capsys):
    assert liteasr(["fit", *arguments, "--print-config"]) == 0
    assert "whisper_tiny_libri" in capsys.readouterr().out


def test_two_processes_measure_what_one_does(finished, real_model, real_speech, tmp_path):
    """The run of ``finished`` once more, with DDP: same plan, same words counted, same WER."""
    run = tmp_path / "two"
    command = [
        *(sys.executable, "-m", "liteasr.fit", "--config", str(finished / "recipe.yaml")),
        *(f"run.dir={run}", "trainer.devices=2", "trainer.strategy=ddp"),
    ]
    subprocess.run(
        command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300
    )
    plans = [CompressionPlan.load(folder / "plan.json") for folder in (finished, run)]
    assert plans[0].ranks == plans[1].ranks
    assert plans[0].calibration == plans[1].calibration
    one, two = (json.loads((f / "metrics.json").read_text()) for f in (finished, run))
    for part in ("dense", "compressed"):
        assert one[part].pop("ran_on").startswith("1 × ")
        assert two[part].pop("ran_on").startswith("2 × ")
        for speed in ("rtfx", "encoder_rtfx"):
            assert one[part].pop(speed) > 0
            assert two[part].pop(speed) > 0
        assert one[part] == two[part]
    assert one["encoder_relative_error"] == pytest.approx(two["encoder_relative_error"], rel=1e-3)
    texts = [
        {file.name: file.read_text() for file in (folder / "predictions").iterdir()}
        for folder in (finished, run)
    ]
    assert texts[0] == texts[1]
