"""Whole transcription by liteasr, by transformers and by faster-whisper, of the same checkpoint.

    pip install faster-whisper
    python benchmarks/engines.py LITE --dense DENSE --data FOLDER [--clips 40] [--threads 2]
                                 [--dtype float32] [--compute-types float32 int8] [--rounds 3]

Each clip (at most one window) is recognised by each of them before the next: features, encoder and
greedy decoding without timestamps, nothing else. LITE runs in liteasr; DENSE, a folder of
transformers' Whisper, in transformers and, converted, in faster-whisper (CTranslate2) with each
compute type. For English-only checkpoints, where no language is to be recognised. Prints WER, RTFx,
and how many times as fast as transformers, over all clips, with the smallest and the largest of the
rounds. Without faster-whisper the others are compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration

from liteasr import WhisperModule
from liteasr.config import SourceConfig, SourceKind
from liteasr.data import LogMel, load_audio, load_source
from liteasr.data.utterances import audio_source
from liteasr.metrics import CorpusWER
from liteasr.modeling import use_fast_inference

Samples = np.ndarray
Recognise = Callable[[Samples], str]


def by_liteasr(module: WhisperModule, log_mel: LogMel) -> Recognise:
    # As liteasr.transcribe does, of a dense model too.
    use_fast_inference(module.encoder)

    def recognise(samples: Samples) -> str:
        features, _ = log_mel.windows([samples])
        (text,) = module.decode({"input_features": features.to(module.dtype), "segments": [1]})
        return text

    return recognise


def by_transformers(folder: str, dtype: torch.dtype, processor: Any) -> Recognise:
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    rate = processor.feature_extractor.sampling_rate

    def recognise(samples: Samples) -> str:
        features = processor(samples, sampling_rate=rate, return_tensors="pt").input_features
        tokens = model.generate(features.to(dtype))
        (text,) = processor.batch_decode(tokens, skip_special_tokens=True)
        return str(text)

    return recognise


def by_faster_whisper(
    folder: str, output: Path, processor: Any, compute_type: str, threads: int
) -> Recognise:
    from ctranslate2.converters import TransformersConverter
    from faster_whisper import WhisperModel

    if not output.exists():
        TransformersConverter(folder).convert(str(output), quantization="float32")
        processor.tokenizer.save_pretrained(output)
        # transformers 5 keeps this in another file, which faster-whisper does not read.
        settings = processor.feature_extractor.to_json_string()
        (output / "preprocessor_config.json").write_text(settings, encoding="utf-8")
    settings = GenerationConfig.from_pretrained(folder)
    model = WhisperModel(str(output), device="cpu", compute_type=compute_type, cpu_threads=threads)

    def recognise(samples: Samples) -> str:
        segments, _ = model.transcribe(
            samples,
            language="en",
            beam_size=1,
            temperature=0,
            without_timestamps=True,
            condition_on_previous_text=False,
            # What the others forbid, and no clip left out.
            suppress_tokens=list(settings.suppress_tokens or []),
            suppress_blank=bool(settings.begin_suppress_tokens),
            no_speech_threshold=None,
        )
        return " ".join(segment.text.strip() for segment in segments)

    return recognise


def engines(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Recognise], Any]:
    """All that are compared, transformers first, and what reads audio."""
    dtype = getattr(torch, arguments.dtype)
    lite = WhisperModule(arguments.lite, dtype=arguments.dtype).eval()
    dense = WhisperModule(arguments.dense, dtype=arguments.dtype).eval()
    log_mel = LogMel(lite.processor.feature_extractor)
    found = {
        "transformers": by_transformers(arguments.dense, dtype, dense.processor),
        "liteasr, dense": by_liteasr(dense, log_mel),
        "liteasr, lite": by_liteasr(lite, log_mel),
    }
    if find_spec("faster_whisper") is not None:
        for kind in arguments.compute_types:
            found[f"faster-whisper, dense, {kind}"] = by_faster_whisper(
                arguments.dense, folder / "ctranslate2", dense.processor, kind, arguments.threads
            )
    return found, lite


def speech(arguments: argparse.Namespace, rate: int, window: float) -> list[tuple[Samples, str]]:
    """Clips that fit into a window, and their transcripts."""
    source = SourceConfig(SourceKind.folder, arguments.data)
    clips = (
        (load_audio(audio_source(row), rate), str(row["text"]))
        for row in load_source(source, "--data")
    )
    fitting = (clip for clip in clips if len(clip[0]) <= window * rate)
    return list(itertools.islice(fitting, arguments.clips))


def main() -> None:
    """Measure and print JSON lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("lite", metavar="LITE")
    parser.add_argument("--dense", required=True)
    parser.add_argument("--data", required=True, metavar="FOLDER")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compute-types", nargs="+", default=["float32", "int8"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # Not in inference mode while they are loaded: nothing is kept of weights that are made in it.
    with ExitStack() as stack:
        found, module = engines(arguments, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.enter_context(torch.inference_mode())
        extractor = module.processor.feature_extractor
        clips = speech(arguments, extractor.sampling_rate, extractor.chunk_length)
        if not clips:
            parser.error(f"--data: {arguments.data} has no clip that fits into a window")
        wers: dict[str, CorpusWER] = defaultdict(CorpusWER)
        seconds: dict[str, list[float]] = {name: [0.0] * arguments.rounds for name in found}
        for recognise in found.values():
            recognise(clips[0][0])
        names = list(found)
        for round_, (index, (samples, text)) in itertools.product(
            range(arguments.rounds), enumerate(clips)
        ):
            turn = (round_ + index) % len(names)
            for name in names[turn:] + names[:turn]:
                started = time.perf_counter()
                said = found[name](samples)
                seconds[name][round_] += time.perf_counter() - started
                if not round_:
                    wers[name].update([module.normalizer(said)], [module.normalizer(text)])
    audio_s = sum(len(samples) for samples, _ in clips) / extractor.sampling_rate
    for name, taken in seconds.items():
        ratios = [one / other for one, other in zip(seconds[names[0]], taken, strict=True)]
        line = {
            "engine": name,
            "wer": round(float(wers[name].compute()), 2),
            "rtfx": round(audio_s / statistics.median(taken), 1),
            "times_as_fast": round(statistics.median(ratios), 2),
            "range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
