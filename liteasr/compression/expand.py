"""Reduced heads as heads of full width, for formats that know no others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperAttention

from liteasr.compression.factorize import LowRankFactors
from liteasr.compression.heads import PROJECTIONS, padded
from liteasr.compression.shapes import LinearShape
from liteasr.compression.surgery import install_factors
from liteasr.modeling import LowRankLinear, ReducedAttention

__all__ = ["expand_heads"]


@torch.no_grad()
def expand_heads(model: nn.Module) -> None:
    """Make every :class:`ReducedAttention` one of Hugging Face's Whisper, of the same function.

    Heads are filled up with zeros. A projection gets two factors where that is smaller than a dense
    weight, so the model has more parameters than before.

    Args:
        model: Whisper.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, ReducedAttention):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _expanded(module, model))


def _expanded(reduced: ReducedAttention, model: nn.Module) -> WhisperAttention:
    config: Any = model.config
    like = next(reduced.parameters())
    with like.device:
        attention: Any = WhisperAttention(
            reduced.embed_dim, reduced.num_heads, dropout=reduced.dropout, config=config
        )
    attention.to(like.dtype).train(reduced.training)
    for name in PROJECTIONS:
        layer = getattr(reduced, name)
        factors = padded(_factors_of(layer), name, reduced.num_heads, reduced.head_dim)
        setattr(attention, name, _filled(getattr(attention, name), factors))
        wanted = any(one.requires_grad for one in layer.parameters())
        getattr(attention, name).requires_grad_(wanted)
    expanded: WhisperAttention = attention
    return expanded


def _filled(dense: nn.Linear, factors: LowRankFactors) -> nn.Module:
    """A layer of these factors in place of a dense one."""
    widths, rank = (dense.in_features, dense.out_features), factors.weight1.shape[1]
    if LinearShape(*widths).saves(rank):
        layer = LowRankLinear(*widths, rank, dense.weight.device, dense.weight.dtype)
        install_factors(layer, factors)
        return layer
    dense.weight.copy_((factors.weight1.double() @ factors.weight2.double()).T)
    # Without a bias are the keys, whose bias adds the same to all scores of a query.
    if dense.bias is not None:
        dense.bias.copy_(factors.bias)
    return dense


def _factors_of(layer: nn.Module) -> LowRankFactors:
    one: Any = layer
    if _is_low_rank(layer):
        return LowRankFactors(one.weight1, one.weight2, one.bias)
    weight_OI: Tensor = one.weight
    bias_O = weight_OI.new_zeros(len(weight_OI)) if one.bias is None else one.bias
    identity = torch.eye(min(weight_OI.shape)).to(weight_OI)
    if weight_OI.shape[0] <= weight_OI.shape[1]:
        return LowRankFactors(weight_OI.T, identity, bias_O)
    return LowRankFactors(identity, weight_OI.T, bias_O)


def _is_low_rank(layer: nn.Module) -> bool:
    return isinstance(layer, LowRankLinear)
