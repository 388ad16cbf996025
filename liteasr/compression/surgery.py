"""The one place that replaces modules of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from liteasr.compression.factorize import LowRankFactors
from liteasr.compression.plan import CompressionPlan
from liteasr.modeling import LINEAR_NAMES, LowRankLinear

__all__ = [
    "ENCODER_LINEARS",
    "apply_plan",
    "collect_ranks",
    "encoder_flops",
    "encoder_frames",
    "encoder_parameters",
    "find_linears",
    "install_factors",
]

ENCODER_LINEARS = tuple(f"*encoder.layers.*{name}" for name in LINEAR_NAMES)


def find_linears(
    model: nn.Module, patterns: Iterable[str] = ENCODER_LINEARS
) -> dict[str, nn.Linear]:
    """Linear layers whose full name matches one of the shell-style patterns, in model order.

    Args:
        model: Any module.
        patterns: Patterns of :mod:`fnmatch`.

    Raises:
        ValueError: If nothing matches; told apart are names that do not exist and names that
            belong to layers which are low-rank already.

    Example:
        >>> model = nn.ModuleDict({"fc1": nn.Linear(2, 3), "norm": nn.LayerNorm(3)})
        >>> list(find_linears(model, ["fc*"]))
        ['fc1']
    """
    patterns = list(patterns)
    matches = {
        name: module
        for name, module in model.named_modules()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    linears = {name: module for name, module in matches.items() if isinstance(module, nn.Linear)}
    if linears:
        return linears
    if any(isinstance(module, LowRankLinear) for module in matches.values()):
        raise ValueError(f"every layer that matches {patterns} is low-rank already")
    present = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    raise ValueError(
        f"no linear layer matches {patterns}; the model has {len(present)}, such as {present[:3]}"
    )


def apply_plan(
    model: nn.Module,
    plan: CompressionPlan,
    factors: Mapping[str, LowRankFactors] | None = None,
) -> None:
    """Replace the layers that ``plan`` names by low-rank ones; a plan with no ranks does nothing.

    Idempotent: a layer that already has its rank is kept (and takes the new factors, if any).
    Device, type and training mode are those of the layer that goes.

    Args:
        model: Model that the names of the plan belong to.
        plan: Names and ranks.
        factors: Values for the new layers; those without are left randomly initialised, to be
            filled from a checkpoint.

    Raises:
        ValueError: If a name is absent, or is neither a linear layer nor a low-rank layer of that
            rank and shape.
    """
    for name, rank in plan.ranks.items():
        layer = plan.layers[name]
        low_rank = _as_low_rank(model, name, (layer.in_features, layer.out_features, rank))
        if factors is not None and name in factors:
            install_factors(low_rank, factors[name])


def _as_low_rank(model: nn.Module, name: str, shape: tuple[int, int, int]) -> LowRankLinear:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the plan names {name}, which the model does not have") from error
    if isinstance(module, LowRankLinear):
        present = (module.in_features, module.out_features, module.rank)
        if present != shape:
            raise ValueError(f"{name} is low-rank with {present}, the plan wants {shape}")
        return module
    if not isinstance(module, nn.Linear) or (module.in_features, module.out_features) != shape[:2]:
        raise ValueError(f"{name} is {module}, the plan wants a linear layer of {shape[:2]}")
    weight = module.weight
    low_rank = LowRankLinear(*shape, device=weight.device, dtype=weight.dtype)
    low_rank.train(module.training).requires_grad_(weight.requires_grad)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, low_rank)
    return low_rank


@torch.no_grad()
def install_factors(layer: LowRankLinear, factors: LowRankFactors) -> None:
    """Copy factors into a layer, cast to its type and device.

    Raises:
        ValueError: If the cast overflows or the shapes differ.
    """
    for target, value in (
        (layer.weight1, factors.weight1),
        (layer.weight2, factors.weight2),
        (layer.bias, factors.bias),
    ):
        if target.shape != value.shape:
            raise ValueError(f"factors of {tuple(value.shape)} do not fit {tuple(target.shape)}")
        cast = value.to(target.dtype)
        if not bool(torch.isfinite(cast).all()):
            raise ValueError(f"factors are not finite in {target.dtype}")
        target.copy_(cast)


def collect_ranks(model: nn.Module) -> dict[str, int]:
    """Full name → rank of every low-rank layer in the model."""
    return {
        name: module.rank
        for name, module in model.named_modules()
        if isinstance(module, LowRankLinear)
    }


def encoder_parameters(encoder: nn.Module) -> int:
    """Parameters of a Whisper encoder without its positional embedding, as the publication counts.

    Example:
        >>> from transformers import WhisperConfig
        >>> from transformers.models.whisper.modeling_whisper import WhisperEncoder
        >>> with torch.device("meta"):
        ...     encoder = WhisperEncoder(WhisperConfig())  # the default is the shape of tiny
        >>> encoder_parameters(encoder)
        7632384
    """
    return sum(
        parameter.numel()
        for name, parameter in encoder.named_parameters()
        if not name.startswith("embed_positions.")
    )


def encoder_frames(encoder: nn.Module) -> int:
    """Frames T of the encoder's output for one window, 1500 for Whisper."""
    config: Any = encoder.config
    return int(config.max_source_positions)


def encoder_flops(encoder: nn.Module) -> int:
    """Multiplications and additions of a Whisper encoder for one window, dense or low-rank.

    Counted are the two convolutions, all linear layers, and the products of self-attention
    (scores and values, ``4 T² D`` a layer); normalisations and activations are not.

    Example:
        >>> from transformers import WhisperConfig
        >>> from transformers.models.whisper.modeling_whisper import WhisperEncoder
        >>> with torch.device("meta"):
        ...     encoder = WhisperEncoder(WhisperConfig())  # the default is the shape of tiny
        >>> round(encoder_flops(encoder) / 1e9, 1)
        36.9
    """
    config: Any = encoder.config
    frames, flops = encoder_frames(encoder), 0
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv1d):
            rows = 2 * frames if name.endswith("conv1") else frames
            flops += 2 * rows * module.weight.numel()
        elif isinstance(module, nn.Linear):
            flops += 2 * frames * module.weight.numel()
        elif isinstance(module, LowRankLinear):
            flops += 2 * frames * (module.weight1.numel() + module.weight2.numel())
        elif name.endswith(".self_attn"):
            flops += 4 * frames * frames * int(config.d_model)
    return flops
