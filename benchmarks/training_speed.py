"""Fine-tuning of a published size on the device at hand: hours of audio an hour, and memory.

    python benchmarks/training_speed.py [SIZE …] --processor FOLDER [--batch-size 16]
                                        [--ratio 0.7] [--trainable factors] [--steps 12]
                                        [--gradient-checkpointing] [--device auto]
                                        [--modes eager compiled]

The model has random weights of the true shape, full windows of random features and 64 tokens each;
the losses are the encoder's distillation and the cross-entropy. It is fitted by Lightning in
``bf16-mixed``, with and without ``torch.compile`` of the encoders. A step is timed from its end to
the next one's; the median counts, after the first three. FOLDER holds any Whisper tokenizer.
Prints the rate and the GPU's peak memory of each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from training_memory import DECODER_LAYERS, VOCABULARY
from transformers import (
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from liteasr import WhisperModule
from liteasr.benchmarking.shapes import plausible_ranks, shape_config
from liteasr.compression import encoder_parameters
from liteasr.loading import choose_device, load_processor
from liteasr.modeling import LiteWhisperConfig

MODES = ("eager", "compiled")
TOKENS = 64
WARM_UP_STEPS = 3


class Clock(L.Callback):
    """Times of the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        ends = self.ends[WARM_UP_STEPS:]
        return statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False))


class Windows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The same random window over and over."""

    def __init__(self, config: LiteWhisperConfig, count: int) -> None:
        frames = config.max_source_positions
        self.count = count
        self.item = {
            "input_features": torch.randn(config.num_mel_bins, 2 * frames),
            "labels": torch.randint(0, 1000, (TOKENS,)),
            "frames": torch.tensor(frames),
        }

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.item


def make(size: str, options: argparse.Namespace, folder: str) -> WhisperModule:
    """A compressed model with random weights and its dense teacher."""
    config = shape_config(size, decoder_layers=DECODER_LAYERS[size], vocab_size=VOCABULARY)
    with torch.device("meta"):
        dense = WhisperForConditionalGeneration(config)
    dense_size = encoder_parameters(dense.get_encoder())
    ranks = plausible_ranks(config, str(round(options.ratio * dense_size)))
    settings = {**config.to_dict(), "low_rank_config": ranks, "model_type": "lite-whisper"}
    Path(folder, "config.json").write_text(json.dumps(settings))
    processor = load_processor(options.processor)
    processor.feature_extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    processor.save_pretrained(folder)
    GenerationConfig.from_pretrained(options.processor).save_pretrained(folder)
    # Drawing a billion numbers takes a CPU minutes.
    with torch.device(options.device):
        module = WhisperModule(
            folder,
            random_weights=True,
            trainable=options.trainable,
            learning_rate=1e-6,
            encoder_distillation_weight=1.0,
            gradient_checkpointing=options.gradient_checkpointing,
        )
        teacher = WhisperForConditionalGeneration(config)
    module.learn_from(teacher)
    return module


def compile_encoders(module: WhisperModule) -> None:
    """The student's and the teacher's, in place."""
    assert module.objective.teacher is not None
    for encoder in (module.encoder, module.objective.teacher.model.get_encoder()):
        encoder.compile(dynamic=False)


def measure(module: WhisperModule, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds a step, and peak memory in GB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clock = Clock()
    trainer = L.Trainer(
        accelerator=options.device,
        devices=1,
        precision="bf16-mixed",
        max_steps=options.steps + WARM_UP_STEPS,
        gradient_clip_val=1.0,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    windows = Windows(module.model.config, options.batch_size * trainer.max_steps)
    loader = torch.utils.data.DataLoader(windows, batch_size=options.batch_size)
    trainer.fit(module, loader)
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else float("nan")
    return clock.seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("sizes", nargs="*", metavar="SIZE", default=["small", "large-v3"])
    parser.add_argument("--processor", required=True, metavar="FOLDER")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--ratio", type=float, default=0.7, help="encoder left, as a share")
    parser.add_argument("--trainable", choices=("factors", "encoder", "all"), default="factors")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps: a step is timed from one end to the next, so there must be 2")
    options.device = choose_device(options.device)
    print("size | batch | mode | hours of audio an hour | GB")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            module = make(size, options, folder)
        for mode in (one for one in MODES if one in options.modes):
            if mode == "compiled":
                compile_encoders(module)
            seconds, peak = measure(module, options)
            rate = 30 * options.batch_size / seconds
            print(f"{size} | {options.batch_size} | {mode} | {rate:.0f} | {peak:.1f}", flush=True)
        torch.compiler.reset()
        del module


if __name__ == "__main__":
    main()
