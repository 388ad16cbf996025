"""Refinement: factors against what the dense encoder gives, a block's, and then all of them.

Shape suffixes: N windows, M mel bins, F mel frames, T encoder frames, D width of the encoder.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from liteasr.compression.blocks import BlockWalk, run_block
from liteasr.compression.factorize import LowRankFactors, Whitening
from liteasr.compression.hooks import frozen
from liteasr.compression.metric import balanced

__all__ = ["Refinement", "refine_block", "refine_encoder"]

log = logging.getLogger(__name__)

_WARMUP_STEPS = 5

_GRADIENT_SCALE = 2.0**10
"""Of the loss, to which Adam is indifferent: gradients of half precision must not vanish."""

_SAMPLE_WINDOWS = 16
"""Windows on which a block is looked at before and after, about."""


@dataclass(frozen=True)
class Refinement:
    """How factors are refined.

    Attributes:
        steps: Steps of Adam; 0 leaves the factors as they are.
        learning_rate: Peak of a cosine after a short warm-up, where the relative error is 1; what
            is nearly right wants smaller steps. For a block in the unit of the whitened factors.
        windows: Windows of 30 s a step, over all processes together.
        seed: Seed of the order of windows.

    Raises:
        ValueError: If a number is out of range.
    """

    steps: int = 60
    learning_rate: float = 1e-4
    windows: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.windows < 1 or not self.learning_rate > 0:
            raise ValueError(f"{self}: steps must be at least 0, the others above 0")


def refine_block(
    block: nn.Module,
    factors: Mapping[str, LowRankFactors],
    walk: BlockWalk,
    refinement: Refinement,
) -> dict[str, LowRankFactors]:
    """Fit a compressed block, fed by compressed blocks, to the output of the dense one.

    Minimises ``Σ w ‖y − ŷ‖²`` over the frames of all windows, ``w`` being that of the walk.
    Every process must call it; gradients are summed, so their number does not matter.

    Args:
        block: The compressed block.
        factors: Its factors with their whitening, by name within the block.
        walk: Where the encoder is, with :meth:`~BlockWalk.start_block` done for this block.
        refinement: Steps, and learning rate where the relative error of the output is 1; it is
            scaled with the root of that error.

    Returns:
        The refined factors; those given, if refinement did not lower the error of the windows that
        are looked at.
    """
    layers = {name: _on(walk, one.whitening) for name, one in factors.items() if one.whitening}
    parameters = {
        name: (nn.Parameter(one.a_DK.clone()), nn.Parameter(one.b_DK.clone()))
        for name, one in layers.items()
    }

    def error(window: int) -> Tensor:
        return _error(block, _overrides(layers, parameters, walk.dtype), walk, window)

    flat = [parameter for pair in parameters.values() for parameter in pair]
    with frozen(block):
        # Each entry of white factors costs about its square, so the rate goes with the root.
        before, after = _descend(flat, error, walk, refinement, math.sqrt)
    if not after < before:
        log.warning("refinement did not help a block (error %.3g → %.3g)", before, after)
        return dict(factors)
    with torch.no_grad():
        return {
            name: balanced(LowRankFactors(*layers[name].factors(*pair)))
            for name, pair in parameters.items()
        }


def refine_encoder(
    encoder: nn.Module,
    factors: Mapping[str, LowRankFactors],
    features_NMF: Tensor,
    walk: BlockWalk,
    refinement: Refinement,
) -> dict[str, LowRankFactors]:
    """Fit all factors of a compressed encoder together to the output of the dense one.

    Minimises what :func:`refine_block` does, at the encoder's output: a block need not be right
    where later ones do not look. Every process must call it.

    Args:
        encoder: The compressed encoder.
        factors: Its factors, by name within the encoder, with components of equal norm in both.
        features_NMF: Log-mel features of all windows of the walk.
        walk: The walk after :meth:`~BlockWalk.finish_encoder`.
        refinement: Steps, and learning rate where the relative error of the output is 1; it is
            scaled with that error.

    Returns:
        The refined factors; those given, if the error of the windows that are looked at did not
        fall.
    """
    parameters = {
        f"{name}.{part}": nn.Parameter(
            getattr(one, part).detach().to(walk.device, torch.float32, copy=True)
        )
        for name, one in factors.items()
        for part in ("weight1", "weight2", "bias")
    }

    def error(window: int) -> Tensor:
        overrides = {name: one.to(walk.dtype) for name, one in parameters.items()}
        features = features_NMF[window : window + 1].to(walk.device, walk.dtype)
        output = functional_call(encoder, overrides, (features,))
        return _distance(output[0], walk, walk.mine.index(window))

    with frozen(encoder):
        before, after = _descend(list(parameters.values()), error, walk, refinement, float)
    if not after < before:
        log.warning("refinement did not help the encoder (error %.3g → %.3g)", before, after)
        return dict(factors)
    moved = {name: parameter.detach() for name, parameter in parameters.items()}
    return {
        name: LowRankFactors(
            moved[f"{name}.weight1"], moved[f"{name}.weight2"], moved[f"{name}.bias"]
        )
        for name in factors
    }


def _descend(
    parameters: list[nn.Parameter],
    error: Callable[[int], Tensor],
    walk: BlockWalk,
    refinement: Refinement,
    scale_of: Callable[[float], float],
) -> tuple[float, float]:
    """Steps of Adam; the errors before and after, which are the same where none can be taken.

    Args:
        parameters: What moves.
        error: Weighted squared error of a window of this process.
        walk: Windows, their weights, and the variance of the target.
        refinement: Steps and learning rate.
        scale_of: What the learning rate is multiplied with, from the relative error.
    """
    variance = walk.target_variance()
    before = _error_on_sample(error, walk)
    relative = before / (float(walk.weight_NT[_sample(walk)].sum()) * variance)
    if not (math.isfinite(relative) and relative > 0):
        return before, before
    rate = refinement.learning_rate * scale_of(relative)
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, refinement.steps))
    for windows in _batches(len(walk.weight_NT), refinement):
        optimizer.zero_grad()
        scale = _GRADIENT_SCALE / (float(walk.weight_NT[windows].sum()) * variance)
        # One window at a time: the activations are the largest tensors.
        for window in windows:
            if window in walk.mine:
                with torch.enable_grad():
                    torch.autograd.backward(error(window) * scale)
        _sum_gradients(parameters, walk)
        optimizer.step()
        schedule.step()
    return before, _error_on_sample(error, walk)


def _sample(walk: BlockWalk) -> range:
    count = len(walk.weight_NT)
    return range(0, count, max(1, count // _SAMPLE_WINDOWS))


def _error_on_sample(error: Callable[[int], Tensor], walk: BlockWalk) -> float:
    """Weighted squared error over some of the windows of all processes."""
    total = torch.zeros((), dtype=torch.float64)
    for window in _sample(walk):
        if window in walk.mine:
            with torch.no_grad():
                total += error(window).double().cpu()
    return float(walk.processes.reduce_sum(total))


def _on(walk: BlockWalk, whitening: Whitening) -> Whitening:
    return whitening.to(walk.device, torch.float32)


def _rate(steps: int, step: int) -> float:
    warmup = min(1.0, (step + 1) / _WARMUP_STEPS)
    return warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


def _batches(count: int, refinement: Refinement) -> list[list[int]]:
    """Windows of each step, the same on every process."""
    generator = torch.Generator().manual_seed(refinement.seed)
    order: list[int] = []
    size = min(refinement.windows, count)
    while len(order) < refinement.steps * size:
        order += torch.randperm(count, generator=generator).tolist()
    return [order[step * size : (step + 1) * size] for step in range(refinement.steps)]


def _overrides(
    layers: Mapping[str, Whitening],
    parameters: Mapping[str, tuple[Tensor, Tensor]],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    overrides = {}
    for name, whitening in layers.items():
        values = whitening.factors(*parameters[name])
        for part, value in zip(("weight1", "weight2", "bias"), values, strict=True):
            overrides[f"{name}.{part}"] = value.to(dtype)
    return overrides


def _error(block: nn.Module, overrides: dict[str, Tensor], walk: BlockWalk, window: int) -> Tensor:
    def call(states_NTD: Tensor, mask: None) -> Tensor:
        output: Tensor = functional_call(block, overrides, (states_NTD, mask))
        return output

    row = walk.mine.index(window)
    return _distance(run_block(call, walk.batch(walk.compressed_NTD, [row])), walk, row)


def _distance(output_NTD: Tensor, walk: BlockWalk, row: int) -> Tensor:
    """Weighted squared error of one window's output, (1, T, D)."""
    target_TD = walk.target_NTD[row].to(walk.device)
    weight_T = walk.weight_NT[walk.mine[row]].to(walk.device)
    error: Tensor = ((output_NTD[0].float() - target_TD).square().sum(-1) * weight_T).sum()
    return error


def _sum_gradients(parameters: list[nn.Parameter], walk: BlockWalk) -> None:
    if walk.processes.world_size == 1:
        return
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = walk.processes.reduce_sum(gradient)
