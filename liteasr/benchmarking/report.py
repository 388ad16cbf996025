"""What a benchmark shows: tables for the screen, and the files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from liteasr.benchmarking.plot import speed_up_plot
from liteasr.benchmarking.settings import Combination
from liteasr.benchmarking.timing import NAMES
from liteasr.console import table
from liteasr.files import atomic_path
from liteasr.reporting.numbers import duration, speed

__all__ = [
    "common_parts",
    "described",
    "encoder_table",
    "notes",
    "transcription_table",
    "write_report",
]

Record = Mapping[str, Any]

_TITLE = "Encoder, median of a batch"
_HEADS = {"batch_size": "batch", "dtype": "type", "threads": "threads", "mode": "mode"}
"""Parts of a combination, and what heads them in a table."""


def described(combination: Combination | Record, without: Collection[str] = ()) -> str:
    """A combination in words.

    Args:
        combination: The combination, or its record.
        without: Parts to leave out.

    Example:
        >>> described(Combination(8, "float32", 2), without=["mode"])
        'batch 8, float32, 2 threads'
    """
    one = asdict(combination) if isinstance(combination, Combination) else combination
    threads = one["threads"]
    parts = {
        "batch_size": f"batch {one['batch_size']}",
        "dtype": str(one["dtype"]),
        "threads": f"{threads} thread{'' if threads == 1 else 's'}",
        "mode": str(one["mode"]),
    }
    return ", ".join(said for part, said in parts.items() if part not in without)


def common_parts(records: Sequence[Record]) -> list[str]:
    """Parts of a combination, batch size aside, that all records have in common."""
    return [key for key in ("dtype", "threads", "mode") if len({one[key] for one in records}) == 1]


def encoder_table(content: Record) -> Table:
    """A row a combination: times of both, speed-up and its bound."""
    records = content["encoder"]
    common = common_parts(records)
    where = described(records[0], [part for part in _HEADS if part not in common])
    columns = (
        _heading(common),
        "dense,\nms",
        "lite, ms\n(quartiles)",
        "speed-\nup",
        "FLOP\nratio",
        "effi-\nciency",
    )
    rows = [[_brief(one, common), *_encoder_cells(one)] for one in records]
    return table(f"{_TITLE}; {where}" if where else _TITLE, columns, rows)


def _heading(without: Collection[str]) -> str:
    return ", ".join(head for part, head in _HEADS.items() if part not in without)


def _brief(one: Record, without: Collection[str]) -> str:
    """A combination below :func:`_heading`."""
    return described(one, without).removeprefix("batch ")


def _encoder_cells(one: Record) -> list[str]:
    if one["skipped"]:
        return ["skipped", "", "", "", ""]
    dense, lite = (one[name]["milliseconds"] for name in NAMES)
    ends = "–".join(_milliseconds(lite[key]) for key in ("lower_quartile", "upper_quartile"))
    return [
        _milliseconds(dense["median"]),
        f"{_milliseconds(lite['median'])} ({ends})",
        f"{one['speed_up']:.2f}",
        f"{one['flop_ratio']:.2f}",
        f"{100 * one['efficiency']:.0f} %",
    ]


def _milliseconds(value: float) -> str:
    return f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 2}f}"


def transcription_table(content: Record) -> Table:
    """A row a combination: RTFx of both, and the speed-up."""
    records = content["transcription"]
    rows = [[_brief(one, ["mode"]), *_transcription_cells(one)] for one in records]
    columns = (
        _heading(["mode"]),
        "dense,\nRTFx",
        "lite,\nRTFx",
        "speed-up",
        "dense,\nletters",
        "lite,\nletters",
    )
    clips = records[0]["clips"]
    return table(f"Transcription of {clips} clip{'' if clips == 1 else 's'}", columns, rows)


def _transcription_cells(one: Record) -> list[str]:
    if one["skipped"]:
        return ["skipped", "", "", "", ""]
    return [
        *(speed(one[name]["rtfx"]) for name in NAMES),
        f"{one['speed_up']:.2f}",
        *(f"{one[name]['characters']:,}" for name in NAMES),
    ]


def notes(content: Record) -> list[str]:
    """Lines below the tables: sizes, compile times, what was skipped and why."""
    sizes = [f"{content['models'][name]['encoder_params'] / 1e6:.2f} M" for name in NAMES]
    machine = content["hardware"]
    device = machine["gpu"] if content["device"] == "cuda" else machine["cpu"]
    lines = [
        f"encoder: {sizes[0]} → {sizes[1]} parameters; on {device}, torch {machine['torch']}",
        "FLOP ratio: arithmetic of dense over that of lite, the speed-up where both do as much of "
        "it a second; efficiency: speed-up over FLOP ratio",
    ]
    if content["fast_dense"]:
        lines.append("dense: run as liteasr runs its own encoders, not as transformers does")
    for one in content["encoder"]:
        if one["skipped"]:
            lines.append(f"{described(one)}: skipped: {one['skipped']}")
        elif one["mode"] == "compiled":
            times = [duration(one[name]["compile_s"]) for name in NAMES]
            lines.append(f"{described(one)}: compiled in {times[0]} (dense), {times[1]} (lite)")
    lines += [
        f"transcription, {described(one, ['mode'])}: skipped: {one['skipped']}"
        for one in content["transcription"]
        if one["skipped"]
    ]
    return lines


def write_report(content: Record, path: Path) -> Path:
    """Write the JSON file and the plot beside it, both or neither.

    Args:
        content: All of the file.
        path: Of the JSON file.

    Returns:
        Path of the plot.
    """
    picture = path.with_suffix(".png")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        speed_up_plot(content, _labels(content), picture)
    return picture


def _labels(content: Record) -> dict[str, list[str]]:
    """What the plot calls the records of each kind."""
    records = content["encoder"]
    common = common_parts(records)
    return {
        "encoder": [described(one, common) for one in records],
        "transcription": [described(one, [*common, "mode"]) for one in content["transcription"]],
    }
