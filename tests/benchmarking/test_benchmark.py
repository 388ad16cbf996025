"""The command: what it writes and shows, and what it refuses."""

import io
import json

import pytest
import soundfile
import torch
from rich.console import Console
from speech_files import RATE, noise

from liteasr import benchmark as command
from liteasr.benchmarking import encoders, measure
from liteasr.benchmarking.report import encoder_table, write_report
from liteasr.benchmarking.timing import Skipped, spread
from liteasr.cli import main as liteasr

main = command.main


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Runs are not lengthened."""
    monkeypatch.setattr(encoders, "_LEAST_SECONDS", 0.0)


@pytest.fixture
def models(dense, lite):
    return ["--model", lite, "--dense", dense, "--device", "cpu"]


def run(tmp_path, *arguments):
    """The JSON that a run writes."""
    output = tmp_path / "out.json"
    assert liteasr(["benchmark", *arguments, "--output", str(output)]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"out.json", "out.png"}
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    return json.loads(output.read_text())


def test_all_combinations_are_measured_and_written(models, tmp_path, capsys):
    options = ["--batch-size", "1", "2", "--dtype", "float32", "bfloat16", "--threads", "1", "2"]
    content = run(tmp_path, *models, *options, "--repeats", "3")
    found = [(one["dtype"], one["threads"], one["batch_size"]) for one in content["encoder"]]
    types, threads, sizes = ("float32", "bfloat16"), (1, 2), (1, 2)
    assert found == [(d, t, b) for d in types for t in threads for b in sizes]
    dense, lite = content["models"]["dense"], content["models"]["lite"]
    ratio = dense["encoder_flops"] / lite["encoder_flops"]
    assert ratio > 1
    assert dense["encoder_params"] > lite["encoder_params"]
    assert (dense["ranks"], set(lite["ranks"].values())) == ({}, {8})
    for one in content["encoder"]:
        medians = [one[name]["milliseconds"]["median"] for name in ("dense", "lite")]
        assert [len(one[name]["seconds"]) for name in ("dense", "lite")] == [3, 3]
        assert one["speed_up"] == pytest.approx(medians[0] / medians[1])
        assert one["flop_ratio"] == pytest.approx(ratio)
        assert one["efficiency"] == pytest.approx(one["speed_up"] / ratio)
        assert one["skipped"] is None
    assert content["transcription"] == []
    assert content["input"] == "random"
    assert content["command"].startswith("liteasr benchmark --model ")
    machine = content["hardware"]
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine["torch"] == torch.__version__
    shown = capsys.readouterr().err
    assert "2, bfloat16, 2 threads" in shown
    assert f"{ratio:.2f}" in shown


def test_the_dense_encoder_runs_as_transformers_does_or_as_liteasr_does(
    models, tmp_path, monkeypatch, capsys
):
    ran = []

    def measure_encoders(encoders, *arguments):
        ran.append({name: type(one.layers[0]).__name__ for name, one in encoders.items()})
        raise Skipped("enough")

    monkeypatch.setattr(measure, "measure_encoders", measure_encoders)
    assert main(models) == main([*models, "--fast-dense"]) == 2
    tiled = "TiledEncoderLayer"
    assert ran == [{"dense": "WhisperEncoderLayer", "lite": tiled}, {"dense": tiled, "lite": tiled}]
    monkeypatch.undo()
    capsys.readouterr()
    assert run(tmp_path, *models, "--fast-dense", "--repeats", "1")["fast_dense"] is True
    assert "dense: run as liteasr runs its own" in capsys.readouterr().err


def test_transcription_of_files_and_folders(models, tmp_path, capsys):
    folder = tmp_path / "speech"
    folder.mkdir()
    for name, seconds in (("a.wav", 0.5), ("b.wav", 0.75), ("c.wav", 0.5)):
        soundfile.write(folder / name, noise(seconds), RATE)
    lines = [json.dumps({"file_name": f"{name}.wav", "text": "x"}) for name in "abc"]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    soundfile.write(tmp_path / "long.flac", noise(2.0, 8_000), 8_000)
    audio = ["--audio", str(folder), str(tmp_path / "long.flac"), "--limit", "2"]
    content = run(tmp_path, *models, *audio, "--batch-size", "3", "--repeats", "3")
    (one,) = content["transcription"]
    assert content["input"] == "audio"
    assert (one["clips"], one["batch_size"]) == (3, 3)
    # Four or five windows, two batches, gone through twice for three rounds.
    assert len(one["audio_s"]) == len(one["dense"]["seconds"]) == 4
    assert sum(one["audio_s"]) == pytest.approx(2 * (0.5 + 0.75 + 2.0), abs=0.01)
    for name in ("dense", "lite"):
        rtfx = sum(one["audio_s"]) / sum(one[name]["seconds"])
        assert one[name]["rtfx"] == pytest.approx(rtfx, rel=0.01)
        assert one[name]["characters"] > 0
    totals = [sum(one[name]["seconds"]) for name in ("dense", "lite")]
    assert one["speed_up"] == pytest.approx(totals[0] / totals[1])
    assert "Transcription of 3 clips" in capsys.readouterr().err


def test_a_shape_needs_no_checkpoint(tmp_path, monkeypatch):
    from liteasr.benchmarking import contestants, shapes

    monkeypatch.setattr(
        contestants,
        "shape_config",
        lambda shape, **options: shapes.shape_config(
            shape, encoder_layers=2, max_source_positions=20, **options
        ),
    )
    options = ["--shape", "tiny", "--encoder-params", "2.5M", "--repeats", "1", "--device", "cpu"]
    options.append("--pivoted")
    content = run(tmp_path, *options)
    assert content["models"]["dense"]["name"] == "tiny"
    assert content["models"]["lite"]["name"] == "tiny, 2.5M"
    assert content["models"]["lite"]["encoder_params"] <= 2.5e6


def test_a_combination_that_does_not_work_leaves_the_others(models, tmp_path, monkeypatch, capsys):
    def refuse(encoders, input_BMF):
        raise Skipped("no compiler")

    monkeypatch.setattr(encoders, "_compile", refuse)
    content = run(tmp_path, *models, "--mode", "compiled", "eager", "--repeats", "1")
    compiled, eager = content["encoder"]
    assert (compiled["mode"], compiled["skipped"]) == ("compiled", "no compiler")
    assert eager["skipped"] is None
    assert "compiled: skipped: no compiler" in capsys.readouterr().err
    for file in tmp_path.iterdir():
        file.unlink()
    output = ["--output", str(tmp_path / "out.json")]
    assert main([*models, "--mode", "compiled", "--repeats", "1", *output]) == 2
    assert "nothing to measure: no compiler" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), RuntimeError("[enforce] can't allocate memory: 9 GB")]
)
def test_transcription_that_does_not_fit_leaves_the_rest(
    models, tmp_path, monkeypatch, capsys, error
):
    def too_large(modules, clips, combination, *_):
        if combination.batch_size == 2:
            raise error
        return {
            "skipped": None,
            **dict.fromkeys(("dense", "lite"), {"rtfx": 1.0, "characters": 1}),
            "speed_up": 1.0,
            "by_round": spread([1.0]),
        }

    monkeypatch.setattr(measure, "measure_transcription", too_large)
    speech = tmp_path / "a.wav"
    soundfile.write(speech, noise(0.5), RATE)
    options = ["--audio", str(speech), "--batch-size", "1", "2", "--repeats", "1"]
    content = run(tmp_path, *models, *options)
    assert [one["skipped"] for one in content["encoder"]] == [None, None]
    one, two = content["transcription"]
    assert one["skipped"] is None
    assert "memory is too small" in two["skipped"]
    assert "transcription, batch 2, float32" in capsys.readouterr().err


def test_an_interrupt_writes_nothing(models, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(encoders, "alternate", interrupt)
    assert main([*models, "--output", str(tmp_path / "out.json")]) == 1
    assert "liteasr: interrupted\n" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_files_are_written_both_or_neither(models, tmp_path, monkeypatch):
    content = run(tmp_path, *models, "--repeats", "1")
    before = (tmp_path / "out.json").read_text()

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("liteasr.benchmarking.report.speed_up_plot", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report({**content, "device": "other"}, tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", "out.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "0"], "--threads: 0 is not at least 1"),
        (["--batch-size", "1", "-2"], "--batch-size: -2 is not at least 1"),
        (["--repeats", "0", "--limit", "0"], "--limit: 0 is not at least 1"),
        (["--model", "./no/such/model"], "there is no folder ./no/such/model"),
        (["--dense", "./no/such/model"], "there is no folder ./no/such/model"),
        (["--shape", "tiny", "--encoder-params", "5M"], "--shape: takes the place of"),
        (["--encoder-params", "5M"], "--encoder-params, --pivoted: they belong to --shape"),
        (["--audio", "./no/such/file.wav"], "--audio: ./no/such/file.wav does not exist"),
        (["--output", "./no/such/folder/out.json"], "--output: there is no folder"),
        (["--output", "out.png"], "--output: out.png is the JSON file"),
    ],
)
def test_wrong_options_are_refused_before_any_work(models, options, message, monkeypatch, capsys):
    monkeypatch.setattr(measure, "_encoder", lambda *_: pytest.fail("began to work"))
    assert main([*models, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--model, --dense: both are needed, or --shape"),
        (["--model", "x"], "--model, --dense: both are needed"),
        (["--shape", "tiny"], "--shape: needs either --ranks or --encoder-params"),
        (["--shape", "tiny", "--encoder-params", "5M", "--audio", "demo"], "--audio: a shape has"),
    ],
)
def test_what_is_compared_must_be_said(options, message, capsys):
    assert main(options) == 2
    assert message in capsys.readouterr().err


def test_models_of_different_input_are_refused(models, dense, tmp_path, capsys):
    config = json.loads((tmp_path.parent / dense / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    config |= {"num_mel_bins": 128, "max_source_positions": 1500}
    (other / "config.json").write_text(json.dumps(config))
    assert main([*models, "--dense", str(other)]) == 2
    error = capsys.readouterr().err
    assert "takes 80 mel bins" in error
    assert "takes 50 frames in a window" in error


def test_a_type_that_the_device_lacks_is_refused(models, monkeypatch, capsys):
    def lacks(*arguments, **options):
        raise RuntimeError("\"attention\" not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lacks)
    assert main([*models, "--dtype", "float16"]) == 2
    assert "--dtype: float16 does not work on cpu here" in capsys.readouterr().err


def test_a_python_that_cannot_compile_is_refused(models, monkeypatch, capsys):
    monkeypatch.setattr("liteasr.benchmarking.settings.can_compile", lambda: False)
    assert main([*models, "--mode", "compiled"]) == 2
    assert "--mode: torch.compile does not support" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(models, capsys):
    assert main([*models, "--device", "cuda"]) == 2
    assert "--device: cuda is not available here" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--dtype", "x"], ["--mode", "fast"], ["--shape", "huge"]])
def test_words_that_mean_nothing_are_refused(models, words):
    with pytest.raises(SystemExit, match="2"):
        main([*models, *words])


def record(**changes):
    times = {"lower_quartile": 9.5, "median": 10.0, "upper_quartile": 1234.4}
    return {
        "batch_size": 8,
        "dtype": "bfloat16",
        "threads": 2,
        "mode": "compiled",
        "skipped": None,
        "dense": {"milliseconds": times},
        "lite": {"milliseconds": times},
        "speed_up": 1.5,
        "flop_ratio": 2.0,
        "efficiency": 0.75,
        **changes,
    }


def test_the_table_fits_an_ordinary_terminal():
    screen = io.StringIO()
    records = [record(), record(mode="eager", dtype="float32"), record(skipped="why")]
    Console(file=screen, width=80).print(encoder_table({"encoder": records}))
    shown = screen.getvalue()
    for text in ("8, bfloat16, compiled", "10.0 (9.50–1234)", "1.50", "2.00", "75 %", "2 threads"):
        assert text in shown
    assert shown.count("skipped") == 1


def test_a_progress_bar_says_what_runs(models, monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr("liteasr.console.console", terminal)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main([*models, "--repeats", "2"]) == 0
    shown = screen.getvalue()
    assert "encoder, batch 1, float32" in shown
    assert "4/4" in shown
