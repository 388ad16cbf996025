"""The command: where transcripts go, and what it says of what it cannot use."""

import io
import json
import signal
import subprocess
import sys
import time

import pytest
import soundfile
from checkpoints import save_checkpoint
from runs import ROOT
from speech_files import RATE, audio_bytes, noise

from liteasr.cli import main as liteasr
from liteasr.recognition import Transcriber
from liteasr.transcribe import main, output_names


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture
def audio(tmp_path):
    """Make a file of noise: name → path, as text."""

    def make(name, seconds=1.5, rate=RATE, channels=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(seconds, rate, channels=channels), rate)
        return str(path)

    return make


def test_one_file_gives_its_text_alone(model, audio, capsys):
    file = audio("talk.wav", 2.5, 8_000, channels=2)
    assert main(["--model", model, file, "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"file", "duration", "language", "text", "segments", "rtfx"}
    assert (said["file"], said["duration"], said["language"]) == (file, 2.5, "en")
    assert said["rtfx"] > 0
    assert main(["--model", model, file]) == 0
    captured = capsys.readouterr()
    assert captured.out == said["text"] + "\n"
    assert captured.err == "", "quiet where stderr is no terminal"


def test_several_files_are_told_apart(model, audio, capsys):
    files = [audio("a.wav"), audio("b.flac")]
    assert main(["--model", model, *files, "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in said] == files
    assert main(["--model", model, *files]) == 0
    expected = "\n".join(f"==> {one['file']} <==\n{one['text']}\n" for one in said)
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("ending", ["txt", "json", "srt", "vtt"])
def test_a_folder_gets_a_file_an_input(model, audio, tmp_path, capsys, ending):
    files = [audio("a/talk.wav"), audio("b/talk.wav", 0.5), audio("b/other.flac")]
    output = tmp_path / "new" / "folder"
    command = ["--model", model, *files, "--format", ending, "--output", str(output)]
    assert main(command) == 0
    names = {f"talk.wav.{ending}", f"talk.wav-2.{ending}", f"other.{ending}"}
    assert {path.name for path in output.iterdir()} == names
    assert capsys.readouterr().out == ""
    texts = [(output / name).read_text() for name in sorted(names)]
    assert all(texts)
    if ending == "json":
        assert [json.loads(text)["file"] for text in texts] == [files[2], files[1], files[0]]


def test_names_do_not_collide():
    inputs = ["x/a.wav", "y/A.mp3", "a.wav.mp3", "x/a.wav", "-", "stdin.flac", "noending"]
    names = output_names(inputs, "srt")
    assert len({name.casefold() for name in names}) == len(inputs)
    assert all(name.endswith(".srt") for name in names)
    assert names[-1] == "noending.srt"


def test_stdin_is_a_file_too(model, monkeypatch, capsys):
    class Stdin:
        buffer = io.BytesIO(audio_bytes(1.5))

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert liteasr(["transcribe", "--model", model, "-", "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["file"], said["duration"]) == ("stdin", 1.5)
    assert main(["--model", model, "-", "-"]) == 2
    assert "once only" in capsys.readouterr().err


def bad_file(tmp_path, kind):
    path = tmp_path / f"{kind}.wav"
    contents = {"empty": b"", "text": b"hello\n" * 99, "silent": audio_bytes(0.0, format="WAV")}
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("text", "cannot be decoded"),
        ("silent", "holds no samples"),
        ("folder", "is no file"),
    ],
)
def test_a_bad_file_does_not_stop_the_others(model, audio, tmp_path, capsys, kind, reason):
    bad = bad_file(tmp_path, kind)
    output = tmp_path / "out"
    command = ["--model", model, audio("a.wav"), str(bad), audio("b.wav")]
    assert main([*command, "--output", str(output)]) == 2
    assert {path.name for path in output.iterdir()} == {"a.txt", "b.txt"}
    error = capsys.readouterr().err
    assert f"{bad}: {reason}" in error
    assert "1 of 3 files could not be used" in error
    assert main(["--model", model, str(bad)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"liteasr: {bad}: {reason}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_file_cut_short_is_transcribed_as_far_as_it_goes(model, tmp_path, capsys):
    file = tmp_path / "half.flac"
    content = audio_bytes(20.0)
    file.write_bytes(content[: len(content) // 2])
    assert main(["--model", model, str(file), "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert 4 < json.loads(captured.out)["duration"] < 11
    assert str(file) in captured.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "./no/such/model"}, "there is no folder ./no/such/model"),
        ({"--output": "FILE/out"}, "--output: "),
        ({"--language": "de"}, "English-only"),
        ({"--task": "translate"}, "English-only"),
        ({"--max-new-tokens": "4000"}, "max_new_tokens"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    model, audio, capsys, monkeypatch, changes, message
):
    monkeypatch.setattr(Transcriber, "__call__", lambda *_, **__: pytest.fail("began to work"))
    file = audio("a.wav")
    options = {"--model": model, **changes}
    words = [word.replace("FILE", file) for pair in options.items() for word in pair]
    assert main([file, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--format", "docx"], ["--batch-size", "0"], ["--device", "tpu"], ["--dtype", "x"]]
)
def test_words_that_mean_nothing_are_refused(model, audio, words):
    with pytest.raises(SystemExit, match="2"):
        main(["--model", model, audio("a.wav"), *words])


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder closed even to root")
def test_a_folder_that_cannot_be_written_is_refused(model, audio, capsys):
    assert main(["--model", model, audio("a.wav"), "--output", "/proc/new"]) == 2
    assert "--output: cannot write to /proc" in capsys.readouterr().err


def test_silence_is_no_error(model, tmp_path, capsys):
    soundfile.write(tmp_path / "silence.wav", 0 * noise(3.0), RATE)
    assert main(["--model", model, str(tmp_path / "silence.wav"), "--format", "vtt"]) == 0
    assert capsys.readouterr().out.startswith("WEBVTT\n")


def test_a_progress_bar_for_terminals_counts_audio(model, audio, monkeypatch, capsys):
    from rich.console import Console

    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr("liteasr.console.console", terminal)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["--model", model, audio("a[b].wav", 4.0), audio("c.wav", 3.0)]) == 0
    shown = screen.getvalue()
    assert "a[b].wav (1 of 2)" in shown
    assert "4/4" in shown
    assert "s of audio" in shown
    assert "s of audio" not in capsys.readouterr().out


def test_an_interrupt_leaves_whole_files_only(model, audio, tmp_path):
    """A signal to the real command, in the middle of the second file."""
    output = tmp_path / "out"
    files = [audio("short.wav"), audio("long.wav", 3_000.0, 1_000)]
    command = [sys.executable, "-m", "liteasr.transcribe", "--model", model, *files]
    process = subprocess.Popen(
        [*command, "--output", str(output)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may have been told to ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    waited_until = time.monotonic() + 120
    while not (output / "short.txt").exists() and time.monotonic() < waited_until:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "liteasr: interrupted\n" in error
    assert "Traceback" not in error
    assert [path.name for path in output.iterdir()] == ["short.txt"]
    assert (output / "short.txt").read_text().endswith("\n")
