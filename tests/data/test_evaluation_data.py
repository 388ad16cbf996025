"""Evaluation batches: every utterance once, whole, in order, at any number of processes."""

import numpy as np
import pytest
import torch
from speech_files import RATE, audio_bytes, source

from liteasr.config import ConfigError
from liteasr.data import load_audio
from liteasr.data.audio import split_windows


def read(datamodule, role="test"):
    return [list(loader) for loader in getattr(datamodule, f"{role}_dataloader")()]


def column(batches, name):
    return [value for batch in batches for value in batch[name]]


def test_batches(make_datamodule, make_folder, processor):
    folder = make_folder("a", [0.5, 2.0, 1.0], texts=["One", "Two", "Three"])
    datamodule = make_datamodule(processor, test={"a": source(folder)}, eval_batch_size=2)
    (loader,) = datamodule.test_dataloader()
    first, second = list(loader)
    assert len(loader) == 2
    assert set(first) == {
        "input_features",
        "frames",
        "segments",
        "references",
        "ids",
        "seconds",
        "is_long",
    }
    assert first["input_features"].shape == (2, 80, 3000)
    assert first["frames"].tolist() == [100, 50]
    assert first["segments"] == [1, 1]
    assert first["references"] == ["Two", "Three"]
    assert first["ids"] == [f"{folder}/01.flac", f"{folder}/02.flac"]
    assert first["seconds"] == [2.0, 1.0]
    assert first["is_long"] is False
    assert second["references"] == ["One"]


@pytest.mark.parametrize("long_form", ["timestamps", "windows"])
def test_long_utterances_come_alone(make_datamodule, make_folder, long_form):
    folder = make_folder("a", [0.5, 3.4, 0.4, 2.5])
    options = {"test": {"a": source(folder)}, "long_form": long_form, "eval_batch_size": 8}
    (loader,) = make_datamodule(**options).test_dataloader()
    first, second, rest = list(loader)
    assert len(loader) == 3
    assert [first["references"], second["references"]] == [["word 1"], ["word 3"]]
    assert rest["references"] == ["word 0", "word 2"]
    assert (first["is_long"], rest["is_long"]) == (True, False)
    assert first["seconds"] == [3.4]
    if long_form == "timestamps":
        assert first["input_features"].shape == (1, 80, 340)
        assert first["attention_mask"].tolist() == [[1] * 340]
        assert first["frames"].tolist() == [170]
        assert first["segments"] == [1]
    else:
        windows = split_windows(load_audio(folder / "01.flac"), 1.0)
        assert first["input_features"].shape == (len(windows), 80, 100)
        assert first["segments"] == [len(windows)]
        assert "attention_mask" not in first
        frames = [int(np.ceil(np.ceil(len(window) / 160) / 2)) for window in windows]
        assert first["frames"].tolist() == frames


def test_long_form_of_thirty_seconds(make_datamodule, make_folder, processor):
    folder = make_folder("a", [30.0, 30.005, 30.02])
    options = {"test": {"a": source(folder)}}
    (batches,) = read(make_datamodule(processor, **options))
    long, short = batches
    assert long["input_features"].shape == (1, 80, 3002)
    assert short["input_features"].shape == (2, 80, 3000)
    (windowed, _) = read(make_datamodule(processor, long_form="windows", **options))[0]
    assert windowed["segments"] == [2]


def test_unscorable_utterances_are_dropped(make_datamodule, make_folder):
    texts = ["fine", "", "ignore_time_segment_in_scoring", "  ", "ok"]
    folder = make_folder("a", [0.1] * 5, texts=texts)
    (batches,) = read(make_datamodule(test={"a": source(folder)}))
    assert column(batches, "references") == ["fine", "ok"]


def test_no_scorable_utterance(make_datamodule, make_folder):
    folder = make_folder("a", [0.1] * 2, texts=["", " "])
    datamodule = make_datamodule(test={"a": source(folder)})
    with pytest.raises(ConfigError, match=r"data\.test\.a: none of 2 transcripts can be scored"):
        datamodule.test_dataloader()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("role", ["val", "test"])
def test_shards_are_the_whole_without_duplicates(make_datamodule, make_folder, world_size, role):
    sets = {
        "a": source(make_folder("a", [0.1, 0.3, 0.2, 1.5, 0.4])),
        "b": source(make_folder("b", [0.1, 0.2])),
    }
    shards = []
    for rank in range(world_size):
        datamodule = make_datamodule(**{role: sets}, eval_batch_size=2)
        datamodule.set_sharding(rank, world_size)
        assert getattr(datamodule, f"{role}_names") == ["a", "b"]
        shards.append([column(batches, "ids") for batches in read(datamodule, role)])
    for index, count in enumerate((5, 2)):
        names = [name for shard in shards for name in shard[index]]
        assert len(names) == len(set(names)) == count


@pytest.fixture
def hub(make_mirror):
    def make(contents, texts=None, **options):
        texts = [f"word {n}" for n in range(len(contents))] if texts is None else texts
        rows = list(zip(contents, texts, strict=True))
        half = len(rows) // 2
        mirror = make_mirror({"a/test-0.parquet": rows[:half], "a/test-1.parquet": rows[half:]})
        return source(mirror, "hub", subset="a", **options)

    return make


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_hub_set(make_datamodule, hub, streaming, workers):
    seconds = [0.1, 2.5, 0.3, 0.2, 0.4, 0.1]
    texts = ["a", "b", "ignore_time_segment_in_scoring", "c", "", "d"]
    contents = [audio_bytes(duration, seed=n) for n, duration in enumerate(seconds)]
    sets = {"hub": hub(contents, texts, streaming=streaming)}
    datamodule = make_datamodule(test=sets, num_workers=workers, eval_batch_size=4)
    (loader,) = datamodule.test_dataloader()
    batches = list(loader)
    with pytest.raises(TypeError):
        len(loader)
    assert sorted(column(batches, "references")) == ["a", "b", "c", "d"]
    by_text = dict(zip(column(batches, "references"), column(batches, "seconds"), strict=True))
    assert by_text == {"a": 0.1, "b": 2.5, "c": 0.2, "d": 0.1}
    (long,) = [batch for batch in batches if batch["is_long"]]
    assert long["references"] == ["b"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("skip", "limit"), [(0, None), (1, 6), (0, 3), (5, None)])
def test_hub_shards(make_datamodule, hub, streaming, world_size, skip, limit):
    contents = [audio_bytes(0.05, seed=n) for n in range(9)]
    texts = ["" if n == 2 else f"word {n}" for n in range(9)]
    one = hub(contents, texts, streaming=streaming, skip=skip, limit=limit)
    names = []
    for rank in range(world_size):
        datamodule = make_datamodule(test={"a": one}, eval_batch_size=2)
        datamodule.set_sharding(rank, world_size)
        names += column(read(datamodule)[0], "references")
    stop = 9 if limit is None else skip + limit
    assert sorted(names) == [f"word {n}" for n in range(skip, stop) if n != 2]


def test_hub_durations_order_the_utterances(make_datamodule, make_folder, hub):
    import datasets

    one = hub([audio_bytes(0.1), audio_bytes(0.2), audio_bytes(0.3), audio_bytes(0.1)])
    for file, seconds in (("test-0", [0.1, 0.2]), ("test-1", [0.3, 0.1])):
        path = f"{one.path}/a/{file}.parquet"
        table = datasets.Dataset.from_parquet(path).add_column("audio_length_s", seconds)
        table.to_parquet(path)
    (batches,) = read(make_datamodule(test={"a": one}))
    assert column(batches, "seconds") == [0.3, 0.2, 0.1, 0.1]


@pytest.mark.parametrize("streaming", [None, False, True])
def test_bad_files_are_skipped_and_named_once(make_datamodule, make_folder, hub, caplog, streaming):
    if streaming is None:
        one = source(make_folder("a", [0.5] * 30, broken=[3]))
    else:
        contents = [audio_bytes(0.5, seed=n) for n in range(30)]
        contents[3] = contents[3][: len(contents[3]) // 2]
        one = hub(contents, streaming=streaming)
    datamodule = make_datamodule(test={"a": one}, eval_batch_size=4)
    for _ in range(2):
        assert len(column(read(datamodule)[0], "ids")) == 29
    (message,) = [message for message in caplog.messages if "skipped" in message]
    assert message.startswith("data.test.a: skipped ")
    assert len(datamodule.tallies["test"].bad["a"]) == 1


@pytest.mark.parametrize("streaming", [None, False, True])
def test_too_many_bad_files(make_datamodule, make_folder, hub, streaming):
    if streaming is None:
        one = source(make_folder("a", [0.5] * 20, broken=[3, 4]))
    else:
        contents = [audio_bytes(0.5, seed=n) if n not in (3, 4) else b"?" for n in range(20)]
        one = hub(contents, streaming=streaming)
    datamodule = make_datamodule(test={"a": one}, eval_batch_size=4)
    with pytest.raises(ConfigError) as caught:
        read(datamodule)
    assert caught.value.errors[0] == (
        "data.test.a: 2 of 20 cannot be read, above data.max_bad_fraction=0.05:"
    )
    assert len(caught.value.errors) == 3


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
def test_one_bad_file_of_a_share_says_nothing(make_datamodule, hub, streaming, world_size):
    contents = [audio_bytes(0.1, seed=n) if n != 3 else b"?" for n in range(10)]
    datamodule = make_datamodule(test={"a": hub(contents, streaming=streaming)})
    datamodule.set_sharding(world_size - 1, world_size)
    if world_size == 2:
        assert len(column(read(datamodule)[0], "ids")) >= 4
    else:
        with pytest.raises(ConfigError, match=r"data\.test\.a: 1 of 10 cannot be read"):
            read(datamodule)


def test_a_batch_of_bad_files_only_is_skipped(make_datamodule, make_folder):
    folder = make_folder("a", [0.1] * 6)
    for index in (1, 2):
        (folder / f"{index:02}.flac").write_bytes(b"")
    datamodule = make_datamodule(
        test={"a": source(folder)}, eval_batch_size=1, max_bad_fraction=0.5
    )
    (loader,) = datamodule.test_dataloader()
    assert len(list(loader)) == 4
    assert len(loader) == 6


def test_all_files_bad(make_datamodule, make_folder):
    folder = make_folder("a", [0.5], broken=[0])
    with pytest.raises(ConfigError, match=r"data\.test\.a: 1 of 1"):
        read(make_datamodule(test={"a": source(folder)}, max_bad_fraction=0.9))


def test_stream_without_rows(make_datamodule, hub):
    one = hub([audio_bytes(0.1)] * 2, streaming=True, skip=5)
    with pytest.raises(ConfigError, match=r"data\.test: none of 0 utterances"):
        read(make_datamodule(test={"a": one}))


def test_workers_give_the_same(make_datamodule, make_folder):
    folder = make_folder("a", [0.1, 0.4, 2.2, 0.3], broken=[])
    one, two = (
        read(make_datamodule(test={"a": source(folder)}, num_workers=workers, eval_batch_size=2))
        for workers in (0, 2)
    )
    assert column(one[0], "ids") == column(two[0], "ids")
    for ours, theirs in zip(one[0], two[0], strict=True):
        assert torch.equal(ours["input_features"], theirs["input_features"])


def test_other_rates(make_datamodule, tmp_path):
    import json

    import soundfile

    soundfile.write(tmp_path / "a.ogg", np.zeros((11_025, 2)) + 0.1, 44_100)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.ogg", "text": "x"}))
    ((batch,),) = read(make_datamodule(test={"a": source(tmp_path)}))
    assert batch["seconds"] == [0.25]
    assert RATE == 16_000
