"""Fine-tuning beside Hugging Face's Seq2SeqTrainer: seconds of audio learned in a second.

    python benchmarks/finetuning.py MODEL --data FOLDER [--clips 32] [--batch-size 8] [--steps 8]
                                    [--rounds 5] [--bf16] [--device auto]

Both train on the same examples, whose features are made once, ahead of the clock, with AdamW and
the cross-entropy of the transcripts, clipped at norm 1. Rounds alternate: all parameters by
Seq2SeqTrainer, all by ours, and those of a compressed encoder's factors, or of the encoder if it is
dense, by ours. A step is timed from its end to the next one's; the first of a round is left out.
Prints the medians as seconds of audio a second, and ratios to Seq2SeqTrainer with their smallest
and largest. Needs accelerate.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from liteasr import SpeechDataModule, WhisperModule
from liteasr.config import DataConfig, SourceConfig, SourceKind
from liteasr.loading import choose_device
from liteasr.modeling import LowRankLinear

Example = dict[str, Tensor]
RATE = 0.0
"""Learning rate: the weights stay as they are, the work is the same."""


def examples(module: WhisperModule, folder: str, clips: int) -> tuple[list[Example], float]:
    """Clips of a training set, and their seconds on average."""
    source = SourceConfig(SourceKind.folder, folder, limit=clips)
    data = DataConfig(train={"speech": source}, train_batch_size=1, num_workers=0)
    datamodule = SpeechDataModule(data, module.processor, normalizer=module.normalizer)
    datamodule.setup("fit")
    found, frames = [], 0
    for batch in datamodule.train_dataloader():
        frames += int(batch["frames"].sum())
        keys = ("input_features", "labels", "frames")
        found.append({key: batch[key][0] for key in keys})
    return found, frames / 50 / len(found)


def collate(batch: list[Example]) -> Example:
    """A batch with labels padded to the longest."""
    labels = torch.nn.utils.rnn.pad_sequence(
        [one["labels"] for one in batch], batch_first=True, padding_value=-100
    )
    features = torch.stack([one["input_features"] for one in batch])
    return {
        "input_features": features,
        "labels": labels,
        "frames": torch.stack([one["frames"] for one in batch]),
    }


class Clock:
    """Seconds from the end of each step to that of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def tick(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


class HuggingFaceClock(TrainerCallback):
    """Ticks at the end of a step of transformers' trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.tick()


class LightningClock(L.Callback):
    """Ticks at the end of a step of Lightning's trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.clock.tick()


def hugging_face(options: argparse.Namespace, data: list[Example]) -> Callable[[], float]:
    module = WhisperModule(options.model)
    data = [{key: one[key] for key in ("input_features", "labels")} for one in data]

    def batch(items: list[Example]) -> Example:
        whole = collate([{**one, "frames": torch.tensor(0)} for one in items])
        return {key: whole[key] for key in ("input_features", "labels")}

    def run() -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = Seq2SeqTrainingArguments(
                folder,
                per_device_train_batch_size=options.batch_size,
                max_steps=options.steps + 1,
                learning_rate=RATE,
                max_grad_norm=1.0,
                bf16=options.bf16,
                use_cpu=options.device == "cpu",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
            trainer = Seq2SeqTrainer(
                model=module.model,
                args=arguments,
                train_dataset=data,
                data_collator=batch,
                callbacks=[HuggingFaceClock(clock)],
            )
            trainer.train()
        return clock.seconds

    return run


def ours(options: argparse.Namespace, data: list[Example], trainable: str) -> Callable[[], float]:
    module = WhisperModule(options.model, trainable=trainable, learning_rate=RATE)

    def run() -> float:
        clock = Clock()
        trainer = L.Trainer(
            accelerator=options.device,
            devices=1,
            precision="bf16-mixed" if options.bf16 else "32-true",
            max_steps=options.steps + 1,
            gradient_clip_val=1.0,
            callbacks=[LightningClock(clock)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = torch.utils.data.DataLoader(
            data,  # type: ignore[arg-type]
            batch_size=options.batch_size,
            shuffle=True,
            collate_fn=collate,
        )
        trainer.fit(module, loader)
        return clock.seconds

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True, metavar="FOLDER")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    options.device = choose_device(options.device)
    module = WhisperModule(options.model)
    has_factors = any(isinstance(one, LowRankLinear) for one in module.encoder.modules())
    part = "factors" if has_factors else "encoder"
    data, seconds = examples(module, options.data, options.clips)
    contestants = {
        "Seq2SeqTrainer, all": hugging_face(options, data),
        "liteasr, all": ours(options, data, "all"),
        f"liteasr, {part}": ours(options, data, part),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            times[name].append(run())
    first = next(iter(times.values()))
    for name, spent in times.items():
        ratios = sorted(theirs / own for theirs, own in zip(first, spent, strict=True))
        rate = options.batch_size * seconds / statistics.median(spent)
        print(
            f"{name:22} {rate:8.1f} s of audio a second   × {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
