"""Compress the encoder of a Whisper checkpoint and know what it cost in word error rate.

Importing this package makes model type ``lite-whisper`` known to transformers.
"""

from liteasr.callbacks import CompressionCallback
from liteasr.data import SpeechDataModule
from liteasr.loading import load
from liteasr.modeling import LiteWhisperConfig, LiteWhisperForConditionalGeneration
from liteasr.module import WhisperModule

__version__ = "0.1.0"

__all__ = [
    "CompressionCallback",
    "LiteWhisperConfig",
    "LiteWhisperForConditionalGeneration",
    "SpeechDataModule",
    "WhisperModule",
    "load",
]
