"""The whole path on the real checkpoint and real speech, a few clips long."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from liteasr import LiteWhisperForConditionalGeneration, load
from liteasr.cli import main as liteasr
from liteasr.compression import CompressionPlan, collect_ranks, encoder_parameters
from liteasr.fit import main as fit

ROOT = Path(__file__).resolve().parents[1]
DENSE_PARAMS = 7_632_384


@pytest.fixture
def arguments(real_model, real_speech, tmp_path, monkeypatch):
    """Arguments of a run of six clips and one utterance of two sets."""
    monkeypatch.chdir(ROOT)
    return [
        "--config",
        "recipes/whisper_tiny_libri.yaml",
        f"model.id={real_model}",
        f"data.root={real_speech}",
        f"run.dir={tmp_path / 'run'}",
        "data.calibration_clips=6",
        "data.calibration_batch_size=3",
        "data.num_workers=0",
        "data.test.librispeech=null",
        "data.test.common_voice=null",
        "data.test.an4.limit=2",
        "data.test.ljspeech.limit=1",
        "trainer.num_threads=2",
    ]


def without(arguments, *prefixes):
    return [argument for argument in arguments if not argument.startswith(prefixes)]


@pytest.fixture(scope="module")
def finished(real_model, real_speech, tmp_path_factory):
    """One finished run that several tests look at."""
    run = tmp_path_factory.mktemp("finished") / "run"
    command = [
        *("--config", str(ROOT / "recipes" / "whisper_tiny_libri.yaml")),
        *(f"model.id={real_model}", f"data.root={real_speech}", f"run.dir={run}"),
        *("data.calibration_clips=6", "data.num_workers=0", "data.test.librispeech=null"),
        *("data.test.common_voice=null", "data.test.an4.limit=3", "data.test.ljspeech.limit=1"),
    ]
    assert fit(command) == 0
    return run


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
        assert set(metrics[part]) == {"encoder_params", "wer", "datasets"}
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


def test_plan_model_and_metrics_agree(finished):
    plan = CompressionPlan.load(finished / "plan.json")
    model, _ = load(str(finished / "model"))
    metrics = json.loads((finished / "metrics.json").read_text())
    assert isinstance(model, LiteWhisperForConditionalGeneration)
    assert collect_ranks(model) == plan.ranks
    size = encoder_parameters(model.get_encoder())
    assert size == metrics["compressed"]["encoder_params"] == DENSE_PARAMS - plan.saved_params
    assert plan.calibration["clips"] == 6
    assert all(rank % 16 == 0 for rank in plan.ranks.values())


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

    real = liteasr.fit._evaluate_against_dense
    monkeypatch.setattr(liteasr.fit, "_evaluate_against_dense", _interrupted)
    assert fit(arguments) == 1
    calibrated = (tmp_path / "run" / "statistics" / "total.pt").stat().st_mtime_ns
    monkeypatch.setattr(liteasr.fit, "_evaluate_against_dense", real)
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


def test_an_existing_run_is_not_touched_without_leave(finished, arguments, capsys):
    again = [*without(arguments, "run.dir"), f"run.dir={finished}"]
    before = (finished / "metrics.json").read_text()
    assert fit(again) == 2
    error = capsys.readouterr().err
    assert "run.resume=true" in error
    assert "run.overwrite=true" in error
    assert (finished / "metrics.json").read_text() == before


def test_a_folder_that_is_no_run_is_never_overwritten(arguments, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert fit([*arguments, "run.overwrite=true"]) == 2
    assert "holds no run of liteasr" in capsys.readouterr().err
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_resuming_with_another_recipe_names_the_difference(finished, arguments, capsys):
    again = [*without(arguments, "run.dir", "data.calibration_clips"), f"run.dir={finished}"]
    assert fit([*again, "run.resume=true", "data.calibration_clips=7"]) == 2
    assert "data.calibration_clips (6 → 7)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compression.thresold=0.9", "did you mean 'thresholds'"),
        ("data.calibration_clips=many", "data.calibration_clips"),
        ("data.calibration_clips=0", "data.calibration_clips"),
        ("compression.method=no.such.Method", "compression.method: cannot import"),
        ("compression.callback=torch.nn.Linear", "compression.callback"),
        ("compression.budget.encoder_params=6M", "compression.budget.encoder_params"),
        ("trainer.accelerator=abacus", "trainer:"),
        ("model.id=./no/such/model", "model.id: "),
        ("model.language=en", "model.language"),
        ("data.test.an4.path=./no/such/folder", "data.test.an4.path"),
    ],
)
def test_bad_input_is_exit_code_2_and_leaves_nothing(
    arguments, tmp_path, capsys, override, message
):
    code = fit([*arguments, override])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "override",
    [
        "compression.method=no.such.Method",
        "compression.callback=torch.nn.Linear",
        "compression.options.shape=round",
        "trainer.accelerator=abacus",
        "trainer.strategy=fsdp",
        "model.language=en",
        "data.test.an4.path=./no/such/folder",
    ],
)
def test_bad_input_leaves_the_run_that_was_to_be_replaced(
    finished, arguments, capsys, override, tmp_path
):
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    assert fit([*arguments, "run.overwrite=true", override]) == 2
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_dry_run_tries_callback_and_method(arguments, capsys):
    for override in ("compression.callback=torch.nn.Linear", "compression.method=no.such.Method"):
        assert fit([*arguments, "--dry-run", override]) == 2


def test_a_late_error_of_input_keeps_finished_stages(arguments, tmp_path, monkeypatch):
    import liteasr.fit
    from liteasr.config import ConfigError

    def too_late(*_args, **_kwargs):
        raise ConfigError("found out late")

    monkeypatch.setattr(liteasr.fit, "_evaluate_against_dense", too_late)
    assert fit(arguments) == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert "compress" in json.loads((tmp_path / "run" / "stages.json").read_text())


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


def _truncate_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])


def _remove_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (folder / name).unlink()


def _make_it_bert(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate_weights, "cannot load the weights"),
        (_remove_tokenizer, "no usable tokenizer"),
        (_make_it_bert, "is a 'bert' model"),
    ],
)
def test_a_damaged_model_is_exit_code_2(arguments, real_model, tmp_path, capsys, damage, message):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in real_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    assert fit([*without(arguments, "model.id"), f"model.id={folder}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(folder) in error
    assert not (tmp_path / "run").exists()


def _speech(folder, rows, files):
    folder.mkdir()
    if rows is not None:
        (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name, content in files.items():
        (folder / name).write_bytes(content)


ROW = {"file_name": "a.wav", "text": "yes"}


@pytest.mark.parametrize(
    ("rows", "files", "message"),
    [
        (None, {}, "is empty"),
        (None, {"a.wav": b"x"}, "has no metadata.jsonl"),
        ([{"text": "yes"}], {"a.wav": b"x"}, "line 1: names no audio file"),
        ([ROW, {"file_name": "a.wav", "text": None}], {"a.wav": b"x"}, "line 2: has no transcript"),
        ([ROW], {}, "there is no file"),
        ([ROW], {"a.wav": b""}, "data.max_bad_fraction"),
        ([ROW], {"a.wav": b"RIFF, but nothing that follows is audio"}, "data.max_bad_fraction"),
    ],
)
def test_unusable_speech_is_exit_code_2(arguments, tmp_path, capsys, rows, files, message):
    folder = tmp_path / "speech"
    _speech(folder, rows, files)
    assert fit([*arguments, f"data.test.an4.path={folder}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "data.test.an4" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_missing_recipe_is_named(capsys):
    assert fit(["--config", "recipes/whisper_tiny_librii.yaml"]) == 2
    assert "whisper_tiny_libri" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_written_is_named(arguments, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert fit([*without(arguments, "run.dir"), f"run.dir={tmp_path / 'file'}"]) == 2
    assert "run.dir" in capsys.readouterr().err
    assert fit([*without(arguments, "run.dir"), f"run.dir={tmp_path / 'file' / 'below'}"]) == 2
    assert "run.dir" in capsys.readouterr().err


def test_a_full_disk_while_saving_keeps_the_old_model(arguments, tmp_path, monkeypatch, capsys):
    assert fit(arguments) == 0
    weights = tmp_path / "run" / "model" / "model.safetensors"
    before = weights.read_bytes()

    def full(self, folder, *_args, **_kwargs):
        (Path(folder) / "model.safetensors").write_bytes(b"half of the ")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "run" / "stages.json").unlink()
    monkeypatch.setattr(LiteWhisperForConditionalGeneration, "save_pretrained", full)
    assert fit([*arguments, "run.resume=true"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert weights.read_bytes() == before
    assert not [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


def test_print_config_shows_the_resolved_recipe(arguments, capsys, tmp_path):
    assert fit([*arguments, "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["run"]["name"] == "whisper_tiny_libri"
    assert "${" not in json.dumps(shown)
    assert not (tmp_path / "run").exists()


def test_dry_run_checks_the_data_too(arguments, tmp_path, capsys):
    assert fit([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "run").exists()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metadata.jsonl").write_text('{"file_name": "gone.wav", "text": "x"}\n')
    assert fit([*arguments, "--dry-run", f"data.test.an4.path={broken}"]) == 2
    assert "gone.wav" in capsys.readouterr().err


def test_dry_run_does_not_need_the_weights(arguments, real_model, tmp_path):
    light = tmp_path / "light"
    light.mkdir()
    for file in real_model.iterdir():
        if file.suffix == ".json":
            (light / file.name).write_bytes(file.read_bytes())
    assert fit([*without(arguments, "model.id"), f"model.id={light}", "--dry-run"]) == 0


def test_calibration_on_an_evaluation_file_is_refused(arguments, real_speech, capsys):
    overlap = f"data.calibration.an4.path={real_speech}/an4/dev"
    assert fit([*arguments, overlap]) == 2
    error = capsys.readouterr().err
    assert "data.calibration.an4" in error
    assert "data.test.an4" in error


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


def test_as_a_module_with_a_typo(tmp_path):
    """One real process: exit code, stderr, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "liteasr.fit", "--config", "tiny", "modle.id=x"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 2
    assert "modle: unknown key" in done.stderr
    assert "did you mean 'model'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_processes_refuse_bad_input_together(real_model, real_speech, tmp_path):
    """Only one process's share is bad; both stop, with the exit code of one process."""
    folder = tmp_path / "speech"
    folder.mkdir()
    source = real_speech / "an4" / "dev"
    rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()[:8]]
    for index, row in enumerate(rows):
        content = (source / row["file_name"]).read_bytes()
        (folder / row["file_name"]).write_bytes(content[: len(content) // (2 - index % 2)])
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    command = [
        *(sys.executable, "-m", "liteasr.fit"),
        *("--config", str(ROOT / "recipes" / "whisper_tiny_libri.yaml"), f"model.id={real_model}"),
        *(f"data.root={real_speech}", "run.dir=run", "data.num_workers=0", "data.test=null"),
        "evaluation.dense=false",
        *("data.calibration=null", "data.calibration.broken.kind=folder"),
        *(f"data.calibration.broken.path={folder}", "data.calibration_batch_size=1"),
        *("trainer.devices=2", "trainer.strategy=ddp"),
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert "data.max_bad_fraction" in done.stderr
    assert not (tmp_path / "run").exists()


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
    assert one["dense"] == two["dense"]
    assert one["compressed"] == two["compressed"]
    assert one["encoder_relative_error"] == pytest.approx(two["encoder_relative_error"], rel=1e-3)
