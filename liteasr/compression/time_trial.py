"""Times of whole encoders, compressed about as far as a budget by time may ask."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from liteasr.compression.heads import PROJECTIONS
from liteasr.compression.layer_times import (
    EncoderTimes,
    LayerTimes,
    dims_of,
    times_in_turn,
    widths_of,
)
from liteasr.compression.plan import AttentionPlan, CompressionPlan, LayerPlan
from liteasr.compression.shapes import LinearShape
from liteasr.compression.surgery import apply_plan, encoder_frames, unframe_convolution
from liteasr.modeling import use_fast_inference

__all__ = ["with_trials"]

_SHARES = 0.5, 0.75
"""Of the time of each layer, of the two encoders that are tried."""


@torch.no_grad()
def with_trials(
    times: EncoderTimes,
    encoder: nn.Module,
    shapes: Mapping[str, LinearShape],
    attentions: Sequence[str],
    features_BMF: Tensor,
) -> EncoderTimes:
    """Add the times of two compressed encoders, and time the dense one beside them.

    All run as a compressed encoder does: what is gained by that is not counted. Not in inference
    mode, whose tensors keep no weights put together.

    Args:
        times: Of the encoder's layers and heads.
        encoder: Dense; it is not changed. The compressed ones take its device and type.
        shapes: Of its layers, by full name.
        attentions: Full names of self-attentions whose heads may be reduced.
        features_BMF: Log-mel features of one window, (1, mel bins, 3000).
    """
    dense = nn.ModuleDict({"encoder": copy.deepcopy(encoder)})
    unframe_convolution(dense)
    frames, pieces, encoders = encoder_frames(encoder), [], [dense["encoder"].eval()]
    for share in _SHARES:
        plan, cost = _plan_of(share, times, encoder, shapes, attentions)
        holder = nn.ModuleDict({"encoder": copy.deepcopy(encoder)})
        apply_plan(holder, plan)
        pieces.append(cost)
        encoders.append(holder["encoder"].eval())
    for one in encoders:
        use_fast_inference(one, frames)
    inputs = features_BMF.to(next(encoder.parameters()))
    whole, *wholes = times_in_turn([_run(one, inputs) for one in encoders])
    config: Any = encoder.config
    full = int(config.d_model) // int(config.encoder_attention_heads)
    cost = sum(times.layers[name].dense for name in shapes)
    cost += len(attentions) * (times.heads[dims_of(full, full)] if attentions else 0)
    tried = tuple(zip(pieces, wholes, strict=True))
    return replace(times, encoder=whole, pieces=cost, tried=tried)


def _run(encoder: nn.Module, inputs: Tensor) -> Any:
    return lambda: encoder(inputs)


def _plan_of(
    share: float,
    times: EncoderTimes,
    encoder: Any,
    shapes: Mapping[str, LinearShape],
    attentions: Sequence[str],
) -> tuple[CompressionPlan, int]:
    """Every layer at the rank that takes this share of its time, and what all take, one by one."""
    width = int(encoder.config.d_model)
    count = int(encoder.config.encoder_attention_heads)
    full = width // count
    layers: dict[str, LayerPlan] = {}
    attention: dict[str, AttentionPlan] = {}
    cost, of_layers = 0, dict(times.layers)
    used = dict(shapes)
    for name in attentions:
        qk_dim = _dims_within(share, times, full)
        cost += times.heads[dims_of(qk_dim, full)]
        if qk_dim == full:
            continue
        attention[_within(name)] = AttentionPlan(width, count, qk_dim, full, 0, 0)
        for last in PROJECTIONS[:2]:
            shape = LinearShape(width, count * qk_dim, bias=True, pivoted=True)
            used[f"{name}.{last}"] = shape
            of_layers[f"{name}.{last}"] = times.reduced[widths_of(shape)]
    for name, shape in used.items():
        rank = _rank_within(share, of_layers[name])
        cost += of_layers[name].at(rank)
        layers[_within(name)] = LayerPlan(shape.in_features, shape.out_features, rank, 1.0, 0, 0)
    pivoted = any(shape.pivoted for shape in used.values())
    return CompressionPlan(layers, attention=attention, pivoted=pivoted), cost


def _within(name: str) -> str:
    return f"encoder.{name.rpartition('encoder.')[2]}"


def _rank_within(share: float, times: LayerTimes) -> int | None:
    """Dense where no rank is smaller."""
    fast = [
        rank
        for rank, time in zip(times.ranks, times.low_rank, strict=True)
        if time <= share * times.dense
    ]
    return max(fast, default=min(times.ranks, default=None))


def _dims_within(share: float, times: EncoderTimes, full: int) -> int:
    """Dimensions for queries and keys, with values as in the dense encoder."""
    by_dim = {
        int(key.split("/")[0]): ns for key, ns in times.heads.items() if key.endswith(f"/{full}")
    }
    fast = [dim for dim, ns in by_dim.items() if ns <= share * by_dim[full]]
    return max(fast, default=min(by_dim))
