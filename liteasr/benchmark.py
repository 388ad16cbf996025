"""``python -m liteasr.benchmark --model M --dense D``: both encoders side by side, in one process.

Dense and lite run in turn, so that whatever else the machine does meets both alike. ``--output``
writes all times as JSON, and a plot beside it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from liteasr.benchmarking.measure import measure
from liteasr.benchmarking.report import encoder_table, notes, transcription_table, write_report
from liteasr.benchmarking.settings import MODES, Settings, check_settings
from liteasr.benchmarking.shapes import SHAPES
from liteasr.cli import COMMANDS, run_main
from liteasr.config import Dtype
from liteasr.console import console
from liteasr.loading import choose_device

__all__ = ["benchmark", "main"]

_LOG_WIDTH = 120


def benchmark(settings: Settings, command: Sequence[str] = ()) -> None:
    """Measure, show and write.

    Args:
        settings: The options.
        command: How they were given, for the record.

    Raises:
        ConfigError: If an option, a model or audio cannot be used.
    """
    check_settings(settings)
    content = {**measure(settings), "command": shlex.join(command)}
    # A log has no width that a table would have to be cut to.
    width = None if console.is_terminal else _LOG_WIDTH
    console.print(encoder_table(content), width=width, crop=width is None)
    if content["transcription"]:
        console.print(transcription_table(content), width=width, crop=width is None)
    for line in notes(content):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if settings.output is not None:
        picture = write_report(content, settings.output)
        written = f"written: {settings.output}, {picture}"
        console.print(written, markup=False, highlight=False, soft_wrap=True)


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        model=arguments.model,
        dense=arguments.dense,
        shape=arguments.shape,
        ranks=arguments.ranks,
        encoder_params=arguments.encoder_params,
        pivoted=arguments.pivoted,
        fast_dense=arguments.fast_dense,
        batch_sizes=tuple(arguments.batch_size),
        dtypes=tuple(arguments.dtype),
        threads=tuple(arguments.threads or [torch.get_num_threads()]),
        modes=tuple(arguments.mode),
        device=choose_device(arguments.device),
        repeats=arguments.repeats,
        audio=tuple(arguments.audio),
        limit=arguments.limit,
        processor=arguments.processor,
        language=arguments.language,
        output=arguments.output,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="liteasr benchmark", description=COMMANDS["benchmark"])
    add = parser.add_argument
    add("--model", metavar="DIR_OR_HUB_ID", help="the compressed checkpoint")
    add("--dense", metavar="DIR_OR_HUB_ID", help="the one it was made from")
    add(
        "--shape",
        choices=list(SHAPES),
        help="in place of both: encoders of a published size with random weights",
    )
    add("--ranks", type=Path, metavar="FILE", help="for --shape: plan.json or low_rank_config")
    add("--encoder-params", metavar="SIZE", help="for --shape, such as 240M: ranks are made up")
    add("--pivoted", action="store_true", help="for --shape: layers as of auto, not as published")
    add(
        "--fast-dense",
        action="store_true",
        help="run the dense encoder as liteasr runs its own, which leaves the gain of compression",
    )
    add("--batch-size", type=int, nargs="+", default=[1], help="windows at a time; 1")
    add("--dtype", nargs="+", choices=[dtype.value for dtype in Dtype], default=["float32"])
    add("--threads", type=int, nargs="+", metavar="N", help="of torch; its own number if not given")
    add(
        "--mode",
        nargs="+",
        choices=MODES,
        default=["eager"],
        help="graphs: CUDA graphs; compiled: torch.compile",
    )
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--repeats", type=int, default=10, metavar="N", help="rounds of each combination; 10")
    add(
        "--audio",
        nargs="+",
        default=[],
        metavar="FILE_OR_DATA",
        help="measure whole transcription too: audio files, or sets as of evaluate --data",
    )
    add("--limit", type=int, metavar="N", help="utterances a set at most")
    add("--processor", metavar="DIR_OR_HUB_ID", help="where the tokenizer is, if not there")
    add("--language", help="spoken language, for multilingual checkpoints")
    add("--output", type=Path, metavar="FILE", help="write JSON there, and a PNG beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(given)
    command = ["liteasr", "benchmark", *given]
    return run_main(lambda: benchmark(_settings(arguments), command), command=None)


if __name__ == "__main__":
    sys.exit(main())
