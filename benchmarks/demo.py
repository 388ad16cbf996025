"""WER of models on the demo speech, voice by voice.

    python benchmarks/demo.py MODEL … [--long-form windows]

The voices of the evaluation set are in no
training data; neither are its sentences.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import lightning as L

import liteasr
from liteasr import SpeechDataModule, WhisperModule
from liteasr.config import DataConfig, SourceConfig, SourceKind
from liteasr.metrics import CorpusWER
from liteasr.speed import rounded

SPEECH = Path(liteasr.__file__).parent / "demo" / "speech" / "evaluation"


def by_voice(
    model_id: str, speakers: dict[str, str], long_form: str
) -> tuple[dict[str, float], WhisperModule]:
    """WER of each voice in percent, and of all together."""
    module = WhisperModule(model_id)
    source = SourceConfig(SourceKind.demo, split="evaluation")
    datamodule = SpeechDataModule(
        DataConfig(test={"demo": source}),
        module.processor,
        normalizer=module.normalizer,
        long_form=long_form,
    )
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.test(module, datamodule=datamodule, verbose=False)
    wers: dict[str, CorpusWER] = defaultdict(CorpusWER)
    for said in module.predictions:
        voice = speakers[Path(said["id"]).name]
        for name in (voice, "together"):
            wers[name].update([said["hypothesis"]], [said["reference"]])
    return {name: float(wer.compute()) for name, wer in sorted(wers.items())}, module


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--long-form", default="timestamps", choices=["timestamps", "windows"])
    arguments = parser.parse_args()
    lines = (SPEECH / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    speakers = {row["file_name"]: row["speaker"] for row in map(json.loads, lines)}
    for model_id in arguments.models:
        wers, module = by_voice(model_id, speakers, arguments.long_form)
        print(f"{model_id}: RTFx {rounded(module.rtfx)}, encoder {rounded(module.encoder_rtfx)}")
        for voice, wer in wers.items():
            print(f"    {voice:24} {wer:6.2f} %")


if __name__ == "__main__":
    main()
