"""Make the demo speech: everyday sentences of a grammar, spoken by free synthesisers.

::

    python tools/make_demo_speech.py shipped --output build/speech
    python tools/make_demo_speech.py train --output build/train --clips 20000 --processes 2

``shipped`` makes the calibration and evaluation sets of the package, 64 clips each; ``train`` makes
a training set of any size. No sentence is in two of the three, and the evaluation's voices speak
nowhere else (``tools/demo/voices.py``). A set is a folder of mono 16 kHz files, Ogg Opus if shipped
and FLAC for training, which is quicker to write and to read. Its ``metadata.jsonl`` has a line for
each with ``file_name``, ``text``, ``speaker``, ``duration`` (s) and ``segments``: start, end (s)
and text of each sentence.

The seed decides on everything: the same seed, program versions and machine give the same bytes,
whatever the number of processes. An interrupted run goes on where it stopped when the same command
is given again, and a larger ``--clips`` extends a finished set.

The synthesisers come from Debian or Ubuntu: ``apt-get install flite espeak-ng festival
festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import track

from demo.clips import Clip, plan_clips, write_clip
from demo.grammar import Split
from demo.voices import missing_packages

SHIPPED_CLIPS = 64

_COMPARED = 50
"""Clips by whose plans a set that is to go on is recognised."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 if something is missing or wrong."""
    options = _parser().parse_args(arguments)
    if missing := missing_packages():
        print(f"missing packages: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    sets = (
        {Split.train: options.output}
        if options.command == "train"
        else {
            split: options.output / split.value for split in (Split.calibration, Split.evaluation)
        }
    )
    try:
        for split, folder in sets.items():
            count = options.clips if split is Split.train else SHIPPED_CLIPS
            make_set(folder, split, count, options.seed, options.processes)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make_set(folder: Path, split: Split, count: int, seed: int, processes: int) -> None:
    """Make the clips of a set that are not there yet.

    Args:
        folder: Where to.
        split: What kind of set.
        count: Clips in all.
        seed: Seed of everything that is drawn.
        processes: How many work at once; the result does not depend on it.

    Raises:
        ValueError: If the folder holds a set of another kind or seed, or of another version of the
            voices and sentences.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = repr(list(itertools.islice(plan_clips(seed, split), _COMPARED))).encode()
    settings = {"split": split.value, "seed": seed, "plan": zlib.crc32(first)}
    _check_settings(folder / "generation.json", settings)
    metadata = folder / "metadata.jsonl"
    done = _finished_lines(metadata)
    clips = list(itertools.islice(plan_clips(seed, split), done, max(done, count)))
    with metadata.open("a", encoding="utf-8") as file:
        rows = _write_all(clips, folder, processes)
        for row in track(rows, f"{split.value}, {count} clips", total=len(clips)):
            file.write(json.dumps(row) + "\n")
            file.flush()


def _write_all(clips: list[Clip], folder: Path, processes: int) -> Iterator[dict[str, Any]]:
    """Metadata of the clips, in order, as they are written."""
    write = partial(write_clip, folder=folder)
    if processes == 1:
        yield from map(write, clips)
        return
    with ProcessPoolExecutor(processes) as pool:
        try:
            yield from pool.map(write, clips, chunksize=4)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _check_settings(file: Path, settings: dict[str, Any]) -> None:
    if not file.exists():
        file.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    elif (found := json.loads(file.read_text(encoding="utf-8"))) != settings:
        raise ValueError(f"{file.parent}: holds a set of {found}, not of {settings}")


def _finished_lines(metadata: Path) -> int:
    """Clips already listed; a line that was cut short is removed."""
    if not metadata.exists():
        return 0
    content = metadata.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        metadata.write_bytes(whole)
    return whole.count(b"\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="a training set of any size")
    train.add_argument("--clips", type=_positive, default=20_000, help="how many (%(default)s)")
    shipped = commands.add_parser("shipped", help="calibration and evaluation, as in the package")
    for command in (train, shipped):
        command.add_argument("--output", type=Path, required=True, help="folder of the result")
        command.add_argument("--seed", type=int, default=0, help="of every draw (%(default)s)")
        command.add_argument("--processes", type=_positive, default=1, help="(%(default)s)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
