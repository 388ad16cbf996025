"""Self-attention of a real encoder, dense and reduced: time and error over rank and width of heads.

    python benchmarks/attention.py [--model M] [--speech D] [--clips 16] [--ranks 64 128 192]
                                   [--dims 16 32 48] [--batch-size 1] [--rounds 7]
                                   [--dtype float32] [--threads N] [--flex]

Prints for each layer the relative error of the attention's output on clips that were not calibrated
on, parameters, and time over that of the dense layer (median and range of the rounds, all kinds of
a layer in turn in one process), and at the end the means over the layers, of

- ``low_rank R``: q, k and v of rank R, the published method's factors, run plainly,
- ``rank_space R``: the same factors, run between them where that is less work, as in an encoder of
  ours,
- ``fused R``: the same factors, the first three always in one product,
- ``pivoted R``: the same factors with pivots, likewise,
- ``per_head E``: heads of E dimensions for q, k and v,
- ``scores E``: the same for q and k alone, with dense values,
- ``flex E``: the same as ``scores E`` by torch's FlexAttention, compiled, with ``--flex``.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from calibration import datamodule
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from liteasr import WhisperModule
from liteasr.compression import (
    MomentStatistics,
    attention_weights,
    head_factors,
    low_rank_factors,
    pca_of_image,
    score_modes,
    value_modes,
)
from liteasr.compression.hooks import HookOwner
from liteasr.compression.surgery import install_attention_factors, install_factors, pivot_layers
from liteasr.modeling import (
    LowRankLinear,
    ReducedAttention,
    use_fast_inference,
    use_rank_space,
)
from liteasr.modeling.attention import split_heads

PADDING_WEIGHT = 0.05
Moments = tuple[Tensor, Tensor]


def inputs_of(module: WhisperModule, batches: list[Any]) -> list[list[Tensor]]:
    """Input of each layer's attention, (clips, T, D) a batch."""
    inputs: list[list[Tensor]] = [[] for _ in module.encoder.layers]
    with HookOwner() as hooks, torch.no_grad():
        for layer, kept in zip(module.encoder.layers, inputs, strict=True):
            hooks.on_input(layer.self_attn.q_proj, kept.append)
        for batch in batches:
            module.encoder(batch["input_features"])
    return inputs


def moments_of(inputs: list[Tensor], frames: list[Tensor]) -> Moments:
    """Mean and covariance; a frame of padding, which is attended to as well, counts a little."""
    moments = MomentStatistics(inputs[0].shape[-1], inputs[0].device, torch.float32)
    for x, lengths in zip(inputs, frames, strict=True):
        moments.update(x, is_audio(x, lengths).float().clamp_min(PADDING_WEIGHT))
    return moments.mean(), moments.covariance()


def is_audio(x: Tensor, lengths: Tensor) -> Tensor:
    """Which frames hold audio, (clips, T)."""
    return torch.arange(x.shape[1]) < lengths[:, None]


def low_rank(dense: nn.Module, moments: Moments, rank: int) -> nn.Module:
    """The attention with q, k and v of the published method's factors."""
    attention: Any = copy.deepcopy(dense)
    for name in ("q_proj", "k_proj", "v_proj"):
        linear = getattr(attention, name)
        weight, bias = linear.weight.detach(), linear.bias
        bias = None if bias is None else bias.detach()
        layer = LowRankLinear(linear.in_features, linear.out_features, rank)
        factors = low_rank_factors(weight, bias, pca_of_image(*moments, weight, bias), rank)
        install_factors(layer, factors)
        setattr(attention, name, layer)
    return attention


def per_head(dense: Any, moments: Moments, dim: int, v_dim: int) -> nn.Module:
    """The attention with heads of ``dim`` dimensions, and ``v_dim`` for values."""
    weights = attention_weights(dense)
    scores, values = score_modes(weights, *moments), value_modes(weights, *moments)
    reduced = ReducedAttention(dense.embed_dim, dense.num_heads, dim, v_dim)
    factors = head_factors(weights, moments[0], scores, values, dim, v_dim)
    install_attention_factors(reduced, factors)
    return reduced.eval()


class ByFlexAttention(ReducedAttention):
    """Reduced heads by FlexAttention, which takes values of another width than queries and keys."""

    attend: ClassVar[Any] = staticmethod(torch.compile(flex_attention, dynamic=False))

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Frames to frames, (B, T, D)."""
        q_k_v = (
            split_heads(layer(hidden_states), self.num_heads)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed: Tensor = self.attend(*q_k_v, scale=self.scaling)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


def kinds_of(
    dense: Any, moments: Moments, ranks: Sequence[int], dims: Sequence[int], *, flex: bool
) -> dict[str, nn.Module]:
    """All that is compared."""
    kinds: dict[str, nn.Module] = {"dense": dense}
    for rank in ranks:
        kinds[f"low_rank {rank}"] = low_rank(dense, moments, rank)
        for name, change in _WAYS.items():
            holder = nn.ModuleDict({"attention": copy.deepcopy(kinds[f"low_rank {rank}"])})
            change(holder)
            kinds[f"{name} {rank}"] = holder["attention"]
    for dim in dims:
        kinds[f"per_head {dim}"] = per_head(dense, moments, dim, dim)
        kinds[f"scores {dim}"] = per_head(dense, moments, dim, dense.head_dim)
        if flex:
            kinds[f"flex {dim}"] = copy.deepcopy(kinds[f"scores {dim}"])
            kinds[f"flex {dim}"].__class__ = ByFlexAttention
    return kinds


def fast_pivots(holder: nn.Module) -> None:
    """Pivoted layers, run as a compressed encoder runs them."""
    pivot_layers(holder)
    use_fast_inference(holder)


def fused(holder: nn.Module) -> None:
    """The first factors of q, k and v in one product, also where attention gains nothing else."""
    use_rank_space(holder, fuse_all=True)


_WAYS: dict[str, Callable[[nn.Module], object]] = {
    "rank_space": use_fast_inference,
    "fused": fused,
    "pivoted": fast_pivots,
}


def relative_error(
    layer: nn.Module, dense: nn.Module, inputs: list[Tensor], frames: list[Tensor]
) -> float:
    """Squared error of the output over its variance, on the frames that hold audio."""
    expected = torch.cat([dense(x)[0][is_audio(x, n)] for x, n in zip(inputs, frames, strict=True)])
    actual = torch.cat([layer(x)[0][is_audio(x, n)] for x, n in zip(inputs, frames, strict=True)])
    spread = (expected - expected.mean(0)).double().square().sum()
    return float((actual - expected).double().square().sum() / spread)


def seconds_of(layers: dict[str, nn.Module], x: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(rounds + 1):
        for name, layer in layers.items():
            started = time.perf_counter()
            layer(x)
            seconds[name].append(time.perf_counter() - started)
    return {name: found[1:] for name, found in seconds.items()}


def measure(
    dense: nn.Module,
    inputs: list[Tensor],
    frames: list[Tensor],
    arguments: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """One layer; the first half of the clips is calibrated on."""
    half = len(inputs) // 2
    moments = moments_of(inputs[:half], frames[:half])
    layers = kinds_of(dense, moments, arguments.ranks, arguments.dims, flex=arguments.flex)
    errors = {
        name: relative_error(layer, dense, inputs[half:], frames[half:])
        for name, layer in layers.items()
    }
    dtype = getattr(torch, arguments.dtype)
    cast = {name: copy.deepcopy(layer).to(dtype) for name, layer in layers.items()}
    x = torch.cat(inputs)[: arguments.batch_size].to(dtype)
    seconds = seconds_of(cast, x, arguments.rounds)
    result: dict[str, Any] = {}
    for name, layer in layers.items():
        ratios = [s / d for s, d in zip(seconds[name], seconds["dense"], strict=True)]
        result[name] = {
            "milliseconds": round(1e3 * statistics.median(seconds[name]), 2),
            "error": float(f"{errors[name]:.3g}"),
            "params": sum(parameter.numel() for parameter in layer.parameters()),
            "time_ratio": round(statistics.median(ratios), 3),
            "time_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return result


def main() -> None:
    """Parse, measure, print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="../shared/models/whisper-tiny-libri")
    parser.add_argument("--speech", type=Path, default=Path("../shared/speech"))
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 128, 192])
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 32, 48])
    parser.add_argument("--flex", action="store_true", help="FlexAttention too, compiled")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if not args.speech.is_dir():
        print(f"nothing is measured: there is no folder {args.speech}")
        return
    module = WhisperModule(args.model)
    data = datamodule(module, args.speech, args.clips)
    data.data.calibration_batch_size = 1
    data.setup("fit")
    batches = list(data.calibration_dataloader())
    if len(batches) < 2:
        parser.error("--clips: at least 2, half of them to calibrate and half to measure on")
    frames = [batch["frames"] for batch in batches]
    torch.set_num_threads(args.threads)
    if args.batch_size > len(batches):
        parser.error(f"--batch-size: more than the {len(batches)} clips that were read")
    way = {"dtype": args.dtype, "batch_size": args.batch_size, "threads": args.threads}
    found = []
    with torch.inference_mode():
        for number, inputs in enumerate(inputs_of(module, batches)):
            found.append(measure(module.encoder.layers[number].self_attn, inputs, frames, args))
            for kind, result in found[-1].items():
                print(json.dumps({"layer": number, "kind": kind, **way, **result}), flush=True)
    for kind in found[0]:
        means = {
            key: float(f"{statistics.fmean(one[kind][key] for one in found):.3g}")
            for key in ("error", "params", "time_ratio")
        }
        print(json.dumps({"layer": "mean", "kind": kind, **way, **means}))


if __name__ == "__main__":
    main()
