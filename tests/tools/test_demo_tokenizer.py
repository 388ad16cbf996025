"""The demo tokenizer: short ids for the grammar's words, Whisper's special tokens, generation."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config
from transformers import (
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

import make_demo_tokenizer
from demo.grammar import Split, draw_sentence, vocabulary

FOLDER = Path(__file__).resolve().parents[2] / "liteasr" / "demo" / "model"


@pytest.fixture(scope="module")
def tokenizer():
    return WhisperTokenizer.from_pretrained(FOLDER)


def test_made_again_it_is_the_same(tmp_path):
    assert make_demo_tokenizer.main(["--output", str(tmp_path)]) == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_layout_is_that_of_an_english_only_whisper(tokenizer):
    end = tokenizer.eos_token_id
    assert 400 <= end <= 600
    assert tokenizer.convert_ids_to_tokens(range(end, end + 10)) == [
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|en|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        "<|0.00|>",
    ]
    assert tokenizer.convert_tokens_to_ids("<|30.00|>") == len(tokenizer) - 1 == end + 1509
    assert tokenizer.prefix_tokens == [end + 1, end + 8]
    assert tokenizer.convert_tokens_to_ids("<|12.34|>") == end + 9 + 617


def test_text_comes_back(tokenizer):
    random_ = random.Random(1)
    texts = [draw_sentence(random_, Split.evaluation) for _ in range(50)]
    for text in [*texts, "Zürich, 5 o'clock: 東京!"]:
        ids = tokenizer(text).input_ids
        assert ids[:2] == tokenizer.prefix_tokens
        assert max(ids[2:-1]) < tokenizer.eos_token_id == ids[-1]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_words_are_short(tokenizer):
    random_ = random.Random(2)
    text = " ".join(draw_sentence(random_, Split.evaluation) for _ in range(300))
    tokens = tokenizer(f" {text}", add_special_tokens=False).input_ids
    assert len(tokens) < 2 * len(text.split())
    longest = max(
        len(tokenizer(f" {word}", add_special_tokens=False).input_ids) for word in vocabulary()
    )
    assert longest <= 8


def test_timestamps_are_decoded(tokenizer):
    first = tokenizer.convert_tokens_to_ids("<|0.00|>")
    words = tokenizer(" hello there", add_special_tokens=False).input_ids
    ids = [first + 10, *words, first + 60, tokenizer.eos_token_id]
    assert tokenizer.decode(ids, decode_with_timestamps=True) == (
        "<|0.20|> hello there<|1.20|><|endoftext|>"
    )
    (segment,) = tokenizer.decode(ids, output_offsets=True)["offsets"]
    assert segment == {"text": " hello there", "timestamp": (0.2, 1.2)}


def test_processor_and_generation_with_timestamps(tokenizer):
    processor = WhisperProcessor.from_pretrained(FOLDER)
    assert WhisperFeatureExtractor.from_pretrained(FOLDER).feature_size == 80
    end = tokenizer.eos_token_id
    config = tiny_config(
        vocab_size=len(tokenizer),
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end + 1,
        max_source_positions=1500,
        max_target_positions=64,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig.from_pretrained(FOLDER)
    features = processor(np.zeros(16_000), sampling_rate=16_000, return_tensors="pt")
    out = model.generate(**features, return_timestamps=True, return_segments=True, max_new_tokens=8)
    (segments,) = out["segments"]
    assert segments[0]["tokens"][0] >= end + 9
    assert 0 <= segments[0]["start"] <= 1
    plain = model.generate(**features, max_new_tokens=8)[0]
    assert (plain <= end).all() or plain.max() < end + 9
