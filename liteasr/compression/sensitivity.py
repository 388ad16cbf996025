"""Ranks of all layers chosen together, by what their errors do to the encoder's output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from liteasr.compression.allocate import Budget, allocate_error
from liteasr.compression.choices import Choice, Choices
from liteasr.compression.factorize import LowRankFactors
from liteasr.compression.gradients import GradientMethod
from liteasr.compression.heads import PROJECTIONS, AttentionView, LayerView, padded
from liteasr.compression.layer_times import EncoderTimes
from liteasr.compression.metric import MetricPCA, pca_in_metric, projected_factors
from liteasr.compression.plan import AttentionPlan, CompressionPlan, LayerPlan
from liteasr.compression.shapes import LinearShape
from liteasr.compression.spending import Spending
from liteasr.compression.surgery import (
    CONVOLUTION_LINEAR,
    ENCODER_LINEARS,
    encoder_frames,
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
        heads: Whether the heads of self-attention may have fewer dimensions; only where layers are
            pivoted. The published format has no place for them.

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
        heads: bool = True,
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
        self.heads = heads
        self._metric_pca: dict[str, MetricPCA] = {}
        self._attentions: dict[str, AttentionView] = {}
        self._head_dims: dict[str, tuple[int, int]] = {}
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
        self._attentions, self._head_dims = {}, {}

    def reduce(self, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Sum over all processes, and measure times if the budget is one.

        They are saved with the statistics: a resumed run must come to the same ranks.
        """
        super().reduce(reduce_sum)
        self._measure()

    def state_dict(self) -> dict[str, Any]:
        """Statistics, and times where they were measured."""
        times = None if self._times is None else self._times.to_dict()
        return {**super().state_dict(), "times": times}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        if (times := state.get("times")) is not None:
            self._times = EncoderTimes.from_dict(times)

    def shape(self, name: str) -> LinearShape:
        """Widths of a layer, dense heads, and what its ranks cost."""
        return replace(super().shape(name), pivoted=self.pivoted)

    def statistics_options(self) -> dict[str, Any]:
        """Those of the sums; times are of one kind of layer."""
        options = super().statistics_options()
        if self.budget.kind == "encoder_time_ratio":
            options["times"] = "pivoted" if self.pivoted else "two factors"
            options["times_of_encoders"] = "run alike"
            spending = self._spending()
            options["times_of_heads"] = spending.dims if spending.attentions else []
        return options

    @property
    def used_damping(self) -> float:
        """Damping of the metric; only a full one needs more than rounding does."""
        return self.damping if self.metric == "full" else 1e-9

    def view(self, name: str) -> LayerView:
        """A layer and its statistics; a projection of heads that will be reduced as it then is."""
        attention, _, last = name.rpartition(".")
        if attention in self._head_dims:
            return self._attention(attention).layer(last, *self._head_dims[attention])
        return self._dense_view(name)

    def _dense_view(self, name: str) -> LayerView:
        mean_D, covariance_DD = self.covariance(name)
        linear = self.linears[name]
        bias_O = None if linear.bias is None else linear.bias.detach().to(mean_D)
        metric_DD = self.metric_of(name).to(mean_D)
        return LayerView(
            linear.weight.detach().to(mean_D), bias_O, mean_D, covariance_DD, metric_DD
        )

    def metric_pca(self, name: str) -> MetricPCA:
        """Components of a layer's narrower side in its metric, computed once."""
        if name not in self._metric_pca:
            view = self.view(name)
            self._metric_pca[name] = pca_in_metric(
                view.mean_D, view.covariance_DD, view.metric_DD, self.used_damping
            )
        return self._metric_pca[name]

    def _attention(self, name: str) -> AttentionView:
        """Of dense heads; the last one is kept, since all of them would take much memory."""
        if name not in self._attentions:
            self._attentions.clear()
            encoder: Any = self.encoder
            views = {last: self._dense_view(f"{name}.{last}") for last in PROJECTIONS}
            mixed = self.statistics[self.site(f"{name}.out_proj")]
            self._attentions[name] = AttentionView(
                views,
                mixed.mean(),
                mixed.covariance(),
                int(encoder.config.encoder_attention_heads),
            )
        return self._attentions[name]

    def allocate(self) -> CompressionPlan:
        """Choose all ranks and dimensions of heads together.

        Raises:
            ValueError: If the budget cannot be met, or leaves nothing to compress.
        """
        self._use(Choice())
        self._measure()
        if self.budget.kind == "max_error":
            choice, predicted = self._choose_error(self.budget.amount)
        else:
            choice = self._choose_size()
            predicted = self._trial(choice)
        self._use(choice)
        scale = predicted / choice.damage if choice.damage > 0 else 1.0
        layers = {
            name: replace(
                self.layer_plan(name, option.value), predicted_error=scale * option.damage
            )
            for name, option in choice.layers.items()
        }
        attention = {
            name: self._attention_plan(name, dims, scale * choice.head_damage[name])
            for name, dims in choice.heads.items()
        }
        return CompressionPlan(
            layers,
            self.name,
            self.options(),
            predicted_error=predicted,
            attention=attention,
            pivoted=self.pivoted,
        )

    def _use(self, choice: Choice) -> None:
        """Look at the layers as a choice of heads makes them."""
        changed = set(self._head_dims.items()) ^ set(choice.heads.items())
        self._head_dims = dict(choice.heads)
        for name in {name for name, _ in changed}:
            for last in PROJECTIONS:
                self._metric_pca.pop(f"{name}.{last}", None)

    def _attention_plan(self, name: str, dims: tuple[int, int], predicted: float) -> AttentionPlan:
        view = self._attention(name)
        dense = sum(self.shape(f"{name}.{last}").dense_params() for last in PROJECTIONS)
        reduced = sum(view.layer(x, *dims).reduced_shape.dense_params() for x in PROJECTIONS)
        return AttentionPlan(
            view.heads * view.width, view.heads, *dims, dense, reduced, predicted_error=predicted
        )

    def _trial(self, choice: Choice) -> float:
        """Error of the encoder's output with what was chosen, on some of the clips.

        The sum of the options' damages is an estimate of it that leaves out how errors of several
        frames and layers add up. Each clip has a window of its own: full windows of several
        clips err about twice as much. The layers are looked at as chosen from here on.
        """
        assert self.encoder is not None
        self._use(choice)
        modules = {}
        for name, option in choice.layers.items():
            if option.value is None:
                continue
            factors = SensitivityMethod.factorize(self, name, option.value)
            attention, _, last = name.rpartition(".")
            if attention in choice.heads:
                view = self._attention(attention)
                factors = padded(factors, last, view.heads, view.width)
            modules[self.linears[name]] = factors
        windows = pack_windows(self.clips, 2 * encoder_frames(self.encoder), single=1.0)
        return output_error(self.encoder, modules, windows, limit=_TRIAL_CLIPS)

    def _choose_error(self, wanted: float) -> tuple[Choice, float]:
        """The smallest encoder whose error on trial is at most ``wanted``, and that error."""
        if len(self.clips) < _ENOUGH_CLIPS:
            log.warning(
                "max_error: it is kept on clips of calibration; with so few of them, %d, the error "
                "on other speech is larger (with 8 three times, with 32 by a half)",
                len(self.clips),
            )
        choices, allowed = self._choices(), wanted
        best: tuple[Choice, float] | None = None
        for _ in range(_TRIALS):
            choice = choices.choice(allocate_error(choices.items, allowed))
            error = self._trial(choice)
            fits = error <= wanted
            if fits and (best is None or choice.cost < best[0].cost):
                best = choice, error
            if fits and error > _CLOSE * wanted:
                break
            # First-order damage and error are proportional, nearly.
            allowed *= 0.98 * wanted / max(error, 1e-12) if not fits else wanted / max(error, 1e-12)
        if best is None:
            raise ValueError(f"max_error: no ranks keep the error below {wanted}")
        return best

    def _choices(self) -> Choices:
        """What the budget can be spent on."""
        return self._spending().choices(
            lambda name: self.metric_pca(name).eigenvalues_R, self._attention, self.used_damping
        )

    def _choose_size(self) -> Choice:
        return self._spending().choose(self._choices())

    def _measure(self) -> None:
        """Measure times, once, if the budget is one."""
        if self.budget.kind == "encoder_time_ratio":
            self._times = self._spending().measure()

    def _spending(self) -> Spending:
        assert self.encoder is not None
        return Spending(
            self.budget,
            self.encoder,
            {name: self.shape(name) for name in self.linears},
            heads=self.heads and self.pivoted,
            times=self._times,
        )

    def layer_plan(self, name: str, rank: int | None) -> LayerPlan:
        """The record of a decision; its kept energy is that of the layer's plain variance."""
        view, shape = self.view(name), self.shape(name)
        if name.rpartition(".")[0] in self._head_dims:
            shape = view.reduced_shape
        covariance_DD, weight_OI = view.covariance_DD, view.weight_OI
        kept = 1.0
        if rank is not None:
            pca = self.metric_pca(name)
            analysis_DK, synthesis_DK = pca.analysis_DR[:, :rank], pca.synthesis_DR[:, :rank]
            left_DD = torch.eye(len(view.mean_D)).to(covariance_DD) - synthesis_DK @ analysis_DK.T
            if view.on_input:
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
        view, pca = self.view(name), self.metric_pca(name)
        return projected_factors(view.weight_OI, view.bias_O, pca, rank, on_input=view.on_input)

    def spectra(self) -> dict[str, Tensor]:
        """Cost of leaving out each component of each layer, in its metric."""
        return {name: self.metric_pca(name).eigenvalues_R for name in self.linears}

    def release(self) -> None:
        """Drop components too."""
        super().release()
        self._metric_pca, self._attentions = {}, {}

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
            "heads": self.heads,
        }
