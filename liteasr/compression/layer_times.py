"""How long an encoder and its linear layers take, dense and at every rank, on this machine.

Arithmetic that is saved is not time that is saved: at small ranks, widths and batches memory and
calls count as much. What a budget by time spends is therefore measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from liteasr.compression.allocate import LinearShape
from liteasr.modeling import LowRankLinear, PivotedLinear
from liteasr.speed import Stopwatch

__all__ = ["EncoderTimes", "LayerTimes", "measure_times"]

_POINTS = 8
"""Ranks of each shape that are timed; times of the others are interpolated."""

_ROUNDS = 7


@dataclass(frozen=True)
class LayerTimes:
    """Time of one linear layer for one window.

    Attributes:
        dense: In nanoseconds.
        ranks: Ranks that were timed, ascending.
        low_rank: In nanoseconds, of each, never falling.

    Example:
        >>> times = LayerTimes(dense=100, ranks=(8, 16), low_rank=(40, 60))
        >>> times.at(None), times.at(12), times.at(32)
        (100, 50, 100)
    """

    dense: int
    ranks: tuple[int, ...]
    low_rank: tuple[int, ...]

    def at(self, rank: int | None) -> int:
        """Time in nanoseconds at a rank, or of the dense layer; linear between and beyond."""
        if rank is None:
            return self.dense
        if len(self.ranks) == 1:
            return self.low_rank[0]
        above = next((i for i, one in enumerate(self.ranks) if one >= rank), len(self.ranks) - 1)
        right = max(above, 1)
        (x0, x1), (y0, y1) = self.ranks[right - 1 : right + 1], self.low_rank[right - 1 : right + 1]
        return round(y0 + (y1 - y0) * (rank - x0) / (x1 - x0))


@dataclass(frozen=True)
class EncoderTimes:
    """Times of an encoder for one window.

    Attributes:
        encoder: The whole of it, dense, in nanoseconds.
        layers: Full name of a layer → its times.
    """

    encoder: int
    layers: Mapping[str, LayerTimes]


@torch.inference_mode()
def measure_times(
    encoder: nn.Module,
    shapes: Mapping[str, LinearShape],
    ranks: Callable[[LinearShape], Sequence[int]],
    features_BMF: torch.Tensor,
) -> EncoderTimes:
    """Time an encoder and its layers, each layer against itself at several ranks, in turn.

    Args:
        encoder: Dense; its device and type are those of the measurement.
        shapes: Of its layers, by full name. Layers of one shape are timed once.
        ranks: Ranks that a layer of some shape may get, ascending.
        features_BMF: Log-mel features of one window, (1, mel bins, 3000).
    """
    weight = next(encoder.parameters())
    frames = features_BMF.shape[-1] // 2
    by_shape = {
        shape: _layer_times(shape, _some(ranks(shape)), frames, weight)
        for shape in set(shapes.values())
    }
    inputs = features_BMF.to(weight)
    (whole,) = _times([lambda: encoder(inputs)])
    return EncoderTimes(whole, {name: by_shape[shape] for name, shape in shapes.items()})


def _layer_times(
    shape: LinearShape, ranks: Sequence[int], frames: int, like: torch.Tensor
) -> LayerTimes:
    place: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    widths = (shape.in_features, shape.out_features)
    layers: list[nn.Module] = [nn.Linear(*widths, bias=shape.bias, **place)]
    low_rank_layer = PivotedLinear if shape.pivoted else LowRankLinear
    layers += [low_rank_layer(*widths, rank, **place) for rank in ranks]
    inputs = torch.randn(1, frames, shape.in_features).to(like)
    dense, *low_rank = _times([_call(layer, inputs) for layer in layers])
    # More rank is never less work; that it seems so is noise.
    rising = [max(low_rank[: index + 1]) for index in range(len(low_rank))]
    return LayerTimes(dense, tuple(ranks), tuple(rising))


def _call(layer: nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    return lambda: layer(inputs)


def _times(work: Iterable[Callable[[], object]]) -> list[int]:
    """Median nanoseconds of each, timed in turn after a round of warming up."""
    work = list(work)
    seconds: list[list[float]] = [[] for _ in work]
    for index in range(1 + _ROUNDS):
        for run, measured in zip(work, seconds, strict=True):
            watch = Stopwatch()
            with watch.running():
                run()
            if index:
                measured.append(watch.seconds)
    return [round(1e9 * statistics.median(measured)) for measured in seconds]


def _some(ranks: Sequence[int]) -> list[int]:
    """The first, the last, and some between."""
    count = min(_POINTS, len(ranks))
    return [ranks[round(i * (len(ranks) - 1) / max(count - 1, 1))] for i in range(count)]
