"""Weights that are split over processes while they are trained (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

__all__ = ["is_sharded", "shard", "whole"]


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are split over processes."""
    return isinstance(module, FSDPModule)


def shard(root: nn.Module, parts: Sequence[nn.Module], mesh: DeviceMesh, method: str) -> None:
    """Split the weights of a module over the processes of a mesh.

    A part's weights are gathered while it runs; those of the rest while ``method`` does.

    Args:
        root: The module.
        parts: Modules in it that are gathered by themselves, such as the layers of a transformer,
            in the order in which they run.
        mesh: The processes, one dimension.
        method: Name of the method that computes the loss.
    """
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(root, mesh=mesh)
    # Unless told, a backward pass gathers ahead what ran before in any forward pass since the last
    # one: those of an evaluation too, which other processes may not have had.
    for part, next_part in pairwise([*parts, root]):
        _gather_ahead(next_part, part)
    _gather_ahead(parts[0], root)
    register_fsdp_forward_method(root, method)


def _gather_ahead(part: nn.Module, ahead: nn.Module) -> None:
    assert isinstance(part, FSDPModule)
    assert isinstance(ahead, FSDPModule)
    part.set_modules_to_backward_prefetch([ahead])


@contextmanager
def whole(root: nn.Module) -> Iterator[None]:
    """All weights on every process, for the time of an evaluation.

    Processes decode different numbers of tokens, so that they could not gather weights together.

    Args:
        root: A module that :func:`shard` has split; any other one is left alone.
    """
    sharded = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(module is not root, recurse=False)
            module.reshard()
