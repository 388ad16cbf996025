"""The one place that replaces modules of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from liteasr.compression.attention_factors import AttentionFactors, AttentionWeights
from liteasr.compression.factorize import LowRankFactors, PivotedFactors, pivot
from liteasr.compression.plan import CONVOLUTION, AttentionPlan, CompressionPlan
from liteasr.compression.shapes import LinearShape
from liteasr.modeling import (
    LINEAR_NAMES,
    FramedConvolution,
    LowRankLinear,
    PivotedLinear,
    RankSpaceAttention,
    ReducedAttention,
)

__all__ = [
    "ENCODER_LINEARS",
    "CONVOLUTION_LINEAR",
    "AnyFactors",
    "apply_plan",
    "attention_weights",
    "collect_head_dims",
    "collect_ranks",
    "frame_convolution",
    "unframe_convolution",
    "encoder_flops",
    "encoder_frames",
    "encoder_parameters",
    "find_linears",
    "install_attention_factors",
    "install_factors",
    "pivot_layers",
    "unpivot_layers",
]

AnyFactors: TypeAlias = LowRankFactors | PivotedFactors | AttentionFactors
"""New parameters of a linear layer or a self-attention."""

ENCODER_LINEARS = tuple(f"*encoder.layers.*{name}" for name in LINEAR_NAMES)
CONVOLUTION_LINEAR = f"*{CONVOLUTION}"


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
    factors: Mapping[str, AnyFactors] | None = None,
) -> None:
    """Replace what ``plan`` names by smaller layers; a plan that leaves all dense does nothing.

    Idempotent: a layer that already has its size is kept (and takes the new factors, if any); a
    low-rank layer becomes a pivoted one of the same function where the plan wants that.
    Device, type and training mode are those of the layer that goes. Attention comes first: a
    projection of reduced heads may get a low rank besides.

    Args:
        model: Model that the names of the plan belong to.
        plan: Names, ranks and dimensions of heads.
        factors: Values for the new layers; those without are left randomly initialised, to be
            filled from a checkpoint.

    Raises:
        ValueError: If a name is absent, or is neither a dense layer nor a compressed one of that
            size, or its factors are of another kind.
    """
    for name in plan.head_dims:
        reduced = _as_reduced(model, name, plan.attention[name])
        values = None if factors is None else factors.get(name)
        if isinstance(values, LowRankFactors | PivotedFactors):
            raise ValueError(f"{name} is a self-attention, its factors are those of a linear layer")
        if values is not None:
            install_attention_factors(reduced, values)
    if any(name.endswith(CONVOLUTION) for name in plan.ranks):
        frame_convolution(model)
    for name, rank in plan.ranks.items():
        layer = plan.layers[name]
        shape = (layer.in_features, layer.out_features, rank)
        low_rank, before = _as_low_rank(model, name, shape, pivoted=plan.pivoted)
        values = None if factors is None else factors.get(name)
        if isinstance(values, AttentionFactors):
            raise ValueError(f"{name} is a linear layer, its factors are those of an attention")
        if values is None and before is not None:
            values = _factors_of(before)
        if values is not None:
            install_factors(low_rank, values)


def _named(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the plan names {name}, which the model does not have") from error


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _as_reduced(model: nn.Module, name: str, plan: AttentionPlan) -> ReducedAttention:
    module: Any = _named(model, name)
    shape = (plan.embed_dim, plan.num_heads)
    dims = (plan.qk_dim, plan.v_dim)
    if isinstance(module, ReducedAttention):
        present = (module.embed_dim, module.num_heads, module.qk_dim, module.v_dim)
        if present != shape + dims:
            raise ValueError(f"{name} is reduced with {present}, the plan wants {shape + dims}")
        return module
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    is_dense = all(isinstance(getattr(module, one, None), nn.Linear) for one in names)
    if not is_dense or (module.embed_dim, module.num_heads) != shape:
        raise ValueError(
            f"{name} is {module}, the plan wants a self-attention of dense projections with "
            f"width {shape[0]} and {shape[1]} heads"
        )
    weight = module.q_proj.weight
    assert plan.qk_dim is not None
    assert plan.v_dim is not None
    reduced = ReducedAttention(
        *shape,
        plan.qk_dim,
        plan.v_dim,
        dropout=module.dropout,
        device=weight.device,
        dtype=weight.dtype,
    )
    reduced.train(module.training).requires_grad_(weight.requires_grad)
    _replace(model, name, reduced)
    return reduced


def _as_low_rank(
    model: nn.Module, name: str, shape: tuple[int, int, int], *, pivoted: bool
) -> tuple[LowRankLinear, LowRankLinear | None]:
    """The layer of that shape, and what stood in its place if it was a low-rank one of two factors.

    What it computed is not in the new layer yet.
    """
    module = _named(model, name)
    before = module if isinstance(module, LowRankLinear) else None
    if before is not None:
        present = (before.in_features, before.out_features, before.rank)
        is_pivoted = isinstance(before, PivotedLinear)
        if present != shape or (is_pivoted and not pivoted):
            raise ValueError(
                f"{name} is low-rank with {present}{', pivoted' * is_pivoted}, "
                f"the plan wants {shape}"
            )
        if is_pivoted == pivoted:
            return before, None
    elif not isinstance(module, nn.Linear) or (
        (module.in_features, module.out_features) != shape[:2]
    ):
        raise ValueError(f"{name} is {module}, the plan wants a linear layer of {shape[:2]}")
    like = next(module.parameters())
    new = (PivotedLinear if pivoted else LowRankLinear)(*shape, like.device, like.dtype)
    new.train(module.training).requires_grad_(like.requires_grad)
    _replace(model, name, new)
    return new, before


@torch.no_grad()
def install_factors(layer: LowRankLinear, factors: LowRankFactors | PivotedFactors) -> None:
    """Copy factors into a layer, cast to its type and device.

    Args:
        layer: The layer.
        factors: Two factors, which are pivoted for a pivoted layer, or pivoted ones for such a
            layer.

    Raises:
        ValueError: If the cast overflows or the shapes differ.
    """
    if not isinstance(layer, PivotedLinear):
        if isinstance(factors, PivotedFactors):
            raise ValueError(f"{layer} has two factors, those given are pivoted")
        _copy(layer.weight1, factors.weight1)
        _copy(layer.weight2, factors.weight2)
    else:
        factors = factors if isinstance(factors, PivotedFactors) else pivot(factors)
        _copy(layer.skeleton, factors.skeleton)
        for name in ("interpolation", "order"):
            target, value = getattr(layer, name), getattr(factors, name)
            if (target is None) != (value is None):
                raise ValueError(f"{layer} and its factors are not of the same rank")
            if target is not None:
                _copy(target, value)
    _copy(layer.bias, factors.bias)


def _factors_of(layer: LowRankLinear) -> LowRankFactors:
    return LowRankFactors(layer.weight1.detach(), layer.weight2.detach(), layer.bias.detach())


def install_attention_factors(layer: ReducedAttention, factors: AttentionFactors) -> None:
    """Copy factors into an attention with dense projections, cast to its type and device.

    Raises:
        ValueError: If the cast overflows or the shapes differ.
    """
    _copy(layer.q_proj.weight, factors.q_weight)
    _copy(layer.q_proj.bias, factors.q_bias)
    _copy(layer.k_proj.weight, factors.k_weight)
    _copy(layer.v_proj.weight, factors.v_weight)
    _copy(layer.out_proj.weight, factors.out_weight)
    _copy(layer.out_proj.bias, factors.out_bias)


@torch.no_grad()
def _copy(target: Tensor, value: Tensor) -> None:
    if target.shape != value.shape:
        raise ValueError(f"factors of {tuple(value.shape)} do not fit {tuple(target.shape)}")
    cast = value.to(target.dtype)
    if not bool(torch.isfinite(cast).all()):
        raise ValueError(f"factors are not finite in {target.dtype}")
    target.copy_(cast)


def attention_weights(attention: nn.Module) -> AttentionWeights:
    """Parameters of a dense self-attention of Hugging Face's Whisper, as they are factorized."""
    module: Any = attention
    return AttentionWeights(
        q_weight=module.q_proj.weight.detach(),
        q_bias=module.q_proj.bias.detach(),
        k_weight=module.k_proj.weight.detach(),
        v_weight=module.v_proj.weight.detach(),
        v_bias=module.v_proj.bias.detach(),
        out_weight=module.out_proj.weight.detach(),
        out_bias=module.out_proj.bias.detach(),
        heads=module.num_heads,
    )


def frame_convolution(model: nn.Module) -> None:
    """Make the second convolution of a Whisper encoder a linear layer of the same function.

    It is then called ``…encoder.conv2.linear``. Idempotent; :func:`unframe_convolution` undoes it.

    Args:
        model: Whisper.
    """
    for name, module in list(model.named_modules()):
        if name.endswith("encoder.conv2") and isinstance(module, nn.Conv1d):
            _replace(model, name, FramedConvolution(module))


@torch.no_grad()
def unframe_convolution(model: nn.Module, *, low_rank: bool = False) -> None:
    """Undo :func:`frame_convolution`.

    Args:
        model: Whisper.
        low_rank: Undo it also where the layer has a low rank; what it computes stays the same to
            rounding, in more parameters.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, FramedConvolution):
            continue
        linear: Any = module.linear
        if isinstance(linear, LowRankLinear):
            if not low_rank:
                continue
            product = (linear.weight1.double() @ linear.weight2.double()).T.to(linear.bias.dtype)
            dense = module.as_convolution(product, linear.bias)
        else:
            dense = module.as_convolution(linear.weight, linear.bias)
        wanted = any(parameter.requires_grad for parameter in module.parameters())
        _replace(model, name, dense.requires_grad_(wanted))


def pivot_layers(model: nn.Module) -> None:
    """Make every low-rank layer a pivoted one, which has fewer parameters and the same function."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRankLinear):
            shape = (module.in_features, module.out_features, module.rank)
            layer, before = _as_low_rank(model, name, shape, pivoted=True)
            if before is not None:
                install_factors(layer, _factors_of(before))


@torch.no_grad()
def unpivot_layers(model: nn.Module) -> None:
    """Give every pivoted layer its two factors back, or one dense weight where that is smaller.

    What the model computes is the same to rounding. A dense ``k_proj`` has no bias: that of the
    keys adds the same to all scores of a query. Nor has a dense ``v_proj`` of reduced heads: its
    bias goes through attention, whose weights sum to 1, into that of ``out_proj``.
    """
    for module in model.modules():
        values = module.v_proj if isinstance(module, ReducedAttention) else None
        if isinstance(values, PivotedLinear) and not _gets_factors(values):
            _pass_on_bias(values, module.out_proj)
    for name, module in list(model.named_modules()):
        if not isinstance(module, PivotedLinear):
            continue
        widths = (module.in_features, module.out_features)
        place: dict[str, Any] = {"device": module.bias.device, "dtype": module.bias.dtype}
        new: LowRankLinear | nn.Linear
        if _gets_factors(module):
            new = LowRankLinear(*widths, module.rank, **place)
            install_factors(new, _factors_of(module))
        else:
            parent = model.get_submodule(name.rpartition(".")[0])
            none = ("k_proj", "v_proj") if isinstance(parent, ReducedAttention) else ("k_proj",)
            new = nn.Linear(*widths, bias=not name.endswith(none), **place)
            _copy(new.weight, (module.weight1.double() @ module.weight2.double()).T)
            if new.bias is not None:
                _copy(new.bias, module.bias)
        new.train(module.training).requires_grad_(module.bias.requires_grad)
        _replace(model, name, new)


def _gets_factors(layer: PivotedLinear) -> bool:
    """Whether two factors are smaller than a dense weight."""
    return LinearShape(layer.in_features, layer.out_features).saves(layer.rank)


def _pass_on_bias(values: LowRankLinear, out: nn.Module) -> None:
    layer: Any = out
    weight_OI = layer.weight if isinstance(out, nn.Linear) else (layer.weight1 @ layer.weight2).T
    layer.bias += weight_OI @ values.bias
    values.bias.zero_()


def collect_ranks(model: nn.Module) -> dict[str, int]:
    """Full name → rank of every low-rank layer in the model."""
    return {
        name: module.rank
        for name, module in model.named_modules()
        if isinstance(module, LowRankLinear)
    }


def collect_head_dims(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Full name → dimensions of a head, for q and k and for v, of every reduced attention."""
    return {
        name: (module.qk_dim, module.v_dim)
        for name, module in model.named_modules()
        if isinstance(module, ReducedAttention)
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
    """Multiplications and additions of a Whisper encoder for one window, dense or compressed.

    Counted are the two convolutions, all linear layers, and the products of self-attention
    (scores and values, ``4 T² D`` a layer with dense heads, ``2 T² H (R + V)`` with heads of R and
    V dimensions; where attention computes between factors, what it does there); normalisations
    and activations are not.

    Example:
        >>> from transformers import WhisperConfig
        >>> from transformers.models.whisper.modeling_whisper import WhisperEncoder
        >>> with torch.device("meta"):
        ...     encoder = WhisperEncoder(WhisperConfig())  # the default is the shape of tiny
        >>> round(encoder_flops(encoder) / 1e9, 1)
        36.9
    """
    return _flops("", encoder, encoder_frames(encoder))


def _flops(name: str, module: nn.Module, frames: int) -> int:
    if isinstance(module, RankSpaceAttention):
        return module.ranks.flops(module.rank_space, frames)
    if isinstance(module, nn.Conv1d):
        return 2 * (2 * frames if name == "conv1" else frames) * module.weight.numel()
    if isinstance(module, nn.Linear):
        return 2 * frames * module.weight.numel()
    if isinstance(module, LowRankLinear):
        factors = sum(parameter.numel() for parameter in module.parameters())
        return 2 * frames * (factors - module.bias.numel())
    flops = sum(_flops(child, one, frames) for child, one in module.named_children())
    if isinstance(module, ReducedAttention):
        flops += 2 * frames * frames * module.num_heads * (module.qk_dim + module.v_dim)
    elif name == "self_attn":
        attention: Any = module
        flops += 4 * frames * frames * int(attention.embed_dim)
    return flops
