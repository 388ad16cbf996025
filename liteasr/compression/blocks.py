"""A walk through the encoder block by block, dense and compressed side by side.

Shape suffixes: N windows, T encoder frames, D width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from liteasr.compression.method import Processes
from liteasr.compression.windows import Windows

__all__ = ["BlockWalk"]

_IN_MEMORY_BYTES = 2**31
"""Hidden states larger than this are kept in a temporary file."""


class BlockWalk:
    """Hidden states of all windows before the current block.

    There are three sets, each (N, T, D) and in memory or, if large, in a temporary file: those
    of the dense encoder, those of the one whose earlier blocks are compressed, and the dense
    encoder's after the block. With several processes each holds its share of the windows, those
    whose number leaves the process's rank when divided by their count.

    Args:
        encoder: Hugging Face's encoder, still dense.
        windows: All windows, the same on every process.
        processes: This process among others.
        padding_weight: Weight of a frame of padding; one of audio counts 1.
    """

    def __init__(
        self, encoder: nn.Module, windows: Windows, processes: Processes, padding_weight: float
    ) -> None:
        self.processes = processes
        self.mine = list(range(len(windows.frames_N)))[processes.rank :: processes.world_size]
        self.device = next(encoder.parameters()).device
        self.dtype = next(encoder.parameters()).dtype
        config: object = encoder.config
        shape = (len(self.mine), config.max_source_positions, config.d_model)  # type: ignore[attr-defined]
        self.dense_NTD = _storage(shape)
        self.compressed_NTD = _storage(shape)
        self.target_NTD = _storage(shape)
        positions_T = torch.arange(shape[1])
        is_audio_NT = positions_T < windows.frames_N[:, None]
        self.weight_NT = torch.where(is_audio_NT, 1.0, padding_weight)
        self._enter(encoder, windows.features_NMF, self.dense_NTD)
        self.compressed_NTD.copy_(self.dense_NTD)

    def enter_compressed(self, encoder: nn.Module, features_NMF: Tensor) -> None:
        """Compute the compressed encoder's states before the first block anew.

        Args:
            encoder: With what comes before its blocks compressed.
            features_NMF: Log-mel features of all windows.
        """
        self._enter(encoder, features_NMF, self.compressed_NTD)

    def _enter(self, encoder: nn.Module, features_NMF: Tensor, to_NTD: Tensor) -> None:
        for row, window in enumerate(self.mine):
            features = features_NMF[window : window + 1].to(self.device, self.dtype)
            to_NTD[row] = _input_of_first_block(encoder, features)[0].float().cpu()

    def start_block(self, block: nn.Module) -> None:
        """Compute the dense encoder's states after a block that is still dense."""
        self._run(block, self.dense_NTD, self.target_NTD)

    def finish_block(self, block: nn.Module) -> None:
        """Go on to the states before the next block."""
        self._run(block, self.compressed_NTD, self.compressed_NTD)
        self.dense_NTD, self.target_NTD = self.target_NTD, self.dense_NTD

    @torch.no_grad()
    def finish_encoder(self, norm: nn.Module) -> None:
        """Compute the dense encoder's output, ``target_NTD``, after the last block.

        Args:
            norm: What stands between the last block and the output.
        """
        for row in range(len(self.mine)):
            self.target_NTD[row] = norm(self.batch(self.dense_NTD, [row]))[0].float().cpu()

    @torch.no_grad()
    def _run(self, block: nn.Module, from_NTD: Tensor, to_NTD: Tensor) -> None:
        for row in range(len(self.mine)):
            to_NTD[row] = run_block(block, self.batch(from_NTD, [row]))[0].float().cpu()

    def batch(self, states_NTD: Tensor, rows: list[int]) -> Tensor:
        """Hidden states of some rows in the encoder's type and on its device."""
        return states_NTD[rows].to(self.device, self.dtype)

    def target_variance(self) -> float:
        """Weighted variance of the dense block's output, summed over channels."""
        weight_NT = self.weight_NT[self.mine].double()
        width = self.target_NTD.shape[-1]
        sums = torch.zeros(width + 2, dtype=torch.float64)
        for weight_T, target_TD in zip(weight_NT, self.target_NTD, strict=True):
            target_TD = target_TD.double()
            sums[:width] += weight_T @ target_TD
            sums[width] += (weight_T[:, None] * target_TD.square()).sum()
            sums[width + 1] += weight_T.sum()
        sums = self.processes.reduce_sum(sums)
        mean_D = sums[:width] / sums[width + 1]
        return float(sums[width] / sums[width + 1] - mean_D.square().sum())


def run_block(block: Callable[..., Tensor | tuple[Tensor, ...]], states_NTD: Tensor) -> Tensor:
    """Output of an encoder layer of Hugging Face's Whisper."""
    output = block(states_NTD, None)
    return output[0] if isinstance(output, tuple) else output


class _Reached(Exception):
    """The first block was reached; there is no need to run the others."""


@torch.no_grad()
def _input_of_first_block(encoder: nn.Module, features: Tensor) -> Tensor:
    reached: list[Tensor] = []

    def stop(_block: nn.Module, args: tuple[Tensor, ...]) -> None:
        reached.append(args[0])
        raise _Reached

    layers: nn.ModuleList = encoder.layers  # type: ignore[assignment]
    handle = layers[0].register_forward_pre_hook(stop)
    try:
        encoder(features)
    except _Reached:
        pass
    finally:
        handle.remove()
    return reached[0]


def _storage(shape: tuple[int, ...]) -> Tensor:
    """Zeros in memory, or in a temporary file that goes with the tensor."""
    if 4 * int(np.prod(shape)) <= _IN_MEMORY_BYTES:
        return torch.zeros(shape)
    # The mapping keeps the unlinked file alive.
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))
