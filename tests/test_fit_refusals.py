"""What fit refuses: a clear message, the exit code, and nothing lost or half-written."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import ROOT, without

from liteasr import LiteWhisperForConditionalGeneration
from liteasr.fit import main as fit


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
        ("compression.budget.encoder_params=six", "compression.budget.encoder_params: 'six'"),
        ("compression.budget.encoder_params=null", "method auto needs one of encoder_params"),
        ("compression.budget.max_error=0.1", "only one goal can be set"),
        ("compression.thresholds=0.99", "compression.thresholds: thresholds belong to"),
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
        "trainer.strategy=deepspeed",
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told_by_lightning(arguments, tmp_path, capsys):
    assert fit([*arguments, "trainer.accelerator=cuda", "trainer.devices=2"]) == 2
    error = capsys.readouterr().err
    assert "trainer: " in error
    assert "CUDA" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_dry_run_tries_callback_and_method(arguments, capsys):
    for override in ("compression.callback=torch.nn.Linear", "compression.method=no.such.Method"):
        assert fit([*arguments, "--dry-run", override]) == 2


def test_a_late_error_of_input_keeps_finished_stages(arguments, tmp_path, monkeypatch):
    import liteasr.fit
    from liteasr.config import ConfigError

    def too_late(*_args, **_kwargs):
        raise ConfigError("found out late")

    monkeypatch.setattr(liteasr.fit, "evaluate_against_dense", too_late)
    assert fit(arguments) == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert "compress" in json.loads((tmp_path / "run" / "stages.json").read_text())


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


def test_dry_run_checks_the_data_too(arguments, tmp_path, capsys):
    assert fit([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "run").exists()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metadata.jsonl").write_text('{"file_name": "gone.wav", "text": "x"}\n')
    assert fit([*arguments, "--dry-run", f"data.test.an4.path={broken}"]) == 2
    assert "gone.wav" in capsys.readouterr().err


def test_calibration_on_an_evaluation_file_is_refused(arguments, real_speech, capsys):
    overlap = f"data.calibration.an4.path={real_speech}/an4/dev"
    assert fit([*arguments, overlap]) == 2
    error = capsys.readouterr().err
    assert "data.calibration.an4" in error
    assert "data.test.an4" in error


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
