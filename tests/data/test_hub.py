"""Hub data sets, from local copies of their Parquet files."""

import datasets
import pytest
from speech_files import audio_bytes, source

from liteasr.config import ConfigError
from liteasr.data import load_source

KEY = "data.test.mine"


def rows_of(count, start=0):
    return [(audio_bytes(0.05, seed=n), f"text {n}") for n in range(start, start + count)]


TWO_FILES = {
    "ami/test-00000-of-00002.parquet": rows_of(3),
    "ami/test-00001-of-00002.parquet": rows_of(4, start=3),
}


def read(path, **options):
    return load_source(source(path, "hub", **options), KEY)


def error_of(path, **options):
    with pytest.raises(ConfigError) as caught:
        read(path, **options)
    (message,) = caught.value.errors
    return message


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("text", ["text", "normalized_text", "transcript"])
def test_rows(make_mirror, streaming, typed, text):
    mirror = make_mirror(TWO_FILES, text=text, typed=typed)
    rows = read(mirror, subset="ami", streaming=streaming)
    assert isinstance(rows, datasets.IterableDataset) == streaming
    got = list(rows)
    assert [row["text"] for row in got] == [f"text {n}" for n in range(7)]
    assert [row["audio"]["bytes"] for row in got] == [content for content, _ in rows_of(7)]
    prefix = f"hub://{mirror}/ami/test/"
    assert all(row["id"].startswith(prefix) for row in got)
    assert len({row["id"] for row in got}) == 7
    if not streaming:
        assert [row["id"] for row in got] == [f"{prefix}{n}" for n in range(7)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("skip", "limit", "kept"), [(0, 2, 2), (2, 3, 3), (5, 9, 2), (6, None, 1)])
def test_skip_and_limit(make_mirror, streaming, skip, limit, kept):
    mirror = make_mirror(TWO_FILES)
    rows = list(read(mirror, subset="ami", streaming=streaming, skip=skip, limit=limit))
    assert [row["text"] for row in rows] == [f"text {n}" for n in range(skip, skip + kept)]
    if not streaming:
        assert rows[0]["id"].endswith(f"/{skip}")


@pytest.mark.parametrize(
    ("file", "subset", "split"),
    [
        ("librispeech/test.clean-00000-of-00001.parquet", "librispeech", "test.clean"),
        ("ami/test/0000.parquet", "ami", "test"),
        ("data/test-00000-of-00001.parquet", None, "test"),
        ("dev-00000-of-00001.parquet", None, "dev"),
        ("ami/test.parquet", "ami", "test"),
    ],
)
def test_layouts(make_mirror, file, subset, split):
    mirror = make_mirror({file: rows_of(1)})
    for streaming in (False, True):
        rows = list(read(mirror, subset=subset, split=split, streaming=streaming))
        assert [row["text"] for row in rows] == ["text 0"]


def test_splits_with_like_names_are_kept_apart(make_mirror):
    files = {"a/test.clean-0.parquet": rows_of(1), "a/test.clean_more-0.parquet": rows_of(2)}
    assert len(read(make_mirror(files), subset="a", split="test.clean")) == 1


def test_folder_names_with_wildcards(make_mirror):
    mirror = make_mirror({"ami/test-0.parquet": rows_of(1)}, folder="mirror [1]")
    assert len(read(mirror, subset="ami")) == 1


def test_optional_columns_are_renamed(make_mirror, monkeypatch):
    mirror = make_mirror({"a/test-0.parquet": rows_of(2)})
    table = datasets.Dataset.from_parquet(str(mirror / "a" / "test-0.parquet"))
    table = table.add_column("audio_length_s", [0.5, 0.25]).add_column("id", ["x", "y"])
    table.to_parquet(mirror / "a" / "test-0.parquet")
    rows = read(mirror, subset="a")
    assert rows["duration"][:] == [0.5, 0.25]
    assert rows["id"][0].endswith("/a/test/0")
    streamed = [row["id"] for row in read(mirror, subset="a", streaming=True)]
    assert "/a/test/x#" in streamed[0]


def test_absent_split_lists_what_there_is(make_mirror):
    mirror = make_mirror(TWO_FILES)
    message = error_of(mirror, subset="ami", split="dev")
    assert message.startswith(f"{KEY}.path: {mirror} has no Parquet files ami/dev-*.parquet")
    assert message.endswith("there are ami/test")


def test_absent_folder(tmp_path):
    assert error_of(tmp_path / "gone").endswith("gone does not exist")


def test_absent_columns(make_mirror):
    message = error_of(make_mirror(TWO_FILES, text="words"), subset="ami")
    assert message.startswith(f"{KEY}.text: ")
    assert "its columns are audio, words" in message


def test_damaged_parquet(tmp_path, make_mirror):
    mirror = make_mirror({"a/test-0.parquet": rows_of(1)})
    (mirror / "a" / "test-0.parquet").write_bytes(b"PAR1 no it is not")
    assert error_of(mirror, subset="a").startswith(f"{KEY}.path: cannot open {mirror}")


def test_unreachable_hub():
    message = error_of("nobody/nothing-here", subset="x", streaming=True)
    assert message.startswith(f"{KEY}.path: cannot open hub data set nobody/nothing-here")
