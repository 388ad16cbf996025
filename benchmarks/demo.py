"""WER of models on the demo speech, voice by voice.

    python benchmarks/demo.py MODEL … [--long-form windows] [--joined 30] [--split calibration]

The voices of the evaluation set are in no training data; neither are its sentences. With
``--joined`` the clips of each voice are put together, one after another, into files of that many
seconds or more: what a model makes of audio longer than its window.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import soundfile

import liteasr
from liteasr import SpeechDataModule, WhisperModule
from liteasr.config import DataConfig, SourceConfig, SourceKind
from liteasr.metrics import CorpusWER
from liteasr.speed import rounded

SPEECH = Path(liteasr.__file__).parent / "demo" / "speech"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder's ``metadata.jsonl``."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def join(folder: Path, seconds: float, output: Path) -> None:
    """Write a folder of the same speech in longer files, each of one voice.

    Args:
        folder: Clips and their ``metadata.jsonl``.
        seconds: A file ends with the clip that reaches this length; the last of a voice anyhow.
        output: Folder to write to.
    """
    by_speaker = defaultdict(list)
    for row in rows_of(folder):
        by_speaker[row["speaker"]].append(row)
    joined = []
    for speaker, rows in by_speaker.items():
        samples, texts, rate = [], [], 0
        for row in rows:
            clip, rate = soundfile.read(folder / row["file_name"], dtype="float32")
            samples.append(clip)
            texts.append(row["text"])
            if sum(map(len, samples)) >= seconds * rate or row is rows[-1]:
                name = f"{len(joined):03}.flac"
                soundfile.write(output / name, np.concatenate(samples), rate)
                joined.append({"file_name": name, "speaker": speaker, "text": " ".join(texts)})
                samples, texts = [], []
    lines = [json.dumps(row) + "\n" for row in joined]
    (output / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def by_voice(model_id: str, folder: Path, long_form: str) -> tuple[dict[str, float], WhisperModule]:
    """WER of each voice in percent, and of all together."""
    speakers = {row["file_name"]: row["speaker"] for row in rows_of(folder)}
    module = WhisperModule(model_id)
    source = SourceConfig(SourceKind.folder, path=str(folder))
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
    parser.add_argument("--split", default="evaluation", choices=["calibration", "evaluation"])
    parser.add_argument("--joined", type=float, metavar="SECONDS", help="files of this length")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = SPEECH / arguments.split
        if arguments.joined is not None:
            join(folder, arguments.joined, Path(temporary))
            folder = Path(temporary)
        for model_id in arguments.models:
            wers, module = by_voice(model_id, folder, arguments.long_form)
            print(
                f"{model_id}: RTFx {rounded(module.rtfx)}, encoder {rounded(module.encoder_rtfx)}"
            )
            for voice, wer in wers.items():
                print(f"    {voice:24} {wer:6.2f} %")


if __name__ == "__main__":
    main()
