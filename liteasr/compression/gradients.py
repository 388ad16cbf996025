"""What an error at a layer's output costs: statistics of gradients.

Shape suffixes: B clips, T encoder frames, D width, M mel bins, F mel frames, O output width,
I input width.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from liteasr.compression.hooks import HookOwner, frozen
from liteasr.compression.method import CalibrationBatch
from liteasr.compression.pca import PCAMethod
from liteasr.compression.statistics import MomentStatistics

__all__ = ["METRICS", "GradientMethod"]

METRICS = ("none", "scalar", "diagonal", "full")
"""How much is kept of what an error at a layer's output costs."""

_ACTIVATION_BYTES = 2**31
"""Memory that the activations of one backward pass may take, roughly."""


class GradientMethod(PCAMethod):
    """Moments of the layers, and the metric in which errors of their outputs count.

    Beside the moments of ``pca``, one backward pass a batch collects the gradients ``g`` of a
    random projection ``vᵀ z`` of the encoder's output ``z`` on the frames that hold audio
    (Hutchinson's estimator). ``G = Σ g gᵀ`` over the frames is then, to first order and for errors
    that are independent from frame to frame, the metric in which an error of a layer costs what
    it changes of ``z``.

    Args:
        metric: ``full`` uses ``G``; ``diagonal`` its diagonal; ``scalar`` its mean; ``none``
            counts each layer's error against its own variance.
        probes: Random projections of each clip.
        padding_weight: Weight of a frame of padding in the moments.
        block_dtype: Type in which one batch is summed.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        *,
        metric: str = "full",
        probes: int = 1,
        padding_weight: float = 0.05,
        block_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(padding_weight=padding_weight, block_dtype=block_dtype)
        if metric not in METRICS:
            raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
        if not (isinstance(probes, int) and probes >= 1):
            raise ValueError(f"probes {probes!r} is no count of at least 1")
        self.metric = metric
        self.probes = probes
        self.gradients: dict[str, MomentStatistics] = {}
        self.squares: dict[str, Tensor] = {}
        self.output: MomentStatistics | None = None
        self.clips: list[Tensor] = []

    def prepare(self, encoder: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        """Lay out the sums of moments and of gradients."""
        super().prepare(encoder, linears)
        self.output, self.clips = None, []
        self.gradients, self.squares = {}, {}
        for name, linear in linears.items():
            like = self.statistics[self.site(name)]
            width = min(linear.in_features, linear.out_features)
            self.gradients[name] = MomentStatistics(width, like.sum_D.device, self.block_dtype)
            self.squares[name] = like.sum_D.new_zeros(linear.out_features)

    def on_input(self, name: str) -> bool:
        """Whether the narrower side of a layer, which is projected, is its input."""
        return self.linears[name].in_features < self.linears[name].out_features

    def observe(self, batch: CalibrationBatch) -> None:
        """Forward and backward pass of the encoder, a few clips at a time.

        The clips' features are kept too, without their padding.
        """
        assert self.encoder is not None, "prepare comes first"
        for features_MF, length in zip(batch.input_features, batch.frames.tolist(), strict=True):
            self.clips.append(features_MF[:, : 2 * length].float().cpu().clone())
        at_once = self._clips_at_once(batch)
        features = torch.split(batch.input_features, at_once)
        frames = torch.split(batch.frames, at_once)
        for part in map(CalibrationBatch, features, frames):
            with frozen(self.encoder), torch.enable_grad(), HookOwner() as hooks:
                self._hook_moments(hooks, part)
                self._hook_gradients(hooks)
                self._probe(part)

    def _clips_at_once(self, batch: CalibrationBatch) -> int:
        """Clips whose activations, taken as twice those of the linear layers, fit into memory."""
        frames = batch.input_features.shape[-1] // 2
        widths = sum(linear.in_features + linear.out_features for linear in self.linears.values())
        return max(1, _ACTIVATION_BYTES // (2 * frames * widths * batch.input_features.itemsize))

    def _hook_gradients(self, hooks: HookOwner) -> None:
        for name, linear in self.linears.items():
            hooks.on_output(linear, self._catcher(self._squares_adder(name)))
            gradients = self.gradients[name]
            on_side = hooks.on_input if self.on_input(name) else hooks.on_output
            on_side(linear, self._catcher(gradients.update))

    @staticmethod
    def _catcher(add: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """Give the gradient of a tensor that is seen in the forward pass to ``add``."""

        def catch(tensor: Tensor) -> None:
            tensor.register_hook(add)  # type: ignore[no-untyped-call]

        return catch

    def _squares_adder(self, name: str) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            squares_O = gradient.detach().flatten(0, -2).float().square().sum(0)
            self.squares[name] += squares_O.to(self.squares[name])

        return add

    def _probe(self, part: CalibrationBatch) -> None:
        assert self.encoder is not None
        features_BMF = part.input_features.detach().requires_grad_()
        z_BTD: Tensor = self.encoder(features_BMF)[0]
        is_audio_BT = torch.arange(z_BTD.shape[1], device=z_BTD.device) < part.frames[:, None]
        if self.output is None:
            device = next(iter(self.statistics.values())).sum_D.device
            self.output = MomentStatistics(z_BTD.shape[-1], device, self.block_dtype)
        self.output.update(z_BTD[is_audio_BT])
        shape = z_BTD.shape[1:]
        seeds = [_seed(clip_MF) for clip_MF in part.input_features]
        for probe in range(self.probes):
            noise = [_noise(shape, seed + probe) for seed in seeds]
            v_BTD = torch.stack(noise).to(z_BTD) * is_audio_BT[..., None]
            more = probe + 1 < self.probes
            torch.autograd.backward(z_BTD, v_BTD, retain_graph=more)

    def reduce(self, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Sum moments and gradients over all processes, and give each the clips of all."""
        super().reduce(reduce_sum)
        in_turn = itertools.zip_longest(*self.processes.gather(self.clips))
        self.clips = [clip for turn in in_turn for clip in turn if clip is not None]
        for name, gradients in self.gradients.items():
            gradients.all_reduce(reduce_sum)
            self.squares[name] = reduce_sum(self.squares[name])
        if self.output is None:  # a process without clips takes part in the sum all the same
            like = next(iter(self.statistics.values())).sum_D
            width = max(linear.out_features for linear in self.linears.values())
            width = getattr(getattr(self.encoder, "config", None), "d_model", width)
            self.output = MomentStatistics(width, like.device, self.block_dtype)
        self.output.all_reduce(reduce_sum)

    def state_dict(self) -> dict[str, Any]:
        """Moments, gradients, the variance of the encoder's output, and the clips."""
        return {
            "moments": super().state_dict(),
            "gradients": {name: sums.state_dict() for name, sums in self.gradients.items()},
            "squares": {name: squares.cpu().clone() for name, squares in self.squares.items()},
            "output": None if self.output is None else self.output.state_dict(),
            "clips": list(self.clips),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            ValueError: If it belongs to other layers.
        """
        super().load_state_dict(state["moments"])
        self.clips = list(state["clips"])
        for name, sums in state["gradients"].items():
            self.gradients[name].load_state_dict(sums)
            self.squares[name] = state["squares"][name].to(self.squares[name])
        if state["output"] is not None:
            device = next(iter(self.statistics.values())).sum_D.device
            self.output = MomentStatistics(len(state["output"]["sum"]), device, self.block_dtype)
            self.output.load_state_dict(state["output"])

    def covariance(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the narrower side of a layer, (D,) and (D, D) fp64."""
        statistics = self.statistics[self.site(name)]
        mean, covariance = statistics.mean(), statistics.covariance()
        if self.on_input(name) or self.site(name).endswith(":output"):
            return mean, covariance
        linear = self.linears[name]
        weight_OI = linear.weight.detach().to(mean)
        mean_O = weight_OI @ mean
        if linear.bias is not None:
            mean_O = mean_O + linear.bias.detach().to(mean)
        return mean_O, weight_OI @ covariance @ weight_OI.T

    def metric_of(self, name: str) -> Tensor:
        """``G`` of the narrower side of a layer, (D, D) fp64.

        Its unit is the relative error of the encoder's output, ``Σ‖δz‖² / Σ‖z − z̄‖²``; with
        metric ``none`` it is that of the layer's own output.
        """
        if self.metric == "full":
            return self.gradients[name].second_moment() / self._total_variance()
        squares_O = self.squares[name] / self._total_variance()
        if self.metric == "scalar":
            squares_O = squares_O.mean().expand_as(squares_O)
        if self.metric == "none":
            squares_O = torch.ones_like(squares_O)
        if self.on_input(name):
            weight_OI = self.linears[name].weight.detach().to(squares_O)
            metric_DD = weight_OI.T @ (weight_OI * squares_O[:, None])
        else:
            metric_DD = torch.diag(squares_O)
        if self.metric == "none":
            _, covariance_DD = self.covariance(name)
            metric_DD = metric_DD / (metric_DD * covariance_DD).sum()
        return metric_DD

    def _total_variance(self) -> Tensor:
        """``Σ‖z − z̄‖²`` over all frames that hold audio, as often as there are probes."""
        assert self.output is not None, "nothing was observed"
        return self.output.covariance().trace() * self.output.weight * self.probes

    def release(self) -> None:
        """Drop sums and clips too."""
        super().release()
        self.gradients, self.squares, self.output, self.clips = {}, {}, None, []

    def statistics_options(self) -> dict[str, Any]:
        """Only what changes the sums: they serve every metric."""
        return {**super().statistics_options(), "probes": self.probes}


def _seed(features_MF: Tensor) -> int:
    """A number that depends on a clip alone: whoever sees it, and when, draws the same noise."""
    return zlib.crc32(features_MF.detach().float().cpu().numpy().tobytes())


def _noise(shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
