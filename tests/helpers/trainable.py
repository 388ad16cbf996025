"""A Whisper and speech small enough to train in a moment."""

import json

import soundfile
import torch
import yaml
from speech_files import RATE, make_processor, noise
from tiny import give_opinions, tiny_config
from transformers import GenerationConfig, WhisperForConditionalGeneration

from liteasr import load
from liteasr.compression import find_linears
from liteasr.export import export_model
from liteasr.fit import main as fit
from liteasr.modeling import PivotedLinear


def make_shape(folder, *, weights=False, **config):
    """A folder with all of a Whisper, its weights if asked for; windows of one second."""
    processor = make_processor(seconds=1, chunk_length=1)
    ids = processor.tokenizer.convert_tokens_to_ids
    special = {
        "eos_token_id": ids("<|endoftext|>"),
        "pad_token_id": ids("<|endoftext|>"),
        "bos_token_id": ids("<|endoftext|>"),
        "decoder_start_token_id": ids("<|startoftranscript|>"),
    }
    generation = GenerationConfig(
        **special,
        max_length=20,
        is_multilingual=False,
        no_timestamps_token_id=ids("<|notimestamps|>"),
    )
    shape = tiny_config(vocab_size=len(processor.tokenizer), **special, **config)
    if weights:
        torch.manual_seed(0)
        model = give_opinions(WhisperForConditionalGeneration(shape))
        model.config.tie_word_embeddings = False
        model.generation_config = generation
        model.save_pretrained(folder)
    else:
        shape.save_pretrained(folder)
        generation.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_speech(folder, clips=6):
    """Half a second of noise each, with texts a0, a1, …"""
    folder.mkdir()
    lines = []
    for index in range(clips):
        soundfile.write(folder / f"{index}.flac", noise(0.5, seed=index), RATE)
        lines.append(json.dumps({"file_name": f"{index}.flac", "text": f"a{index}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def part(speech, **limits):
    """A source that reads some of the clips."""
    return {"a": {"kind": "folder", "path": str(speech), **limits}}


def pivot_first_block(dense, folder):
    """A copy of a checkpoint whose first block is pivoted.

    At three quarters of the full rank, and one layer at all of it, as those of reduced heads are.
    """
    model, processor = load(str(dense))
    for name, linear in find_linears(model, ["*encoder.layers.0.*"]).items():
        parent, _, child = name.rpartition(".")
        full = min(linear.in_features, linear.out_features)
        rank = full if child == "v_proj" else 3 * full // 4
        layer = PivotedLinear(linear.in_features, linear.out_features, rank)
        setattr(model.get_submodule(parent), child, layer)
    export_model(model, processor, folder)
    return folder


class Training:
    """A recipe that trains a model with weights on seven clips, in epochs of four batches.

    Args:
        folder: Where all of it lives.
        finetune: Keys of the section ``finetune``.
        validates: Whether there is a validation set.
        pivoted: Whether the first block of the model's encoder is pivoted.
        chance: Whether there are dropout and SpecAugment.
    """

    def __init__(self, folder, finetune=None, *, validates=False, chance=True, pivoted=False):
        masks = {"apply_spec_augment": True, "mask_time_prob": 0.2, "mask_time_length": 4}
        options = {"dropout": 0.2, **masks} if chance else {}
        shape = make_shape(folder / "dense", weights=True, **options)
        if pivoted:
            shape = pivot_first_block(shape, folder / "pivoted")
        speech = make_speech(folder / "speech", clips=12)
        self.folder = folder
        self.dense = folder / "dense"
        self.recipe = {
            "model": {"id": str(shape)},
            "data": {
                "train": part(speech, limit=7),
                "val": part(speech, skip=7, limit=2) if validates else {},
                "train_batch_size": 2,
                "num_workers": 0,
            },
            "decoding": {"max_new_tokens": 8},
            "compression": {"method": "none"},
            "evaluation": {"dense": False},
            "finetune": {
                "max_steps": 11,
                "trainable": "all",
                "warmup_steps": 1,
                "val_every": 3,
                "learning_rate": 1e-2,
                **(finetune or {}),
            },
            "trainer": {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
        }

    def arguments(self, name, *overrides):
        """What ``liteasr.fit`` is called with to run it into a folder of this name."""
        file = self.folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(self.recipe))
        return ["--config", str(file), f"run.dir={self.folder / name}", *overrides]

    def run(self, name, *overrides):
        """Run it; returns the folder and the exit code."""
        return self.folder / name, fit(self.arguments(name, *overrides))
