"""From a file to segments, by windows and by timestamps, a bounded number at a time."""

import json

import jiwer
import numpy as np
import pytest
import soundfile
import soxr
from checkpoints import save_checkpoint, special_tokens
from published import published_model, write_published_folder
from speech_files import RATE, noise
from tiny import tiny_config
from transformers import WhisperProcessor
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from liteasr.config import ConfigError, LongForm
from liteasr.data import load_audio
from liteasr.modeling import use_plain_inference
from liteasr.modeling.tiles import TiledEncoderLayer
from liteasr.recognition import predicts_timestamps
from liteasr.transcribe import load_transcriber, transcribe


@pytest.fixture(scope="module")
def with_timestamps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "timestamps"
    return save_checkpoint(folder, timestamps=True, multilingual=True)


@pytest.fixture(scope="module")
def without_timestamps(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "plain")


@pytest.fixture(params=["timestamps", "windows"])
def transcriber(request, with_timestamps, without_timestamps):
    folder = with_timestamps if request.param == "timestamps" else without_timestamps
    return load_transcriber(folder, long_form=request.param, batch_size=3)


def write(path, audio, rate=RATE):
    soundfile.write(path, audio, rate)
    return path


def check_order(segments, duration):
    assert segments
    at = 0.0
    for one in segments:
        assert at <= one.start < one.end <= duration
        assert one.text == one.text.strip() != ""
        at = one.end


@pytest.mark.parametrize("seconds", [0.01, 0.7, 1.0, 9.0, 23.3])
def test_segments_lie_in_order_within_the_audio(transcriber, tmp_path, seconds):
    said = transcriber(write(tmp_path / "noise.wav", noise(seconds)))
    check_order(said.segments, seconds)
    assert said.duration == pytest.approx(seconds, abs=1e-3)
    assert said.segments[-1].end > seconds - 1.5, "all of the audio is heard"
    assert said.text == " ".join(segment.text for segment in said.segments)
    assert seconds < 1 or said.rtfx > 0, "two decimals may be 0 for a moment of sound"


def test_a_later_piece_is_timed_from_the_start_of_the_file(transcriber, tmp_path):
    """All pieces of silence are alike, so their segments are too, one piece later each."""
    said = transcriber(write(tmp_path / "silence.wav", np.zeros(21 * RATE, "f4")))
    check_order(said.segments, 21.0)
    sections = transcriber.SECTION_WINDOWS if transcriber.long_form is LongForm.timestamps else 1
    # Of equally quiet places the last is taken, in the middle of 50 ms.
    length = sections - 0.025
    pieces = [[s for s in said.segments if s.start // length == index] for index in (0, 1)]
    assert len(pieces[0]) == len(pieces[1]) >= 1
    for first, second in zip(*pieces, strict=True):
        assert second.text == first.text
        assert second.start - first.start == pytest.approx(length, abs=2e-3)


def test_batches_do_not_change_what_is_said(transcriber, tmp_path):
    file = write(tmp_path / "noise.wav", noise(13.0))
    together = transcriber(file).segments
    transcriber.batch_size = 1
    assert transcriber(file).segments == together


def test_no_more_is_decoded_at_a_time_than_a_batch(transcriber, tmp_path, monkeypatch):
    model, shapes = transcriber._module.model, []
    real = model.generate

    def generate(**options):
        shapes.append(tuple(options["input_features"].shape))
        return real(**options)

    monkeypatch.setattr(model, "generate", generate)
    transcriber(write(tmp_path / "noise.wav", noise(45.0)))
    assert len(shapes) > 1
    most = transcriber.SECTION_WINDOWS if transcriber.long_form is LongForm.timestamps else 1
    assert all(count <= 3 and frames <= 100 * most for count, _, frames in shapes)


def test_progress_only_rises_and_ends_at_the_duration(transcriber, tmp_path):
    told = []
    file = write(tmp_path / "noise.wav", noise(13.0))
    transcriber(file, on_progress=lambda done, total: told.append((done, total)))
    done = [seconds for seconds, _ in told]
    assert len(told) > 3
    assert done == sorted(done)
    assert told[-1] == (13.0, 13.0)


def test_a_dense_checkpoint_runs_as_fast_as_a_compressed_one(without_timestamps, tmp_path):
    transcriber = load_transcriber(without_timestamps, device="cpu")
    layers = transcriber._module.encoder.layers
    assert {type(one) for one in layers} == {TiledEncoderLayer}
    file = write(tmp_path / "noise.wav", noise(2.5))
    fast = transcriber(file).text
    use_plain_inference(transcriber._module.encoder)
    assert {type(one) for one in layers} == {WhisperEncoderLayer}
    assert transcriber(file).text == fast


def test_the_way_follows_the_checkpoint(with_timestamps, without_timestamps, real_model):
    assert load_transcriber(with_timestamps).long_form is LongForm.timestamps
    assert load_transcriber(without_timestamps).long_form is LongForm.windows
    # It has tokens for timestamps, which were never trained.
    assert load_transcriber(real_model).long_form is LongForm.windows


def test_timestamps_that_do_not_exist_are_refused(without_timestamps):
    assert not predicts_timestamps(load_transcriber(without_timestamps)._module.model)
    with pytest.raises(ConfigError, match=r"long_form: .*plain has no timestamps"):
        load_transcriber(without_timestamps, long_form="timestamps")


def test_the_language_is_the_one_given_or_recognised(with_timestamps, tmp_path):
    file = write(tmp_path / "noise.wav", noise(2.0))
    for given in ("de", "German"):
        assert transcribe(with_timestamps, file, language=given).language == "de"
    assert transcribe(with_timestamps, file).language in {"en", "de"}


def test_the_language_reaches_the_decoder(with_timestamps, tmp_path, monkeypatch):
    options = {"task": "translate", "max_new_tokens": 5, "num_beams": 2}
    transcriber = load_transcriber(with_timestamps, language="German", **options)
    real, seen = transcriber._module.model.generate, {}

    def generate(**given):
        seen.update(given)
        return real(**given)

    monkeypatch.setattr(transcriber._module.model, "generate", generate)
    transcriber(write(tmp_path / "noise.wav", noise(2.0)))
    assert {name: seen[name] for name in options} == options
    assert seen["language"] == "de"


def test_other_types_of_weights(with_timestamps, tmp_path):
    file = write(tmp_path / "noise.wav", noise(2.0))
    check_order(load_transcriber(with_timestamps, dtype="bfloat16")(file).segments, 2.0)


def test_a_published_folder_with_the_tokenizer_of_another(with_timestamps, tmp_path):
    processor = WhisperProcessor.from_pretrained(with_timestamps)
    special = special_tokens(processor.tokenizer)
    config = tiny_config(vocab_size=len(processor.tokenizer), max_length=8, **special)
    write_published_folder(published_model(config, [{"fc1": 8}, {"k_proj": 4}]), tmp_path / "lite")
    file = write(tmp_path / "noise.wav", noise(3.0))
    transcriber = load_transcriber(
        tmp_path / "lite", processor=str(with_timestamps), max_new_tokens=6
    )
    assert transcriber.long_form is LongForm.windows
    said = transcriber(file)
    check_order(said.segments, 3.0)
    assert said.language is None, "the folder does not say"


def test_long_real_speech_is_recognised(real_model, real_speech, tmp_path):
    """Utterances joined to most of a minute, stereo and at another rate: as good as one by one."""
    folder = real_speech / "librispeech" / "dev"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()][:5]
    pause = np.zeros(RATE // 4, np.float32)
    audio = np.concatenate(
        [part for row in rows for part in (load_audio(folder / row["file_name"]), pause)]
    )
    resampled = soxr.resample(audio, RATE, 44_100)
    file = write(tmp_path / "talk.flac", np.stack([resampled, 0.5 * resampled], axis=1), 44_100)
    assert len(audio) > 40 * RATE
    transcriber = load_transcriber(real_model)
    said = transcriber(file)
    check_order(said.segments, said.duration)
    assert said.duration == pytest.approx(len(audio) / RATE, abs=0.01)
    normalize = transcriber._module.normalizer
    reference = normalize(" ".join(row["text"] for row in rows))
    assert jiwer.wer(reference, normalize(said.text)) < 0.2
