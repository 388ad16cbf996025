"""What a choice of ranks does to the encoder's output, tried on a copy.

Shape suffixes: T encoder frames, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from liteasr.compression.factorize import LowRankFactors
from liteasr.compression.windows import Windows

__all__ = ["output_error"]


@torch.no_grad()
def output_error(
    encoder: nn.Module,
    factors: Mapping[nn.Linear, LowRankFactors],
    windows: Windows,
    limit: int,
) -> float:
    """``Σ‖z − ẑ‖² / Σ‖z − z̄‖²`` of the encoder's output over the frames that hold audio.

    Args:
        encoder: The dense encoder; it is not changed.
        factors: Low-rank factors by the layer of ``encoder`` that they stand for.
        windows: Windows to run, the first of them.
        limit: How many.
    """
    copied = copy.deepcopy(encoder)
    for ours, theirs in zip(encoder.modules(), copied.modules(), strict=True):
        if isinstance(ours, nn.Linear) and ours in factors:
            assert isinstance(theirs, nn.Linear)
            one = factors[ours]
            theirs.weight.data = (one.weight1 @ one.weight2).T.to(theirs.weight)
            theirs.bias = nn.Parameter(one.bias.to(theirs.weight))
    device, dtype = next(encoder.parameters()).device, next(encoder.parameters()).dtype
    error = torch.zeros((), dtype=torch.float64)
    outputs = []
    for features_MF, frames in zip(
        windows.features_NMF[:limit], windows.frames_N[:limit].tolist(), strict=True
    ):
        features = features_MF[None].to(device, dtype)
        z_TD = encoder(features)[0][0, :frames].double().cpu()
        error += (z_TD - copied(features)[0][0, :frames].double().cpu()).square().sum()
        outputs.append(z_TD)
    z_TD = torch.cat(outputs)
    return float(error / (z_TD - z_TD.mean(dim=0)).square().sum())
