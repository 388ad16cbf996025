"""Training batches: labels with Whisper's prefix, nothing over one window, even shares."""

import itertools
import logging
import re

import pytest
import torch
from speech_files import audio_bytes, make_processor, source
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from liteasr.config import ConfigError, TrainText


def labels_of(loader):
    return [row[row >= 0].tolist() for batch in loader for row in batch["labels"]]


def texts_of(loader, processor):
    tokenizer = processor.tokenizer
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in labels_of(loader)]


def timed_texts(loader, processor):
    decode = processor.tokenizer.decode
    return {decode(row, decode_with_timestamps=True) for row in labels_of(loader)}


def test_batches(make_datamodule, make_folder, short_processor):
    folder = make_folder("a", [0.5, 0.9], texts=["hi", "longer text"])
    (batch,) = make_datamodule(train={"a": source(folder)}).train_dataloader()
    tokenizer = short_processor.tokenizer
    start, no_timestamps, end = tokenizer.convert_tokens_to_ids(
        ["<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>"]
    )
    assert batch["input_features"].shape == (2, 80, 100)
    assert sorted(batch["frames"].tolist()) == [25, 45]
    assert batch["labels"].shape == (2, len(" longer text") + 2)
    assert batch["labels"].dtype == torch.int64
    for row, frames in zip(batch["labels"], batch["frames"].tolist(), strict=True):
        text = "hi" if frames == 25 else "longer text"
        tokens = tokenizer(f" {text}", add_special_tokens=False).input_ids
        assert row[: len(tokens) + 2].tolist() == [no_timestamps, *tokens, end]
        assert (row[len(tokens) + 2 :] == -100).all()
    shifted = shift_tokens_right(batch["labels"], 0, start)
    assert (shifted[:, :2] == torch.tensor([start, no_timestamps])).all()


SEGMENTS = [
    {"start": 0.1, "end": 0.3, "text": "one"},
    {"start": 0.3, "end": 0.457, "text": "two"},
]


def test_labels_with_timestamps(make_datamodule, make_folder):
    processor = make_processor(seconds=1, chunk_length=1)
    folder = make_folder("a", [0.5, 0.7], texts=["one two", "hi there"], segments=[SEGMENTS, None])
    sets = {"a": source(folder)}
    loader = make_datamodule(processor, train=sets, train_timestamps=1.0).train_dataloader()
    assert timed_texts(loader, processor) == {
        "<|0.10|> one<|0.30|><|0.30|> two<|0.46|><|endoftext|>",
        "<|0.00|> hi there<|0.70|><|endoftext|>",
    }


def test_a_share_of_the_clips_has_timestamps_and_always_the_same(make_datamodule, make_folder):
    processor = make_processor(seconds=1, chunk_length=1)
    folder = make_folder("a", [0.1] * 40)
    sets = {"a": source(folder)}
    timed = []
    for seed in (0, 1):
        datamodule = make_datamodule(processor, train=sets, train_timestamps=0.5, seed=seed)
        texts = timed_texts(datamodule.train_dataloader(), processor)
        timed.append({text for text in texts if text.startswith("<|0.00|>")})
    assert timed[0] == timed[1]
    assert 10 <= len(timed[0]) <= 30


def test_no_time_is_after_the_end_of_a_clip(make_datamodule, make_folder):
    processor = make_processor(seconds=1, chunk_length=1)
    segments = [{"start": 0.1, "end": 40.0, "text": "one"}]
    sets = {"a": source(make_folder("a", [0.5], texts=["one"], segments=[segments]))}
    loader = make_datamodule(processor, train=sets, train_timestamps=1.0).train_dataloader()
    assert timed_texts(loader, processor) == {"<|0.10|> one<|0.50|><|endoftext|>"}


def end_times(datamodule, processor, epoch=0):
    """The end of each clip by its label, in seconds, as one pass gives them."""
    loader = datamodule.train_dataloader()
    loader.sampler.set_epoch(epoch)
    times = (re.findall(r"<\|([\d.]+)\|>", text) for text in timed_texts(loader, processor))
    return sorted(float(found[-1]) for found in times)


def test_clips_are_played_at_other_speeds(make_datamodule, make_folder):
    """Up to the speed that was asked for, another one each epoch, with times that follow."""
    processor = make_processor(seconds=1, chunk_length=1)
    sets = {"a": source(make_folder("a", [0.6] * 8))}
    options = {"train_timestamps": 1.0, "num_workers": 1}
    plain = make_datamodule(processor, train=sets, **options)
    assert set(end_times(plain, processor)) == {0.6}
    faster = make_datamodule(processor, train=sets, train_speed=0.2, **options)
    first, second = (end_times(faster, processor, epoch) for epoch in (0, 1))
    assert len(set(first)) > 1
    assert first != second
    assert first == end_times(faster, processor, 0)
    assert min(first + second) > 0.6 / 1.2 - 0.02
    assert max(first + second) < 0.6 / 0.8 + 0.02


def test_a_clip_that_would_be_too_long_keeps_its_speed(make_datamodule, make_folder):
    processor = make_processor(seconds=1, chunk_length=1)
    sets = {"a": source(make_folder("a", [0.98] * 8))}
    datamodule = make_datamodule(processor, train=sets, train_timestamps=1.0, train_speed=0.3)
    ends = end_times(datamodule, processor)
    assert max(ends) == 0.98
    assert min(ends) < 0.9


def test_windows_are_filled_with_further_clips(make_datamodule, make_folder):
    """As many as fit, others each epoch, with the times at which they come."""
    processor = make_processor(seconds=1, chunk_length=1)
    sets = {"a": source(make_folder("a", [0.3] * 9, texts=[f"text {n}" for n in range(9)]))}
    datamodule = make_datamodule(processor, train=sets, train_packed=1.0)
    loader = datamodule.train_dataloader()
    first = texts_of(loader, processor)
    assert len(first) == 9
    assert all(re.fullmatch(r"text \d text \d text \d", text) for text in first)
    assert {frames for batch in loader for frames in batch["frames"].tolist()} == {45}
    assert {text[:6] for text in first} == {f"text {n}" for n in range(9)}
    assert sorted(first) == sorted(texts_of(loader, processor))
    loader.sampler.set_epoch(1)
    assert sorted(first) != sorted(texts_of(loader, processor))
    timed = make_datamodule(processor, train=sets, train_packed=1.0, train_timestamps=1.0)
    pattern = "<.0.00.> text .<.0.30.><.0.30.> text .<.0.60.><.0.60.> text .<.0.90.><.endoftext.>"
    for text in timed_texts(timed.train_dataloader(), processor):
        assert re.fullmatch(pattern, text)


@pytest.fixture
def cut_windows(make_datamodule, make_folder):
    """Text and batches of windows of 1 s with clips of 0.6 s and two segments."""

    def make(*segments):
        processor = make_processor(seconds=1, chunk_length=1)
        said = [{"start": a, "end": b, "text": text} for a, b, text in segments]
        sets = {"a": source(make_folder("a", [0.6] * 8, segments=[said] * 8))}
        options = {"train_packed": 1.0, "train_timestamps": 1.0}
        loader = make_datamodule(processor, train=sets, **options).train_dataloader()
        (text,) = timed_texts(loader, processor)
        return text, list(loader)

    return make


def test_with_times_a_window_ends_in_a_clip_that_is_cut(cut_windows):
    """What ends within the window is learned whole, of what does not its start."""
    text, batches = cut_windows((0.0, 0.14, "a"), (0.16, 0.5, "b"))
    assert text == "<|0.00|> a<|0.14|><|0.16|> b<|0.50|><|0.60|> a<|0.74|><|0.76|><|endoftext|>"
    for batch in batches:
        assert set(batch["frames"].tolist()) == {50}
        assert set(batch["said_frames"].tolist()) == {38}


def test_a_segment_of_which_nothing_can_be_heard_is_left_out(cut_windows):
    """With the sound of it; what is whole stays."""
    text, batches = cut_windows((0.0, 0.2, "a"), (0.3, 0.5, "b"))
    assert text == "<|0.00|> a<|0.20|><|0.30|> b<|0.50|><|0.60|> a<|0.80|><|endoftext|>"
    assert {frames for batch in batches for frames in batch["frames"].tolist()} == {45}


def test_nothing_is_cut_where_the_decoder_has_no_room_for_it(make_datamodule, make_folder):
    processor = make_processor(seconds=1, chunk_length=1)
    sets = {"a": source(make_folder("a", [0.6] * 8, texts=["12345"] * 8))}
    options = {"train_packed": 1.0, "train_timestamps": 1.0}
    lengths = {}
    for most in (9, 20):
        loader = make_datamodule(processor, train=sets, max_labels=most, **options)
        batches = list(loader.train_dataloader())
        lengths[most] = {frames for batch in batches for frames in batch["frames"].tolist()}
    assert lengths == {9: {30}, 20: {50}}


def test_a_share_of_the_windows_is_filled(make_datamodule, make_folder, short_processor):
    sets = {"a": source(make_folder("a", [0.4] * 40))}
    loader = make_datamodule(train=sets, train_packed=0.5).train_dataloader()
    lengths = [frames for batch in loader for frames in batch["frames"].tolist()]
    assert set(lengths) == {20, 40}
    assert 10 <= lengths.count(40) <= 30


def test_a_window_is_filled_as_far_as_the_decoder_goes(make_datamodule, make_folder):
    sets = {"a": source(make_folder("a", [0.1] * 6, texts=["12345"] * 6))}
    loader = make_datamodule(train=sets, train_packed=1.0, max_labels=15).train_dataloader()
    assert {frames for batch in loader for frames in batch["frames"].tolist()} == {10}


def test_what_cannot_be_read_is_not_packed(make_datamodule, make_folder):
    folder = make_folder("a", [0.3] * 30, broken=[0])
    datamodule = make_datamodule(train={"a": source(folder)}, train_packed=1.0)
    assert len(labels_of(datamodule.train_dataloader())) == 30
    assert list(datamodule.tallies["train"].bad) == ["a"]


@pytest.mark.parametrize("segments", [None, [], ""])
def test_no_segments_are_none(make_datamodule, make_folder, segments):
    sets = {"a": source(make_folder("a", [0.5], segments=[segments]))}
    assert len(labels_of(make_datamodule(train=sets).train_dataloader())) == 1


def test_labels_end_where_the_decoder_does(make_datamodule, make_folder, short_processor):
    folder = make_folder("a", [0.5, 0.5], texts=["x" * 20, "fine"])
    datamodule = make_datamodule(train={"a": source(folder)}, max_labels=12)
    assert texts_of(datamodule.train_dataloader(), short_processor) == ["fine", "fine"]


def test_timestamps_need_tokens(make_datamodule, make_folder, short_processor):
    sets = {"a": source(make_folder("a", [0.5]))}
    datamodule = make_datamodule(short_processor, train=sets, train_timestamps=0.5)
    with pytest.raises(ConfigError, match=r"data\.train_timestamps: .* no timestamp tokens"):
        datamodule.train_dataloader()


@pytest.mark.parametrize(
    "segments",
    [
        "0-1",
        [{"start": 0.0, "end": 1.0}],
        [{"start": 0.5, "end": 0.2, "text": "a"}],
        [{"start": -0.5, "end": 0.2, "text": "a"}],
        [SEGMENTS[1], SEGMENTS[0]],
    ],
)
def test_impossible_segments_name_the_line(make_datamodule, make_folder, segments):
    folder = make_folder("a", [0.5, 0.7], segments=[SEGMENTS, segments])
    with pytest.raises(ConfigError, match=r"metadata.jsonl, line 2: segments"):
        make_datamodule(train={"a": source(folder)}).train_dataloader()


def test_texts_may_be_written_plainly(make_datamodule, make_folder, short_processor):
    texts = ["WELL, I DON'T SAY: 'NO!'", "one – two"]
    sets = {"a": source(make_folder("a", [0.3] * 2, texts=texts))}
    as_they_are = texts_of(make_datamodule(train=sets).train_dataloader(), short_processor)
    assert set(as_they_are) == set(texts)
    loader = make_datamodule(train=sets, train_text=TrainText.plain).train_dataloader()
    assert set(texts_of(loader, short_processor)) == {"well i don't say no", "one two"}


@pytest.mark.parametrize(("language", "start"), [("de", " "), ("japanese", ""), (None, " ")])
def test_texts_begin_with_a_space_where_languages_have_any(
    make_datamodule, make_folder, multilingual_processor, language, start
):
    sets = {"a": source(make_folder("a", [0.5], texts=["word"]))}
    datamodule = make_datamodule(multilingual_processor, train=sets, language=language)
    (labels,) = labels_of(datamodule.train_dataloader())
    text = multilingual_processor.tokenizer.decode(labels, skip_special_tokens=True)
    assert text == f"{start}word"


@pytest.mark.parametrize("language", ["de", "german", "<|de|>"])
@pytest.mark.parametrize("task", [None, "translate"])
def test_multilingual_prefix(make_datamodule, make_folder, multilingual_processor, language, task):
    datamodule = make_datamodule(
        multilingual_processor,
        train={"a": source(make_folder("a", [0.5]))},
        language=language,
        task=task,
    )
    (labels,) = labels_of(datamodule.train_dataloader())
    tokens = multilingual_processor.tokenizer.convert_ids_to_tokens(labels[:3])
    assert tokens == ["<|de|>", f"<|{task or 'transcribe'}|>", "<|notimestamps|>"]
    assert multilingual_processor.tokenizer.language is None


def test_a_missing_language_is_said(
    make_datamodule, make_folder, multilingual_processor, processor, caplog
):
    sets = {"a": source(make_folder("a", [0.5]))}
    make_datamodule(processor, train=sets).train_dataloader()
    assert "model.language" not in caplog.text
    make_datamodule(multilingual_processor, train=sets).train_dataloader()
    assert "model.language: not set" in caplog.text


def test_unknown_language(make_datamodule, make_folder, multilingual_processor):
    folder = make_folder("a", [0.5])
    datamodule = make_datamodule(
        multilingual_processor, train={"a": source(folder)}, language="klingon"
    )
    with pytest.raises(ConfigError, match=r"model\.language: .*klingon"):
        datamodule.train_dataloader()


@pytest.mark.parametrize("durations", [None, [0.5, 1.5, 0.5, 3.0]])
def test_long_clips_are_left_out_and_said_once(
    make_datamodule, make_folder, caplog, short_processor, durations
):
    caplog.set_level(logging.INFO)
    columns = {} if durations is None else {"duration": durations}
    folder = make_folder("a", [0.5, 1.5, 0.5, 3.0], **columns)
    datamodule = make_datamodule(train={"a": source(folder)})
    loader = datamodule.train_dataloader()
    for _ in range(2):
        assert sorted(texts_of(loader, short_processor)) == ["word 0", "word 2"]
    assert caplog.messages == [
        "data.train.a: left 2 of 4 clips out of training, which are longer than 1 s"
    ]


def test_a_clip_longer_than_it_claims_gives_way_to_another(
    make_datamodule, make_folder, caplog, short_processor
):
    caplog.set_level(logging.INFO)
    folder = make_folder("a", [0.5, 2.0, 0.5], duration=[0.5, 0.5, 0.5])
    datamodule = make_datamodule(train={"a": source(folder)})
    for _ in range(2):
        texts = texts_of(datamodule.train_dataloader(), short_processor)
        assert len(texts) == 3
        assert set(texts) == {"word 0", "word 2"}
    assert sum("01.flac" in message for message in caplog.messages) == 1
    assert datamodule.tallies["train"].left_out["a", "long"] == 1


def test_all_too_long(make_datamodule, make_folder):
    datamodule = make_datamodule(train={"a": source(make_folder("a", [2.0]))})
    with pytest.raises(ConfigError, match=r"data\.train\.a: all clips are longer than 1 s"):
        datamodule.train_dataloader()


def test_too_many_tokens(make_datamodule, make_folder, short_processor):
    folder = make_folder("a", [0.5, 0.5], texts=["x" * 500, "fine"])
    datamodule = make_datamodule(train={"a": source(folder)})
    assert texts_of(datamodule.train_dataloader(), short_processor) == ["fine", "fine"]


def test_new_order_each_epoch_same_for_the_same_seed(make_datamodule, make_folder, short_processor):
    sets = {"a": source(make_folder("a", [0.1] * 12)), "b": source(make_folder("b", [0.1] * 4))}

    def epochs(seed):
        loader = make_datamodule(train=sets, seed=seed).train_dataloader()
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            yield texts_of(loader, short_processor)

    first, second = epochs(0)
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(first) == 16
    assert list(epochs(0)) == [first, second]
    assert next(epochs(1)) != first


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shares_are_even_and_whole(make_datamodule, make_folder, short_processor, world_size):
    sets = {"a": source(make_folder("a", [0.1] * 8))}
    shares = []
    for rank in range(world_size):
        datamodule = make_datamodule(train=sets, train_batch_size=2)
        datamodule.set_sharding(rank, world_size)
        loader = datamodule.train_dataloader()
        shares.append(texts_of(loader, short_processor))
        assert len(loader) == -(-len(shares[-1]) // 2)
    assert len(set(map(len, shares))) == 1
    assert set(sum(shares, [])) == {f"word {n}" for n in range(8)}


def test_bad_files_give_way_and_are_named_once(
    make_datamodule, make_folder, caplog, short_processor
):
    folder = make_folder("a", [0.5] * 10, broken=[4])
    (folder / "06.flac").write_bytes(b"")
    datamodule = make_datamodule(train={"a": source(folder)}, max_bad_fraction=0.2)
    loader = datamodule.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        assert len(texts_of(loader, short_processor)) == 10
    assert sorted(datamodule.tallies["train"].bad["a"]) == [
        f"{folder}/04.flac",
        f"{folder}/06.flac",
    ]
    assert sum("skipped" in message for message in caplog.messages) == 2


def test_too_many_bad_files(make_datamodule, make_folder):
    folder = make_folder("a", [0.5] * 10, broken=[4, 6])
    datamodule = make_datamodule(train={"a": source(folder)}, max_bad_fraction=0.1)
    with pytest.raises(ConfigError, match=r"data\.train\.a: 2 of 10 cannot be read"):
        list(datamodule.train_dataloader())


def test_all_files_bad(make_datamodule, make_folder):
    folder = make_folder("a", [0.5] * 3, broken=[0, 1, 2])
    datamodule = make_datamodule(train={"a": source(folder)}, max_bad_fraction=0.99)
    with pytest.raises(ConfigError, match=r"data\.train\.a: 3 of 3"):
        list(datamodule.train_dataloader())


@pytest.fixture
def stream(make_mirror):
    def make(contents):
        rows = [(content, f"word {index}") for index, content in enumerate(contents)]
        half = len(rows) // 2
        mirror = make_mirror({"a/train-0.parquet": rows[:half], "a/train-1.parquet": rows[half:]})
        return source(mirror, "hub", subset="a", split="train", streaming=True)

    return make


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_stream_goes_on_without_an_end(
    make_datamodule, stream, make_folder, short_processor, world_size
):
    hub = stream([audio_bytes(0.1, seed=n) for n in range(8)])
    sets = {"hub": hub, "b": source(make_folder("b", [0.1] * 2, texts=["b 0", "b 1"]))}
    seen = []
    for rank in range(world_size):
        datamodule = make_datamodule(train=sets, train_batch_size=2)
        datamodule.set_sharding(rank, world_size)
        loader = datamodule.train_dataloader()
        with pytest.raises(TypeError):
            len(loader)
        texts = texts_of(itertools.islice(loader, 15), short_processor)
        assert len(texts) == 30
        seen.append(set(texts))
    whole = {f"word {n}" for n in range(8)} | {"b 0", "b 1"}
    assert set.union(*seen) == whole


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 0), (2, 2), (3, 0)])
@pytest.mark.parametrize(("skip", "limit"), [(5, None), (0, 7), (3, 6)])
def test_part_of_a_stream_of_several_files(
    make_datamodule, make_mirror, short_processor, world_size, workers, skip, limit
):
    """Files are shared out between processes and workers; what is left out is of the whole."""
    contents = [audio_bytes(0.1, seed=n) for n in range(12)]
    rows = [(content, f"word {n}") for n, content in enumerate(contents)]
    mirror = make_mirror({f"train-{n}-of-4.parquet": rows[3 * n : 3 * n + 3] for n in range(4)})
    part = source(mirror, "hub", split="train", streaming=True, skip=skip, limit=limit)
    seen = set()
    for rank in range(world_size):
        datamodule = make_datamodule(train={"a": part}, train_batch_size=1, num_workers=workers)
        datamodule.set_sharding(rank, world_size)
        loader = datamodule.train_dataloader()
        seen |= set(texts_of(itertools.islice(loader, 40), short_processor))
    assert seen == {f"word {n}" for n in range(12)[skip:][:limit]}


@pytest.mark.parametrize(("world_size", "workers"), [(2, 0), (4, 0), (2, 2)])
def test_a_pass_of_a_stream_gives_each_clip_to_one_process(
    make_datamodule, stream, short_processor, world_size, workers
):
    hub = stream([audio_bytes(0.1, seed=n) for n in range(8)])
    seen = []
    for rank in range(world_size):
        datamodule = make_datamodule(train={"a": hub}, train_batch_size=1, num_workers=workers)
        datamodule.set_sharding(rank, world_size)
        loader = datamodule.train_dataloader()
        seen += texts_of(itertools.islice(loader, 8 // world_size), short_processor)
    assert sorted(seen) == [f"word {n}" for n in range(8)]


def test_the_place_is_the_same_for_another_number_of_processes(
    make_datamodule, make_folder, short_processor
):
    sets = {"a": source(make_folder("a", [0.1] * 24))}

    def rest(state, world_size):
        """What is left of the epoch, on all processes."""
        texts = []
        for rank in range(world_size):
            datamodule = make_datamodule(train=sets, train_batch_size=2)
            datamodule.set_sharding(rank, world_size)
            loader = datamodule.train_dataloader()
            loader.load_state_dict(state)
            texts += texts_of(loader, short_processor)
        return sorted(texts)

    after_8_clips = rest({"batches": 4, "processes": 1, "workers": 0}, 1)
    assert len(after_8_clips) == 16
    assert rest({"batches": 4, "processes": 1, "workers": 0}, 2) == after_8_clips
    assert rest({"batches": 2, "processes": 2, "workers": 0}, 1) == after_8_clips
    assert rest({"batches": 1, "processes": 4, "workers": 0}, 2) == after_8_clips


def test_a_stream_that_others_read_on_is_warned_of(make_datamodule, stream, caplog):
    datamodule = make_datamodule(train={"a": stream([audio_bytes(0.1)] * 8)}, train_batch_size=1)
    datamodule.train_dataloader().load_state_dict({"batches": 2, "processes": 1, "workers": 0})
    assert not caplog.text
    datamodule.train_dataloader().load_state_dict({"batches": 2, "processes": 2, "workers": 1})
    assert "read by 2 processes with 1 workers each, and now by 1 with 0" in caplog.text


def test_stream_skips_what_it_cannot_use(make_datamodule, stream, short_processor):
    hub = stream([audio_bytes(0.1), b"", audio_bytes(2.0), audio_bytes(0.2)])
    datamodule = make_datamodule(train={"a": hub}, train_batch_size=1)
    texts = texts_of(itertools.islice(datamodule.train_dataloader(), 8), short_processor)
    assert set(texts) == {"word 0", "word 3"}


def test_stream_goes_on_after_the_batches_that_were_used(make_datamodule, stream, short_processor):
    """Rows that gave no batch do not count."""
    hub = stream([b"", audio_bytes(0.1), b"", audio_bytes(0.2), b"", audio_bytes(0.3)])
    datamodule = make_datamodule(train={"a": hub}, train_batch_size=1, max_bad_fraction=0.9)
    whole = texts_of(itertools.islice(datamodule.train_dataloader(), 9), short_processor)
    loader = datamodule.train_dataloader()
    loader.load_state_dict({"batches": 4})
    assert texts_of(itertools.islice(loader, 5), short_processor) == whole[4:]


def test_windows_of_a_stream_are_filled_with_what_comes_next(
    make_datamodule, stream, short_processor
):
    hub = stream([audio_bytes(0.3, seed=n) for n in range(6)])
    sets, options = {"a": hub}, {"train_packed": 1.0, "train_batch_size": 1}
    loader = make_datamodule(train=sets, **options).train_dataloader()
    texts = texts_of(itertools.islice(loader, 4), short_processor)
    assert all(re.fullmatch(r"word \d word \d word \d", text) for text in texts)
    for one_pass in (texts[:2], texts[2:]):
        assert sorted(" ".join(one_pass).replace("word ", "").split()) == list("012345")
    loader.load_state_dict({"batches": 1})
    assert texts_of(itertools.islice(loader, 3), short_processor) == texts[1:]


def test_clips_of_a_filled_window_count_one_by_one(make_datamodule, stream):
    """One of eleven cannot be read: below the share that stops a run."""
    hub = stream([b""] + [audio_bytes(0.3, seed=n) for n in range(10)])
    datamodule = make_datamodule(train={"a": hub}, train_packed=1.0, max_bad_fraction=0.1)
    batches = itertools.islice(datamodule.train_dataloader(), 40)
    assert sum(len(batch["ids"]) for batch in batches) >= 40


def test_stream_of_nothing_usable(make_datamodule, stream):
    datamodule = make_datamodule(train={"a": stream([b"0", b"1", b"2", b"3"])})
    with pytest.raises(ConfigError, match=r"data\.train\.a: 4 of 4 cannot be read"):
        list(datamodule.train_dataloader())


def test_no_training_sets(make_datamodule):
    with pytest.raises(ConfigError, match=r"data\.train: names no source"):
        make_datamodule().train_dataloader()


def test_128_bins(make_datamodule, make_folder):
    wide = make_processor(feature_size=128, chunk_length=1)
    datamodule = make_datamodule(wide, train={"a": source(make_folder("a", [0.1]))})
    (batch,) = datamodule.train_dataloader()
    assert batch["input_features"].shape == (1, 128, 100)


def test_real_checkpoint(make_datamodule, real_model, real_speech):
    from transformers import WhisperProcessor

    real = WhisperProcessor.from_pretrained(real_model)
    sets = {"an4": source(real_speech / "an4" / "train", limit=2)}
    (batch,) = make_datamodule(real, train=sets).train_dataloader()
    assert batch["labels"][:, 0].tolist() == [2008, 2008]
    assert batch["input_features"].shape == (2, 80, 3000)


def test_with_times_a_window_of_a_stream_ends_in_what_comes_next(make_datamodule, stream):
    """Its start alone, and all of it in the next window."""
    processor = make_processor(seconds=1, chunk_length=1)
    hub = stream([audio_bytes(0.6, seed=n) for n in range(4)])
    options = {"train_packed": 1.0, "train_timestamps": 1.0, "train_batch_size": 1}
    loader = make_datamodule(processor, train={"a": hub}, **options).train_dataloader()
    decode = processor.tokenizer.decode
    rows = [batch["labels"][0].tolist() for batch in itertools.islice(loader, 4)]
    texts = [decode(row, decode_with_timestamps=True) for row in rows]
    pattern = r"<.0.00.> ([^<]+)<.0.60.>(<.0.60.>)?<.endoftext.>"
    found = [re.fullmatch(pattern, text) for text in texts]
    assert len({match[1] for match in found}) == 4
    # The last clip of a pass has none after it.
    assert [match[2] is not None for match in found] == [True, True, True, False]
