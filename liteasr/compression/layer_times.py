"""How long an encoder and its linear layers take, dense and at every rank, on this machine.

Arithmetic that is saved is not time that is saved: at small ranks, widths and batches memory and
calls count as much. What a budget by time spends is therefore measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from liteasr.compression.shapes import LinearShape
from liteasr.modeling import LowRankLinear, PivotedLinear
from liteasr.modeling.attention import attend
from liteasr.modeling.linear import run
from liteasr.speed import Stopwatch

__all__ = ["EncoderTimes", "LayerTimes", "dims_of", "measure_times", "times_in_turn", "widths_of"]

_POINTS = 8
"""Ranks of each shape that are timed; times of the others are interpolated."""

_ROUNDS = 7

_SLOPES = 0.5, 2.0
"""Least and most time of an encoder for a nanosecond of its pieces; what is beyond is noise."""


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
        layers: Full name of a layer → its times.
        reduced: Widths of a projection of reduced heads, as :func:`widths_of` → its times.
        heads: Dimensions of a head, as :func:`dims_of` → nanoseconds of the products of one
            self-attention.
        encoder: The whole of it, dense, in nanoseconds; 0 until it is timed.
        pieces: What its layers and heads take, one by one.
        tried: Of two compressed encoders, the smaller first: what their layers and heads take by
            the times here, one by one, and what the whole of it takes. Together they take less,
            or more: attention and the MLP run in tiles, for instance.

    Example:
        >>> times = EncoderTimes({}, encoder=100, pieces=100, tried=((40, 50), (60, 80)))
        >>> times.pieces_within(65), times.pieces_within(90), times.whole_of(60)
        (50, 80, 80)
    """

    layers: Mapping[str, LayerTimes]
    reduced: Mapping[str, LayerTimes] = field(default_factory=dict)
    heads: Mapping[str, int] = field(default_factory=dict)
    encoder: int = 0
    pieces: int = 0
    tried: Sequence[tuple[int, int]] = ()

    def pieces_within(self, whole: float) -> int:
        """What layers and heads may take, one by one, in an encoder that takes ``whole``.

        Args:
            whole: Nanoseconds for one window, less than the dense encoder takes.
        """
        pieces, middle, slope = self._line()
        larger = max(time for _, time in self.tried)
        within = pieces + (min(whole, larger) - middle) / slope
        if whole > larger:
            share = (whole - larger) / (self.encoder - larger)
            within += share * (self.pieces - within)
        return round(min(within, self.pieces))

    def whole_of(self, pieces: float) -> int:
        """What an encoder takes whose layers and heads take ``pieces``, one by one.

        Args:
            pieces: Nanoseconds for one window.
        """
        between, middle, slope = self._line()
        return round(middle + (pieces - between) * slope)

    def _line(self) -> tuple[float, float, float]:
        """Pieces and whole between the two encoders, and the slope."""
        (pieces0, whole0), (pieces1, whole1) = self.tried
        slope = (whole1 - whole0) / max(1, pieces1 - pieces0)
        slope = min(max(slope, _SLOPES[0]), _SLOPES[1])
        return (pieces0 + pieces1) / 2, (whole0 + whole1) / 2, slope

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EncoderTimes:
        """Inverse of :meth:`to_dict`."""
        layers, reduced = (
            {name: LayerTimes(**one) for name, one in content[kind].items()}
            for kind in ("layers", "reduced")
        )
        tried = tuple((pieces, whole) for pieces, whole in content["tried"])
        return cls(
            layers,
            reduced,
            dict(content["heads"]),
            content["encoder"],
            content["pieces"],
            tried,
        )


def dims_of(qk_dim: int, v_dim: int) -> str:
    """Dimensions of a head for queries and keys, and for values, as a key.

    >>> dims_of(32, 64)
    '32/64'
    """
    return f"{qk_dim}/{v_dim}"


def widths_of(shape: LinearShape) -> str:
    """A shape's widths as a key.

    >>> widths_of(LinearShape(384, 192))
    '384x192'
    """
    return f"{shape.in_features}x{shape.out_features}"


@torch.no_grad()
def measure_times(
    encoder: nn.Module,
    shapes: Mapping[str, LinearShape],
    ranks: Callable[[LinearShape], Sequence[int]],
    frames: int,
    reduced: Collection[LinearShape] = (),
    head_dims: Sequence[tuple[int, int]] = (),
) -> EncoderTimes:
    """Time an encoder's layers, each against itself at several ranks, in turn, and its heads.

    Args:
        encoder: Dense; its device and type are those of the measurement.
        shapes: Of its layers, by full name. Layers of one shape are timed once.
        ranks: Ranks that a layer of some shape may get, ascending.
        frames: T of a window.
        reduced: Shapes of projections that reduced heads would have.
        head_dims: Dimensions of heads whose attention is timed: queries and keys, values.
    """
    weight = next(encoder.parameters())
    by_shape = {
        shape: _layer_times(shape, _some(ranks(shape)), frames, weight)
        for shape in dict.fromkeys([*shapes.values(), *reduced])
    }
    return EncoderTimes(
        {name: by_shape[shape] for name, shape in shapes.items()},
        {widths_of(shape): by_shape[shape] for shape in reduced},
        _head_times(encoder, head_dims, frames, weight),
    )


def _head_times(
    encoder: nn.Module, dims: Sequence[tuple[int, int]], frames: int, like: torch.Tensor
) -> dict[str, int]:
    """Time of the products of one self-attention, with heads of each number of dimensions."""
    config: Any = encoder.config
    heads = int(config.encoder_attention_heads)
    widest = max((max(one) for one in dims), default=0)
    q_BHTE, k_BHTE, v_BHTE = torch.randn(3, 1, heads, frames, widest).to(like)

    def attention(qk_dim: int, v_dim: int) -> Callable[[], object]:
        q_BHTR, k_BHTR = (one[..., :qk_dim].contiguous() for one in (q_BHTE, k_BHTE))
        v_BHTV = v_BHTE[..., :v_dim].contiguous()
        return lambda: attend(q_BHTR, k_BHTR, v_BHTV, scale=1.0)

    times = times_in_turn(attention(*one) for one in dims)
    return {dims_of(*one): time for one, time in zip(dims, times, strict=True)}


def _layer_times(
    shape: LinearShape, ranks: Sequence[int], frames: int, like: torch.Tensor
) -> LayerTimes:
    place: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    widths = (shape.in_features, shape.out_features)
    layers: list[nn.Module] = [nn.Linear(*widths, bias=shape.bias, **place)]
    low_rank_layer = PivotedLinear if shape.pivoted else LowRankLinear
    layers += [low_rank_layer(*widths, rank, **place) for rank in ranks]
    for layer in layers:
        layer.eval()
        if isinstance(layer, PivotedLinear):
            layer.keep_weights()
    inputs = torch.randn(1, frames, shape.in_features).to(like)
    dense, *low_rank = times_in_turn([_call(layer, inputs) for layer in layers])
    # More rank is never less work; that it seems so is noise.
    rising = [max(low_rank[: index + 1]) for index in range(len(low_rank))]
    return LayerTimes(dense, tuple(ranks), tuple(rising))


def _call(layer: nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    return lambda: run(layer, inputs)


def times_in_turn(work: Iterable[Callable[[], object]]) -> list[int]:
    """Median nanoseconds of each, timed in turn after a round of warming up.

    Args:
        work: What to time.
    """
    work = list(work)
    seconds: list[list[float]] = [[] for _ in work]
    for index in range(1 + _ROUNDS):
        for one, measured in zip(work, seconds, strict=True):
            watch = Stopwatch()
            with watch.running():
                one()
            if index:
                measured.append(watch.seconds)
    return [round(1e9 * statistics.median(measured)) for measured in seconds]


def _some(ranks: Sequence[int]) -> list[int]:
    """The first, the last, and some between."""
    count = min(_POINTS, len(ranks))
    return [ranks[round(i * (len(ranks) - 1) / max(count - 1, 1))] for i in range(count)]
