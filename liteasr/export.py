"""Writing a model as a Hugging Face folder that needs nothing of liteasr to be used.

The folder has safetensors weights, configuration, generation configuration, tokenizer, feature
extractor, a model card, and for a compressed model the modelling files that
``trust_remote_code=True`` runs where liteasr is not installed.
"""

from __future__ import annotations

import copy
import importlib.resources
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from liteasr.compression import collect_head_dims, collect_ranks
from liteasr.compression.plan import low_rank_config, reduced_attention_config
from liteasr.files import atomic_folder, write_text
from liteasr.loading import load
from liteasr.modeling import LiteWhisperConfig, LiteWhisperForConditionalGeneration

__all__ = ["export_model", "write_model_card"]

# Modules of liteasr.modeling → their names in the folder; the last two are the published ones.
REMOTE_CODE = {
    "attention": "attention_lite_whisper",
    "rank_space": "rank_space_lite_whisper",
    "tiles": "tiles_lite_whisper",
    "fast": "fast_lite_whisper",
    "linear": "linear_lite_whisper",
    "configuration": "configuration_lite_whisper",
    "whisper": "modeling_lite_whisper",
}
AUTO_MAP = {
    "AutoConfig": "configuration_lite_whisper.LiteWhisperConfig",
    "AutoModel": "modeling_lite_whisper.LiteWhisperForConditionalGeneration",
    "AutoModelForSpeechSeq2Seq": "modeling_lite_whisper.LiteWhisperForConditionalGeneration",
}


def export_model(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    *,
    published: bool = False,
) -> None:
    """Write the folder, reload it, and only then put it in place of an old one.

    Args:
        model: Whisper, dense or with a compressed encoder.
        processor: Its tokenizer and feature extractor.
        folder: Where to write.
        dtype: Type of the stored weights; the model's if absent.
        published: Refuse what the published lite-whisper format cannot say, so that its own
            classes open the folder too. Where no attention is reduced, all that is written is in
            that format.

    Raises:
        ValueError: If the model cannot be written in the format, or the reloaded weights are not
            those that were written.
    """
    reduced = next(iter(collect_head_dims(model)), None)
    if published and reduced is not None:
        raise ValueError(
            f"{reduced} has heads of fewer dimensions, for which the published format has no "
            "place: export with published=False, or compress with low rank alone"
        )
    saved = _as_saved(model, dtype or model.dtype)
    with atomic_folder(folder) as temporary:
        saved.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        spelling = getattr(processor.tokenizer, "english_spelling_normalizer", None)
        if spelling:
            # transformers 5 reads this file but does not write it back.
            write_text(temporary / "normalizer.json", json.dumps(spelling, indent=0))
        if isinstance(saved, LiteWhisperForConditionalGeneration):
            _write_remote_code(temporary)
        _check_reload(saved, temporary)


def _as_saved(
    model: WhisperForConditionalGeneration, dtype: torch.dtype
) -> WhisperForConditionalGeneration:
    """The model in the class and type in which it is stored; the original is not touched."""
    state = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
        for name, tensor in model.state_dict().items()
    }
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} is not finite in {dtype}: store in another export.dtype")
    ranks, head_dims = collect_ranks(model), collect_head_dims(model)
    config = copy.deepcopy(model.config)
    cls: Any = WhisperForConditionalGeneration
    if ranks or head_dims or isinstance(model, LiteWhisperForConditionalGeneration):
        cls = LiteWhisperForConditionalGeneration
        options = config.to_dict()
        sizes = ("low_rank_config", "reduced_attention")
        for key in ("model_type", *sizes, "auto_map", "architectures"):
            options.pop(key, None)
        layers = low_rank_config(ranks.items(), config.encoder_layers)
        heads = reduced_attention_config(head_dims.items(), config.encoder_layers)
        config = LiteWhisperConfig(low_rank_config=layers, reduced_attention=heads, **options)
        config.auto_map = dict(AUTO_MAP)
    with torch.device("meta"):
        saved: WhisperForConditionalGeneration = cls(config)
    saved.load_state_dict(state, assign=True)
    saved.tie_weights()
    saved.generation_config = copy.deepcopy(model.generation_config)
    return saved.eval()


def _write_remote_code(folder: Path) -> None:
    """Copy the modelling files, with their imports of each other renamed."""
    package = importlib.resources.files("liteasr.modeling")
    for module, name in REMOTE_CODE.items():
        source = (package / f"{module}.py").read_text(encoding="utf-8")
        for old, new in REMOTE_CODE.items():
            source = source.replace(f"from .{old} import", f"from .{new} import")
        write_text(folder / f"{name}.py", source)


def _check_reload(saved: WhisperForConditionalGeneration, folder: Path) -> None:
    reloaded, _ = load(str(folder), dtype=str(saved.dtype).removeprefix("torch."))
    expected: dict[str, Tensor] = saved.state_dict()
    actual = reloaded.state_dict()
    different = [
        name
        for name in expected.keys() | actual.keys()
        if name not in expected
        or name not in actual
        or not torch.equal(expected[name], actual[name])
    ]
    if different:
        raise ValueError(f"reloaded weights differ from those written: {sorted(different)[:3]}")


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
