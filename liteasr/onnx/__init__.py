"""A model as ONNX graphs: what is written, and running it.

The files, and the names of what goes in and comes out, are those of Hugging Face Optimum's
``ORTModelForSpeechSeq2Seq``. The packages of the extra ``[onnx]`` are imported only where they are
used, so that everything else works without them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from liteasr.config import ConfigError

__all__ = [
    "DECODER",
    "DECODER_WITH_PAST",
    "ENCODER",
    "ENCODER_INT8",
    "find_encoder",
    "require_packages",
]

ENCODER = "encoder_model.onnx"
ENCODER_INT8 = "encoder_model_quantized.onnx"
DECODER = "decoder_model.onnx"
DECODER_WITH_PAST = "decoder_with_past_model.onnx"


def find_encoder(folder: str | Path) -> Path | None:
    """The encoder's file of an ONNX folder; ``None`` if the folder is no such one.

    A folder that has weights for torch too is taken for what it is without ONNX.
    """
    folder = Path(folder).expanduser()
    files = [folder / name for name in (ENCODER, ENCODER_INT8)]
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return next((file for file in files if file.is_file() and not has_weights), None)


def require_packages(*packages: str) -> None:
    """Refuse to go on without packages of the extra.

    Raises:
        ConfigError: Naming those that are not installed.
    """
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(
            f"ONNX needs {', '.join(absent)}, not installed here: pip install {' '.join(absent)}"
        )
