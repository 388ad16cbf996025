"""Methods that walk the encoder block by block: each block makes up for those before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from liteasr.compression.allocate import Budget
from liteasr.compression.blocks import BlockWalk
from liteasr.compression.factorize import LowRankFactors
from liteasr.compression.metric import whitening_of
from liteasr.compression.refine import Refinement, refine_block, refine_encoder
from liteasr.compression.sensitivity import SensitivityMethod
from liteasr.compression.surgery import encoder_frames
from liteasr.compression.windows import Windows, pack_windows

__all__ = ["RefinedMethod"]


class RefinedMethod(SensitivityMethod):
    """What ``auto`` runs: one budget, the full metric, and refinement of each block.

    Ranks and first factors are those of :class:`SensitivityMethod`. Then the calibration clips,
    put together into full windows, go through the encoder once more, one block at a time: the
    factors of a block take a few dozen steps of Adam, in coordinates that are white in the
    layer's statistics and metric, so that the block's output, computed from what the compressed
    blocks before it give, is that of the dense encoder. Three forward passes a block and a few
    backward passes. In the end as many steps go to all factors together, so that the encoder's
    output is that of the dense one.

    Args:
        budget: What to reach.
        refine_steps: Steps for each block.
        learning_rate: Peak learning rate, in whitened coordinates, times the root of the relative
            error that the block's output begins with.
        refine_windows: Windows a step.
        joint_steps: Steps for all blocks together, after those.
        joint_learning_rate: Peak learning rate of these, times the relative error they begin with;
            for factors with components of equal norm.
        options: Those of :class:`SensitivityMethod`.

    Raises:
        ValueError: If an option is out of range.
    """

    name = "auto"

    def __init__(
        self,
        budget: Budget,
        *,
        refine_steps: int = 60,
        learning_rate: float = 1e-4,
        refine_windows: int = 2,
        joint_steps: int = 60,
        joint_learning_rate: float = 6e-4,
        metric: str = "full",
        damping: float = 0.1,
        decoder_weight: float = 3.0,
        probes: int = 1,
        padding_weight: float = 0.05,
        block_dtype: torch.dtype = torch.float32,
        pivoted: bool = True,
        convolution: bool = True,
        heads: bool = True,
    ) -> None:
        super().__init__(
            budget,
            metric=metric,
            damping=damping,
            decoder_weight=decoder_weight,
            probes=probes,
            padding_weight=padding_weight,
            block_dtype=block_dtype,
            pivoted=pivoted,
            convolution=convolution,
            heads=heads,
        )
        for key, value in (("refine_steps", refine_steps), ("joint_steps", joint_steps)):
            if value < 0:
                raise ValueError(f"{key}: {value} is below 0")
        self.refinement = Refinement(refine_steps, learning_rate, refine_windows)
        self.joint = Refinement(joint_steps, joint_learning_rate, refine_windows, seed=1)
        self._windows: Windows | None = None
        self._walk: BlockWalk | None = None

    def prepare(self, encoder: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        """Forget where an earlier walk was."""
        super().prepare(encoder, linears)
        self._walk = self._windows = None

    def factorize(self, name: str, rank: int) -> LowRankFactors:
        """Factors in the metric, with the coordinates in which they are refined."""
        view = self.view(name)
        whitening = whitening_of(
            view.weight_OI,
            view.bias_O,
            view.mean_D,
            view.covariance_DD,
            view.metric_DD,
            rank,
            on_input=view.on_input,
            damping=self.used_damping,
        )
        return replace(super().factorize(name, rank), whitening=whitening)

    def before_blocks(self) -> None:
        """Put the clips into windows, and compute what goes into the first block."""
        if self.refinement.steps == self.joint.steps == 0:
            return
        assert self.encoder is not None, "prepare comes first"
        mel_frames = 2 * encoder_frames(self.encoder)
        self._windows = pack_windows(self.clips, mel_frames, seed=self.refinement.seed)
        self._walk = BlockWalk(self.encoder, self._windows, self.processes, self.padding_weight)

    def before_block(self, block: nn.Module) -> None:
        """Compute what the dense block gives."""
        if self.refinement.steps == self.joint.steps == 0:
            return
        if self._walk is None:
            raise RuntimeError("before_blocks comes first")
        encoder: Any = self.encoder
        assert self._windows is not None
        if block is encoder.layers[0]:
            # What comes before the blocks may have been compressed by now.
            self._walk.enter_compressed(encoder, self._windows.features_NMF)
        self._walk.start_block(block)

    def after_block(
        self, block: nn.Module, factors: Mapping[str, LowRankFactors]
    ) -> Mapping[str, LowRankFactors]:
        """Refine the factors."""
        if self._walk is None or self.refinement.steps == 0 or not factors:
            return factors
        return refine_block(block, factors, self._walk, self.refinement)

    def block_done(self, block: nn.Module) -> None:
        """Go on to the next block."""
        if self._walk is not None:
            self._walk.finish_block(block)

    def after_blocks(self, factors: Mapping[str, LowRankFactors]) -> Mapping[str, LowRankFactors]:
        """Refine all of them together."""
        if self._walk is None or self._windows is None or self.joint.steps == 0 or not factors:
            return factors
        encoder: Any = self.encoder
        self._walk.finish_encoder(encoder.layer_norm)
        features_NMF = self._windows.features_NMF
        return refine_encoder(encoder, factors, features_NMF, self._walk, self.joint)

    def release(self) -> None:
        """Drop the hidden states too."""
        super().release()
        self._walk = self._windows = None

    def options(self) -> dict[str, Any]:
        """Those of the statistics, and of the refinement."""
        refinements = {"refinement": asdict(self.refinement), "joint": asdict(self.joint)}
        return {**super().options(), **refinements}
