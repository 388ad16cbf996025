"""Attention forwards and backwards on a CPU: in tiles, and by torch's fused kernel.

    python benchmarks/training_attention.py [--heads 6] [--frames 1500] [--batch-size 2]
                                            [--widths 64:64 32:64 32:32] [--rounds 7] [--threads N]
                                            [--dtypes float32 bfloat16]

For each pair of widths (of queries and keys, and of values) prints milliseconds of both ways,
which run in turn, forwards and with the way back (medians of the rounds), the time of the tiles
over that of the kernel (median and range of the rounds), and the relative error of the gradient of
the queries in both, against float64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from liteasr.modeling.attention import attend

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One width for all three, as the kernel wants it."""
    common = max(q.shape[-1], v.shape[-1])
    padded = [F.pad(x, (0, common - x.shape[-1])) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*padded, scale=1.0)[..., : v.shape[-1]]


def tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, scale=1.0)[0]


def by_definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(dim=-1) @ v


def measure(way: Way, inputs: list[Tensor], back: Tensor) -> tuple[float, float, Tensor]:
    """Seconds forwards, seconds forwards and backwards, and the gradient of the queries."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    started = time.perf_counter()
    output = way(*leaves)
    forwards = time.perf_counter() - started
    output.backward(back)
    seconds = time.perf_counter() - started
    gradient = leaves[0].grad
    assert gradient is not None
    return forwards, seconds, gradient


def compare(shape: tuple[int, int, int], widths: str, dtype: torch.dtype, rounds: int) -> str:
    score_width, value_width = map(int, widths.split(":"))
    torch.manual_seed(0)
    q, k = (torch.randn(*shape, score_width, dtype=torch.float64) for _ in range(2))
    v, back = (torch.randn(*shape, value_width, dtype=torch.float64) for _ in range(2))
    # Scores with a deviation of 2, about as in Whisper's encoder.
    inputs = [q * 2 / score_width**0.5, k, v]
    true = measure(by_definition, inputs, back)[2]
    own = [x.to(dtype) for x in inputs]
    ways: dict[str, Way] = {"fused": fused, "tiled": tiled}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    errors = {}
    for number in range(rounds + 1):
        for name, way in ways.items():
            forwards, seconds, gradient = measure(way, own, back.to(dtype))
            errors[name] = float((gradient.double() - true).norm() / true.norm())
            if number:  # the first is to warm up
                times[name].append((forwards, seconds))
    ratios = sorted(a[1] / b[1] for a, b in zip(times["tiled"], times["fused"], strict=True))
    cells = [widths, str(dtype).removeprefix("torch.")]
    for part in (0, 1):
        cells += [f"{1e3 * statistics.median(t[part] for t in times[n]):.1f}" for n in ways]
    cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    cells += [f"{errors[name]:.1e}" for name in ways]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--widths", nargs="+", default=["64:64", "32:64", "32:32"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    shape = options.batch_size, options.heads, options.frames
    columns = ("widths", "type", "fused, ms", "tiled, ms", "both ways: fused", "tiled")
    columns += ("tiled / fused", "error: fused", "tiled")
    print(f"| {' | '.join(columns)} |")
    print("|---|---|" + "---:|" * 7)
    for name in options.dtypes:
        for widths in options.widths:
            print(compare(shape, widths, getattr(torch, name), options.rounds), flush=True)


if __name__ == "__main__":
    main()
