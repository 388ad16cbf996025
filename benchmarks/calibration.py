"""What calibration costs: time over a plain encoder forward, and memory over clips.

    python benchmarks/calibration.py time   [--model M] [--speech D] [--clips 16] [--rounds 7]
                                            [--method pca|sensitivity|auto]
    python benchmarks/calibration.py memory [--model M] [--speech D] [--clips 16 64 256]
    python benchmarks/calibration.py large  [--clips 2] [--method pca|sensitivity]

``time`` alternates plain forward and calibration of the same batches in one process and prints
the ratio of the medians. ``memory`` runs the whole callback, each number of clips in a process
of its own, beside a process that stores activations as the published script does; glibc is told
to give blocks of a megabyte back when they are freed, so that the peak is what was in use.
``large`` calibrates and factorizes an encoder of large-v3's shape with random weights. Of ``auto``
only the calibration is timed, with the transcripts that it makes; no refinement.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from liteasr import CompressionCallback, SpeechDataModule, WhisperModule
from liteasr.compression import (
    Budget,
    CalibrationBatch,
    CompressionMethod,
    apply_plan,
    build_method,
    encoder_parameters,
    find_linears,
)
from liteasr.config import DataConfig, SourceConfig, SourceKind

CORPORA = ("librispeech", "common_voice", "an4")
BATCH_SIZE = 8
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}


def datamodule(module: WhisperModule, speech: Path, clips: int) -> SpeechDataModule:
    """Calibration clips drawn evenly from the train folders."""
    sets = {name: SourceConfig(SourceKind.folder, f"{speech}/{name}/train") for name in CORPORA}
    data = DataConfig(calibration=sets, calibration_clips=clips, calibration_batch_size=BATCH_SIZE)
    return SpeechDataModule(data, module.processor, normalizer=module.normalizer)


def trainer(callback: L.Callback) -> L.Trainer:
    """A trainer that calibrates and stops."""
    return L.Trainer(
        accelerator="cpu",
        max_steps=0,
        limit_train_batches=0,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def make_method(name: str) -> CompressionMethod:
    """A method with a goal, where it needs one."""
    return build_method(name, **({} if name == "pca" else {"budget": Budget("encoder_ratio", 0.6)}))


def measure_time(
    model: str, speech: Path, clips: int, rounds: int, method_name: str
) -> dict[str, Any]:
    """Seconds a pass over the clips, plain and calibrating, alternating."""
    module = WhisperModule(model)
    data = datamodule(module, speech, clips)
    data.setup("fit")
    batches = [
        CalibrationBatch(batch["input_features"], batch["frames"])
        for batch in data.calibration_dataloader()
    ]
    method = make_method(method_name)
    method.decoder = module.decoder()
    method.prepare(module.encoder, find_linears(module.model))
    seconds: dict[str, list[float]] = {"plain": [], "calibration": []}
    with torch.no_grad():
        module.encoder(batches[0].input_features)
        for _ in range(rounds):
            started = time.perf_counter()
            for batch in batches:
                module.encoder(batch.input_features)
            seconds["plain"].append(time.perf_counter() - started)
            started = time.perf_counter()
            for batch in batches:
                method.observe(batch)
            seconds["calibration"].append(time.perf_counter() - started)
    ratios = [c / p for c, p in zip(seconds["calibration"], seconds["plain"], strict=True)]
    return {
        "method": method_name,
        "clips": sum(len(batch.frames) for batch in batches),
        "plain_s": round(statistics.median(seconds["plain"]), 3),
        "calibration_s": round(statistics.median(seconds["calibration"]), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


class StoreActivations(CompressionCallback):
    """The published way: every layer's outputs of all clips kept, in fp16 as the script does."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Run the calibration loader and keep everything."""
        assert isinstance(pl_module, WhisperModule)
        linears = find_linears(pl_module.model)
        kept: dict[str, list[Tensor]] = {name: [] for name in linears}
        for name, linear in linears.items():
            linear.register_forward_hook(self._keeper(kept[name]))
        with torch.no_grad():
            for batch in self.calibration_loader(trainer, pl_module):
                pl_module.encoder(batch["input_features"])

    @staticmethod
    def _keeper(into: list[Tensor]) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            into.append(output.half())

        return hook


def measure_memory(model: str, speech: Path, clips: int, *, store: bool) -> dict[str, Any]:
    """Peak memory of this process, in MB, over one calibration."""
    module = WhisperModule(model)
    data = datamodule(module, speech, clips)
    callback = StoreActivations() if store else CompressionCallback("pca")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    trainer(callback).fit(module, datamodule=data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"clips": clips, "store": store, "loaded_mb": round(before), "peak_mb": round(peak)}


def measure_large(clips: int, method_name: str) -> dict[str, Any]:
    """Calibrate and factorize an encoder of large-v3's shape."""
    config = WhisperConfig(
        d_model=1280,
        encoder_layers=32,
        encoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_layers=1,
        decoder_attention_heads=20,
        decoder_ffn_dim=5120,
        num_mel_bins=128,
        vocab_size=51866,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config).eval()
    dense = encoder_parameters(model.get_encoder())
    method = make_method(method_name)
    method.prepare(model.get_encoder(), find_linears(model))
    started = time.perf_counter()
    for _ in range(clips):
        method.observe(CalibrationBatch(torch.randn(1, 128, 3000), torch.tensor([1500])))
    calibrated = time.perf_counter()
    plan = method.allocate()
    apply_plan(model, plan, {n: method.factorize(n, rank) for n, rank in plan.ranks.items()})
    return {
        "method": method_name,
        "clips": clips,
        "calibrate_s": round(calibrated - started, 1),
        "factorize_s": round(time.perf_counter() - calibrated, 1),
        "encoder_m": [dense / 1e6, encoder_parameters(model.get_encoder()) / 1e6],
        "compressed_layers": len(plan.ranks),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    """Parse, measure, print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["time", "memory", "large", "one"])
    parser.add_argument("--model", default="../shared/models/whisper-tiny-libri")
    parser.add_argument("--speech", type=Path, default=Path("../shared/speech"))
    parser.add_argument("--clips", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--method", choices=["pca", "sensitivity", "auto"], default="pca")
    parser.add_argument("--store", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "time":
        clips = (args.clips or [16])[0]
        result = measure_time(args.model, args.speech, clips, args.rounds, args.method)
    elif args.what == "large":
        result = measure_large((args.clips or [2])[0], args.method)
    elif args.what == "one":
        result = measure_memory(args.model, args.speech, args.clips[0], store=args.store)
    else:
        for clips in args.clips or [16, 64, 256]:
            for store in ([], ["--store"]):
                command = [sys.executable, __file__, "one", "--clips", str(clips), *store]
                paths = ["--model", args.model, "--speech", str(args.speech)]
                subprocess.run([*command, *paths], check=True, env=os.environ | ALLOCATOR)
        return
    print(json.dumps(result))


if __name__ == "__main__":
    main()
