"""Weights that are split over processes while they are trained (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

__all__ = ["is_sharded", "shard", "whole"]


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are split over processes."""
    return isinstance(module, FSDPModule)


def shard(root: nn.Module, parts: Iterable[nn.Module], mesh: DeviceMesh, method: str) -> None:
    """Split the weights of a module over the processes of a mesh.

    A part's weights are gathered while it runs; those of the rest while ``method`` does.

    Args:
        root: The module.
        parts: Modules in it that are gathered by themselves, such as the layers of a transformer.
        mesh: The processes, one dimension.
        method: Name of the method that computes the loss.
    """
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(root, mesh=mesh)
    register_fsdp_forward_method(root, method)


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
