"""Calibration clips: an even, repeatable draw, shared out without loss."""

import collections

import numpy as np
import pytest
import torch
from speech_files import audio_bytes, source

from liteasr.config import ConfigError
from liteasr.data import load_audio


def batches_of(datamodule, **options):
    return list(datamodule.calibration_dataloader(**options))


def ids_of(datamodule, **options):
    return [name for batch in batches_of(datamodule, **options) for name in batch["ids"]]


def sets_of(names):
    return collections.Counter(name.split("/")[-2] for name in names)


@pytest.fixture
def three_sets(make_folder):
    return {
        name: source(make_folder(name, [0.1] * count))
        for name, count in (("a", 20), ("b", 2), ("c", 20))
    }


@pytest.mark.parametrize(
    ("clips", "shares"),
    [
        (3, (1, 1, 1)),
        (5, (2, 2, 1)),
        (6, (2, 2, 2)),
        (7, (3, 2, 2)),
        (12, (5, 2, 5)),
        (13, (6, 2, 5)),
        (100, (20, 2, 20)),
        (1, (1, 0, 0)),
    ],
)
def test_even_draw(make_datamodule, three_sets, clips, shares):
    names = ids_of(make_datamodule(calibration=three_sets, calibration_clips=clips))
    assert tuple(sets_of(names)[name] for name in "abc") == shares
    assert len(set(names)) == len(names)


def test_draw_depends_on_the_seed_alone(make_datamodule, three_sets):
    options = {"calibration": three_sets, "calibration_clips": 9}
    first = ids_of(make_datamodule(seed=3, **options))
    assert ids_of(make_datamodule(seed=3, **options)) == first
    assert ids_of(make_datamodule(seed=4, **options)) != first
    files = sorted(name for name in first if "/a/" in name)
    assert files != [f"{source.path}/{n:02}.flac" for source in [three_sets["a"]] for n in range(4)]


def test_batches(make_datamodule, make_folder, processor):
    folder = make_folder("a", [0.5, 1.0, 31.0])
    options = {"calibration": {"a": source(folder)}, "calibration_batch_size": 3}
    loader = make_datamodule(processor, **options).calibration_dataloader()
    first, second = list(loader)
    assert (len(loader), len(loader.dataset)) == (2, 4)
    assert first["input_features"].shape == (3, 80, 3000)
    assert first["input_features"].dtype == torch.float32
    assert first["frames"].dtype == torch.int64
    frames = torch.cat([first["frames"], second["frames"]]).tolist()
    by_id = dict(zip(first["ids"] + second["ids"], frames, strict=True))
    assert by_id[f"{folder}/00.flac"] == 25
    assert by_id[f"{folder}/01.flac"] == 50
    windows = [by_id[f"{folder}/02.flac#{window}"] for window in range(2)]
    assert 1250 <= windows[0] <= 1500
    assert sum(windows) == pytest.approx(1550, abs=1)


def test_windows_of_a_long_file_are_its_samples(make_datamodule, make_folder):
    folder = make_folder("a", [3.3])
    clips = make_datamodule(calibration={"a": source(folder)}).calibration_dataloader().dataset
    put_together = np.concatenate([clips[index].audio for index in range(len(clips))])
    assert len(clips) == 4
    np.testing.assert_array_equal(put_together, load_audio(folder / "00.flac"))


def test_windows_count_as_clips(make_datamodule, make_folder):
    sets = {"a": source(make_folder("a", [9.5, 9.5])), "b": source(make_folder("b", [0.1] * 9))}
    names = ids_of(make_datamodule(calibration=sets, calibration_clips=8))
    assert sets_of(names) == {"a": 4, "b": 4}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shards_are_the_whole(make_datamodule, three_sets, world_size):
    options = {"calibration": three_sets, "calibration_clips": 11, "calibration_batch_size": 2}
    whole = make_datamodule(**options)
    shards = []
    for rank in range(world_size):
        one = make_datamodule(**options)
        one.set_sharding(rank, world_size)
        assert one.calibration_fingerprint() == whole.calibration_fingerprint()
        shards.append(ids_of(one))
    assert sorted(sum(shards, [])) == sorted(ids_of(whole))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    for rank, shard in enumerate(shards):
        assert shard == ids_of(whole)[rank::world_size]


def test_skipping_reads_nothing_of_what_is_skipped(make_datamodule, three_sets, monkeypatch):
    options = {"calibration": three_sets, "calibration_clips": 7, "calibration_batch_size": 2}
    datamodule = make_datamodule(**options)
    expected = ids_of(datamodule)
    datamodule.calibration_fingerprint()
    read = []
    monkeypatch.setattr(
        "liteasr.data.utterances.load_audio",
        lambda path, *args, **kwargs: read.append(path) or load_audio(path, *args, **kwargs),
    )
    loader = datamodule.calibration_dataloader(skip_batches=2)
    assert len(loader.dataset) == 3
    assert [name for batch in loader for name in batch["ids"]] == expected[4:]
    assert read == expected[4:]
    assert batches_of(datamodule, skip_batches=4) == []
    assert batches_of(datamodule, skip_batches=9) == []


def test_fingerprint_changes_with_clips_and_features(make_datamodule, make_folder, processor):
    sets = {"a": source(make_folder("a", [0.1] * 9))}
    prints = {
        make_datamodule(calibration=sets, calibration_clips=4).calibration_fingerprint(),
        make_datamodule(calibration=sets, calibration_clips=5).calibration_fingerprint(),
        make_datamodule(calibration=sets, calibration_clips=4, seed=1).calibration_fingerprint(),
        make_datamodule(processor, calibration=sets, calibration_clips=4).calibration_fingerprint(),
    }
    assert len(prints) == 4
    assert all(len(text) == 16 for text in prints)


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_set(make_datamodule, make_mirror, make_folder, streaming):
    rows = [(audio_bytes(0.1, seed=n), "") for n in range(12)]
    mirror = make_mirror({"a/train-0.parquet": rows[:6], "a/train-1.parquet": rows[6:]})
    hub = source(mirror, "hub", subset="a", split="train", streaming=streaming)
    sets = {"hub": hub, "b": source(make_folder("b", [0.1] * 3))}
    options = {"calibration": sets, "calibration_clips": 8}
    whole = make_datamodule(**options)
    names = ids_of(whole)
    assert len(set(names)) == 8
    assert sum(name.startswith("hub://") for name in names) == 5
    assert ids_of(make_datamodule(**options)) == names
    other = make_datamodule(**options)
    other.set_sharding(1, 2)
    assert other.calibration_fingerprint() == whole.calibration_fingerprint()
    assert ids_of(other) == names[1::2]
    limited = source(mirror, "hub", subset="a", split="train", streaming=streaming, skip=2, limit=3)
    assert len(ids_of(make_datamodule(calibration={"hub": limited}))) == 3


def test_files_with_bad_headers_are_replaced(make_datamodule, make_folder, caplog):
    folder = make_folder("a", [0.1] * 30)
    (folder / "07.flac").write_bytes(b"")
    datamodule = make_datamodule(calibration={"a": source(folder)}, calibration_clips=29)
    assert len(ids_of(datamodule)) == 29
    assert f"data.calibration.a: skipped {folder}/07.flac: is empty" in caplog.text


def test_truncated_files_are_skipped_and_named(make_datamodule, make_folder, caplog):
    folder = make_folder("a", [0.5] * 30, broken=[3])
    options = {"calibration": {"a": source(folder)}, "calibration_batch_size": 4}
    datamodule = make_datamodule(**options)
    assert len(ids_of(datamodule)) == 29
    ids_of(datamodule)
    assert caplog.text.count("03.flac") == 1
    assert list(datamodule.tallies["calibration"].bad["a"]) == [f"{folder}/03.flac"]


@pytest.mark.parametrize("content", [b"", b"no audio at all", None])
def test_too_many_bad_files(make_datamodule, make_folder, content):
    folder = make_folder("a", [0.5] * 20, broken=[] if content is not None else [1, 2, 5, 9])
    for index in (1, 2, 5, 9):
        if content is not None:
            (folder / f"{index:02}.flac").write_bytes(content)
    datamodule = make_datamodule(calibration={"a": source(folder)})
    with pytest.raises(ConfigError) as caught:
        ids_of(datamodule)
    messages = caught.value.errors
    assert messages[0].startswith("data.calibration.a: ")
    assert "above data.max_bad_fraction=0.05" in messages[0]
    assert sum("flac: " in message for message in messages) >= 2


def test_no_calibration_sets(make_datamodule):
    with pytest.raises(ConfigError, match=r"data\.calibration: names no source"):
        make_datamodule().calibration_dataloader()


def test_real_speech(make_datamodule, real_speech):
    sets = {name: source(real_speech / name / "train") for name in ("librispeech", "an4")}
    names = ids_of(make_datamodule(calibration=sets, calibration_clips=6))
    assert len(names) == 6
