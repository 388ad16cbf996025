"""Train the tokenizer of the demo model on the grammar's sentences.

::

    python tools/make_demo_tokenizer.py --output liteasr/demo/model

It is a byte-level BPE that knows every text, with Whisper's special tokens in their English-only
order: text, ``<|endoftext|>``, ``<|startoftranscript|>``, ``<|en|>`` and so on, timestamps from
``<|0.00|>`` to ``<|30.00|>``. The folder also gets the feature extractor's settings and the
generation config that belongs to these ids, so that ``WhisperProcessor.from_pretrained`` and
``WhisperForConditionalGeneration.generate`` with ``return_timestamps=True`` work on it once weights
are there. The same version of ``tokenizers`` gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperProcessor,
    WhisperTokenizer,
)

from demo.grammar import Split, draw_sentence, vocabulary

SPECIAL_TOKENS = (
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
"""Those after ``<|endoftext|>``, in the order of their ids."""

TIMESTAMPS = tuple(f"<|{index * 0.02:.2f}|>" for index in range(1501))
"""Seconds within a window of 30 s."""

_END = "<|endoftext|>"
_TEXT_TOKENS = 600
_SENTENCES = 20_000
_MAX_LENGTH = 448


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the result")
    options = parser.parse_args(arguments)
    tokenizer = train_tokenizer(_sentences(), _TEXT_TOKENS)
    extractor = WhisperFeatureExtractor(feature_size=80)
    WhisperProcessor(extractor, tokenizer).save_pretrained(options.output)
    generation_config(tokenizer).save_pretrained(options.output)
    return 0


def train_tokenizer(sentences: Iterator[str], text_tokens: int) -> WhisperTokenizer:
    """A tokenizer with the ids of text first and of timestamps last.

    Args:
        sentences: What it learns from.
        text_tokens: Ids below that of ``<|endoftext|>``, at least 256.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=text_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sentences, trainer)
    learned = json.loads(bpe.to_str())["model"]
    vocab = {**learned["vocab"], _END: len(learned["vocab"])}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = WhisperTokenizer(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL_TOKENS)})
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in TIMESTAMPS])
    tokenizer.set_prefix_tokens()
    return tokenizer


def generation_config(tokenizer: WhisperTokenizer) -> GenerationConfig:
    """What ``generate`` has to know about the ids of an English-only Whisper.

    Args:
        tokenizer: Has the ids.
    """
    end, start, previous, nothing = tokenizer.convert_tokens_to_ids(
        [_END, "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"]
    )
    return GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        prev_sot_token_id=previous,
        no_timestamps_token_id=nothing,
        max_initial_timestamp_index=50,
        max_length=_MAX_LENGTH,
        is_multilingual=False,
        return_timestamps=False,
    )


def _sentences() -> Iterator[str]:
    """Training sentences, and every word once so that none is spelled out needlessly."""
    random_ = random.Random(0)
    for _ in range(_SENTENCES):
        # Whisper's text tokens begin with the space before a word.
        yield " " + draw_sentence(random_, Split.train)
    yield from (f" {word}" for word in sorted(vocabulary()))


if __name__ == "__main__":
    sys.exit(main())
