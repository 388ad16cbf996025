"""Speech without transcripts, where nobody reads them."""

import json

import pytest
import soundfile
from speech_files import RATE, audio_bytes, noise, source

from liteasr.config import ConfigError
from liteasr.data import load_source


@pytest.fixture
def recordings(tmp_path):
    """A folder of audio and other files, without any list."""
    folder = tmp_path / "calls"
    for name in ("b.wav", "monday/a.FLAC", "monday/c.ogg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, noise(0.3), RATE, format=name.rpartition(".")[2])
    (folder / "notes.txt").write_text("not audio")
    return folder


def rows_of(path, kind="folder", **options):
    return load_source(source(path, kind, **options), "data.train.mine", transcripts=False)


def error_of(call):
    with pytest.raises(ConfigError) as caught:
        call()
    (message,) = caught.value.errors
    return message


def test_all_audio_of_a_folder_by_name(recordings):
    rows = rows_of(recordings)
    names = ["b.wav", "monday/a.FLAC", "monday/c.ogg"]
    assert rows["id"][:] == [str((recordings / name).resolve()) for name in names]
    assert rows["text"][:] == ["", "", ""]
    assert rows_of(recordings, skip=1, limit=1)["id"][:] == rows["id"][1:2]


def test_a_folder_of_sets_is_not_taken_for_one(make_folder, tmp_path):
    make_folder("speech/dev", [0.1])
    message = error_of(lambda: rows_of(tmp_path / "speech"))
    assert message.endswith(f"there is some in {tmp_path / 'speech' / 'dev'}")


def test_a_folder_without_audio(tmp_path):
    (tmp_path / "notes.txt").write_text("not audio")
    assert "has no metadata.jsonl or metadata.csv and no audio (.aif" in error_of(
        lambda: rows_of(tmp_path)
    )


@pytest.mark.parametrize(("kind", "column"), [("folder", "file_name"), ("manifest", "audio")])
def test_lists_without_some_or_all_transcripts(tmp_path, kind, column):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(audio_bytes(0.1))
    listing = tmp_path / "metadata.jsonl"
    path = tmp_path if kind == "folder" else listing
    listing.write_text("".join(json.dumps({column: f"{n}.wav"}) + "\n" for n in "ab"))
    assert rows_of(path, kind)["text"][:] == ["", ""]
    half = [{column: "a.wav", "text": "said"}, {column: "b.wav", "text": None}]
    listing.write_text("".join(json.dumps(row) + "\n" for row in half))
    assert rows_of(path, kind)["text"][:] == ["said", ""]


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_sets(make_mirror, streaming):
    content = audio_bytes(0.1)
    mirror = make_mirror({"test-0.parquet": [(content, 3)]}, text="speaker_number")
    (row,) = rows_of(mirror, "hub", streaming=streaming)
    assert row["text"] == ""
    assert row["audio"]["bytes"] == content


def test_calibration_and_training_of_the_encoder(make_datamodule, recordings):
    sets = {"mine": source(recordings)}
    datamodule = make_datamodule(calibration=sets, train=sets, train_transcripts=False)
    datamodule.check()
    (batch,) = datamodule.calibration_dataloader()
    assert batch["frames"].tolist() == [15, 15, 15]
    (batch,) = datamodule.train_dataloader()
    assert batch["frames"].tolist() == [15, 15, 15]


@pytest.mark.parametrize("role", ["train", "val", "test"])
def test_who_reads_transcripts_wants_them(make_datamodule, recordings, role):
    datamodule = make_datamodule(**{role: {"mine": source(recordings)}})
    assert error_of(datamodule.check).startswith(f"data.{role}.mine.path: {recordings} has no meta")
