"""Matrix products in single precision, by the faster of the two libraries that torch has on a CPU.

torch multiplies matrices of fp32 with MKL and convolves with oneDNN. On processors of other makers
than MKL's, which it does not give the widest vectors that they have, oneDNN takes less than half
the time; so both are tried, once.

Shape suffixes: N frames, I input width, O output width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

__all__ = ["affine", "by_onednn", "onednn_is_faster"]

_CLEARLY = 1.3
"""Times as fast that oneDNN has to be: what is chosen must not differ from day to day."""
_TRIALS = 10
# What torch.compile multiplies with on a CPU. A torch may be built without it.
_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def affine(x_NI: Tensor, weight_IO: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x @ weight + bias``.

    Args:
        x_NI: (N, I).
        weight_IO: (I, O), or the transpose of a matrix in memory.
        bias_O: (O,), or ``None`` for 0.

    Returns:
        (N, O).

    Example:
        >>> affine(torch.ones(2, 3), torch.ones(3, 1), torch.ones(1)).tolist()
        [[4.0], [4.0]]
    """
    if by_onednn(x_NI) and weight_IO.dtype == x_NI.dtype:
        return _by_onednn(x_NI, weight_IO, bias_O)
    return x_NI @ weight_IO if bias_O is None else torch.addmm(bias_O, x_NI, weight_IO)


def by_onednn(x: Tensor) -> bool:
    """Whether products with a tensor are oneDNN's: of fp32 on a CPU, where nothing else watches."""
    return (
        x.dtype == torch.float32
        and type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and onednn_is_faster()
    )


@cache
def onednn_is_faster() -> bool:
    """Try both libraries with a small product; milliseconds, once a process."""
    if _LINEAR is None:
        return False
    place: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    x_NI, weight_IO = torch.ones(256, 384, **place), torch.ones(384, 384, **place)
    seconds = [_fastest(lambda: x_NI @ weight_IO), _fastest(lambda: _by_onednn(x_NI, weight_IO))]
    return seconds[0] > _CLEARLY * seconds[1]


def _fastest(run: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(_TRIALS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _by_onednn(x_NI: Tensor, weight_IO: Tensor, bias_O: Tensor | None = None) -> Tensor:
    weight_OI = weight_IO.T
    # Rows apart in memory are multiplied by a reference implementation, a thousand times as slow.
    if not (weight_IO.is_contiguous() or weight_OI.is_contiguous()):
        weight_OI = weight_OI.contiguous()
    assert _LINEAR is not None
    y_NO: Tensor = _LINEAR(x_NI.contiguous(), weight_OI, bias_O, "none", [], "")
    return y_NO


def _flops(x_NI: Any, weight_OI: Any, *_: Any, **__: Any) -> int:
    return 2 * int(math.prod(x_NI) * weight_OI[0])


if _LINEAR is not None and _LINEAR not in flop_registry:
    # So that torch's counter sees these products as it sees others.
    register_flop_formula(_LINEAR)(_flops)
