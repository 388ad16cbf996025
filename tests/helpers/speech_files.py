"""Small audio and a byte-level Whisper processor, made on the spot."""

import io

import numpy as np
import soundfile
from tokenizers.pre_tokenizers import ByteLevel
from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

from liteasr.config import SourceConfig, SourceKind

RATE = 16_000


def noise(seconds, rate=RATE, seed=0, channels=None):
    shape = round(seconds * rate) if channels is None else (round(seconds * rate), channels)
    return np.random.default_rng(seed).uniform(-0.3, 0.3, shape).astype(np.float32)


def audio_bytes(seconds, seed=0, **options):
    file = io.BytesIO()
    soundfile.write(file, noise(seconds, seed=seed), RATE, **{"format": "FLAC", **options})
    return file.getvalue()


def make_tokenizer(languages=("en",), seconds=0):
    """Byte-level, without merges: one token a byte, then Whisper's special tokens.

    With ``seconds``, timestamps up to there too.
    """
    vocab = {token: index for index, token in enumerate(sorted(ByteLevel.alphabet()))}
    vocab |= {"<|endoftext|>": len(vocab)}
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[])
    specials = ["<|startoftranscript|>", *(f"<|{code}|>" for code in languages)]
    specials += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    specials += ["<|nospeech|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"extra_special_tokens": specials})
    tokenizer.add_tokens(
        [f"<|{tick * 0.02:.2f}|>" for tick in range(seconds * 50 + 1)] if seconds else []
    )
    tokenizer.set_prefix_tokens()
    return tokenizer


def make_processor(languages=("en",), seconds=0, **extractor):
    tokenizer = make_tokenizer(languages, seconds)
    return WhisperProcessor(WhisperFeatureExtractor(**extractor), tokenizer)


def source(path, kind="folder", **options):
    return SourceConfig(kind=SourceKind(kind), path=str(path), **options)
