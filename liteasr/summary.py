"""What ``fit`` prints at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from liteasr.compression import CompressionPlan
from liteasr.console import console, table
from liteasr.reporting.numbers import duration, megabytes, signed, speed, speed_ratio
from liteasr.runfolder import RunFolder

__all__ = ["print_summary"]

_TIMES = {
    "calibrate": "calibrate",
    "factorize": "compress",
    "finetune": "fine-tune",
    "evaluate": "measure",
}


def print_summary(run: RunFolder, metrics: Mapping[str, Any], report: Path | None) -> None:
    """Print sizes and WER of all stages, what they took, and where things are.

    Args:
        run: The folder.
        metrics: Content of ``metrics.json``.
        report: The report, if there is one.
    """
    stages = {name: metrics[name] for name in ("dense", "compressed", "finetuned") if metrics[name]}
    console.print(_results(stages))
    console.print(_notes(run, metrics, report))


def _results(stages: Mapping[str, Mapping[str, Any]]) -> Table:
    """A column a stage, and one for the change from the first to the last."""
    each = list(stages.values())
    first, last = each[0], each[-1]
    smaller = 100 * (last["encoder_params"] / first["encoder_params"] - 1)
    sizes = [f"{one['encoder_params'] / 1e6:.3f}" for one in each]
    rows = [["encoder parameters, M", *sizes, f"{signed(smaller, 1)} %"]]
    measured = {name: [one["datasets"][name] for one in each] for name in last["datasets"]}
    if measured:
        measured["mean of sets"] = [one["wer"] for one in each]
    for name, wers in measured.items():
        cells = [f"{wer:.2f}" for wer in wers]
        rows.append([f"WER {name}, %", *cells, signed(wers[-1] - wers[0], 2)])
    rows += _speeds(each)
    columns = ["", *stages, "change"]
    if len(stages) == 1:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return table("Result", columns, rows)


def _speeds(each: list[Mapping[str, Any]]) -> list[list[str]]:
    """Speed of recognition and of the encoder alone, where all stages have it."""
    rows = []
    for key, said in (("encoder_rtfx", "encoder"), ("rtfx", "encoder and decoder")):
        ratio = speed_ratio(key, each[0], each[-1])
        if ratio is not None and all(one.get(key) for one in each):
            cells = [speed(one[key]) for one in each]
            rows.append([f"RTFx {said}", *cells, ratio])
    return rows


def _notes(run: RunFolder, metrics: Mapping[str, Any], report: Path | None) -> Table:
    notes = {}
    if metrics["encoder_relative_error"] is not None:
        notes["error of the encoder"] = f"{metrics['encoder_relative_error']:.4f}{_predicted(run)}"
    times = {said: metrics["timing_s"][key] for key, said in _TIMES.items()}
    notes["time"] = ", ".join(f"{said} {duration(s)}" for said, s in times.items() if s > 0)
    notes["peak memory"] = megabytes(metrics["peak_memory_mb"])
    notes["model"] = str(run.model) if run.model.is_dir() else ""
    notes["report"] = "" if report is None else str(report)
    notes["texts"] = str(run.predictions) if run.predictions.is_dir() else ""
    result = Table.grid(padding=(0, 2))
    result.add_column(no_wrap=True)
    result.add_column(overflow="fold")
    for name, said in notes.items():
        if said:
            # A path may hold what rich takes for markup.
            result.add_row(name, Text(said))
    return result


def _predicted(run: RunFolder) -> str:
    predicted = CompressionPlan.load(run.plan).predicted_error if run.plan.is_file() else None
    return "" if predicted is None else f" (predicted: {predicted:.4f})"
