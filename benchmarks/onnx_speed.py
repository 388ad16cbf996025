"""An encoder in ONNX Runtime against torch: what it computes on real speech, and how fast.

    python benchmarks/onnx_speed.py MODEL --data FOLDER [--clips 16] [--rounds 7] [--threads N]

Exports MODEL in fp32 and with ``--int8``. Prints, for each, the largest and the relative difference
of the encoder's output to torch's, then seconds a window of torch fp32, ONNX Runtime fp32 and ONNX
Runtime int8, one window at a time, taken alternately, and the ratios to torch (above 1: faster than
torch), with their smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liteasr import SpeechDataModule, WhisperModule, load
from liteasr.config import DataConfig, SourceConfig, SourceKind
from liteasr.export import export_onnx

Encode = Callable[[Tensor], Tensor]


def speech(module: WhisperModule, folder: str, clips: int) -> list[Tensor]:
    """Windows of real speech, (1, mel bins, frames) each."""
    source = SourceConfig(SourceKind.folder, folder, limit=clips)
    data = DataConfig(test={"speech": source}, eval_batch_size=1, num_workers=0)
    datamodule = SpeechDataModule(
        data, module.processor, normalizer=module.normalizer, long_form="windows"
    )
    datamodule.setup("test")
    (loader,) = datamodule.test_dataloader()
    return [batch["input_features"][:1] for batch in loader]


def encoder(model: Any) -> Encode:
    return lambda features: model.model.encoder(features).last_hidden_state


def parity(expected: list[Tensor], actual: list[Tensor]) -> dict[str, float]:
    one, other = torch.cat(actual), torch.cat(expected)
    return {
        "max_abs": float((one - other).abs().max()),
        "relative": float((one - other).norm() / other.norm()),
    }


def seconds(encoders: dict[str, Encode], windows: list[Tensor], rounds: int) -> dict[str, Any]:
    """Seconds a window of each, alternating, and ratios of the same round to the first."""
    taken: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(rounds):
        for name, encode in encoders.items():
            started = time.perf_counter()
            for window in windows:
                encode(window)
            taken[name].append((time.perf_counter() - started) / len(windows))
    first, *others = taken
    result: dict[str, Any] = {f"{n}_s": round(statistics.median(s), 4) for n, s in taken.items()}
    for name in others:
        ratios = [a / b for a, b in zip(taken[first], taken[name], strict=True)]
        rounded = [round(f(ratios), 3) for f in (statistics.median, min, max)]
        result[f"{name}_times_as_fast"] = dict(zip(("median", "min", "max"), rounded, strict=True))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", required=True, metavar="FOLDER")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    module = WhisperModule(arguments.model)
    windows = speech(module, arguments.data, arguments.clips)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        encoders = {"torch": encoder(module.model)}
        for name, int8 in (("onnx", False), ("onnx_int8", True)):
            target = Path(folder) / name
            export_onnx(module.model, module.processor, target, int8=int8)
            size = sum(file.stat().st_size for file in target.glob("encoder_model*"))
            encoders[name] = encoder(load(str(target))[0])
            print(json.dumps({"graph": name, "encoder_mb": round(size / 1e6, 1)}))
        outputs = {name: [encode(w) for w in windows] for name, encode in encoders.items()}
        for name in list(encoders)[1:]:
            print(json.dumps({"graph": name, **parity(outputs["torch"], outputs[name])}))
        result = seconds(encoders, windows, arguments.rounds)
        print(json.dumps({"threads": arguments.threads, "windows": len(windows), **result}))


if __name__ == "__main__":
    main()
