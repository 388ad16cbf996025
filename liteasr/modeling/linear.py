"""Linear layers of low rank.

Shape suffixes: B batch, T frames, N some of them, I input width, O output width, K rank, D the
narrower of I and O.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .products import affine, by_onednn

__all__ = ["LowRankLinear", "PivotedLinear", "ready", "run"]

_SELECTION = {torch.bfloat16: 300}
"""Multiplications that a CPU does in the time in which it selects one number of an activation."""
_SELECTION_OTHERWISE, _SELECTION_ONEDNN = 40, 90


class LowRankLinear(nn.Module):
    """``y = (x @ weight1) @ weight2 + bias``, a linear layer of rank K.

    Stands in for :class:`torch.nn.Linear` and takes and returns the same shapes. Parameter names
    and layouts are those of the published lite-whisper checkpoints (arXiv 2502.20583, section 3):
    ``weight1`` (I, K), ``weight2`` (K, O), ``bias`` (O,).

    Args:
        in_features: Input width I.
        out_features: Output width O.
        rank: Inner width K, at least 1.
        device: Where the parameters live.
        dtype: Type of the parameters.

    Raises:
        ValueError: If ``rank`` is not positive.

    Example:
        >>> layer = LowRankLinear(in_features=6, out_features=4, rank=2)
        >>> layer(torch.zeros(3, 5, 6)).shape
        torch.Size([3, 5, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self._make_factors(device, dtype)
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def _make_factors(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight1 = nn.Parameter(torch.empty(self.in_features, self.rank, **place))
        self.weight2 = nn.Parameter(torch.empty(self.rank, self.out_features, **place))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw factors that keep the variance of a unit-variance input."""
        nn.init.normal_(self.weight1, std=self.in_features**-0.5)
        nn.init.normal_(self.weight2, std=self.rank**-0.5)
        nn.init.zeros_(self.bias)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        x_TI = x_BTI.reshape(-1, self.in_features)
        y_TO = affine(affine(x_TI, self.weight1), self.weight2, self.bias)
        return y_TO.view(*x_BTI.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Widths and rank, for ``print(model)``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class _Kept(NamedTuple):
    """Weights put together, and what of.

    The parts themselves are kept too: of one that is gone another could have the address.
    """

    way: str
    parts: tuple[Tensor, ...]
    marks: tuple[tuple[int, int], ...]
    weights: tuple[Tensor, ...]

    @classmethod
    def of(cls, way: str, parts: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> _Kept:
        return cls(way, parts, cls._marks(parts), weights)

    def is_of(self, way: str, parts: tuple[Tensor, ...]) -> bool:
        same = len(parts) == len(self.parts) and all(map(operator.is_, parts, self.parts))
        return same and way == self.way and self._marks(parts) == self.marks

    @staticmethod
    def _marks(parts: tuple[Tensor, ...]) -> tuple[tuple[int, int], ...]:
        return tuple((one.data_ptr(), one._version) for one in parts)


class PivotedLinear(LowRankLinear):
    """A linear layer of rank K in ``K (I + O - K)`` numbers instead of ``K (I + O)``.

    Of the factors of a product any invertible matrix can be moved from one to the other, so K² of
    their entries say nothing. Here K rows of the first factor are the identity: K
    inputs, the pivots, go on as they are and the other inputs are added to them in the proportions
    of ``interpolation``; ``skeleton`` maps the K sums to the outputs,

        y = (x[pivots] + x[others] @ interpolation) @ skeleton + bias,

    an interpolative decomposition of the weight (Cheng, Gimbutas, Martinsson and Rokhlin, 2005;
    for language models Zhao et al., arXiv 2501.19090). Where the output is the narrower side, K
    outputs are pivots, which ``skeleton`` gives, and ``interpolation`` makes the others of them.

    Where gradients are wanted, ``weight1`` and ``weight2``, the factors of
    :class:`LowRankLinear`, are put together first, which is more arithmetic and less copying; so
    they are wherever something else asks for them. At full rank, K = D, the skeleton is all
    there is, the whole weight. Without gradients a CPU does whichever takes it least: selects the
    pivots, takes both factors, or their product. A GPU, for which moving channels costs more than
    the products that it saves, never selects.

    Args:
        in_features: Input width I.
        out_features: Output width O.
        rank: Inner width K, at most D.
        device: Where the parameters live.
        dtype: Type of the parameters.

    Attributes:
        skeleton: (K, O) with pivots among the inputs, else (I, K).
        interpolation: (I - K, K), else (K, O - K); ``None`` at full rank.
        order: Inputs in the order pivots, others; or for each output its place in that order,
            (D,) int32. It is a buffer and no parameter; ``None`` at full rank.

    Raises:
        ValueError: If ``rank`` is not in 1…D.

    Example:
        >>> layer = PivotedLinear(in_features=6, out_features=4, rank=2)
        >>> layer(torch.zeros(3, 5, 6)).shape, sum(one.numel() for one in layer.parameters())
        (torch.Size([3, 5, 4]), 20)
    """

    interpolation: nn.Parameter | None
    order: Tensor | None
    _keeps = False
    _kept: _Kept | None = None

    def _make_factors(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        inside, outside, rank = self.in_features, self.out_features, self.rank
        narrow = min(inside, outside)
        if rank > narrow:
            raise ValueError(f"rank must be at most {narrow}, got {rank}")
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        skeleton = (rank, outside) if self.pivots_inputs else (inside, rank)
        between = (narrow - rank, rank) if self.pivots_inputs else (rank, narrow - rank)
        self.skeleton = nn.Parameter(torch.empty(skeleton, **place))
        if rank == narrow:
            # Not an empty one, which would get no gradient and cannot be split over processes.
            self.register_parameter("interpolation", None)
            self.register_buffer("order", None)
            return
        self.interpolation = nn.Parameter(torch.empty(between, **place))
        self.register_buffer("order", torch.empty(narrow, device=device, dtype=torch.int32))

    @property
    def pivots_inputs(self) -> bool:
        """Whether pivots are inputs; else they are outputs."""
        return self.in_features <= self.out_features

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw parameters that keep the variance of a unit-variance input, and pivots."""
        nn.init.zeros_(self.bias)
        if self.interpolation is None or self.order is None:
            nn.init.normal_(self.skeleton, std=self.in_features**-0.5)
            return
        nn.init.normal_(self.skeleton, std=(2 * self.skeleton.shape[0]) ** -0.5)
        nn.init.normal_(self.interpolation, std=max(1, self.interpolation.shape[0]) ** -0.5)
        self.order.copy_(torch.randperm(len(self.order)))

    @property
    def weight1(self) -> Tensor:  # type: ignore[override]
        """First factor, (I, K)."""
        if not self.pivots_inputs:
            return self.skeleton
        if self.interpolation is None or self.order is None:
            return self._identity()
        rows = torch.cat([self._identity(), self.interpolation])
        return torch.empty_like(rows).index_copy(0, self.order.long(), rows)

    @property
    def weight2(self) -> Tensor:  # type: ignore[override]
        """Second factor, (K, O)."""
        if self.pivots_inputs:
            return self.skeleton
        if self.interpolation is None or self.order is None:
            return self._identity()
        columns = torch.cat([self._identity(), self.interpolation], dim=1)
        return columns.index_select(1, self.order)

    def _identity(self) -> Tensor:
        return torch.eye(self.rank, device=self.skeleton.device, dtype=self.skeleton.dtype)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        x_TI = x_BTI.reshape(-1, self.in_features)
        if self.interpolation is None:
            y_TO = affine(x_TI, self.skeleton, self.bias)
            return y_TO.view(*x_BTI.shape[:-1], self.out_features)
        if torch.is_grad_enabled():
            if not torch.compiler.is_compiling():
                self._kept = None
            return super().forward(x_BTI)
        # An exported graph takes any batch: what is done cannot depend on how many clips there are.
        frames = x_BTI.shape[-2] if torch.compiler.is_exporting() else len(x_TI)
        return self.ready(x_TI, frames)(x_TI).view(*x_BTI.shape[:-1], self.out_features)

    def ready(self, like: Tensor, frames: int) -> Callable[[Tensor], Tensor]:
        """What maps (N, I) to (N, O) in the least time, its weights put together once.

        Args:
            like: A tensor of the type and on the device of the frames.
            frames: How many frames there are in all.
        """
        whole = self.interpolation is None
        return self if whole else self._by(self._least_time(like, frames))

    def _least_time(self, like: Tensor, frames: int) -> str:
        """``selection`` of the pivots, both ``factors``, or their ``product``."""
        rank, inside, outside = self.rank, self.in_features, self.out_features
        # In multiplications, or what takes as long as so many.
        factors = frames * rank * (inside + outside)
        product = (frames + (0 if self._can_keep() else rank)) * inside * outside
        if like.device.type == "cpu":
            selected = _SELECTION.get(_product_type(like), _SELECTION_OTHERWISE)
            selected = _SELECTION_ONEDNN if by_onednn(like) else selected
            each_frame = rank * (inside + outside - rank) + min(inside, outside) * selected
            if frames * each_frame < min(factors, product):
                return "selection"
        return "factors" if factors <= product else "product"

    def _by(self, way: str) -> Callable[[Tensor], Tensor]:
        if way == "selection":
            return self._select_pivots
        factors = self._weights(way)
        if len(factors) == 1:
            return lambda x_NI: affine(x_NI, factors[0], self.bias)
        return lambda x_NI: affine(affine(x_NI, factors[0]), factors[1], self.bias)

    def _weights(self, way: str) -> tuple[Tensor, ...]:
        """Both factors or their product, as kept from the last call or put together now."""
        if not self._can_keep():
            return self._make_weights(way)
        found = (self.skeleton, self.interpolation, self.order)
        parts = tuple(one for one in found if one is not None)
        kept = self._kept
        if kept is None or not kept.is_of(way, parts):
            kept = self._kept = _Kept.of(way, parts, self._make_weights(way))
        return kept.weights

    def _make_weights(self, way: str) -> tuple[Tensor, ...]:
        if way == "product":
            return (self.weight1 @ self.weight2,)
        return self.weight1, self.weight2

    def _can_keep(self) -> bool:
        return self._keeps and not (
            self.training
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
            # A captured CUDA graph would not see that they have been put together anew.
            or self.skeleton.device.type != "cpu"
            or torch.is_autocast_enabled("cpu")
            or any(one.is_inference() for one in self.parameters())  # these count no changes
        )

    def keep_weights(self, keep: bool = True) -> None:
        """Put factors or their product together once, not at each call without gradients.

        Of a layer on a CPU, in evaluation mode, whose parameters were not made in inference mode.
        They are put together anew where an operation has changed a parameter, after a call with
        gradients, and where the module has been moved; after a change of a parameter's ``data``
        (Lightning averages weights so), call this again. It takes the memory of the factors, or of
        the dense weight if that is less.

        Args:
            keep: Whether to.
        """
        self._keeps, self._kept = keep, None

    def train(self, mode: bool = True) -> PivotedLinear:
        """As of any module; what is kept for inference is let go."""
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PivotedLinear:
        self._kept = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_kept": None}

    def _select_pivots(self, x_NI: Tensor) -> Tensor:
        assert self.interpolation is not None
        assert self.order is not None
        if self.pivots_inputs:
            pivots_NK = _select(x_NI, self.order[: self.rank])
            others = _select(x_NI, self.order[self.rank :])
            x_NK = affine(others, self.interpolation).add_(pivots_NK)
            return affine(x_NK, self.skeleton, self.bias)
        x_NK = affine(x_NI, self.skeleton)
        y_NO = _select(torch.cat([x_NK, affine(x_NK, self.interpolation)], dim=1), self.order)
        return y_NO + self.bias.to(y_NO.dtype)


def ready(layer: nn.Module, frames_TI: Tensor) -> Callable[[Tensor], Tensor]:
    """What a linear layer does, for frames (N, I), in the least time.

    Args:
        layer: The layer; one with hooks of its own is left alone.
        frames_TI: All frames that there are, (T, I).
    """
    # Others may have put something in the place of a layer's forward, or of its weight.
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return layer
    if isinstance(layer, PivotedLinear):
        return layer.ready(frames_TI, len(frames_TI))
    if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and by_onednn(frames_TI):
        return partial(affine, weight_IO=layer.weight.T, bias_O=layer.bias)
    return layer


def run(layer: nn.Module, x_BTI: Tensor) -> Tensor:
    """Map (..., I) to (..., O) as :func:`ready` would."""
    way: Callable[[Tensor], Tensor] = layer
    if type(layer) is nn.Linear and by_onednn(x_BTI):
        way = ready(layer, x_BTI.flatten(0, -2))
    if way is layer:
        y_BTO: Tensor = layer(x_BTI)
        return y_BTO
    y_TO = way(x_BTI.flatten(0, -2))
    return y_TO.view(*x_BTI.shape[:-1], y_TO.shape[-1])


def _product_type(like: Tensor) -> torch.dtype:
    """The type in which products with an activation are done."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def _select(x_TD: Tensor, order_D: Tensor) -> Tensor:
    """Columns in another order."""
    if x_TD.dtype == torch.bfloat16 and x_TD.device.type == "cpu":
        # torch 2.13 selects columns of this type at a fifth of the speed of fp32.
        return x_TD.float().index_select(1, order_D).to(x_TD.dtype)
    return x_TD.index_select(1, order_D)
