"""Speech: reading files, sources of a recipe, and the loaders of a run."""

from liteasr.data.arguments import ESB_REPOSITORY, esb_sources, parse_sources
from liteasr.data.audio import (
    AudioError,
    Samples,
    audio_seconds,
    cut_pieces,
    load_audio,
    split_windows,
)
from liteasr.data.datamodule import SpeechDataModule
from liteasr.data.features import LogMel
from liteasr.data.sources import load_source
from liteasr.data.stream import AudioStream

__all__ = [
    "ESB_REPOSITORY",
    "AudioError",
    "AudioStream",
    "LogMel",
    "Samples",
    "SpeechDataModule",
    "audio_seconds",
    "cut_pieces",
    "esb_sources",
    "load_audio",
    "load_source",
    "parse_sources",
    "split_windows",
]
