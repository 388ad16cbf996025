"""What --data takes."""

from pathlib import Path

import pytest
from speech_files import audio_bytes

from liteasr.config import ConfigError, SourceKind
from liteasr.data import ESB_REPOSITORY, parse_sources


def error_of(argument):
    with pytest.raises(ConfigError) as caught:
        parse_sources(str(argument))
    return str(caught.value)


def test_esb():
    sources = parse_sources("esb")
    assert list(sources) == [
        "voxpopuli",
        "ami",
        "earnings22",
        "gigaspeech",
        "librispeech_clean",
        "librispeech_other",
        "spgispeech",
        "tedlium",
    ]
    clean = sources["librispeech_clean"]
    assert (clean.path, clean.subset, clean.split) == (ESB_REPOSITORY, "librispeech", "test.clean")
    assert all(one.streaming and one.kind is SourceKind.hub for one in sources.values())


def test_esb_mirror(tmp_path):
    sources = parse_sources(f"esb:{tmp_path}")
    assert {one.path for one in sources.values()} == {str(tmp_path)}
    assert "no folder" in error_of(f"esb:{tmp_path / 'gone'}")


def test_demo():
    (name, source), *_ = parse_sources("demo").items()
    assert (name, source.kind, source.split) == ("demo", SourceKind.demo, "evaluation")
    (name, source), *_ = parse_sources("demo:calibration").items()
    assert (name, source.split) == ("demo_calibration", "calibration")
    assert "demo:calibration or demo:evaluation" in error_of("demo:test")


def test_folder_is_named_after_its_corpus(make_folder):
    dev = make_folder("librispeech/dev", [0.05])
    (name, source), *_ = parse_sources(str(dev)).items()
    assert (name, source.kind, source.path) == ("librispeech", SourceKind.folder, str(dev))
    assert list(parse_sources(str(dev), taken=["librispeech"])) == ["librispeech_dev"]
    assert list(parse_sources(f"{dev}/")) == ["librispeech"]
    assert list(parse_sources(str(make_folder("my set", [0.05])))) == ["my_set"]


def test_relative_folder(make_folder, monkeypatch):
    monkeypatch.chdir(make_folder("an4/dev", [0.05]))
    assert list(parse_sources(".")) == ["an4"]


def test_own_name(make_folder):
    dev = make_folder("librispeech/dev", [0.05])
    assert list(parse_sources(f"mine={dev}")) == ["mine"]
    assert list(parse_sources("mine=esb"))[:2] == ["mine_voxpopuli", "mine_ami"]
    odd = make_folder("a=b", [0.05])
    assert parse_sources(str(odd))["a_b"].path == str(odd)


def test_manifest(tmp_path):
    for name, expected in (("calls.jsonl", "calls"), ("calls/test.jsonl", "calls")):
        manifest = tmp_path / name
        manifest.parent.mkdir(exist_ok=True)
        manifest.touch()
        ((name, source),) = parse_sources(str(manifest)).items()
        assert (name, source.kind) == (expected, SourceKind.manifest)
    other = tmp_path / "a.wav"
    other.write_bytes(audio_bytes(0.05))
    assert "is no .jsonl manifest" in error_of(other)


@pytest.mark.parametrize(
    ("argument", "name", "path", "subset", "split"),
    [
        ("owner/set", "set", "owner/set", None, "test"),
        ("owner/set:clean", "set_clean", "owner/set", "clean", "test"),
        ("owner/set:clean:test.other", "set_clean_test.other", "owner/set", "clean", "test.other"),
    ],
)
def test_hub(argument, name, path, subset, split):
    ((got, source),) = parse_sources(argument).items()
    assert got == name
    assert (source.kind, source.path, source.subset) == (SourceKind.hub, path, subset)
    assert (source.split, source.streaming) == (split, True)


def test_folder_with_parquet(make_mirror):
    mirror = make_mirror({"ami/test-0.parquet": [(b"", "x")], "data/test-0.parquet": [(b"", "x")]})
    ((name, source),) = parse_sources(f"{mirror}:ami:dev").items()
    assert (name, source.path, source.subset) == ("mirror_ami_dev", str(mirror), "ami")
    assert source.split == "dev"
    assert parse_sources(str(mirror))["mirror"].subset is None


def test_folder_of_folders_is_not_guessed(make_folder):
    dev, train = make_folder("corpus/dev", [0.05]), make_folder("corpus/train", [0.05])
    message = error_of(dev.parent)
    assert str(dev) in message
    assert str(train) in message
    assert str(dev) in error_of(dev.parent.parent)


def test_what_is_nothing(tmp_path):
    (tmp_path / "bare").mkdir()
    assert "no metadata.jsonl" in error_of(tmp_path / "bare")
    assert "does not exist" in error_of(tmp_path / "gone")
    assert "does not exist" in error_of("./gone")
    assert "does not exist" in error_of("~/gone/dev")
    assert "is no data set" in error_of("librispeech")
    assert "is no data set" in error_of("")
    assert "is no data set" in error_of("name=")


def test_real_speech(real_speech):
    folders = sorted(Path(real_speech).glob("*/dev"))
    names = [name for folder in folders for name in parse_sources(str(folder))]
    assert names == [folder.parent.name for folder in folders]
