"""The speech recognition pipeline of transformers, taught that lite-whisper is a Whisper."""

from __future__ import annotations

from typing import Any

from transformers import AutomaticSpeechRecognitionPipeline, PreTrainedModel

__all__ = ["LiteWhisperPipeline"]


class LiteWhisperPipeline(AutomaticSpeechRecognitionPipeline):
    """``pipeline("automatic-speech-recognition")`` for Whisper and lite-whisper alike.

    The parent decides by ``config.model_type`` how to decode and takes every type it does not
    know for a CTC model. This one gives a lite-whisper model Whisper's decoding (long-form,
    timestamps) and leaves every other model as it was.
    """

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        self._is_lite_whisper = model.config.model_type == "lite-whisper"
        super().__init__(model, *args, **kwargs)

    @property
    def type(self) -> str:
        """How the parent decodes: ``seq2seq_whisper``, ``seq2seq``, ``ctc``, …."""
        return self._type

    @type.setter
    def type(self, value: str) -> None:
        self._type = "seq2seq_whisper" if self._is_lite_whisper else value
