"""Which part of a plan belongs to which encoder block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import nn

from liteasr.compression import CompressionPlan
from liteasr.compression.heads import PROJECTIONS
from liteasr.module import WhisperModule

__all__ = ["Block", "by_block", "check_attention", "name_of", "part_of"]

Block: TypeAlias = tuple[str, nn.Module | None, list[str]]
"""Prefix of names, module, and names of the compressed layers of an encoder block."""


def name_of(model: nn.Module, part: nn.Module) -> str:
    """Full name of a module within a model.

    Raises:
        ValueError: If it is no part of it.
    """
    for name, module in model.named_modules():
        if module is part:
            return str(name)
    raise ValueError(f"{type(part).__name__} is no part of the model")


def by_block(pl_module: WhisperModule, ranks: Mapping[str, int]) -> list[Block]:
    """Name prefix, module and compressed layers of each encoder block, in order.

    Compressed layers outside of any block come first, with no module.
    """
    blocks: list[Block] = []
    for block in pl_module.encoder.layers:
        prefix = f"{name_of(pl_module.model, block)}."
        blocks.append((prefix, block, [name for name in ranks if name.startswith(prefix)]))
    inside = {name for _, _, inside in blocks for name in inside}
    outside = [name for name in ranks if name not in inside]
    return [("", None, outside), *blocks] if outside else blocks


def check_attention(plan: CompressionPlan) -> None:
    """Projections of reduced heads get their values as layers of the plan, so all must be there.

    Raises:
        ValueError: If one is not.
    """
    for attention in plan.head_dims:
        for last in PROJECTIONS:
            if f"{attention}.{last}" not in plan.ranks:
                raise ValueError(
                    f"the plan reduces the heads of {attention}, and so {last} needs a rank: the "
                    "full one leaves it dense"
                )


def part_of(plan: CompressionPlan, names: Sequence[str]) -> CompressionPlan:
    """The plan for some layers and the self-attentions they belong to, with two factors each."""
    parents = {name.rpartition(".")[0] for name in names}
    return CompressionPlan(
        {name: plan.layers[name] for name in names},
        attention={name: one for name, one in plan.attention.items() if name in parents},
    )
