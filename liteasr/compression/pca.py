"""The published method: principal components of each layer's output, and a threshold a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from liteasr.compression.allocate import Budget
from liteasr.compression.factorize import (
    LowRankFactors,
    OutputPCA,
    low_rank_factors,
    pca_of_image,
    pca_of_output,
)
from liteasr.compression.hooks import HookOwner
from liteasr.compression.method import CalibrationBatch, CompressionMethod
from liteasr.compression.plan import CompressionPlan, LayerPlan
from liteasr.compression.shapes import LinearShape
from liteasr.compression.statistics import MomentStatistics
from liteasr.compression.surgery import encoder_parameters
from liteasr.compression.thresholds import ThresholdRule, kept_energy

__all__ = ["PCAMethod"]

_TINY = torch.finfo(torch.float64).tiny

_FACTORS = 200
"""Factors tried either way from the thresholds, to 10⁻⁴ and 10⁴ of the energy given up."""


class PCAMethod(CompressionMethod):
    """LiteASR as published: principal components of each layer's output (arXiv 2502.20583).

    One Gram matrix a layer group is streamed: that of the input shared by q, k and v, of the
    inputs of out_proj and fc1, and of the output of fc2, the narrower side each time.

    Args:
        rule: How a rank is chosen from a spectrum.
        padding_weight: Weight of a frame of padding; the publication counts all frames alike.
        block_dtype: Type in which one batch is summed.
        budget: Size to reach: both thresholds are loosened or tightened by one factor (of the
            energy given up) until the encoder is as large as it may be. For comparison: the
            publication sets thresholds.

    Raises:
        ValueError: If the budget is no size.
    """

    name = "pca"
    spectra_unit = "share of the output's energy"

    def __init__(
        self,
        rule: ThresholdRule | None = None,
        *,
        padding_weight: float = 1.0,
        block_dtype: torch.dtype = torch.float32,
        budget: Budget | None = None,
    ) -> None:
        if budget is not None and budget.kind not in ("encoder_params", "encoder_ratio"):
            raise ValueError(f"pca takes thresholds or a size, not {budget.kind}")
        self.rule = rule or ThresholdRule()
        self.budget: Budget | None = budget
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
        assert self.encoder is not None, "prepare comes first"
        with HookOwner() as hooks, torch.no_grad():
            self._hook_moments(hooks, batch)
            self.encoder(batch.input_features)

    def _hook_moments(self, hooks: HookOwner, batch: CalibrationBatch) -> None:
        hooked = set()
        for name, linear in self.linears.items():
            site = self.site(name)
            if site in hooked:
                continue
            hooked.add(site)
            on_side = hooks.on_output if site.endswith(":output") else hooks.on_input
            on_side(linear, self._adder(self.statistics[site], batch))

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

    def spectra(self) -> dict[str, Tensor]:
        """Variances along the components of each layer's output, as shares of their sum."""
        spectra = {name: self.pca(name).eigenvalues_R for name in self.linears}
        return {name: one / one.sum().clamp_min(_TINY) for name, one in spectra.items()}

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
        """Apply the rank rule to each layer by itself.

        Raises:
            ValueError: If there is a budget that no thresholds reach.
        """
        rule = self.rule if self.budget is None else self._rule_for(self.budget)
        ranks = self._ranks(rule, self._spectra_on_cpu())
        layers = {name: self.layer_plan(name, rank) for name, rank in ranks.items()}
        return CompressionPlan(layers, self.name, {**self.options(), **asdict(rule)})

    def _ranks(self, rule: ThresholdRule, spectra: Mapping[str, Tensor]) -> dict[str, int | None]:
        return {
            name: rule.rank(
                spectra[name],
                self.shape(name),
                mlp=name.rpartition(".")[2] in ("fc1", "fc2"),
            )
            for name in self.linears
        }

    def _spectra_on_cpu(self) -> dict[str, Tensor]:
        """A rule looks at single numbers, for each of which a GPU would be waited for."""
        return {name: self.pca(name).eigenvalues_R.cpu() for name in self.linears}

    def _rule_for(self, budget: Budget) -> ThresholdRule:
        """The thresholds, one factor from those of the rule, with the largest size allowed."""
        assert self.encoder is not None, "prepare comes first"
        dense = encoder_parameters(self.encoder)
        allowed = budget.amount * (1 if budget.kind == "encoder_params" else dense)
        found: tuple[int, ThresholdRule] | None = None
        spectra = self._spectra_on_cpu()
        for step in range(-_FACTORS, _FACTORS + 1):
            factor = 10.0 ** (4 * step / _FACTORS)
            lost = ((1 - self.rule.attention) * factor, (1 - self.rule.mlp) * factor)
            rule = replace(self.rule, attention=1 - lost[0], mlp=1 - lost[1])
            if max(lost) < 1:
                size = dense - sum(
                    self.shape(name).dense_params() - self.shape(name).low_rank_params(rank)
                    for name, rank in self._ranks(rule, spectra).items()
                    if rank is not None
                )
                if size <= allowed and (found is None or size > found[0]):
                    found = size, rule
        if found is None or found[0] == dense:
            raise ValueError(f"{budget.kind}: no thresholds give an encoder of {allowed:,.0f}")
        return found[1]

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
