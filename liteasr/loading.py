"""Loading a Whisper or lite-whisper checkpoint, with errors that a person can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSpeechSeq2Seq,
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

import liteasr.modeling  # noqa: F401  (registers model type lite-whisper)
from liteasr.config import ConfigError
from liteasr.modeling import LiteWhisperConfig, LiteWhisperForConditionalGeneration
from liteasr.onnx import find_encoder

__all__ = [
    "choose_device",
    "load",
    "load_config",
    "load_model",
    "load_processor",
    "make_model",
    "require_weights",
]


def choose_device(device: str) -> str:
    """The device that an option ``--device`` means.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for the second where there is one.

    Raises:
        ConfigError: If there is no such device here.

    Example:
        >>> choose_device("cpu")
        'cpu'
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("--device: cuda is not available here")
    if device == "auto":
        return "cuda" if has_gpu else "cpu"
    return device


_DEMO = Path(__file__).resolve().parent / "demo" / "model"


def load(
    model_id: str,
    *,
    revision: str | None = None,
    processor_id: str | None = None,
    dtype: str = "float32",
    attention: str = "sdpa",
    random_weights: bool = False,
) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Load a checkpoint and its processor from a folder or the hub.

    Args:
        model_id: Folder or hub id, dense Whisper or lite-whisper, or ``demo`` for the model in
            the package. No remote code is run.
        revision: Branch, tag or commit on the hub.
        processor_id: Where tokenizer and feature extractor are, if not with the model.
        dtype: Type of the weights: ``float32``, ``bfloat16``, ``float16``.
        attention: Attention implementation of transformers.
        random_weights: Draw the weights from torch's seed instead of loading any.

    Returns:
        The model in evaluation mode, and the processor.

    Raises:
        ConfigError: If the folder is absent or not Whisper, weights are missing or damaged, or
            there is no tokenizer.
    """
    config = load_config(model_id, revision)
    processor = load_processor(processor_id or model_id, revision=revision)
    _check_fit(config, processor, processor_id or model_id)
    make = make_model if random_weights else load_model
    return make(model_id, revision=revision, dtype=dtype, attention=attention), processor


def load_config(model_id: str, revision: str | None = None) -> WhisperConfig:
    """Read the configuration alone.

    Raises:
        ConfigError: If it is absent or not that of a Whisper.
    """
    model_id = _expanded(model_id)
    _require_folder(model_id)
    folder = Path(model_id).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigError(f"model.id: {model_id} has no config.json, so it is no model folder")
    try:
        config = AutoConfig.from_pretrained(model_id, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.id: {model_id} is no local folder with a readable model configuration, "
            f"and no model that the hub gives here: {error}"
        ) from error
    if not isinstance(config, WhisperConfig):
        raise ConfigError(
            f"model.id: {model_id} is a {config.model_type!r} model; "
            "only 'whisper' and 'lite-whisper' can be used"
        )
    return config


def load_model(
    model_id: str, *, revision: str | None = None, dtype: str = "float32", attention: str = "sdpa"
) -> WhisperForConditionalGeneration:
    """Load the weights; see :func:`load`."""
    model_id = _expanded(model_id)
    config = load_config(model_id, revision)
    if find_encoder(model_id) is not None:
        # It knows the classes of this file, and needs packages that may be absent.
        from liteasr.onnx.runtime import load_onnx

        return load_onnx(model_id, config)
    is_lite = isinstance(config, LiteWhisperConfig)
    cls: Any = LiteWhisperForConditionalGeneration if is_lite else WhisperForConditionalGeneration
    try:
        model, info = cls.from_pretrained(
            model_id,
            config=config,
            revision=revision,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ConfigError(f"model.id: cannot load the weights of {model_id}: {error}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            names = sorted(str(key) for key in info[problem])
            raise ConfigError(
                f"model.id: the weights of {model_id} have {problem.replace('_', ' ')}: "
                f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
            )
    return model.eval()


def require_weights(model_id: str) -> None:
    """Refuse a folder of ONNX graphs, where weights are to be changed or written.

    Raises:
        ConfigError: Naming the folder.
    """
    if find_encoder(model_id) is not None:
        raise ConfigError(
            f"model.id: {model_id} holds ONNX graphs, which can be measured and transcribed with, "
            "but not compressed, trained or exported; name the model that they were made from"
        )


def make_model(
    model_id: str, *, revision: str | None = None, dtype: str = "float32", attention: str = "sdpa"
) -> WhisperForConditionalGeneration:
    """A model of a checkpoint's shape with random weights; see :func:`load`.

    Raises:
        ConfigError: If the configuration, or the generation configuration, cannot be used.
    """
    model_id = _expanded(model_id)
    config = load_config(model_id, revision)
    model: WhisperForConditionalGeneration = AutoModelForSpeechSeq2Seq.from_config(
        config, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    try:
        model.generation_config = GenerationConfig.from_pretrained(model_id, revision=revision)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.id: {model_id} has no usable generation_config.json, which random weights need"
        ) from error
    return model.eval()


def load_processor(processor_id: str, *, revision: str | None = None) -> WhisperProcessor:
    """Load tokenizer and feature extractor.

    Raises:
        ConfigError: If either is absent.
    """
    processor_id = _expanded(processor_id)
    _require_folder(processor_id, key="model.processor")
    try:
        return WhisperProcessor.from_pretrained(processor_id, revision=revision)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"model.id: {processor_id} has no usable tokenizer or feature extractor "
            f"(name one that has with model.processor): {error}"
        ) from error


def _check_fit(config: WhisperConfig, processor: WhisperProcessor, processor_id: str) -> None:
    """A processor of another size of Whisper would be wrong without a word.

    Raises:
        ConfigError: If its mel bins or tokens are not those of the model.
    """
    bins = processor.feature_extractor.feature_size
    if bins != config.num_mel_bins:
        raise ConfigError(
            f"model.processor: {processor_id} makes {bins} mel bins, "
            f"the model takes {config.num_mel_bins}"
        )
    if len(processor.tokenizer) > config.vocab_size:
        raise ConfigError(
            f"model.processor: {processor_id} has {len(processor.tokenizer)} tokens, "
            f"the model {config.vocab_size}"
        )


def _expanded(name: str) -> str:
    if name == "demo":
        return str(_DEMO)
    return str(Path(name).expanduser()) if name.startswith("~") else name


def _require_folder(model_id: str, key: str = "model.id") -> None:
    looks_local = model_id.startswith((".", "/", "~")) or model_id.count("/") > 1
    folder = Path(model_id).expanduser()
    if looks_local and not folder.is_dir():
        raise ConfigError(f"{key}: there is no folder {model_id}")
