import json

import pytest

from liteasr.evaluate import main as evaluate


def test_result_follows_the_contract(real_model, real_speech, tmp_path, capsys):
    output = tmp_path / "out.json"
    folders = [f"{real_speech}/ljspeech/dev", f"letters={real_speech}/an4/dev"]
    arguments = ["--model", str(real_model), "--data", *folders, "--limit", "2"]
    assert evaluate([*arguments, "--num-workers", "0", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert set(result) == {"wer", "datasets", "encoder_params", "decoder_params", "rtfx"}
    assert set(result["datasets"]) == {"ljspeech", "letters"}
    for summary in result["datasets"].values():
        assert {"wer", "utterances", "words", "seconds"} <= set(summary)
        assert summary["utterances"] == 2
    wers = [summary["wer"] for summary in result["datasets"].values()]
    assert result["wer"] == pytest.approx(sum(wers) / 2, abs=1e-3)
    assert result["encoder_params"] == 7_632_384
    assert result["rtfx"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "./no/such/model"}, "model.id: there is no folder ./no/such/model"),
        ({"--data": "./no/such/folder"}, "no/such/folder"),
        ({"--output": "./no/such/folder/out.json"}, "--output: there is no folder"),
    ],
)
def test_bad_input_is_exit_code_2(real_model, real_speech, capsys, changes, message):
    arguments = {"--model": str(real_model), "--data": f"{real_speech}/an4/dev", **changes}
    flat = [word for pair in arguments.items() for word in pair]
    assert evaluate([*flat, "--limit", "1", "--num-workers", "0"]) == 2
    assert message in capsys.readouterr().err


def test_a_set_given_twice_and_a_name_given_twice_are_refused(real_model, real_speech, capsys):
    an4, librispeech = (f"{real_speech}/{name}/dev" for name in ("an4", "librispeech"))
    assert evaluate(["--model", str(real_model), "--data", an4, an4]) == 2
    assert f"--data: {an4} is given twice" in capsys.readouterr().err
    assert evaluate(["--model", str(real_model), "--data", f"x={an4}", f"x={librispeech}"]) == 2
    assert "two sets are called x" in capsys.readouterr().err


def test_a_limit_below_one_is_refused(real_model):
    with pytest.raises(SystemExit, match="2"):
        evaluate(["--model", str(real_model), "--data", "esb", "--limit", "0"])
