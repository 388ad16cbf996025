"""What the processes of a run give each other while they compress."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from liteasr.compression import LowRankFactors, Processes

__all__ = ["on_cpu", "processes_of", "without_whitening"]


def processes_of(trainer: L.Trainer) -> Processes:
    """This process among those of the strategy."""
    if trainer.world_size == 1:
        return Processes()

    def reduce_sum(tensor: Tensor) -> Tensor:
        on_device = tensor.to(trainer.strategy.root_device)
        reduced = trainer.strategy.reduce(on_device, reduce_op="sum")
        assert isinstance(reduced, Tensor)
        return reduced.to(tensor.device)

    def gather(item: Any) -> list[Any]:
        items: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(items, item)
        return items

    return Processes(trainer.global_rank, trainer.world_size, reduce_sum, gather)


def on_cpu(factors: LowRankFactors) -> LowRankFactors:
    """Factors that can be sent to other processes."""
    # A pickled CUDA tensor would be put on process 0's device by every process that receives it.
    whitening = factors.whitening
    return LowRankFactors(
        factors.weight1.cpu(),
        factors.weight2.cpu(),
        factors.bias.cpu(),
        None if whitening is None else whitening.to(torch.device("cpu"), torch.float32),
    )


def without_whitening(factors: LowRankFactors) -> LowRankFactors:
    """What is in the layer, for keeping until all layers are done."""
    return LowRankFactors(factors.weight1, factors.weight2, factors.bias)
