"""Ranks of all layers chosen together, by what their errors do to the encoder's output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from liteasr.compression.allocate import (
    Budget,
    LinearShape,
    Option,
    allocate_budget,
    allocate_error,
    rank_options,
)
from liteasr.compression.factorize import LowRankFactors
from liteasr.compression.gradients import GradientMethod
from liteasr.compression.layer_times import EncoderTimes, LayerTimes, measure_times
from liteasr.compression.metric import MetricPCA, pca_in_metric, projected_factors
from liteasr.compression.plan import CompressionPlan, LayerPlan
from liteasr.compression.surgery import (
    CONVOLUTION_LINEAR,
    ENCODER_LINEARS,
    encoder_flops,
    encoder_frames,
    encoder_parameters,
    find_linears,
    frame_convolution,
)
from liteasr.compression.trial import output_error
from liteasr.compression.windows import pack_windows

__all__ = ["SensitivityMethod"]

log = logging.getLogger(__name__)

_TRIAL_CLIPS = 16
"""Clips on which the error of a choice is tried."""

_ENOUGH_CLIPS = 50
"""Calibration clips, between the 32 that flatter and the 100 that hardly do (benchmarks.md)."""

_TRIALS = 6
_CLOSE = 0.95
"""A budget by error is met by an error between this share of it and itself."""


class SensitivityMethod(GradientMethod):
    """One budget for all layers, spent where errors matter.

    Layers are projected onto their components in the metric of :class:`GradientMethod`, and all
    ranks are chosen together: the least sum of what is left out for the budget. The error that is
    predicted for the whole is tried on some of the calibration clips.

    Args:
        budget: What to reach.
        metric: ``full``, ``diagonal``, ``scalar`` (the metric changes only how the budget is
            shared) or ``none`` (sensitivity plays no part); see :class:`GradientMethod`.
        damping: Added to a full metric, as a share of its mean eigenvalue.
        decoder_weight: What the decoder's divergence counts; see :class:`GradientMethod`.
        probes: Random projections of each clip.
        padding_weight: Weight of a frame of padding in the moments.
        block_dtype: Type in which one batch is summed.
        pivoted: Whether low-rank layers are :class:`~liteasr.modeling.PivotedLinear`, which have
            higher ranks at the same size. The published format has no place for them.
        convolution: Whether the encoder's second convolution may be of low rank too, for which the
            published format has no place either.

    Raises:
        ValueError: If an option is out of range.
    """

    name = "sensitivity"
    spectra_unit = "cost in the metric"
    budget: Budget

    def __init__(
        self,
        budget: Budget,
        *,
        metric: str = "full",
        damping: float = 0.1,
        decoder_weight: float = 0.0,
        probes: int = 1,
        padding_weight: float = 0.05,
        block_dtype: torch.dtype = torch.float32,
        pivoted: bool = True,
        convolution: bool = True,
    ) -> None:
        super().__init__(
            metric=metric,
            decoder_weight=decoder_weight,
            probes=probes,
            padding_weight=padding_weight,
            block_dtype=block_dtype,
        )
        if not damping > 0:
            raise ValueError(f"damping {damping!r} is not above 0")
        self.budget = budget
        self.damping = damping
        self.pivoted = pivoted
        self.convolution = convolution
        self._metric_pca: dict[str, MetricPCA] = {}
        self._times: EncoderTimes | None = None

    def select(self, model: nn.Module) -> dict[str, nn.Linear]:
        """The linear layers of the blocks, and the second convolution as one."""
        linears = super().select(model)
        if not self.convolution:
            return linears
        frame_convolution(model)
        return find_linears(model, [*ENCODER_LINEARS, CONVOLUTION_LINEAR])

    def prepare(self, encoder: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        """Forget the components of an earlier calibration too."""
        super().prepare(encoder, linears)
        self._metric_pca, self._times = {}, None

    def reduce(self, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Sum over all processes, and measure times if the budget is one.

        They are saved with the statistics: a resumed run must come to the same ranks.
        """
        super().reduce(reduce_sum)
        if self.budget.kind == "encoder_time_ratio":
            self._measured()

    def state_dict(self) -> dict[str, Any]:
        """Statistics, and times where they were measured."""
        times = None if self._times is None else asdict(self._times)
        return {**super().state_dict(), "times": times}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        if (times := state.get("times")) is not None:
            layers = {name: LayerTimes(**one) for name, one in times["layers"].items()}
            self._times = EncoderTimes(times["encoder"], layers)

    def shape(self, name: str) -> LinearShape:
        """Widths of a layer, and what its ranks cost."""
        return replace(super().shape(name), pivoted=self.pivoted)

    def statistics_options(self) -> dict[str, Any]:
        """Those of the sums; times are of one kind of layer."""
        options = super().statistics_options()
        if self.budget.kind == "encoder_time_ratio":
            options["times"] = "pivoted" if self.pivoted else "two factors"
        return options

    @property
    def used_damping(self) -> float:
        """Damping of the metric; only a full one needs more than rounding does."""
        return self.damping if self.metric == "full" else 1e-9

    def metric_pca(self, name: str) -> MetricPCA:
        """Components of a layer's narrower side in its metric, computed once."""
        if name not in self._metric_pca:
            mean, covariance = self.covariance(name)
            metric = self.metric_of(name)
            self._metric_pca[name] = pca_in_metric(mean, covariance, metric, self.used_damping)
        return self._metric_pca[name]

    def allocate(self) -> CompressionPlan:
        """Choose all ranks together.

        Raises:
            ValueError: If the budget cannot be met, or leaves nothing to compress.
        """
        if self.budget.kind == "max_error":
            choice, predicted = self._choose_error(self.budget.amount)
        else:
            choice = self._choose_size()
            predicted = self._trial(choice)
        first_order = sum(option.damage for option in choice.values())
        scale = predicted / first_order if first_order > 0 else 1.0
        layers = {
            name: replace(
                self.layer_plan(name, option.value), predicted_error=scale * option.damage
            )
            for name, option in choice.items()
        }
        return CompressionPlan(
            layers,
            self.name,
            self.options(),
            predicted_error=predicted,
            pivoted=self.pivoted,
        )

    def _trial(self, choice: Mapping[str, Option]) -> float:
        """Error of the encoder's output with the chosen ranks, on some of the clips.

        The sum of the options' damages is an estimate of it that leaves out how errors of several
        frames and layers add up. Each clip has a window of its own: full windows of several
        clips err about twice as much.
        """
        assert self.encoder is not None
        factors = {
            name: SensitivityMethod.factorize(self, name, option.value)
            for name, option in choice.items()
            if option.value is not None
        }
        modules = {self.linears[name]: one for name, one in factors.items()}
        windows = pack_windows(self.clips, 2 * encoder_frames(self.encoder), single=1.0)
        return output_error(self.encoder, modules, windows, limit=_TRIAL_CLIPS)

    def _choose_error(self, wanted: float) -> tuple[dict[str, Option], float]:
        """The smallest encoder whose error on trial is at most ``wanted``, and that error."""
        if len(self.clips) < _ENOUGH_CLIPS:
            log.warning(
                "max_error: it is kept on clips of calibration; with so few of them, %d, the error "
                "on other speech is larger (with 8 three times, with 32 by a half)",
                len(self.clips),
            )
        items, allowed = self._items(), wanted
        best: tuple[dict[str, Option], float] | None = None
        for _ in range(_TRIALS):
            choice = allocate_error(items, allowed)
            error = self._trial(choice)
            fits = error <= wanted
            if fits and (best is None or _cost(choice) < _cost(best[0])):
                best = choice, error
            if fits and error > _CLOSE * wanted:
                break
            # First-order damage and error are proportional, nearly.
            allowed *= 0.98 * wanted / max(error, 1e-12) if not fits else wanted / max(error, 1e-12)
        if best is None:
            raise ValueError(f"max_error: no ranks keep the error below {wanted}")
        return best

    def _items(self, kind: str = "encoder_params") -> dict[str, list[Option]]:
        """Options of each layer, costs as the kind of budget counts them."""
        items = {}
        for name in self.linears:
            shape = self.shape(name)
            cost = shape.params
            if kind == "encoder_flops_ratio":
                cost = shape.flops
            elif kind == "encoder_time_ratio":
                cost = self._measured().layers[name].at
            items[name] = rank_options(
                self.metric_pca(name).eigenvalues_R,
                shape,
                granularity=self.budget.granularity,
                cost=cost,
            )
        return items

    def _whole(self) -> tuple[float, str]:
        """What the dense encoder costs, and in what unit."""
        assert self.encoder is not None
        kind = self.budget.kind
        if kind == "encoder_flops_ratio":
            return encoder_flops(self.encoder) / encoder_frames(self.encoder), "FLOPs a frame"
        if kind == "encoder_time_ratio":
            return self._measured().encoder, "ns a window"
        return encoder_parameters(self.encoder), "parameters"

    def _measured(self) -> EncoderTimes:
        """Times of the encoder and its layers, measured once."""
        if self._times is None:
            encoder: Any = self.encoder
            bins, frames = int(encoder.config.num_mel_bins), 2 * encoder_frames(encoder)
            granularity = self.budget.granularity
            self._times = measure_times(
                encoder,
                {name: self.shape(name) for name in self.linears},
                lambda shape: shape.ranks(granularity),
                torch.randn(1, bins, frames),
            )
        return self._times

    def _choose_size(self) -> dict[str, Option]:
        budget = self.budget
        items = self._items(budget.kind)
        dense = sum(options[0].cost for options in items.values())
        whole, unit = self._whole()
        wanted = budget.amount if budget.kind == "encoder_params" else budget.amount * whole
        if wanted >= whole:
            raise ValueError(
                f"{budget.kind}: {wanted:,.0f} is not below the {whole:,.0f} of the dense encoder"
            )
        try:
            return allocate_budget(items, wanted - (whole - dense))
        except ValueError as error:
            least = whole - dense + sum(min(o.cost for o in opts) for opts in items.values())
            raise ValueError(
                f"{budget.kind}: {wanted:,.0f} {unit} cannot be reached; with ranks of "
                f"{budget.granularity} the encoder still has {least:,.0f}"
            ) from error

    def layer_plan(self, name: str, rank: int | None) -> LayerPlan:
        """The record of a decision; its kept energy is that of the layer's plain variance."""
        shape = self.shape(name)
        mean, covariance_DD = self.covariance(name)
        kept = 1.0
        if rank is not None:
            pca = self.metric_pca(name)
            analysis_DK, synthesis_DK = pca.analysis_DR[:, :rank], pca.synthesis_DR[:, :rank]
            left_DD = torch.eye(len(mean)).to(mean) - synthesis_DK @ analysis_DK.T
            weight_OI = self.linears[name].weight.detach().to(mean)
            if self.on_input(name):
                total = (weight_OI @ covariance_DD * weight_OI).sum()
                left_OI = weight_OI @ left_DD
                lost = (left_OI @ covariance_DD * left_OI).sum()
            else:
                total, lost = covariance_DD.trace(), (left_DD @ covariance_DD * left_DD).sum()
            kept = 1.0 - float(lost / total) if total > 0 else 1.0
        return LayerPlan(
            in_features=shape.in_features,
            out_features=shape.out_features,
            rank=rank,
            kept_energy=kept,
            dense_params=shape.dense_params(),
            params=shape.dense_params() if rank is None else shape.low_rank_params(rank),
        )

    def factorize(self, name: str, rank: int) -> LowRankFactors:
        """Project the layer onto its first components in the metric."""
        linear = self.linears[name]
        bias = None if linear.bias is None else linear.bias.detach()
        return projected_factors(
            linear.weight.detach(),
            bias,
            self.metric_pca(name),
            rank,
            on_input=self.on_input(name),
        )

    def spectra(self) -> dict[str, Tensor]:
        """Cost of leaving out each component of each layer, in its metric."""
        return {name: self.metric_pca(name).eigenvalues_R for name in self.linears}

    def release(self) -> None:
        """Drop components too."""
        super().release()
        self._metric_pca = {}

    def options(self) -> dict[str, Any]:
        """Budget, metric, damping, probes and padding weight."""
        return {
            "budget": {self.budget.kind: self.budget.amount},
            "granularity": self.budget.granularity,
            "metric": self.metric,
            "damping": self.damping,
            "decoder_weight": self.decoder_weight,
            "probes": self.probes,
            "padding_weight": self.padding_weight,
            "pivoted": self.pivoted,
            "convolution": self.convolution,
        }


def _cost(choice: Mapping[str, Option]) -> int:
    return sum(option.cost for option in choice.values())
