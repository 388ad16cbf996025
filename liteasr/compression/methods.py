"""Compression methods: collect statistics → allocate ranks → factorize a layer.

A method is a class with these steps and knows nothing of Lightning, data sets or files. Methods
have a name in :data:`METHODS`; one of your own is named by its dotted path.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from liteasr.compression.allocate import LinearShape, ThresholdRule, kept_energy
from liteasr.compression.factorize import (
    LowRankFactors,
    OutputPCA,
    low_rank_factors,
    pca_of_image,
    pca_of_output,
)
from liteasr.compression.hooks import HookOwner
from liteasr.compression.plan import CompressionPlan, LayerPlan
from liteasr.compression.statistics import MomentStatistics

__all__ = [
    "METHODS",
    "CalibrationBatch",
    "CompressionMethod",
    "PCAMethod",
    "build_method",
    "find_method",
]


@dataclass(frozen=True)
class CalibrationBatch:
    """One batch of calibration clips on the encoder's device.

    Attributes:
        input_features: Log-mel features, (B, mel bins, 3000).
        frames: Encoder frames that hold audio, (B,); the rest of the window is padding.
    """

    input_features: Tensor
    frames: Tensor

    def frame_weights(self, num_frames: int, padding_weight: float) -> Tensor | None:
        """Weight of each encoder frame, (B, T) fp32; ``None`` where all count alike.

        Args:
            num_frames: T, 1500 for Whisper.
            padding_weight: Weight of a frame of padding; one of audio counts 1.
        """
        if padding_weight == 1.0:
            return None
        positions_T = torch.arange(num_frames, device=self.frames.device)
        is_audio_BT = positions_T < self.frames[:, None]
        return torch.where(is_audio_BT, 1.0, padding_weight)


class CompressionMethod(ABC):
    """Three steps from a calibration set to low-rank factors.

    The callback calls :meth:`prepare`, then :meth:`observe` for every batch, :meth:`reduce` once,
    :meth:`allocate` once, and :meth:`factorize` for every layer that the plan compresses.
    Whatever :meth:`state_dict` returns is saved during calibration and lets a killed run go on.
    """

    name: str = "custom"

    def prepare(self, encoder: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        """Take note of the encoder and of the layers that may be compressed."""
        self.encoder: nn.Module | None = encoder
        self.linears = dict(linears)

    @abstractmethod
    def observe(self, batch: CalibrationBatch) -> None:
        """Run the encoder on one batch and add to the statistics."""

    @abstractmethod
    def reduce(self, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Sum the statistics over all processes.

        Args:
            reduce_sum: Returns the sum of a tensor over all processes.
        """

    @abstractmethod
    def allocate(self) -> CompressionPlan:
        """Decide the rank of every layer."""

    @abstractmethod
    def factorize(self, name: str, rank: int) -> LowRankFactors:
        """Factors of one layer at one rank."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Statistics so far: plain containers and tensors."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over statistics that :meth:`state_dict` gave, after :meth:`prepare`."""

    def release(self) -> None:
        """Let go of the encoder, its layers and whatever was computed from them."""
        self.encoder, self.linears = None, {}

    def options(self) -> dict[str, Any]:
        """Options worth recording in the plan, plain values."""
        return {}

    def statistics_options(self) -> dict[str, Any]:
        """The options that change the statistics: saved ones of other options are not reused."""
        return self.options()


class PCAMethod(CompressionMethod):
    """LiteASR as published: principal components of each layer's output (arXiv 2502.20583).

    One Gram matrix a layer group is streamed: that of the input shared by q, k and v, of the
    inputs of out_proj and fc1, and of the output of fc2, the narrower side each time.

    Args:
        rule: How a rank is chosen from a spectrum.
        padding_weight: Weight of a frame of padding; the publication counts all frames alike.
        block_dtype: Type in which one batch is summed.
    """

    name = "pca"

    def __init__(
        self,
        rule: ThresholdRule | None = None,
        *,
        padding_weight: float = 1.0,
        block_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.rule = rule or ThresholdRule()
        self.padding_weight = padding_weight
        self.block_dtype = block_dtype
        self.statistics: dict[str, MomentStatistics] = {}
        self._pca: dict[str, OutputPCA] = {}

    def prepare(self, encoder: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        """Lay out one set of sums for each group of layers."""
        super().prepare(encoder, linears)
        self._pca = {}
        self.statistics = {}
        for name, linear in linears.items():
            dim = min(linear.in_features, linear.out_features)
            if self.site(name) not in self.statistics:
                device = _fp64_device(linear.weight.device)
                self.statistics[self.site(name)] = MomentStatistics(dim, device, self.block_dtype)

    def site(self, name: str) -> str:
        """Name of the tensor whose moments layer ``name`` needs; q, k and v share their input."""
        linear = self.linears[name]
        if linear.in_features > linear.out_features:
            return f"{name}:output"
        parent, _, child = name.rpartition(".")
        return f"{parent}.qkv:input" if child in ("q_proj", "k_proj", "v_proj") else f"{name}:input"

    def observe(self, batch: CalibrationBatch) -> None:
        """One forward pass of the encoder, with its sums taken on the way."""
        with HookOwner() as hooks, torch.no_grad():
            hooked = set()
            for name, linear in self.linears.items():
                site = self.site(name)
                if site in hooked:
                    continue
                hooked.add(site)
                on_side = hooks.on_output if site.endswith(":output") else hooks.on_input
                on_side(linear, self._adder(self.statistics[site], batch))
            assert self.encoder is not None, "prepare comes first"
            self.encoder(batch.input_features)

    def _adder(
        self, statistics: MomentStatistics, batch: CalibrationBatch
    ) -> Callable[[Tensor], None]:
        def add(x_BTD: Tensor) -> None:
            weight_BT = batch.frame_weights(x_BTD.shape[1], self.padding_weight)
            statistics.update(x_BTD, weight_BT)

        return add

    def reduce(self, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Sum the moments over all processes."""
        for statistics in self.statistics.values():
            statistics.all_reduce(reduce_sum)

    def pca(self, name: str) -> OutputPCA:
        """Principal components of a layer's output, computed once."""
        if name not in self._pca:
            self._pca[name] = self._decompose(name)
        return self._pca[name]

    def release(self) -> None:
        """Drop sums and components too."""
        super().release()
        self.statistics, self._pca = {}, {}

    def _decompose(self, name: str) -> OutputPCA:
        linear, site = self.linears[name], self.site(name)
        statistics = self.statistics[site]
        mean, covariance = statistics.mean(), statistics.covariance()
        if site.endswith(":output"):
            pca = pca_of_output(mean, covariance)
        else:
            pca = pca_of_image(mean, covariance, linear.weight.detach(), _bias(linear))
        # A rank above this would not save parameters; the components beyond are only memory.
        most = linear.in_features * linear.out_features
        most = most // (linear.in_features + linear.out_features) + 1
        return OutputPCA(pca.mean_O, pca.eigenvalues_R, pca.basis_OR[:, :most].clone())

    def allocate(self) -> CompressionPlan:
        """Apply the rank rule to each layer by itself."""
        layers = {}
        for name in self.linears:
            is_mlp = name.rpartition(".")[2] in ("fc1", "fc2")
            rank = self.rule.rank(self.pca(name).eigenvalues_R, self.shape(name), mlp=is_mlp)
            layers[name] = self.layer_plan(name, rank)
        return CompressionPlan(layers, self.name, self.options())

    def shape(self, name: str) -> LinearShape:
        """Widths of a layer."""
        linear = self.linears[name]
        return LinearShape(linear.in_features, linear.out_features, linear.bias is not None)

    def layer_plan(self, name: str, rank: int | None) -> LayerPlan:
        """The record of a decision for one layer; ``None`` leaves it dense."""
        shape, spectrum = self.shape(name), self.pca(name).eigenvalues_R
        return LayerPlan(
            in_features=shape.in_features,
            out_features=shape.out_features,
            rank=rank,
            kept_energy=1.0 if rank is None else kept_energy(spectrum, rank),
            dense_params=shape.dense_params(),
            params=shape.dense_params() if rank is None else shape.low_rank_params(rank),
        )

    def factorize(self, name: str, rank: int) -> LowRankFactors:
        """Project the layer onto the first components of its output."""
        linear = self.linears[name]
        return low_rank_factors(linear.weight.detach(), _bias(linear), self.pca(name), rank)

    def options(self) -> dict[str, Any]:
        """Thresholds, caps and padding weight."""
        return {**asdict(self.rule), "padding_weight": self.padding_weight}

    def statistics_options(self) -> dict[str, Any]:
        """Thresholds and caps come later and do not change the statistics."""
        return {"padding_weight": self.padding_weight, "block_dtype": str(self.block_dtype)}

    def state_dict(self) -> dict[str, Any]:
        """The sums of every site."""
        return {site: statistics.state_dict() for site, statistics in self.statistics.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the sums of every site.

        Raises:
            ValueError: If they belong to other layers.
        """
        if set(state) != set(self.statistics):
            raise ValueError("the saved statistics belong to other layers")
        for site, sums in state.items():
            self.statistics[site].load_state_dict(sums)


def _bias(linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach()


def _fp64_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device


METHODS: dict[str, type[CompressionMethod]] = {"pca": PCAMethod}


def build_method(name: str, **options: Any) -> CompressionMethod:
    """Make a method from its name in the registry or its dotted path.

    Args:
        name: ``pca``, or ``package.module.Class``.
        options: Arguments of the class.

    Raises:
        ValueError: If there is no such method, or it does not take these options.

    Example:
        >>> build_method("pca", padding_weight=0.05).options()["padding_weight"]
        0.05
    """
    cls = find_method(name)
    try:
        inspect.signature(cls).bind(**options)
    except TypeError as error:
        raise ValueError(f"method {name!r}: {error}") from error
    return cls(**options)


def find_method(name: str) -> type[CompressionMethod]:
    """The class of a method, from its name in the registry or its dotted path.

    Raises:
        ValueError: If there is no such method.
    """
    return METHODS.get(name) or _import_method(name)


def _import_method(path: str) -> type[CompressionMethod]:
    module_name, _, class_name = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise ValueError(f"no method {path!r}; there are {sorted(METHODS)}, or give a dotted path")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import the method {path!r}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, CompressionMethod)):
        raise ValueError(f"{path!r} is not a CompressionMethod")
    return cls
