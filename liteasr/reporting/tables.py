"""Rows of the report's tables, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from liteasr.compression.plan import AttentionPlan, CompressionPlan, LayerPlan
from liteasr.predictions import Difference, Prediction, differences
from liteasr.reporting.names import LINEARS, place_of
from liteasr.reporting.numbers import duration, megabytes, signed, speed, speed_ratio
from liteasr.reporting.record import RunRecord

__all__ = [
    "Table",
    "Utterance",
    "edits_table",
    "headline",
    "layers_table",
    "sets_table",
    "worst_utterances",
]


class Table(NamedTuple):
    """Headings and rows; the first column is a name, the others are numbers."""

    columns: list[str]
    rows: list[list[str]]


def headline(record: RunRecord) -> list[tuple[str, str]]:
    """What one wants to know first, as pairs of a name and a value."""
    metrics, plan = record.metrics, record.plan
    first, last = _ends(record)
    pairs = [
        ("model", str(record.recipe["model"].get("id"))),
        ("method", "none" if plan is None else plan.method),
    ]
    sizes = [one["encoder_params"] / 1e6 for one in (first, last)]
    smaller = f"{signed(100 * (sizes[1] / sizes[0] - 1), 1)} %"
    is_one = first is last
    pairs.append(("encoder", _arrow([f"{one:.3f}" for one in sizes], "M", smaller, is_one)))
    if last["wer"] is not None:
        wers = [one["wer"] for one in (first, last)]
        change = signed(wers[1] - wers[0], 2)
        said = _arrow([f"{one:.2f}" for one in wers], "%", change, is_one)
        pairs.append(("WER, mean of sets", said))
    pairs += _speeds(first, last)
    if metrics["encoder_relative_error"] is not None:
        pairs.append(("error of the encoder", f"{metrics['encoder_relative_error']:.4f}"))
    if plan is not None and plan.predicted_error is not None:
        pairs.append(("predicted error", f"{plan.predicted_error:.4f}"))
    if plan is not None and "clips" in plan.calibration:
        pairs.append(("calibration", f"{plan.calibration['clips']} clips"))
    pairs.append(("time", duration(sum(record.seconds.values()))))
    pairs.append(("peak memory", megabytes(metrics["peak_memory_mb"])))
    return pairs


def _speeds(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Speed as it was seen in this run, one stage after the other."""
    pairs = []
    for key, said in (("encoder_rtfx", "RTFx, encoder"), ("rtfx", "RTFx, encoder and decoder")):
        ratio = speed_ratio(key, first, last)
        if ratio is not None:
            values = [speed(one[key]) for one in (first, last)]
            pairs.append((said, _arrow(values, "× real time", ratio, first is last)))
    return pairs


def _ends(record: RunRecord) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    stages = list(record.stages.values())
    return stages[0], stages[-1]


def _arrow(values: Sequence[str], unit: str, change: str, is_one: bool) -> str:
    before, after = values
    return f"{after} {unit}" if is_one else f"{before} → {after} {unit} ({change})"


def sets_table(record: RunRecord) -> Table:
    """WER of each set and stage, with the change from the first stage to the last."""
    stages = record.stages
    first, last = _ends(record)
    sets = list(first["datasets"])
    if not sets:
        return Table([], [])
    counts = _counts(next(iter(record.predictions.values()), []))
    columns = ["set", *(f"WER {name}, %" for name in stages)]
    rows = [[name, *(f"{one['datasets'][name]:.2f}" for one in stages.values())] for name in sets]
    rows.append(["mean of sets", *(f"{one['wer']:.2f}" for one in stages.values())])
    if len(stages) > 1:
        columns.append("change")
        changes = [last["datasets"][name] - first["datasets"][name] for name in sets]
        for row, change in zip(rows, [*changes, last["wer"] - first["wer"]], strict=True):
            row.append(signed(change, 2))
    if counts:
        columns += ["utterances", "words"]
        for row in rows[:-1]:
            row += [f"{count:,}" for count in counts.get(row[0], (0, 0))]
        totals = zip(*(counts[name] for name in sets if name in counts), strict=True)
        rows[-1] += [f"{sum(total):,}" for total in totals]
    return Table(columns, rows)


def _counts(predictions: Sequence[Prediction]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for one in predictions:
        utterances, words = counts.get(one.set, (0, 0))
        counts[one.set] = utterances + 1, words + one.words
    return counts


def edits_table(record: RunRecord) -> Table:
    """Kinds of errors of each stage, all sets together."""
    rows = []
    for stage, found in record.predictions.items():
        kinds = ("substitutions", "deletions", "insertions", "edits")
        counts = [sum(getattr(one, kind) for one in found) for kind in kinds]
        wrong = sum(one.edits > 0 for one in found)
        rows.append([stage, *(f"{count:,}" for count in counts), f"{wrong:,} of {len(found):,}"])
    heads = ["stage", "substitutions", "deletions", "insertions", "together", "utterances with any"]
    return Table(heads if rows else [], rows)


def layers_table(plan: CompressionPlan) -> Table:
    """A row a layer, from the input to the output; reduced heads before the layers they consist of.

    Their rank is the dimensions of a head, for queries and keys and for values.
    """

    def position(name: str) -> tuple[int, int, str]:
        if name in plan.attention:
            return (place_of(f"{name}.q_proj") or (-1, name))[0], -1, name
        number, linear = place_of(name) or (-1, name)
        return number, LINEARS.index(linear) if linear in LINEARS else -1, name

    predicts = plan.predicted_error is not None
    columns = ["encoder layer", "rank", "of", "parameters", "after", "kept energy, %"]
    rows = []
    for name in sorted([*plan.layers, *plan.attention], key=position):
        layer = plan.layers.get(name) or plan.attention[name]
        row = [
            name.removeprefix("model.encoder.").removeprefix("layers."),
            *_size(layer),
            f"{layer.dense_params:,}",
            f"{layer.params:,}",
            f"{100 * layer.kept_energy:.3f}" if isinstance(layer, LayerPlan) else "–",
        ]
        rows.append(row + ([f"{layer.predicted_error:.2g}"] if predicts else []))
    return Table(columns + (["predicted error"] if predicts else []), rows)


def _size(layer: LayerPlan | AttentionPlan) -> tuple[str, str]:
    """What is kept, and of how much."""
    if isinstance(layer, AttentionPlan):
        full = str(layer.embed_dim // layer.num_heads)
        return "dense" if layer.qk_dim is None else f"{layer.qk_dim} / {layer.v_dim}", full
    full = str(min(layer.in_features, layer.out_features))
    return "dense" if layer.rank is None else str(layer.rank), full


class Utterance(NamedTuple):
    """One utterance as several models heard it.

    ``heard`` holds the stage, its edits, and what differs.
    """

    set: str
    name: str
    id: str
    words: int
    reference: str
    heard: list[tuple[str, int, list[Difference]]]


def worst_utterances(
    predictions: Mapping[str, Sequence[Prediction]], count: int
) -> list[Utterance]:
    """Utterances of the last stage with errors: most edits more than in the first one go first.

    Args:
        predictions: Stage → utterances, in the order of the stages.
        count: Utterances at most.
    """
    if not predictions:
        return []
    by_stage = [
        (stage, {(one.set, one.id): one for one in found}) for stage, found in predictions.items()
    ]
    first = by_stage[0][1] if len(by_stage) > 1 else {}

    def badness(one: Prediction) -> tuple[int, int, str, str]:
        before = first.get((one.set, one.id))
        added = one.edits - (before.edits if before else 0)
        return -added, -one.edits, one.set, one.id

    wrong = sorted((one for one in by_stage[-1][1].values() if one.edits), key=badness)
    return [_utterance(one, by_stage) for one in wrong[:count]]


def _utterance(
    last: Prediction, by_stage: Sequence[tuple[str, Mapping[tuple[str, str], Prediction]]]
) -> Utterance:
    heard = []
    for stage, found in by_stage:
        one = found.get((last.set, last.id))
        if one is not None:
            heard.append((stage, one.edits, differences(one.reference, one.hypothesis)))
    name = PurePath(last.id).name
    return Utterance(last.set, name, last.id, last.words, last.reference, heard)
