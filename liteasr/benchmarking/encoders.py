"""Both encoders alone, in one combination of batch size, type, threads and mode.

Shape suffixes: B windows in a batch, M mel bins, F mel frames.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import set_torch_threads
from transformers import PreTrainedModel

from liteasr.benchmarking.settings import Combination
from liteasr.benchmarking.timing import (
    NAMES,
    Skipped,
    alternate,
    compare,
    out_of_memory_is_no_end,
    spread,
)
from liteasr.compression import encoder_flops
from liteasr.modeling import use_cuda_graphs, use_no_cuda_graphs
from liteasr.speed import Stopwatch

__all__ = ["measure_encoders", "random_features"]

_WARM_UP_CALLS = 2
_LEAST_SECONDS = 0.05
"""Less than this is timed several times over, and divided."""
_WARM_AFTER_SECONDS = 2.0
"""A call that takes this long needs no second one to warm up."""

Encode = Callable[[Tensor], object]


def random_features(encoder: PreTrainedModel, batch_size: int) -> Tensor:
    """Normal random numbers in place of log-mel features, (B, M, F), the same each time."""
    config: Any = encoder.config
    shape = (batch_size, config.num_mel_bins, 2 * config.max_source_positions)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def measure_encoders(
    encoders: Mapping[str, PreTrainedModel],
    features_BMF: Tensor,
    combination: Combination,
    repeats: int,
    on_run: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Time both encoders in turn.

    Args:
        encoders: ``dense`` and ``lite``, in the type and on the device of the measurement.
        features_BMF: Input of both.
        combination: How they run.
        repeats: Rounds.
        on_run: Told before each timed run who runs.

    Returns:
        ``dense`` and ``lite`` (``seconds`` of each round, ``milliseconds`` as median and quartiles,
        ``compile_s``), ``calls`` in a run, and what :class:`Comparison` holds.

    Raises:
        Skipped: If this combination does not work here.
    """
    device, dtype = encoders["dense"].device, encoders["dense"].dtype
    input_BMF = features_BMF.to(device, dtype)
    with set_torch_threads(combination.threads), out_of_memory_is_no_end():
        compile_s: dict[str, float | None] = dict.fromkeys(NAMES)
        run: dict[str, Encode] = dict(encoders)
        try:
            if combination.mode == "compiled":
                run, compile_s = _compile(encoders, input_BMF)
            elif combination.mode == "graphs":
                for encoder in encoders.values():
                    use_cuda_graphs(encoder)
            calls = _warm_up(run, input_BMF)
            work = {name: _repeated(run[name], input_BMF, calls) for name in NAMES}
            measured = alternate([work] * repeats, on_run)
        finally:
            for encoder in encoders.values():
                use_no_cuda_graphs(encoder)
            if combination.mode == "compiled":
                torch.compiler.reset()
    seconds = {name: [one / calls for one in measured[name]] for name in NAMES}
    ratio = encoder_flops(encoders["dense"]) / encoder_flops(encoders["lite"])
    result: dict[str, Any] = {
        name: {
            "seconds": seconds[name],
            "milliseconds": spread([1000 * one for one in seconds[name]]),
            "compile_s": compile_s[name],
        }
        for name in NAMES
    }
    return {**result, "calls": calls, **compare(seconds, ratio).to_dict()}


def _repeated(encode: Encode, input_BMF: Tensor, calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            encode(input_BMF)

    return run


def _warm_up(run: Mapping[str, Encode], input_BMF: Tensor) -> int:
    """Run both a few times; returns how many calls make a run that is long enough to time."""
    fastest = math.inf
    for _ in range(_WARM_UP_CALLS):
        for encode in run.values():
            watch = Stopwatch()
            with watch.running():
                encode(input_BMF)
            fastest = min(fastest, watch.seconds)
        if fastest > _WARM_AFTER_SECONDS:
            break
    return max(1, math.ceil(_LEAST_SECONDS / fastest))


# ---------------------------------------------------------------------- compilation


def _compile(
    encoders: Mapping[str, PreTrainedModel], input_BMF: Tensor
) -> tuple[dict[str, Encode], dict[str, float | None]]:
    """Compile both for exactly this input; the seconds are those of the first call."""
    run: dict[str, Encode] = {}
    compile_s: dict[str, float | None] = {}
    torch.compiler.reset()
    for name, encoder in encoders.items():
        options: dict[str, Any] = {"mode": "reduce-overhead"} if input_BMF.is_cuda else {}
        run[name] = torch.compile(encoder, dynamic=False, **options)
        watch = Stopwatch()
        try:
            with _uncached(), watch.running():
                run[name](input_BMF)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise Skipped(_why_not_compiled(error)) from error
        compile_s[name] = watch.seconds
    return run, compile_s


@contextmanager
def _uncached() -> Iterator[None]:
    """Compile anew, else the time would be that of reading what an earlier run left."""
    log = logging.getLogger("torch._inductor")
    level = log.level
    # It would tell of a folder that it keeps; what went wrong is said in the table.
    log.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            torch.compiler.config.patch(force_disable_caches=True),  # type: ignore[attr-defined]
        ):
            warnings.filterwarnings("ignore", message=".*force disabled.*")
            yield
    finally:
        log.setLevel(level)


def _why_not_compiled(error: BaseException) -> str:
    """The reason that torch gives, or in plain words that there is no compiler."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {type(one).__name__ for one in causes}
    if "InvalidCxxCompiler" in kinds or "CppCompileError" in kinds:
        return (
            "torch.compile finds no working C++ compiler; install g++ or clang++, or name one in "
            "the environment variable CXX"
        )
    if "TritonMissing" in kinds:
        return "torch.compile needs Triton for this GPU, which is not installed"
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"torch.compile failed: {reason}"
