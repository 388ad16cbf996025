"""From a file of any length to its transcript, a bounded number of windows at a time.

Shape suffixes: B pieces or windows in a batch, M mel bins, F mel frames.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from liteasr.config import ConfigError, LongForm
from liteasr.data import AudioStream, LogMel, cut_pieces
from liteasr.modeling import use_fast_inference
from liteasr.module import WhisperModule
from liteasr.transcripts import Segment, Transcript, tidy_segments

__all__ = ["Transcriber", "predicts_timestamps"]


@dataclass(frozen=True)
class _Piece:
    """Audio to decode by itself: its place in the file, in seconds, and its features."""

    start: float
    end: float
    features_1MF: Tensor
    frames: int


def predicts_timestamps(model: WhisperForConditionalGeneration) -> bool:
    """Whether a checkpoint was trained to predict timestamps, as far as its settings tell.

    All of OpenAI's and what is derived from them name the attention heads that follow the audio;
    timestamp tokens by themselves may be untrained.
    """
    heads = getattr(model.generation_config, "alignment_heads", None)
    return bool(heads) and _has_timestamp_tokens(model)


def _has_timestamp_tokens(model: WhisperForConditionalGeneration) -> bool:
    before_first = getattr(model.generation_config, "no_timestamps_token_id", None)
    return before_first is not None and before_first + 1 < model.config.vocab_size


class Transcriber:
    """A checkpoint that transcribes files.

    Audio is read, resampled, turned into features and decoded in pieces that are cut at quiet
    places, so that memory does not grow with its length: with ``timestamps``, sections of
    :attr:`SECTION_WINDOWS` windows, in each of which the model finds its own way by the timestamps
    that it predicts (Whisper's sequential algorithm); with ``windows``, single windows.

    Args:
        module: The checkpoint, with language, task, beams and token limit.
        long_form: How audio is decoded; by timestamps, if absent, where
            :func:`predicts_timestamps`.
        batch_size: Pieces decoded together.

    Attributes:
        long_form: How audio is decoded.

    Raises:
        ConfigError: If timestamps are asked of a checkpoint that has no tokens for them.
    """

    SECTION_WINDOWS: ClassVar[int] = 10

    def __init__(
        self,
        module: WhisperModule,
        *,
        long_form: LongForm | None = None,
        batch_size: int = 8,
    ) -> None:
        if long_form is LongForm.timestamps and not _has_timestamp_tokens(module.model):
            raise ConfigError(
                f"decoding.long_form: {module.hparams['model_id']} has no timestamps "
                "(no_timestamps_token_id in generation_config.json); windows is the other way"
            )
        if long_form is None:
            can = predicts_timestamps(module.model)
            long_form = LongForm.timestamps if can else LongForm.windows
        self.long_form = long_form
        self.batch_size = batch_size
        self._module = module.eval()
        if module.device.type == "cpu":
            use_fast_inference(module.encoder, module.model.config.max_source_positions)
        self._log_mel = LogMel(module.processor.feature_extractor)

    def __call__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        on_progress: Callable[[float, float | None], None] | None = None,
    ) -> Transcript:
        """Transcribe a file.

        Args:
            path: File of any format, rate, channel count and length that libsndfile reads.
            name: What to call it; the path if absent.
            on_progress: Told seconds of audio done, and in all as far as the header says.

        Raises:
            AudioError: If nothing of it can be read, or it holds samples that are not finite.
        """
        started = time.perf_counter()
        name = name or str(path)
        segments: list[Segment] = []
        language: str | None = None
        with AudioStream(path, self._log_mel.sampling_rate, name=name) as stream:

            def report(done: float) -> None:
                if on_progress is not None:
                    on_progress(done, stream.expected_seconds)

            for index, batch in enumerate(self._batches(stream)):
                if index == 0:
                    language = self._language(batch[0])
                segments += self._decode(batch, language, report)
                report(batch[-1].end)
        return Transcript(
            file=name,
            duration=round(stream.seconds, 3),
            language=language,
            segments=segments,
            rtfx=round(stream.seconds / (time.perf_counter() - started), 2),
            warning=stream.shortfall,
        )

    # ------------------------------------------------------------------ pieces

    def _pieces(self, stream: AudioStream) -> Iterator[_Piece]:
        by_timestamps = self.long_form is LongForm.timestamps
        longest = self._log_mel.window_seconds * (self.SECTION_WINDOWS if by_timestamps else 1)
        rate, start = stream.sampling_rate, 0
        for samples in cut_pieces(stream, longest, rate):
            end = start + len(samples)
            if self._log_mel.is_long(len(samples)):
                features_1MF, mask_1F = self._log_mel.whole(samples)
                frames = int(mask_1F.sum())
            else:
                features_1MF, _ = self._log_mel.windows([samples])
                frames = len(samples) // self._log_mel.settings["hop_length"]
            yield _Piece(start / rate, end / rate, features_1MF, max(1, frames))
            start = end

    def _batches(self, stream: AudioStream) -> Iterator[list[_Piece]]:
        pieces = self._pieces(stream)
        while batch := list(itertools.islice(pieces, self.batch_size)):
            yield batch

    def _inputs(self, batch: Sequence[_Piece]) -> dict[str, Tensor]:
        """Features, (B, M, F), and a mask of the frames that are audio, (B, F)."""
        most = max(piece.features_1MF.shape[-1] for piece in batch)
        features_BMF = torch.cat(
            [F.pad(one.features_1MF, (0, most - one.features_1MF.shape[-1])) for one in batch]
        )
        frames_B1 = torch.tensor([[piece.frames] for piece in batch])
        mask_BF = (torch.arange(most) < frames_B1).long()
        model = self._module.model
        return {
            "input_features": features_BMF.to(model.device, model.dtype),
            "attention_mask": mask_BF.to(model.device),
        }

    # ------------------------------------------------------------------ decoding

    def _language(self, first: _Piece) -> str | None:
        """Code of the language given, or recognised in the first window of a file."""
        module, settings = self._module, self._module.model.generation_config
        given: str | None = module.hparams["language"]
        if given is not None:
            code: str = TO_LANGUAGE_CODE.get(given.lower(), given.lower().strip("<|>"))
            return code
        if not module.is_multilingual:
            return "en" if getattr(settings, "is_multilingual", None) is False else None
        if not getattr(settings, "lang_to_id", None):
            return None
        window_frames = 2 * int(module.model.config.max_source_positions)
        features_1MF = self._inputs([first])["input_features"][:, :, :window_frames]
        (token,) = module.model.detect_language(features_1MF)
        text: str = module.processor.tokenizer.convert_ids_to_tokens(int(token))
        return text.strip("<|>")

    def _decode(
        self, batch: Sequence[_Piece], language: str | None, report: Callable[[float], None]
    ) -> list[Segment]:
        options = {**self._inputs(batch), **self._module.decoding_options()}
        options["num_beams"] = self._module.hparams["num_beams"]
        if self._module.is_multilingual:
            options["language"] = language
        if self.long_form is LongForm.windows:
            return self._by_windows(batch, options)
        return self._by_timestamps(batch, options, report)

    def _by_windows(self, batch: Sequence[_Piece], options: dict[str, Any]) -> list[Segment]:
        tokens_BL = self._module.model.generate(
            **options,
            return_timestamps=False,
            # A window is decoded once, even if the model speaks of times unasked.
            force_unique_generate_call=True,
        )
        texts = self._module.processor.batch_decode(tokens_BL, skip_special_tokens=True)
        segments = []
        for piece, text in zip(batch, texts, strict=True):
            said = [Segment(piece.start, piece.end, text)]
            segments += tidy_segments(said, piece.start, piece.end)
        return segments

    def _by_timestamps(
        self,
        batch: Sequence[_Piece],
        options: dict[str, Any],
        report: Callable[[float], None],
    ) -> list[Segment]:
        frames_a_second = self._log_mel.sampling_rate / self._log_mel.settings["hop_length"]

        def monitor(seek_and_frames_B2: Tensor) -> None:
            done = float(seek_and_frames_B2.amin(dim=1).sum()) / frames_a_second
            report(min(batch[0].start + done, batch[-1].end))

        output: Any = self._module.model.generate(
            **options, return_timestamps=True, return_segments=True, monitor_progress=monitor
        )
        segments = []
        for piece, found in zip(batch, output["segments"], strict=True):
            at = piece.start
            said = [
                Segment(at + float(one["start"]), at + float(one["end"]), self._text(one))
                for one in found
            ]
            segments += tidy_segments(said, piece.start, piece.end)
        return segments

    def _text(self, segment: dict[str, Any]) -> str:
        first_timestamp = self._module.model.generation_config.no_timestamps_token_id + 1
        tokens_L: Tensor = segment["tokens"]
        words = tokens_L[tokens_L < first_timestamp]
        text: str = self._module.processor.decode(words, skip_special_tokens=True)
        return text
