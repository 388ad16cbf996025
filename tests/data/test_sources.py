"""Folders and manifests: rows with an identity, and errors that say where to look."""

import json
import os

import pytest
import soundfile
from speech_files import RATE, audio_bytes, noise, source

from liteasr.config import ConfigError, SourceConfig, SourceKind
from liteasr.data import load_audio, load_source

KEY = "data.test.mine"


def write_metadata(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def errors_of(*arguments):
    with pytest.raises(ConfigError) as caught:
        load_source(*arguments)
    return caught.value.errors


def test_folder(make_folder):
    folder = make_folder("a/dev", [0.1, 0.2], speaker=["x", "y"], duration=[0.1, 0.2])
    rows = load_source(source(folder), KEY)
    assert rows["id"][:] == [str(folder.resolve() / name) for name in ("00.flac", "01.flac")]
    assert rows["text"][:] == ["word 0", "word 1"]
    assert rows["duration"][:] == [0.1, 0.2]
    assert rows["speaker"][:] == ["x", "y"]
    assert rows[1]["audio"] == {"path": rows[1]["id"], "bytes": None}


def test_identity_is_the_file_behind_a_link(make_folder, tmp_path):
    folder = make_folder("real", [0.1])
    os.symlink(folder, tmp_path / "link")
    linked = load_source(source(tmp_path / "link"), KEY)
    assert linked["id"][:] == load_source(source(folder), KEY)["id"][:]


def test_csv_metadata(tmp_path):
    (tmp_path / "a.wav").write_bytes(audio_bytes(0.1))
    (tmp_path / "metadata.csv").write_text('file_name,sentence\na.wav,"so, this ""is"" it"\n')
    assert load_source(source(tmp_path), KEY)["text"][:] == ['so, this "is" it']


def test_first_transcript_column_present(tmp_path):
    (tmp_path / "a.wav").write_bytes(audio_bytes(0.1))
    row = {"file_name": "a.wav", "transcription": "third", "sentence": "second"}
    write_metadata(tmp_path, [row])
    assert load_source(source(tmp_path), KEY)["text"][:] == ["second"]
    mine = source(tmp_path, text=["transcription", "sentence"])
    assert load_source(mine, KEY)["text"][:] == ["third"]


@pytest.mark.parametrize(
    ("skip", "limit", "kept"), [(0, None, 5), (1, 2, 2), (4, 9, 1), (0, 1, 1), (3, None, 2)]
)
def test_skip_and_limit(make_folder, skip, limit, kept):
    folder = make_folder("a", [0.05] * 5)
    rows = load_source(source(folder, skip=skip, limit=limit), KEY)
    assert rows["text"][:] == [f"word {index}" for index in range(skip, skip + kept)]


def test_skip_beyond_the_end(make_folder):
    (message,) = errors_of(source(make_folder("a", [0.05]), skip=1), KEY)
    assert message == f"{KEY}.skip: 1 leaves none of 1 utterances"


def test_folder_that_cannot_be_used(tmp_path, make_folder):
    inner = make_folder("corpus/dev", [0.05])
    (tmp_path / "none").mkdir()
    (tmp_path / "file.txt").write_text("x")
    cases = {
        tmp_path / "absent": "absent does not exist",
        tmp_path / "file.txt": "is no folder",
        tmp_path / "none": "is empty",
        tmp_path / "corpus": str(inner),
    }
    for path, expected in cases.items():
        (message,) = errors_of(source(path), KEY)
        assert message.startswith(f"{KEY}.path: {path}")
        assert expected in message


def test_rows_that_cannot_be_used_are_named_with_their_line(tmp_path):
    (tmp_path / "a.wav").write_bytes(audio_bytes(0.1))
    write_metadata(
        tmp_path,
        [
            {"file_name": "a.wav", "text": "fine"},
            {"text": "no file"},
            {"file_name": "a.wav"},
            {"file_name": "gone.wav", "text": "not there"},
        ],
    )
    messages = errors_of(source(tmp_path), KEY)
    listing = f"{KEY}.path: {tmp_path / 'metadata.jsonl'}, line"
    assert messages == [
        f"{listing} 2: names no audio file (file_name)",
        f"{listing} 3: has no transcript (text)",
        f"{listing} 4: there is no file {tmp_path / 'gone.wav'}",
    ]


def test_many_errors_are_cut_short(tmp_path):
    write_metadata(tmp_path, [{"file_name": f"{n}.wav", "text": "x"} for n in range(50)])
    messages = errors_of(source(tmp_path), KEY)
    assert len(messages) == 4
    assert messages[-1] == "and 47 more like these"


def test_no_transcript_column_lists_those_there_are(tmp_path):
    write_metadata(tmp_path, [{"file_name": "a.wav", "words": "x"}])
    (message,) = errors_of(source(tmp_path), KEY)
    assert message.startswith(f"{KEY}.text: {tmp_path}")
    assert "its columns are file_name, words" in message


@pytest.mark.parametrize("column", ["audio_filepath", "audio", "file_name"])
def test_manifest(tmp_path, column):
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "a.flac", noise(0.1), RATE)
    absolute = str(tmp_path / "clips" / "a.flac")
    manifest = tmp_path / "list.jsonl"
    lines = [{column: "clips/a.flac", "text": "relative"}, {column: absolute, "text": "absolute"}]
    manifest.write_text("\n\n".join(map(json.dumps, lines)))
    rows = load_source(source(manifest, "manifest"), KEY)
    assert rows["id"][:] == [os.path.realpath(absolute)] * 2
    assert rows["text"][:] == ["relative", "absolute"]


def test_text_with_a_line_separator_in_it(tmp_path):
    (tmp_path / "a.wav").write_bytes(audio_bytes(0.1))
    line = json.dumps({"audio": "a.wav", "text": "one\u2028two"}, ensure_ascii=False)
    (tmp_path / "m.jsonl").write_text(line + "\n", encoding="utf-8")
    rows = load_source(source(tmp_path / "m.jsonl", "manifest"), KEY)
    assert rows["text"][:] == ["one\u2028two"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"audio": "a.wav", "text": "x"}\nnot json\n', "line 2: is not JSON"),
        ("[1, 2]\n", "line 1: is not a JSON object"),
        ("", "lists no audio"),
        ("\n\n", "lists no audio"),
        ('{"audio": "a.wav", "text": "x", "offset": 1.5}\n', "line 1: offset"),
        ('{"audio": "a.wav", "text": 3}\n', "line 1: has no transcript"),
        ('{"audio": 3, "text": "x"}\n', "line 1: names no audio file"),
        ('{"audio": "a.wav", "text": "\\udcff"}\n'.encode("latin-1").decode("latin-1"), None),
    ],
)
def test_manifest_that_cannot_be_used(tmp_path, content, expected):
    (tmp_path / "a.wav").write_bytes(audio_bytes(0.1))
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(content)
    if expected is None:
        return
    (message,) = errors_of(source(manifest, "manifest"), KEY)
    assert message.startswith(f"{KEY}.path: {manifest}")
    assert expected in message


def test_manifest_that_is_not_text(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(audio_bytes(0.1))
    (message,) = errors_of(source(tmp_path / "m.jsonl", "manifest"), KEY)
    assert "cannot read" in message


def test_absent_manifest(tmp_path):
    (message,) = errors_of(source(tmp_path / "m.jsonl", "manifest"), KEY)
    assert message == f"{KEY}.path: {tmp_path / 'm.jsonl'} does not exist"


def test_demo():
    parts = {
        split: load_source(SourceConfig(kind=SourceKind.demo, split=split), KEY)
        for split in ("calibration", "evaluation")
    }
    for rows in parts.values():
        assert len(rows) == 64
        audio = load_audio(rows[0]["audio"]["path"])
        assert len(audio) == pytest.approx(rows[0]["duration"] * RATE, abs=RATE / 1000)
    assert not set(parts["calibration"]["id"]) & set(parts["evaluation"]["id"])
    some = SourceConfig(kind=SourceKind.demo, split="evaluation", skip=3, limit=2)
    assert load_source(some, KEY)["text"][:] == parts["evaluation"]["text"][3:5]


def test_demo_split_that_is_not_there():
    (message,) = errors_of(SourceConfig(kind=SourceKind.demo), KEY)
    assert message.startswith(f"{KEY}.split: the built-in demo data has no 'test'")


def test_real_speech(real_speech):
    rows = load_source(source(real_speech / "an4" / "dev", limit=3), KEY)
    assert len(rows) == 3
    assert set(rows.column_names) == {"id", "audio", "text", "duration", "speaker"}
