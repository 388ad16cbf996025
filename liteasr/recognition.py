"""From a file of any length to its transcript, a bounded number of windows at a time.

Shape suffixes: B pieces or windows in a batch, M mel bins, F mel frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from liteasr.config import ConfigError, LongForm
from liteasr.data import AudioStream, LogMel, Samples, cut_pieces
from liteasr.module import WhisperModule
from liteasr.transcripts import Segment, Transcript, tidy_segments

__all__ = ["Transcriber", "predicts_timestamps"]

Piece: TypeAlias = tuple[float, Samples]
"""Where it starts, in seconds, and its samples."""


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
        batch_size: int = 16,
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
                    language = self._language(batch[0][1])
                segments += self._decode(batch, language, report)
                report(self._end(batch[-1]))
        return Transcript(
            file=name,
            duration=round(stream.seconds, 3),
            language=language,
            segments=segments,
            rtfx=round(stream.seconds / (time.perf_counter() - started), 2),
            warning=stream.shortfall,
        )

    # ------------------------------------------------------------------ pieces

    def _batches(self, stream: AudioStream) -> Iterator[list[Piece]]:
        by_timestamps = self.long_form is LongForm.timestamps
        longest = self._log_mel.window_seconds * (self.SECTION_WINDOWS if by_timestamps else 1)
        batch: list[Piece] = []
        start = 0
        for samples in cut_pieces(stream, longest, stream.sampling_rate):
            batch.append((start / stream.sampling_rate, samples))
            start += len(samples)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _end(self, piece: Piece) -> float:
        return piece[0] + len(piece[1]) / self._log_mel.sampling_rate

    def _features(self, batch: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        """Features, (B, M, F), and a mask of the frames that count, (B, F)."""
        pieces = [samples for _, samples in batch]
        if not any(self._log_mel.is_long(len(samples)) for samples in pieces):
            features_BMF, _ = self._log_mel.windows(pieces)
            mask_BF = torch.ones(len(pieces), features_BMF.shape[-1], dtype=torch.long)
        else:
            whole = [self._log_mel.whole(samples) for samples in pieces]
            most = max(mask_1F.shape[-1] for _, mask_1F in whole)
            features_BMF = torch.cat([F.pad(f, (0, most - f.shape[-1])) for f, _ in whole])
            mask_BF = torch.cat([F.pad(m, (0, most - m.shape[-1])) for _, m in whole])
        model = self._module.model
        return features_BMF.to(model.device, model.dtype), mask_BF.to(model.device)

    # ------------------------------------------------------------------ decoding

    def _language(self, first: Samples) -> str | None:
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
        window = first[: self._log_mel.window_samples]
        (token,) = module.model.detect_language(self._features([(0.0, window)])[0])
        text: str = module.processor.tokenizer.convert_ids_to_tokens(int(token))
        return text.strip("<|>")

    def _decode(
        self, batch: Sequence[Piece], language: str | None, report: Callable[[float], None]
    ) -> list[Segment]:
        features_BMF, mask_BF = self._features(batch)
        hparams = self._module.hparams
        options: dict[str, Any] = {
            "input_features": features_BMF,
            "attention_mask": mask_BF,
            "num_beams": hparams["num_beams"],
        }
        if hparams["max_new_tokens"] is not None:
            options["max_new_tokens"] = hparams["max_new_tokens"]
        if self._module.is_multilingual:
            options |= {"language": language, "task": hparams["task"]}
        if self.long_form is LongForm.windows:
            return self._by_windows(batch, options)
        return self._by_timestamps(batch, options, report)

    def _by_windows(self, batch: Sequence[Piece], options: dict[str, Any]) -> list[Segment]:
        tokens_BL = self._module.model.generate(**options, return_timestamps=False)
        texts = self._module.processor.batch_decode(tokens_BL, skip_special_tokens=True)
        segments = []
        for piece, text in zip(batch, texts, strict=True):
            start, end = piece[0], self._end(piece)
            segments += tidy_segments([Segment(start, end, text)], start, end)
        return segments

    def _by_timestamps(
        self,
        batch: Sequence[Piece],
        options: dict[str, Any],
        report: Callable[[float], None],
    ) -> list[Segment]:
        frames_a_second = self._log_mel.sampling_rate / self._log_mel.settings["hop_length"]

        def monitor(seek_and_frames_B2: Tensor) -> None:
            done = float(seek_and_frames_B2.amin(dim=1).sum()) / frames_a_second
            report(min(batch[0][0] + done, self._end(batch[-1])))

        output: Any = self._module.model.generate(
            **options, return_timestamps=True, return_segments=True, monitor_progress=monitor
        )
        segments = []
        for piece, found in zip(batch, output["segments"], strict=True):
            start, end = piece[0], self._end(piece)
            said = [
                Segment(start + float(one["start"]), start + float(one["end"]), self._text(one))
                for one in found
            ]
            segments += tidy_segments(said, start, end)
        return segments

    def _text(self, segment: dict[str, Any]) -> str:
        first_timestamp = self._module.model.generation_config.no_timestamps_token_id + 1
        tokens_L: Tensor = segment["tokens"]
        words = tokens_L[tokens_L < first_timestamp]
        text: str = self._module.processor.decode(words, skip_special_tokens=True)
        return text
