"""The model card of a compressed model, with the numbers that were measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from liteasr.files import write_text

__all__ = ["write_model_card"]


def write_model_card(folder: str | Path, base_model: str, metrics: dict[str, Any]) -> None:
    """Write ``README.md`` of the folder with the numbers that were measured.

    Args:
        folder: Folder of an exported model.
        base_model: Hub id or folder name of the checkpoint that was compressed.
        metrics: Content of ``metrics.json``.
    """
    dense, after = metrics["dense"], metrics["finetuned"] or metrics["compressed"]
    sets = sorted(after["datasets"])
    rows = [("encoder parameters, M", *(_millions(part) for part in (dense, after)))]
    rows += [(f"WER {name}, %", *(_wer(part, name) for part in (dense, after))) for name in sets]
    if sets:
        rows += [("**WER, mean of sets, %**", *(_wer(part) for part in (dense, after)))]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    error = metrics["encoder_relative_error"]
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", base_model)
    base = base_model if is_hub_id and not Path(base_model).exists() else None
    front = ["library_name: transformers", "pipeline_tag: automatic-speech-recognition"]
    front += [f"base_model: {base}"] if base else []
    error_line = (
        "" if error is None else f"\nRelative error of the encoder's output: {error:.4f}.\n"
    )
    text = CARD.format(
        front="\n".join(front),
        base=base or Path(base_model).name,
        table=table,
        error_line=error_line,
    )
    write_text(Path(folder) / "README.md", text)


def _millions(part: dict[str, Any] | None) -> str:
    return "–" if part is None else f"{part['encoder_params'] / 1e6:.2f}"


def _wer(part: dict[str, Any] | None, name: str | None = None) -> str:
    if part is None:
        return "–"
    return f"{part['wer'] if name is None else part['datasets'][name]:.2f}"


CARD = """---
{front}
tags: [whisper, lite-whisper, low-rank]
---

# {base}, compressed

The encoder of {base} in low rank (LiteASR, arXiv 2502.20583), made with liteasr.

| | original | this model |
|---|---:|---:|
{table}
{error_line}
WER is corpus-level, on normalised text. The encoder is counted without its positional embedding.

```python
import soundfile
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

folder, file = "path/to/this/folder", "16-khz-mono.wav"
model = AutoModelForSpeechSeq2Seq.from_pretrained(
    folder, trust_remote_code=True, dtype=torch.float32
)
processor = AutoProcessor.from_pretrained(folder)
audio, rate = soundfile.read(file, dtype="float32")
features = processor(audio, sampling_rate=rate, return_tensors="pt").input_features
print(processor.batch_decode(model.generate(features), skip_special_tokens=True)[0])
```

With `import liteasr` first, `trust_remote_code` is not needed, and
`pipeline("automatic-speech-recognition", folder)` works too (it needs that import).
"""
