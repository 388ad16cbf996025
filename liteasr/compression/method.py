"""What a compression method is: collect statistics → allocate ranks → factorize a layer.

A method knows nothing of Lightning, data sets or files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from liteasr.compression.factorize import LowRankFactors
from liteasr.compression.plan import CompressionPlan
from liteasr.compression.surgery import find_linears
from liteasr.modeling import use_plain_inference

__all__ = ["AllocationError", "CalibrationBatch", "CompressionMethod", "Decoder", "Processes"]


class AllocationError(ValueError):
    """A budget that the method cannot meet, on any process."""


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _alone(item: Any) -> list[Any]:
    return [item]


@dataclass(frozen=True)
class Processes:
    """This process among those of a run; the default is the only one.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes.
        reduce_sum: Returns the sum of a tensor over all processes.
        gather: Returns the objects of all processes, in the order of their ranks.
    """

    rank: int = 0
    world_size: int = 1
    reduce_sum: Callable[[Tensor], Tensor] = _same
    gather: Callable[[Any], list[Any]] = _alone


class Decoder(Protocol):
    """The dense model's decoder, as far as a method may need it.

    Shape suffixes: B clips, T encoder frames, D width, L tokens, V tokens of the vocabulary.
    """

    def transcribe(self, encoded_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """What the model itself says of clips, from the encoder's output.

        Returns:
            Tokens to feed to the decoder, (B, L), and where it predicts text or its end, (B, L).
        """

    def logits(self, encoded_BTD: Tensor, tokens_BL: Tensor) -> Tensor:
        """Logits of the next token after each one, (B, L, V), differentiable."""


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

    The callback calls :meth:`select` and :meth:`prepare`, then :meth:`observe` for every batch,
    :meth:`reduce`, :meth:`allocate` and :meth:`before_blocks` once, and :meth:`factorize` for every
    layer that the plan compresses: those outside of blocks, then block by block, with
    :meth:`before_block`, :meth:`after_block` and :meth:`block_done` around each, and
    :meth:`after_blocks` in the end.
    Whatever :meth:`state_dict` returns is saved during calibration and lets a killed run go on.
    """

    name: str = "custom"
    processes: Processes = Processes()
    """Set by the callback before :meth:`prepare`."""
    decoder: Decoder | None = None
    """Set by the callback before :meth:`prepare`, and taken away when all is done."""
    spectra_unit: str = "cost"
    """What :meth:`spectra` counts, as it stands at an axis."""

    def prepare(self, encoder: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        """Take note of the encoder and of the layers that may be compressed."""
        use_plain_inference(encoder)  # or hooks of some layers would not run
        self.encoder: nn.Module | None = encoder
        self.linears = dict(linears)

    def select(self, model: nn.Module) -> dict[str, nn.Linear]:
        """Layers of a Whisper that may be compressed, by name; here all linear ones of its blocks.

        May exchange modules for others of the same function; what stays dense is changed back.

        Raises:
            ValueError: If there are none.
        """
        return find_linears(model)

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
        """Decide the rank of every layer.

        Raises:
            ValueError: If what is asked for cannot be had.
        """

    @abstractmethod
    def factorize(self, name: str, rank: int) -> LowRankFactors:
        """Factors of one layer at one rank."""

    def before_blocks(self) -> None:
        """Called on every process before any layer is swapped. Does nothing here."""
        return

    def before_block(self, block: nn.Module) -> None:
        """Called on every process before the layers of an encoder block are swapped.

        Blocks come in their order, those without low-rank layers too. Does nothing here.
        """
        del block

    def after_block(
        self, block: nn.Module, factors: Mapping[str, LowRankFactors]
    ) -> Mapping[str, LowRankFactors]:
        """Called on every process after the layers of a block are swapped.

        Args:
            block: The encoder block, with its low-rank layers.
            factors: Their factors, by name within the block.

        Returns:
            The factors to install; here those that were given.
        """
        return factors

    def block_done(self, block: nn.Module) -> None:
        """Called on every process when the final factors of a block are in place.

        A block that an earlier attempt finished gets its factors from there, and this call. Does
        nothing here.
        """
        del block

    def after_blocks(self, factors: Mapping[str, LowRankFactors]) -> Mapping[str, LowRankFactors]:
        """Called on every process when all blocks are done.

        Args:
            factors: Those in place, by name within the encoder.

        Returns:
            The factors to install; here those that were given.
        """
        return factors

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Statistics so far: plain containers and tensors."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over statistics that :meth:`state_dict` gave, after :meth:`prepare`."""

    def spectra(self) -> dict[str, Tensor]:
        """What each component of each layer is worth, for plots; asked on process 0 after all else.

        Returns:
            Layer → values, descending, (R,), in the unit that :attr:`spectra_unit` names: what
            a rank leaves out is the sum of the values after it. Here none.
        """
        return {}

    def release(self) -> None:
        """Let go of the encoder, its layers and whatever was computed from them."""
        self.encoder, self.linears, self.decoder = None, {}, None

    def options(self) -> dict[str, Any]:
        """Options worth recording in the plan, plain values."""
        return {}

    def statistics_options(self) -> dict[str, Any]:
        """The options that change the statistics: saved ones of other options are not reused."""
        return self.options()
