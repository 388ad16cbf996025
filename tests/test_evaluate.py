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
    assert set(result) == {
        *("wer", "datasets", "encoder_params", "decoder_params", "rtfx", "encoder_rtfx"),
    }
    assert set(result["datasets"]) == {"ljspeech", "letters"}
    for summary in result["datasets"].values():
        assert {"wer", "utterances", "words", "seconds"} <= set(summary)
        assert summary["utterances"] == 2
    wers = [summary["wer"] for summary in result["datasets"].values()]
    assert result["wer"] == pytest.approx(sum(wers) / 2, abs=1e-3)
    assert result["encoder_params"] == 7_632_384
    assert result["encoder_rtfx"] > result["rtfx"] > 0


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


def test_the_leaderboard_sets_from_a_local_copy(real_model, real_speech, tmp_path, monkeypatch):
    """Eight sets in the hub's Parquet layout, audio as bytes, transcripts under various names."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = real_speech / "an4" / "dev"
    lines = (folder / "metadata.jsonl").read_text().splitlines()[:2]
    rows = [json.loads(line) for line in lines]
    audio = [{"bytes": (folder / row["file_name"]).read_bytes(), "path": "x"} for row in rows]
    texts = [row["text"] for row in rows]
    columns = ["text", "sentence", "normalized_text", "transcript", "transcription", "text"]
    files = {
        f"{name}/{split}-00000-of-00001.parquet": column
        for (name, split), column in zip(
            [
                *((name, "test") for name in ("voxpopuli", "ami", "earnings22", "gigaspeech")),
                *(("librispeech", split) for split in ("test.clean", "test.other")),
                *((name, "test") for name in ("spgispeech", "tedlium")),
            ],
            [*columns, "text", "text"],
            strict=True,
        )
    }
    for name, column in files.items():
        path = tmp_path / "mirror" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unscored = {"audio": audio[0], column: "ignore time segment in scoring"}
        content = [{"audio": a, column: t} for a, t in zip(audio, texts, strict=True)]
        pq.write_table(pa.Table.from_pylist([*content, unscored]), path)
    output = tmp_path / "out.json"
    arguments = ["--model", str(real_model), "--data", f"esb:{tmp_path / 'mirror'}"]
    assert evaluate([*arguments, "--num-workers", "0", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert set(result["datasets"]) == {
        *("voxpopuli", "ami", "earnings22", "gigaspeech", "librispeech_clean"),
        *("librispeech_other", "spgispeech", "tedlium"),
    }
    assert {summary["utterances"] for summary in result["datasets"].values()} == {2}
    assert result["wer"] < 10
