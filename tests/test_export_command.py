import json
import sys

import pytest
import torch
from checkpoints import save_checkpoint

from liteasr import export, load
from liteasr.cli import main as liteasr
from liteasr.evaluate import main as evaluate
from liteasr.export import main


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path / "model")


def test_a_folder_for_transformers_in_another_type(checkpoint, tmp_path, capsys):
    output = tmp_path / "half"
    arguments = ["--model", str(checkpoint), "--output", str(output), "--format", "folder"]
    assert liteasr(["export", *arguments, "--dtype", "float16"]) == 0
    assert f"written: {output}" in capsys.readouterr().out
    assert json.loads((output / "config.json").read_text())["dtype"] == "float16"
    expected, actual = (load(str(path))[0].state_dict() for path in (checkpoint, output))
    encoder = [name for name in expected if "encoder." in name]
    assert all(torch.equal(actual[name], expected[name].half().float()) for name in encoder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8", "--format", "folder"], "--int8, --opset: belong to --format onnx"),
        (["--dtype", "bfloat16"], "--dtype: ONNX Runtime computes in float32 and float16 only"),
        (["--int8", "--dtype", "float16"], "--int8: an encoder in float32 is quantized"),
        (["--opset", "9"], "--opset: 9 is not in 18"),
        (["--model", "./no/such/model"], "there is no folder ./no/such/model"),
    ],
)
def test_what_cannot_be_done_is_exit_code_2(checkpoint, tmp_path, capsys, options, message):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    output = tmp_path / "out"
    assert main(["--model", str(checkpoint), "--output", str(output), *options]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_without_the_extra_it_is_named_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["--model", "./no/such/model", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "onnxscript" in error
    assert "pip install onnxscript" in error
    assert "there is no folder" not in error


def test_a_folder_with_something_in_it_is_left_alone(checkpoint, tmp_path, capsys):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    arguments = ["--model", str(checkpoint), "--output", str(output), "--format", "folder"]
    assert main(arguments) == 2
    assert f"--output: {output} is not empty" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]


def test_graphs_that_compute_something_else_are_not_left(checkpoint, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

    def differs(model, folder):
        assert (folder / "config.json").is_file(), "checked as it will be"
        raise ValueError("ONNX Runtime computes something else than torch: encoder 0.5")

    monkeypatch.setattr(export, "require_packages", lambda *packages: None)
    monkeypatch.setattr(export, "write_graphs", lambda *_, **__: {})
    monkeypatch.setattr(export, "check_graphs", differs)
    output = tmp_path / "out"
    assert main(["--model", str(checkpoint), "--output", str(output)]) == 2
    assert "something else than torch" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_real_speech_is_recognised_as_by_torch(real_model, real_speech, tmp_path, capsys):
    """fp32 says the same; a coarser encoder says nearly the same."""
    pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
    from liteasr.onnx.folder import quantize_encoder

    folder = tmp_path / "onnx"
    assert main(["--model", str(real_model), "--output", str(folder)]) == 0
    said = capsys.readouterr().out

    def wer(model):
        data = f"{real_speech}/ljspeech/dev"
        output = tmp_path / "result.json"
        arguments = ["--model", str(model), "--data", data, "--limit", "3", "--num-workers", "0"]
        assert evaluate([*arguments, "--output", str(output)]) == 0
        return json.loads(output.read_text())

    dense, exact = wer(real_model), wer(folder)
    assert exact["encoder_params"] == dense["encoder_params"] == 7_632_384
    assert exact["decoder_params"] == dense["decoder_params"]
    assert exact["datasets"] == dense["datasets"]
    before, after = quantize_encoder(folder)
    assert 2 < before / after < 4, said
    assert abs(wer(folder)["wer"] - dense["wer"]) < 5
