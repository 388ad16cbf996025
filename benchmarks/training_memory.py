"""Memory and arithmetic of fine-tuning by model size, counted without running it.

    python benchmarks/training_memory.py [SIZE …] [--batch-size 8] [--ratio 0.7]
                                         [--trainable factors] [--tokens 64] [--real]

The training step of each published size is done with tensors that have shapes but no memory
(torch's fake tensors), under bf16 autocast; what autograd keeps for the backward pass is added up,
each piece of memory once. ``--real`` does it with real tensors instead, to check the count: on a
CPU both print the same. Weights, gradients and AdamW's two moments are fp32, the teacher of
distillation is a dense encoder besides. With gradient checkpointing, what goes into each layer is
kept and the inside of one layer at a time. What an allocator loses, and a GPU's own libraries
(about 1 GB), come on top.
"""

from __future__ import annotations

import argparse
import contextlib

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_outputs import BaseModelOutput

from liteasr.benchmarking.shapes import SHAPES, plausible_ranks, shape_config
from liteasr.compression import encoder_flops, encoder_parameters
from liteasr.modeling import (
    LiteWhisperConfig,
    LiteWhisperForConditionalGeneration,
    LowRankLinear,
    use_plain_inference,
)

DECODER_LAYERS = {
    "tiny": 4,
    "base": 6,
    "small": 12,
    "medium": 24,
    "large-v3": 32,
    "large-v3-turbo": 4,
}
VOCABULARY = 51866
FP32 = 4
GRADIENT_AND_MOMENTS = 3 * FP32


class Kept:
    """Bytes that autograd keeps, beside parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        self.storages: dict[int, int] = {}
        self.alive: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.parameters:
            self.storages[storage._cdata] = storage.nbytes()
            self.alive.append(tensor)  # else its place may be given to another
        return tensor

    @property
    def total(self) -> int:
        return sum(self.storages.values())


def kept_for(model: LiteWhisperForConditionalGeneration, windows: int, tokens: int) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    config, kept = model.config, Kept(model)
    features = torch.randn(windows, config.num_mel_bins, 2 * config.max_source_positions)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16), hooks:
        encoded = model.get_encoder()(features).last_hidden_state
        model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            decoder_input_ids=torch.zeros(windows, tokens, dtype=torch.long),
            use_cache=False,
        )
    return kept.total


def make(size: str, ratio: float) -> tuple[LiteWhisperForConditionalGeneration, int]:
    """A compressed model and the parameters of the dense encoder."""
    config = shape_config(size, decoder_layers=DECODER_LAYERS[size], vocab_size=VOCABULARY)
    with torch.device("meta"):
        dense = encoder_parameters(LiteWhisperForConditionalGeneration(config).get_encoder())
    ranks = plausible_ranks(config, str(round(ratio * dense)))
    settings = {**config.to_dict(), "low_rank_config": ranks}
    model = LiteWhisperForConditionalGeneration(LiteWhisperConfig(**settings))
    use_plain_inference(model)
    return model.train(), dense


def choose(model: LiteWhisperForConditionalGeneration, trainable: str) -> int:
    """Freeze what is not trained; returns the parameters that are."""
    model.requires_grad_(False)
    part: nn.Module = model if trainable == "all" else model.get_encoder()
    for module in part.modules():
        if trainable != "factors" or isinstance(module, LowRankLinear):
            module.requires_grad_(True)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count(size: str, options: argparse.Namespace) -> tuple[str, ...]:
    with contextlib.nullcontext() if options.real else FakeTensorMode():
        model, dense = make(size, options.ratio)
        trained = choose(model, options.trainable)
        config, encoder = model.config, model.get_encoder()
        one, two = (kept_for(model, windows, options.tokens) for windows in (1, 2))
    layers = config.encoder_layers
    window = two - one
    between_layers = config.max_source_positions * config.d_model * FP32
    checkpointed = layers * between_layers + window / layers
    constant = FP32 * (sum(p.numel() for p in model.parameters()) + dense)
    constant += GRADIENT_AND_MOMENTS * trained + (one - window)  # bf16 copies of the weights
    total = constant + options.batch_size * window
    least = constant + options.batch_size * checkpointed
    teacher = encoder_flops(dense_encoder(size))
    flops = 3 * encoder_flops(encoder) + teacher
    sizes = (constant, window, checkpointed, total, least)
    return (size, f"{trained / 1e6:.1f}", *(f"{one / 1e9:.2f}" for one in sizes)) + (
        f"{flops / 1e12:.2f}",
    )


def dense_encoder(size: str) -> nn.Module:
    with torch.device("meta"):
        return LiteWhisperForConditionalGeneration(shape_config(size)).get_encoder()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("sizes", nargs="*", metavar="SIZE", default=list(SHAPES))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--ratio", type=float, default=0.7, help="encoder left, as a share")
    parser.add_argument("--trainable", choices=("factors", "encoder", "all"), default="factors")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--real", action="store_true")
    options = parser.parse_args()
    heads = ("size", "trained, M", "constant, GB", "a window, GB", "checkpointed")
    heads += (f"batch of {options.batch_size}, GB", "checkpointed", "TFLOP a window")
    print(" | ".join(heads))
    for size in options.sizes:
        print(" | ".join(count(size, options)), flush=True)


if __name__ == "__main__":
    main()
