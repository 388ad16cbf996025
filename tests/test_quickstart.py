"""The first command of the README: the model and the speech in the package, compressed."""

import json
import subprocess
import sys

import pytest
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
