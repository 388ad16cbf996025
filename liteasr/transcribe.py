"""``python -m liteasr.transcribe --model M AUDIO …``: what is said in audio of any length.

Transcripts go to stdout, or with ``--output`` one file an input into a folder. ``--format json``
gives, for each file (in a list if there are several)::

    {"file": "talk.flac", "duration": 61.5, "language": "en", "text": "good morning …",
     "segments": [{"start": 0.0, "end": 4.2, "text": "good morning"}, …], "rtfx": 31.7}

with times in seconds, the code of the language (``null`` if the checkpoint does not say) and
``rtfx``, seconds of audio per second of work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from liteasr.cli import COMMANDS, run_main
from liteasr.config import ConfigError, Dtype, LongForm, Task
from liteasr.console import progress
from liteasr.data import AudioError
from liteasr.files import write_text
from liteasr.loading import choose_device
from liteasr.module import WhisperModule
from liteasr.recognition import Transcriber
from liteasr.transcripts import FORMATS, Transcript

__all__ = ["load_transcriber", "main", "output_names", "transcribe"]

STDIN = "-"


def load_transcriber(
    model: str | Path,
    *,
    processor: str | None = None,
    language: str | None = None,
    task: str | None = None,
    long_form: str | None = None,
    batch_size: int = 8,
    num_beams: int = 1,
    max_new_tokens: int | None = None,
    dtype: str = "float32",
    device: str = "auto",
) -> Transcriber:
    """Load a checkpoint to transcribe many files with.

    Args:
        model: Folder or hub id, dense Whisper or lite-whisper.
        processor: Where tokenizer and feature extractor are, if not with the model.
        language: Spoken language, for a multilingual checkpoint; else recognised in each file.
        task: ``transcribe`` or ``translate``, for a multilingual checkpoint.
        long_form: ``timestamps`` or ``windows``; see :class:`Transcriber`.
        batch_size: Pieces of a file decoded together.
        num_beams: Beams; 1 is greedy.
        max_new_tokens: Tokens for one window at most.
        dtype: Type of the weights.
        device: ``cpu``, ``cuda``, or ``auto`` for the second where there is one.

    Returns:
        To be called with a path; see :class:`Transcriber`.

    Raises:
        ConfigError: If the checkpoint cannot be used, or not so.
    """
    device = choose_device(device)
    module = WhisperModule(
        str(model),
        processor_id=processor,
        language=language,
        task=task,
        dtype=dtype,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
    ).to(device)
    mode = None if long_form is None else LongForm(long_form)
    return Transcriber(module, long_form=mode, batch_size=batch_size)


def transcribe(
    model: str | Path, audio: str | Path, *, device: str = "auto", language: str | None = None
) -> Transcript:
    """Transcribe one file; for several, or other options, see :func:`load_transcriber`.

    Args:
        model: Folder or hub id, dense Whisper or lite-whisper.
        audio: File of any format, rate, channel count and length that libsndfile reads.
        device: ``cpu``, ``cuda``, or ``auto`` for the second where there is one.
        language: Spoken language, for a multilingual checkpoint; else recognised.

    Returns:
        The transcript: ``text``, ``segments``, ``duration``, ….

    Raises:
        ConfigError: If the checkpoint cannot be used.
        AudioError: If the file cannot be used.
    """
    return load_transcriber(model, device=device, language=language)(audio)


def output_names(inputs: Sequence[str], ending: str) -> list[str]:
    """Names of the output files, no two alike, even where case does not count.

    Args:
        inputs: Paths, or ``-``.
        ending: Of the output files, without dot.

    Example:
        >>> output_names(["a/talk.wav", "b.flac", "talk.mp3", "c/talk.wav"], "txt")
        ['talk.wav.txt', 'b.txt', 'talk.mp3.txt', 'talk.wav-2.txt']
    """
    paths = [Path("stdin" if name == STDIN else name) for name in inputs]
    stems = [path.stem.casefold() for path in paths]
    taken: set[str] = set()
    names = []
    for path, stem in zip(paths, stems, strict=True):
        base = path.stem if stems.count(stem) == 1 else path.name
        name, number = base, 1
        while name.casefold() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name.casefold())
        names.append(f"{name}.{ending}")
    return names


# ---------------------------------------------------------------------- command


def _check_output(folder: Path) -> None:
    """Refuse a folder that cannot be written to, without making it.

    Raises:
        ConfigError: Naming what is in the way.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"--output: {there} is no folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(f"--output: cannot write to {there}: {error.strerror}") from error


@contextmanager
def _as_file(audio: str) -> Iterator[str]:
    """Path to read ``audio`` from; what comes from stdin lies on disk meanwhile."""
    if audio != STDIN:
        yield audio
        return
    with tempfile.NamedTemporaryFile(prefix="liteasr-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield file.name


def _shown(audio: str) -> str:
    """Name of an input in messages and results, also where the file system's is no text."""
    return "stdin" if audio == STDIN else os.fsencode(audio).decode(errors="replace")


def _with_progress(transcriber: Transcriber, audio: str, description: str) -> Transcript:
    with (
        _as_file(audio) as path,
        progress(escape(description), None, "s of audio") as bar,
    ):

        def on_progress(done: float, total: float | None) -> None:
            bar.update(bar.task_ids[0], completed=done, total=total)

        return transcriber(path, name=_shown(audio), on_progress=on_progress)


class _Writer:
    """Where transcripts go: a folder, or stdout."""

    def __init__(self, inputs: Sequence[str], ending: str, folder: Path | None) -> None:
        self._render = FORMATS[ending]
        self._folder = folder
        self._names = output_names(inputs, ending)
        self._is_list = folder is None and ending == "json" and len(inputs) > 1
        self._has_headings = folder is None and ending != "json" and len(inputs) > 1
        self._listed: list[Transcript] = []

    def write(self, index: int, transcript: Transcript) -> None:
        """Write the transcript of an input, whole or not at all."""
        if self._is_list:
            self._listed.append(transcript)
        elif self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / self._names[index], self._render(transcript))
        else:
            heading = f"==> {transcript.file} <==\n" if self._has_headings else ""
            gap = "\n" if self._has_headings and index else ""
            print(gap + heading + self._render(transcript), end="", flush=True)

    def close(self) -> None:
        """Write what waits for the last input, or was done before something went wrong."""
        if self._is_list:
            content = [transcript.to_dict() for transcript in self._listed]
            print(json.dumps(content, indent=2, ensure_ascii=False))


def _run(arguments: argparse.Namespace) -> None:
    inputs: list[str] = arguments.audio
    if inputs.count(STDIN) > 1:
        raise ConfigError("AUDIO: stdin (-) can be read once only")
    if arguments.output is not None:
        _check_output(arguments.output)
    transcriber = load_transcriber(
        arguments.model,
        processor=arguments.processor,
        language=arguments.language,
        task=arguments.task,
        long_form=arguments.long_form,
        batch_size=arguments.batch_size,
        num_beams=arguments.num_beams,
        max_new_tokens=arguments.max_new_tokens,
        dtype=arguments.dtype,
        device=arguments.device,
    )
    writer = _Writer(inputs, arguments.format, arguments.output)
    try:
        problems = _transcribe_all(transcriber, inputs, writer)
    finally:
        writer.close()
    if problems:
        several = f"{len(problems)} of {len(inputs)} files could not be used"
        raise ConfigError(several if len(inputs) > 1 else problems)


def _transcribe_all(transcriber: Transcriber, inputs: Sequence[str], writer: _Writer) -> list[str]:
    """Transcribe what can be; returns what is wrong with the others."""
    problems = []
    for index, audio in enumerate(inputs):
        place = f" ({index + 1} of {len(inputs)})" if len(inputs) > 1 else ""
        try:
            transcript = _with_progress(transcriber, audio, _shown(audio) + place)
        except AudioError as error:
            problems.append(str(error))
            if len(inputs) > 1:
                print(f"liteasr: {error}", file=sys.stderr, flush=True)
            continue
        if transcript.warning is not None:
            print(f"liteasr: {transcript.file}: {transcript.warning}", file=sys.stderr, flush=True)
        writer.write(index, transcript)
    return problems


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="liteasr transcribe", description=COMMANDS["transcribe"])
    add = parser.add_argument
    add("audio", nargs="+", metavar="AUDIO", help="files libsndfile reads; - is one from stdin")
    add("--model", required=True, metavar="DIR_OR_HUB_ID", help="Whisper or lite-whisper, or demo")
    add("--processor", metavar="DIR_OR_HUB_ID", help="where the tokenizer is, if not there")
    add("--format", choices=list(FORMATS), default="txt", help="txt if not given")
    add("--output", type=Path, metavar="DIR", help="write a file for each input there")
    add("--language", help="spoken language, for a multilingual checkpoint")
    add("--task", choices=[task.value for task in Task], help="for a multilingual checkpoint")
    add(
        "--long-form",
        choices=[mode.value for mode in LongForm],
        help="how audio over 30 s is decoded; timestamps, where the checkpoint predicts them",
    )
    add("--batch-size", type=_positive, default=8, help="pieces of a file decoded together")
    add("--num-beams", type=_positive, default=1, help="1 is greedy")
    add("--max-new-tokens", type=_positive, help="for 30 s of audio at most")
    add("--dtype", choices=[dtype.value for dtype in Dtype], default="float32", help="of weights")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_main(lambda: _run(arguments), command=None)


if __name__ == "__main__":
    sys.exit(main())
