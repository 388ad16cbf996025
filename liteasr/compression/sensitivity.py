"""Ranks of all layers chosen together, by what their errors do to the encoder's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from liteasr.compression.allocate import (
    Budget,
    Option,
    allocate_budget,
    allocate_error,
    joint_options,
    rank_options,
)
from liteasr.compression.factorize import LowRankFactors
from liteasr.compression.gradients import GradientMethod
from liteasr.compression.hooks import HookOwner
from liteasr.compression.layer_times import EncoderTimes, LayerTimes, measure_times
from liteasr.compression.method import CalibrationBatch, Factors
from liteasr.compression.metric import MetricPCA, pca_in_metric, projected_factors
from liteasr.compression.plan import CompressionPlan, LayerPlan
from liteasr.compression.statistics import MomentStatistics
from liteasr.compression.surgery import encoder_flops, encoder_frames, encoder_parameters
from liteasr.compression.trial import output_error
from liteasr.compression.units import Elimination, UnitFactors, eliminate_units, fit_to_units
from liteasr.compression.windows import pack_windows

__all__ = ["SensitivityMethod"]

_TRIAL_CLIPS = 16
"""Clips on which the error of a choice is tried."""

_TRIALS = 6
_CLOSE = 0.95
"""A budget by error is met by an error between this share of it and itself."""


_HIDDEN_STRIDE = 2
"""Of the frames from which the hidden units' covariance, the largest of all, is taken."""


@dataclass(frozen=True)
class _Units:
    """Value of an option: hidden units that stay."""

    count: int


@dataclass(frozen=True)
class _Decision:
    """What is done to a layer, and the damage of it."""

    damage: float
    rank: int | None = None
    units: int | None = None


class SensitivityMethod(GradientMethod):
    """One budget for all layers, spent where errors matter.

    Layers are projected onto their components in the metric of :class:`GradientMethod`, and all
    ranks are chosen together: the least sum of what is left out for the budget. The error that is
    predicted for the whole is tried on some of the calibration clips.

    With ``mlp_units`` an MLP may keep fewer hidden units in place of low ranks, whichever loses
    less for its cost; see :mod:`liteasr.compression.units`.

    Args:
        budget: What to reach.
        metric: ``full``, ``diagonal``, ``scalar`` (the metric changes only how the budget is
            shared) or ``none`` (sensitivity plays no part); see :class:`GradientMethod`.
        damping: Added to a full metric, as a share of its mean eigenvalue.
        decoder_weight: What the decoder's divergence counts; see :class:`GradientMethod`.
        probes: Random projections of each clip.
        padding_weight: Weight of a frame of padding in the moments.
        block_dtype: Type in which one batch is summed.
        mlp_units: Whether MLPs may have fewer hidden units. The published format has no place for
            that; and the covariance of the units, H² fp64 numbers a layer, is kept.

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
        mlp_units: bool = False,
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
        self.mlp_units = mlp_units
        self.hidden: dict[str, MomentStatistics] = {}
        self._eliminations: dict[str, Elimination] = {}
        self._fits: dict[str, tuple[int, UnitFactors, float]] = {}
        self._metric_pca: dict[str, MetricPCA] = {}
        self._times: EncoderTimes | None = None

    def prepare(self, encoder: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        """Forget the components of an earlier calibration too."""
        super().prepare(encoder, linears)
        self._metric_pca, self._times, self._eliminations = {}, None, {}
        self.hidden, self._fits = {}, {}
        for mlp in self._mlps():
            like = self.statistics[self.site(f"{mlp}fc2")].sum_D
            width = self.linears[f"{mlp}fc2"].in_features
            self.hidden[mlp] = MomentStatistics(width, like.device, self.block_dtype)

    def _mlps(self) -> list[str]:
        """Prefixes of the MLPs that may have fewer units: both layers are to be compressed."""
        return [
            name.removesuffix("fc1")
            for name, one in self.linears.items()
            if self.mlp_units
            and name.endswith("fc1")
            and (two := self.linears.get(f"{name.removesuffix('fc1')}fc2")) is not None
            and one.bias is not None
            and two.bias is not None
            and two.in_features > two.out_features
        ]

    def _hook_moments(self, hooks: HookOwner, batch: CalibrationBatch) -> None:
        super()._hook_moments(hooks, batch)
        for mlp, statistics in self.hidden.items():
            hooks.on_input(self.linears[f"{mlp}fc2"], self._hidden_adder(statistics, batch))

    def _hidden_adder(
        self, statistics: MomentStatistics, batch: CalibrationBatch
    ) -> Callable[[Tensor], None]:
        def add(h_BTH: Tensor) -> None:
            weight_BT = batch.frame_weights(h_BTH.shape[1], self.padding_weight)
            if weight_BT is not None:
                weight_BT = weight_BT[:, ::_HIDDEN_STRIDE]
            statistics.update(h_BTH[:, ::_HIDDEN_STRIDE], weight_BT)

        return add

    def reduce(self, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Sum over all processes, and measure times if the budget is one.

        They are saved with the statistics: a resumed run must come to the same ranks.
        """
        super().reduce(reduce_sum)
        for statistics in self.hidden.values():
            statistics.all_reduce(reduce_sum)
        if self.budget.kind == "encoder_time_ratio":
            self._measured()

    def state_dict(self) -> dict[str, Any]:
        """Statistics, and times where they were measured."""
        times = None if self._times is None else asdict(self._times)
        hidden = {mlp: statistics.state_dict() for mlp, statistics in self.hidden.items()}
        return {**super().state_dict(), "times": times, "hidden": hidden}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        for mlp, sums in state.get("hidden", {}).items():
            self.hidden[mlp].load_state_dict(sums)
        if (times := state.get("times")) is not None:
            layers = {name: LayerTimes(**one) for name, one in times["layers"].items()}
            self._times = EncoderTimes(times["encoder"], layers)

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
            name: replace(self._layer_plan(name, one), predicted_error=scale * one.damage)
            for name, one in self._decisions(choice).items()
        }
        return CompressionPlan(layers, self.name, self.options(), predicted_error=predicted)

    def _trial(self, choice: Mapping[str, Option]) -> float:
        """Error of the encoder's output with the chosen ranks, on some of the clips.

        The sum of the options' damages is an estimate of it that leaves out how errors of several
        frames and layers add up. Each clip has a window of its own: full windows of several
        clips err about twice as much.
        """
        assert self.encoder is not None
        factors: dict[str, Factors] = {}
        for name, one in self._decisions(choice).items():
            if one.units is not None:
                factors[name] = self.reduce_mlp(name, one.units)
            elif one.rank is not None:
                factors[name] = SensitivityMethod.factorize(self, name, one.rank)
        modules = {self.linears[name]: one for name, one in factors.items()}
        windows = pack_windows(self.clips, 2 * encoder_frames(self.encoder), single=1.0)
        return output_error(self.encoder, modules, windows, limit=_TRIAL_CLIPS)

    def _choose_error(self, wanted: float) -> tuple[dict[str, Option], float]:
        """The smallest encoder whose error on trial is at most ``wanted``, and that error."""
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
        for mlp in self.hidden:
            pairs = joint_options(items.pop(f"{mlp}fc1"), items.pop(f"{mlp}fc2"))
            items[mlp] = pairs + self._unit_options(mlp, pairs[0].cost, kind)
        return items

    def _unit_options(self, mlp: str, dense: int, kind: str) -> list[Option]:
        """Fewer hidden units, each with a value ``units``.

        Args:
            mlp: Prefix of the two layers.
            dense: What the whole MLP costs, of which the products take their share of time.
            kind: What costs are counted in.
        """
        layer = self.linears[f"{mlp}fc2"]
        width, hidden = layer.out_features, layer.in_features
        options = []
        for units in range(self.budget.granularity, hidden, self.budget.granularity):
            cost = units * (2 * width + 1) + width
            if kind == "encoder_flops_ratio":
                cost = 4 * units * width
            elif kind == "encoder_time_ratio":
                cost = round(dense * units / hidden)
            options.append(Option(cost, self._elimination(mlp).damage(units), _Units(units)))
        return options

    def _elimination(self, mlp: str) -> Elimination:
        """In what order an MLP's units go, computed once."""
        if mlp not in self._eliminations:
            name = f"{mlp}fc2"
            self._eliminations[mlp] = eliminate_units(
                self.linears[name].weight.detach(),
                self.hidden[mlp].covariance(),
                self.metric_of(name),
                self.used_damping,
            )
        return self._eliminations[mlp]

    def _decisions(self, choice: Mapping[str, Option]) -> dict[str, _Decision]:
        """What a choice means for each layer, in their order."""
        decisions = {}
        for item, option in choice.items():
            if item not in self.hidden:
                decisions[item] = _Decision(option.damage, rank=option.value)
                continue
            one, two = f"{item}fc1", f"{item}fc2"
            if isinstance(option.value, _Units):
                # The damage is that of both; the second layer is where it shows.
                decisions[one] = _Decision(0.0, units=option.value.count)
                decisions[two] = _Decision(option.damage, units=option.value.count)
            else:
                for name, rank in zip((one, two), option.value, strict=True):
                    damage = 0.0 if rank is None else self._damage(name, rank)
                    decisions[name] = _Decision(damage, rank=rank)
        return {name: decisions[name] for name in self.linears}

    def _damage(self, name: str, rank: int) -> float:
        return float(self.metric_pca(name).eigenvalues_R[rank:].sum())

    def reduce_mlp(self, name: str, units: int) -> UnitFactors:
        """The first layer's rows of the units that stay, or the second layer fitted to them."""
        mlp = name[:-3]
        if name.endswith("fc1"):
            first = self.linears[name]
            kept_S = self._elimination(mlp).kept(units).to(first.weight.device)
            return UnitFactors(first.weight.detach()[kept_S], first.bias.detach()[kept_S])
        return self._fit(mlp, units)[0]

    def _fit(self, mlp: str, units: int) -> tuple[UnitFactors, float]:
        """The second layer for so many units, and the share of variance; the last is kept."""
        if self._fits.get(mlp, (0,))[0] != units:
            second, hidden = self.linears[f"{mlp}fc2"], self.hidden[mlp]
            layer, kept = fit_to_units(
                second.weight.detach(),
                second.bias.detach(),
                hidden.mean(),
                hidden.covariance(),
                self._elimination(mlp).kept(units),
            )
            self._fits[mlp] = units, layer, kept
        _, layer, kept = self._fits[mlp]
        return layer, kept

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
                self.linears,
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

    def _layer_plan(self, name: str, decision: _Decision) -> LayerPlan:
        """The record of a decision."""
        if decision.units is None:
            return self.layer_plan(name, decision.rank)
        shape, units = self.shape(name), decision.units
        kept = self._fit(name[:-3], units)[1]
        narrow = min(shape.in_features, shape.out_features)
        biases = narrow if name.endswith("fc2") else units
        return LayerPlan(
            in_features=shape.in_features,
            out_features=shape.out_features,
            rank=None,
            kept_energy=kept,
            dense_params=shape.dense_params(),
            params=units * narrow + biases,
            units=units,
        )

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
        self._metric_pca, self._eliminations, self._fits, self.hidden = {}, {}, {}, {}

    def statistics_options(self) -> dict[str, Any]:
        """Units have statistics of their own."""
        own = {"mlp_units": True} if self.mlp_units else {}
        return {**super().statistics_options(), **own}

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
            **({"mlp_units": True} if self.mlp_units else {}),
        }


def _cost(choice: Mapping[str, Option]) -> int:
    return sum(option.cost for option in choice.values())
