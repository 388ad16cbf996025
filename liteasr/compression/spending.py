"""What a budget allows an encoder, and what it can be spent on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from liteasr.compression.allocate import Budget, allocate_budget
from liteasr.compression.choices import Choice, Choices, Costs, timed_dims
from liteasr.compression.heads import PROJECTIONS, AttentionView
from liteasr.compression.layer_times import EncoderTimes, measure_times
from liteasr.compression.shapes import LinearShape
from liteasr.compression.surgery import encoder_flops, encoder_frames, encoder_parameters
from liteasr.compression.time_trial import with_trials

__all__ = ["Spending"]


class Spending:
    """A budget, and an encoder that is to meet it.

    Args:
        budget: What to reach.
        encoder: The dense encoder.
        shapes: Its layers that may be compressed, by full name.
        heads: Whether the heads of self-attention may have fewer dimensions.
        times: Those of an earlier :meth:`measure`, for a budget by time.

    Attributes:
        attentions: Full names of the self-attentions whose heads may be reduced.
        dims: Dimensions that their heads may be reduced to, ascending; eighths of a head, the
            smallest left out.
    """

    def __init__(
        self,
        budget: Budget,
        encoder: nn.Module,
        shapes: Mapping[str, LinearShape],
        *,
        heads: bool,
        times: EncoderTimes | None = None,
    ) -> None:
        config: Any = encoder.config
        self.budget = budget
        self._encoder, self._shapes, self._times = encoder, dict(shapes), times
        self._heads, self._width = int(config.encoder_attention_heads), int(config.d_model)
        self._frames = encoder_frames(encoder)
        step = max(budget.granularity, self._head_width // 8)
        self.dims = list(range(2 * step, self._head_width, step)) if heads else []
        self.attentions = self._reducible() if self.dims else []

    @property
    def by_time(self) -> bool:
        """Whether the budget is one of time."""
        return self.budget.kind == "encoder_time_ratio"

    @property
    def _head_width(self) -> int:
        return self._width // self._heads

    def _reducible(self) -> list[str]:
        square = {
            name
            for name, shape in self._shapes.items()
            if (shape.in_features, shape.out_features) == (self._width, self._width)
        }
        parents = dict.fromkeys(name.rpartition(".")[0] for name in self._shapes)
        return [one for one in parents if all(f"{one}.{last}" in square for last in PROJECTIONS)]

    def measure(self) -> EncoderTimes:
        """Times of the encoder, its layers and two compressed ones, measured once."""
        if self._times is None:
            config: Any = self._encoder.config
            dims = self.dims if self.attentions else []
            features_BMF = torch.randn(1, int(config.num_mel_bins), 2 * self._frames)
            reduced = [
                LinearShape(*widths, bias=True, pivoted=True)
                for width in (self._heads * dim for dim in dims)
                for widths in ((self._width, width), (width, self._width))
            ]
            times = measure_times(
                self._encoder,
                self._shapes,
                lambda shape: shape.ranks(self.budget.granularity),
                self._frames,
                reduced,
                timed_dims(dims, self._head_width) if dims else [],
            )
            self._times = with_trials(
                times, self._encoder, self._shapes, self.attentions, features_BMF
            )
        return self._times

    def choices(
        self,
        spectrum: Callable[[str], Tensor],
        view: Callable[[str], AttentionView],
        damping: float,
    ) -> Choices:
        """What the budget can be spent on.

        Args:
            spectrum: Damage of leaving out each component of a layer, by its name.
            view: Makes the view of a self-attention.
            damping: Of the metric.
        """
        return Choices(
            self._shapes,
            spectrum,
            self.attentions,
            view,
            self.dims,
            Costs(self.budget.kind, self._frames, self.measure() if self.by_time else None),
            granularity=self.budget.granularity,
            damping=damping,
        )

    def choose(self, choices: Choices) -> Choice:
        """The options of least damage that meet a budget by size, FLOPs or time.

        Raises:
            ValueError: If the budget cannot be met, or leaves nothing to compress.
        """
        budget = self.budget
        whole, unit = self._whole()
        wanted = budget.amount if budget.kind == "encoder_params" else budget.amount * whole
        if wanted >= whole:
            raise ValueError(
                f"{budget.kind}: {wanted:,.0f} is not below the {whole:,.0f} of the dense encoder"
            )
        allowed = self._allowed(wanted, whole - choices.dense_cost)
        if allowed >= choices.dense_cost:
            raise ValueError(
                f"{budget.kind}: {budget.amount} leaves nothing to compress: by the times measured "
                "here it takes dense layers alone"
            )
        try:
            return choices.choice(allocate_budget(choices.items, allowed))
        except ValueError as error:
            least = sum(min(o.cost for o in opts) for opts in choices.items.values())
            whole = self.measure().whole_of(least) if self.by_time else least + wanted - allowed
            raise ValueError(
                f"{budget.kind}: {wanted:,.0f} {unit} cannot be reached; with ranks of "
                f"{budget.granularity} the encoder still has {whole:,.0f}"
            ) from error

    def _whole(self) -> tuple[float, str]:
        """What the dense encoder costs, and in what unit."""
        if self.budget.kind == "encoder_flops_ratio":
            return encoder_flops(self._encoder) / self._frames, "FLOPs a frame"
        if self.by_time:
            return self.measure().encoder, "ns a window"
        return encoder_parameters(self._encoder), "parameters"

    def _allowed(self, wanted: float, fixed: float) -> float:
        """What the layers may cost together if the encoder is to cost ``wanted``."""
        return self.measure().pieces_within(wanted) if self.by_time else wanted - fixed
