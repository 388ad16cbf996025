r"""Make the shape of the demo model, put trained weights into a longer window, or average them.

::

    python tools/make_demo_model.py shape --window 4 --output runs/demo/shape
    python tools/make_demo_model.py lengthen runs/train_short/model \
      --window 8 --output runs/demo/middle
    python tools/make_demo_model.py lengthen runs/train_middle/model --output runs/demo/long
    python tools/make_demo_model.py average runs/train_middle/model runs/longer/model \
      --output runs/demo/average
    python tools/make_demo_model.py pack runs/demo/average

``shape`` writes a folder with everything but weights, for ``model.weights: random``. Whisper's
encoder costs as much for a second of speech as for thirty, so most of the training happens on short
windows. Its positions are sinusoids that are never trained: ``lengthen`` computes those of a longer
window and keeps all other weights. ``average`` takes the mean of the weights of several models, one
trained from the other (model soups, arXiv 2203.05482). ``pack`` puts the weights into the package
in half precision.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

PACKAGED = Path(__file__).resolve().parents[1] / "liteasr" / "demo" / "model"
"""Tokenizer and feature extractor that ``make_demo_tokenizer.py`` made, and the weights."""

WINDOW = 30
"""Seconds of Whisper's window."""

SHORTEST = 8
"""Seconds of a window that most clips of the demo fit into whole."""

FRAMES_PER_SECOND = 50

WIDTH = 192

TOKENS = 224
"""Positions of the decoder: plenty for 30 s of speech with its timestamps."""

ALIGNMENT_HEADS = [[1, 0], [1, 2]]
"""Layer and number of the decoder's heads whose attention follows the audio, in the weights that
are packaged: its mean place and the number of the token correlate by 0.95. That a checkpoint names
such heads says that it predicts timestamps."""

LARGEST = 6_000_000
"""Bytes that the packaged weights may take."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shape = commands.add_parser("shape", help="write a folder without weights")
    shape.add_argument("--window", type=int, default=WINDOW, help="seconds")
    shape.add_argument("--output", type=Path, required=True)
    longer = commands.add_parser("lengthen", help="trained weights in longer windows")
    longer.add_argument("model", type=Path)
    longer.add_argument("--window", type=int, default=WINDOW, help="seconds")
    longer.add_argument("--output", type=Path, required=True)
    mean = commands.add_parser("average", help="mean of the weights of models of one shape")
    mean.add_argument("models", type=Path, nargs="+", metavar="model")
    mean.add_argument("--output", type=Path, required=True)
    packed = commands.add_parser("pack", help="put trained weights into the package")
    packed.add_argument("model", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "shape":
        write_shape(options.output, options.window)
    elif options.command == "lengthen":
        lengthen(options.model, options.output, options.window)
    elif options.command == "average":
        average(options.models, options.output)
    else:
        pack(options.model)
    return 0


def demo_config(processor: WhisperProcessor, window: int) -> WhisperConfig:
    """Four encoder layers wide enough for low rank to mean something, in under 6 MB of fp16."""
    ids = processor.tokenizer.convert_tokens_to_ids
    end = ids("<|endoftext|>")
    return WhisperConfig(
        vocab_size=len(processor.tokenizer),
        num_mel_bins=processor.feature_extractor.feature_size,
        d_model=WIDTH,
        # Whisper's 0.02 suits its own widths; here it would drown speech in the positions.
        init_std=WIDTH**-0.5,
        encoder_layers=4,
        encoder_attention_heads=3,
        encoder_ffn_dim=480,
        decoder_layers=2,
        decoder_attention_heads=3,
        decoder_ffn_dim=192,
        max_source_positions=window * FRAMES_PER_SECOND,
        max_target_positions=TOKENS,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids("<|startoftranscript|>"),
        suppress_tokens=None,
        begin_suppress_tokens=None,
        # The decoder learns thousands of sentences by heart otherwise.
        dropout=0.1,
        activation_dropout=0.1,
        # SpecAugment in training: a few voices stand for all.
        apply_spec_augment=True,
        mask_time_prob=0.05,
        mask_feature_prob=0.1,
        mask_feature_length=8,
        mask_feature_min_masks=1,
    )


def write_shape(output: Path, window: int) -> None:
    """Configuration, tokenizer and feature extractor for windows of some seconds."""
    processor = _processor(PACKAGED, window)
    demo_config(processor, window).save_pretrained(output)
    _generation().save_pretrained(output)
    processor.save_pretrained(output)


def lengthen(source: Path, output: Path, window: int) -> None:
    """Give a model trained on short windows the positions of longer ones."""
    model = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    processor = _processor(source, window)
    config = WhisperConfig.from_pretrained(source)
    config.max_source_positions = window * FRAMES_PER_SECOND
    longer = WhisperForConditionalGeneration(config)  # its positions are those of the new window
    weights = model.state_dict()
    positions = "model.encoder.embed_positions.weight"
    count = len(weights[positions])
    fresh = longer.state_dict()[positions]
    torch.testing.assert_close(fresh[:count], weights[positions], rtol=0, atol=1e-4)
    longer.load_state_dict({**weights, positions: fresh})
    longer.generation_config = _generation()
    longer.save_pretrained(output)
    processor.save_pretrained(output)


def average(sources: Sequence[Path], output: Path) -> None:
    """Take the mean of the weights of models of one shape; the rest is of the first of them."""
    model, *others = [
        WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
        for source in sources
    ]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight += sum(other.get_parameter(name) - weight for other in others) / len(sources)
    model.save_pretrained(output)
    WhisperProcessor.from_pretrained(sources[0]).save_pretrained(output)


def pack(source: Path) -> None:
    """Put a trained model's fp16 weights into the package, with all that belongs to its windows."""
    model = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float16)
    window, rest = divmod(model.config.max_source_positions, FRAMES_PER_SECOND)
    if rest or window < SHORTEST:
        raise SystemExit(f"{source} is for windows under {SHORTEST} s: lengthen and train it first")
    model.generation_config = _generation()
    model.generation_config.alignment_heads = ALIGNMENT_HEADS
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        _processor(PACKAGED, window).save_pretrained(folder)
        # What is said of the tokenizer is right already; transformers adds where it came from.
        for file in Path(folder).glob("tokenizer*"):
            file.unlink()
        size = (Path(folder) / "model.safetensors").stat().st_size
        if size > LARGEST:
            raise SystemExit(f"the weights take more than {LARGEST / 1e6:g} MB: {size / 1e6:.2f}")
        shutil.copytree(folder, PACKAGED, dirs_exist_ok=True)
    print(f"{PACKAGED / 'model.safetensors'}: {size / 1e6:.2f} MB")


def _processor(folder: Path, window: int) -> WhisperProcessor:
    processor = WhisperProcessor.from_pretrained(folder)
    extractor = processor.feature_extractor
    settings = {**extractor.to_dict(), "chunk_length": window}
    for derived in ("n_samples", "nb_max_frames", "mel_filters"):
        settings.pop(derived, None)
    processor.feature_extractor = type(extractor)(**settings)
    return processor


def _generation() -> GenerationConfig:
    generation = GenerationConfig.from_pretrained(PACKAGED)
    generation.max_length = TOKENS
    return generation


if __name__ == "__main__":
    sys.exit(main())
