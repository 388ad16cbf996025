"""The first command of the README: the model and the speech in the package, compressed."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from documented import blocks, commands
from runs import ROOT

from liteasr import load
from liteasr.cli import main as liteasr
from liteasr.compression import encoder_parameters

RATIO = 0.7


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    run = tmp_path_factory.mktemp("quickstart") / "run"
    result = subprocess.run(
        [sys.executable, "-m", "liteasr.fit", "--config", "quickstart", f"run.dir={run}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return run, result


def test_a_recogniser_is_compressed_and_stays_one(quickstart):
    metrics = json.loads((quickstart[0] / "metrics.json").read_text())
    dense, compressed = metrics["dense"], metrics["compressed"]
    assert dense["wer"] <= 8, "what the packaged weights reach"
    assert compressed["wer"] <= dense["wer"] + 3
    assert RATIO - 0.005 < compressed["encoder_params"] / dense["encoder_params"] <= RATIO
    model = load(str(quickstart[0] / "model"))[0]
    assert encoder_parameters(model.get_encoder()) == compressed["encoder_params"]


def test_the_outcome_is_said_and_reported(quickstart):
    run, result = quickstart
    metrics = json.loads((run / "metrics.json").read_text())
    for stage in ("dense", "compressed"):
        assert f"{metrics[stage]['wer']:.2f}" in result.stderr
    page = (run / "report" / "report.html").read_text()
    assert "demo" in page
    assert page.count("data:image/png;base64,") >= 4


def test_the_result_writes_down_sentences_and_when_they_were_said(quickstart, tmp_path):
    speech = ROOT / "liteasr" / "demo" / "speech" / "evaluation"
    lines = [json.loads(line) for line in (speech / "metadata.jsonl").open()]
    clip = next(line for line in lines if len(line["segments"]) == 2)
    arguments = ["--format", "json", "--output", str(tmp_path), str(speech / clip["file_name"])]
    assert liteasr(["transcribe", "--model", str(quickstart[0] / "model"), *arguments]) == 0
    (file,) = tmp_path.iterdir()
    transcript = json.loads(file.read_text())
    said, heard = clip["text"].split(), transcript["text"].split()
    assert len(set(said) & set(heard)) > 0.7 * len(set(said))
    for segment, true in zip(transcript["segments"], clip["segments"], strict=True):
        assert segment["start"] == pytest.approx(true["start"], abs=0.5)
        assert segment["end"] == pytest.approx(true["end"], abs=0.5)


def runs_here(words):
    """Whether a command of the README needs neither the hub nor data of one's own."""
    elsewhere = ("openai/", "esb", "..", "--shape", "runs/mine", "b.wav")
    return (
        words[:2] == ["python", "-m"]
        and words[2] not in ("liteasr.fit", "liteasr.compare")
        and not any(part in word for word in words for part in elsewhere)
    )


def test_commands_of_the_readme_do_what_they_say(quickstart, tmp_path):
    """One after another, as they stand, on the model that the first one made."""
    if find_spec("onnxscript") is None:
        pytest.skip("the extra [onnx] is not installed")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(quickstart[0])
    clip = next((ROOT / "liteasr" / "demo" / "speech" / "evaluation").glob("*.ogg"))
    shutil.copy(clip, tmp_path / "talk.flac")  # libsndfile looks at the content
    found = [
        words
        for body in blocks(ROOT / "README.md", "bash")
        for words in commands(body)
        if runs_here(words)
    ]
    assert {words[2].removeprefix("liteasr.") for words in found} == {
        *("evaluate", "transcribe", "benchmark", "export"),
    }
    wers = []
    for words in found:
        result = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, (words, result.stderr)
        if words[2] == "liteasr.evaluate":
            wers.append(json.loads(result.stdout)["wer"])
    measured = json.loads((quickstart[0] / "metrics.json").read_text())["compressed"]["wer"]
    torch_wer, int8_wer = wers
    assert torch_wer == pytest.approx(measured, abs=0.4)
    assert int8_wer == pytest.approx(measured, abs=2)
    assert (tmp_path / "speed.json").is_file()
