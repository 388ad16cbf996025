"""What is done to a model for a while and undone, however the while ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["HookOwner", "frozen"]


class HookOwner:
    """Registers forward hooks and removes all of them when its block ends, however it ends.

    Example:
        >>> import torch
        >>> layer, seen = nn.Linear(2, 3), []
        >>> with HookOwner() as hooks:
        ...     hooks.on_input(layer, lambda x: seen.append(tuple(x.shape)))
        ...     _ = layer(torch.zeros(5, 2))
        >>> _ = layer(torch.zeros(7, 2))
        >>> seen
        [(5, 2)]
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def on_input(self, module: nn.Module, observe: Callable[[Tensor], object]) -> None:
        """Call ``observe`` with the module's first positional input before each forward."""

        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            observe(args[0])

        self._handles.append(module.register_forward_pre_hook(hook))

    def on_output(self, module: nn.Module, observe: Callable[[Tensor], object]) -> None:
        """Call ``observe`` with the module's output after each forward."""

        def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            observe(output)

        self._handles.append(module.register_forward_hook(hook))

    def __enter__(self) -> HookOwner:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a module without computing those of its parameters.

    Example:
        >>> import torch
        >>> layer, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
        >>> with frozen(layer):
        ...     layer(x).sum().backward()
        >>> layer.weight.grad is None, layer.weight.requires_grad, x.grad is None
        (True, True, False)
    """
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
