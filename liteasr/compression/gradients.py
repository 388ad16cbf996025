"""What an error at a layer's output costs: statistics of gradients.

Shape suffixes: B clips, T encoder frames, D width, M mel bins, F mel frames, O output width,
I input width, L tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
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

_LEAST_VARIANCE = 0.05
"""Share of the power of a clip's output that is taken for its variance at least."""

_ACTIVATION_BYTES = 2**31
"""Memory that the activations of one backward pass may take, roughly."""


class GradientMethod(PCAMethod):
    """Moments of the layers, and the metric in which errors of their outputs count.

    Beside the moments of ``pca``, one backward pass a batch collects the gradients ``g`` of a
    random projection ``vᵀ z`` of the encoder's output ``z`` on the frames that hold audio
    (Hutchinson's estimator). ``G = Σ g gᵀ`` over the frames is then, to first order and for errors
    that are independent from frame to frame, the metric in which an error of a layer costs what
    it changes of ``z``. With a weight for the decoder, ``v`` also holds the gradient of a random
    projection of the decoder's distributions (a factor of their Fisher information), and what
    an error adds to the Kullback-Leibler divergence of a token counts too.

    Args:
        metric: ``full`` uses ``G``; ``diagonal`` its diagonal; ``scalar`` its mean; ``none``
            counts each layer's error against its own variance.
        decoder_weight: What a nat of divergence a token costs, in units of the relative error of
            the encoder's output; 0 asks the encoder alone, else there must be a ``decoder``. The
            tokens are those that the dense model says: no transcripts are needed.
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
        decoder_weight: float = 0.0,
        probes: int = 1,
        padding_weight: float = 0.05,
        block_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(padding_weight=padding_weight, block_dtype=block_dtype)
        if metric not in METRICS:
            raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
        if not (isinstance(probes, int) and probes >= 1):
            raise ValueError(f"probes {probes!r} is no count of at least 1")
        if not (decoder_weight >= 0 and math.isfinite(decoder_weight)):
            raise ValueError(f"decoder_weight {decoder_weight!r} is not a number from 0 up")
        self.metric = metric
        self.decoder_weight = decoder_weight
        self.probes = probes
        self.gradients: dict[str, MomentStatistics] = {}
        self.squares: dict[str, Tensor] = {}
        self.audio_frames = torch.zeros((), dtype=torch.float64)
        self.clips: list[Tensor] = []

    def prepare(self, encoder: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        """Lay out the sums of moments and of gradients."""
        super().prepare(encoder, linears)
        self.audio_frames, self.clips = torch.zeros((), dtype=torch.float64), []
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
        self.audio_frames += part.frames.sum().to(self.audio_frames)
        # In units of the relative error of a clip, to be averaged over frames.
        unit_B = _variance(z_BTD.detach(), is_audio_BT).rsqrt()
        unit_BT1 = (unit_B[:, None] * is_audio_BT)[..., None]
        seeds = [_seed(clip_MF) for clip_MF in part.input_features]
        said = self._said(z_BTD) if self.decoder_weight > 0 else None
        for probe in range(self.probes):
            noise = [_noise(z_BTD.shape[1:], seed + probe) for seed in seeds]
            v_BTD = torch.stack(noise).to(z_BTD) * unit_BT1.to(z_BTD)
            if said is not None:
                v_BTD = v_BTD + self._probe_decoder(z_BTD, said, part.frames, seeds, probe)
            more = probe + 1 < self.probes
            torch.autograd.backward(z_BTD, v_BTD, retain_graph=more)

    def _said(self, z_BTD: Tensor) -> tuple[Tensor, Tensor]:
        if self.decoder is None:
            raise ValueError(f"decoder_weight {self.decoder_weight} needs a decoder; none is set")
        return self.decoder.transcribe(z_BTD.detach())

    def _probe_decoder(
        self,
        z_BTD: Tensor,
        said: tuple[Tensor, Tensor],
        frames_B: Tensor,
        seeds: Sequence[int],
        probe: int,
    ) -> Tensor:
        """Gradient of a random projection of the decoder's distributions, (B, T, D).

        With ``p`` the probabilities of a token, ``B = diag(√p) − p √pᵀ`` is a factor of the Fisher
        information ``diag(p) − p pᵀ`` of the logits, half of which is the divergence to second
        order. Clips go one by one: their logits are large.
        """
        assert self.decoder is not None
        gradients = []
        for z_TD, tokens_L, is_predicted_L, frames, seed in zip(
            z_BTD, *said, frames_B.tolist(), seeds, strict=True
        ):
            count = int(is_predicted_L.sum())
            length = int(is_predicted_L.nonzero().max()) + 1 if count else 0
            if length == 0:
                gradients.append(torch.zeros_like(z_TD))
                continue
            encoded_1TD = z_TD.detach()[None].requires_grad_()
            logits_LV = self.decoder.logits(encoded_1TD, tokens_L[None, :length])[0].float()
            with torch.no_grad():
                p_LV = logits_LV.softmax(dim=-1)
                noise = _noise(torch.Size((count, p_LV.shape[-1])), _other(seed) + probe)
                v_LV = torch.zeros_like(p_LV)
                v_LV[is_predicted_L[:length]] = noise.to(p_LV)
                v_LV *= p_LV.sqrt()
                v_LV -= p_LV * v_LV.sum(dim=-1, keepdim=True)
                # Per token as the error is per frame, so that a clip counts by its length in both.
                v_LV *= (self.decoder_weight / 2 * frames / count) ** 0.5
            (gradient_1TD,) = torch.autograd.grad(logits_LV, encoded_1TD, v_LV)
            gradients.append(gradient_1TD[0])
        return torch.stack(gradients).to(z_BTD)

    def reduce(self, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Sum moments and gradients over all processes, and give each the clips of all."""
        super().reduce(reduce_sum)
        in_turn = itertools.zip_longest(*self.processes.gather(self.clips))
        self.clips = [clip for turn in in_turn for clip in turn if clip is not None]
        for name, gradients in self.gradients.items():
            gradients.all_reduce(reduce_sum)
            self.squares[name] = reduce_sum(self.squares[name])
        self.audio_frames = reduce_sum(self.audio_frames)

    def state_dict(self) -> dict[str, Any]:
        """Moments, gradients, the frames they are of, and the clips."""
        return {
            "moments": super().state_dict(),
            "gradients": {name: sums.state_dict() for name, sums in self.gradients.items()},
            "squares": {name: squares.cpu().clone() for name, squares in self.squares.items()},
            "audio_frames": self.audio_frames.cpu().clone(),
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
        self.audio_frames = state["audio_frames"].clone()

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

        Its unit is the relative error of a clip at the encoder's output, ``Σ‖δz‖² / Σ‖z − z̄‖²``,
        averaged over clips by their frames; with metric ``none`` it is that of the layer's own
        output.
        """
        if self.metric == "full":
            return self.gradients[name].second_moment() / self._samples()
        squares_O = self.squares[name] / self._samples()
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

    def _samples(self) -> float:
        """Frames that hold audio, as often as there are probes."""
        return float(self.audio_frames) * self.probes

    def release(self) -> None:
        """Drop sums and clips too."""
        super().release()
        self.gradients, self.squares, self.clips = {}, {}, []

    def statistics_options(self) -> dict[str, Any]:
        """Only what changes the sums: they serve every metric."""
        sums = {"probes": self.probes, "decoder_weight": self.decoder_weight}
        return {**super().statistics_options(), **sums}


def _variance(z_BTD: Tensor, is_audio_BT: Tensor) -> Tensor:
    """Variance of a clip's frames about their mean, summed over channels, (B,) fp64.

    Silence hardly varies; it must not outweigh all else.
    """
    z_BTD = z_BTD.double()
    weight_BT1 = is_audio_BT[..., None].to(z_BTD)
    count_B1 = weight_BT1.sum(dim=1).clamp_min(1)
    mean_BD = (weight_BT1 * z_BTD).sum(dim=1) / count_B1
    power_B = (weight_BT1 * z_BTD.square()).sum(dim=(1, 2)) / count_B1[:, 0]
    return torch.maximum(power_B - mean_BD.square().sum(dim=1), _LEAST_VARIANCE * power_B)


def _seed(features_MF: Tensor) -> int:
    """A number that depends on a clip alone: whoever sees it, and when, draws the same noise."""
    return zlib.crc32(features_MF.detach().float().cpu().numpy().tobytes())


def _other(seed: int) -> int:
    """A seed for noise that must not be that of another seed's, of the same clip."""
    return zlib.crc32(seed.to_bytes(4, "little"), 1)


def _noise(shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
