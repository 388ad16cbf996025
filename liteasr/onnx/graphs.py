"""The three graphs of a Whisper: encoder, decoder at its first step, decoder at any later step.

Shape suffixes: B windows in a batch, M mel bins, F mel frames, T encoder frames, D width,
L tokens, V vocabulary, H heads, S tokens so far.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration

from liteasr.modeling import LowRankLinear
from liteasr.onnx import DECODER, DECODER_WITH_PAST, ENCODER

__all__ = ["HIGHEST_OPSET", "OPSET", "cache_names", "make_graphs", "write_graph"]

OPSET = 18
# The highest that the exporter of torch 2.13 was tried with here.
HIGHEST_OPSET = 23

# A file of protocol buffers ends at 2 GiB; larger weights lie beside it.
MOST_BYTES = 2**31 - 2**24

NOISY = ("onnx_ir", "onnxscript", "torch.onnx._internal.exporter._registration")

Axes = dict[int, Any]


def cache_names(
    prefix: str, layers: int, parts: Sequence[str] = ("decoder", "encoder")
) -> list[str]:
    """Names of the keys and values of attention in the decoder's layers.

    Args:
        prefix: ``past_key_values`` for what goes in, ``present`` for what comes out.
        layers: Layers of the decoder.
        parts: ``decoder`` for self-attention, ``encoder`` for cross-attention.

    Example:
        >>> cache_names("present", 1, ["decoder"])
        ['present.0.decoder.key', 'present.0.decoder.value']
    """
    return [
        f"{prefix}.{layer}.{part}.{kind}"
        for layer in range(layers)
        for part in parts
        for kind in ("key", "value")
    ]


@dataclass(frozen=True)
class Graph:
    """What is traced into a file.

    Attributes:
        file: Name of the file.
        module: What is traced.
        example: Inputs to trace with, in order.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        axes: Sizes that are not fixed, as :func:`torch.export.export` takes them.
    """

    file: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: list[str]
    outputs: list[str]
    axes: tuple[Any, ...]


class _Encoder(nn.Module):
    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_features_BMF: Tensor) -> Tensor:
        encoded_BTD: Tensor = self.encoder(input_features_BMF).last_hidden_state
        return encoded_BTD


class _Decoder(nn.Module):
    """Logits of given tokens, and what later steps need of them."""

    CACHED: ClassVar[tuple[str, ...]] = ("decoder", "encoder")

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.decoder = model.get_decoder()
        self.proj_out = model.proj_out

    def forward(self, input_ids_BL: Tensor, encoded_BTD: Tensor) -> tuple[Tensor, ...]:
        return self._step(input_ids_BL, encoded_BTD, EncoderDecoderCache(*_empty_caches()))

    def _step(
        self, input_ids_BL: Tensor, encoded_BTD: Tensor, cache: EncoderDecoderCache
    ) -> tuple[Tensor, ...]:
        # By position: transformers has called the cache by several names.
        output = self.decoder(input_ids_BL, None, encoded_BTD, cache, use_cache=True)
        pairs = zip(
            cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True
        )
        cached = [
            tensor
            for layers in pairs
            for layer in layers[: len(self.CACHED)]
            for tensor in (layer.keys, layer.values)
        ]
        return (self.proj_out(output.last_hidden_state), *cached)


class _DecoderWithPast(_Decoder):
    """The same for tokens after others, of which keys and values are given."""

    CACHED: ClassVar[tuple[str, ...]] = ("decoder",)

    def forward(self, input_ids_BL: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        own, cross = _empty_caches()
        for layer in range(len(past) // 4):
            own_key_BHSD, own_value_BHSD, key_BHTD, value_BHTD = past[4 * layer : 4 * layer + 4]
            own.update(own_key_BHSD, own_value_BHSD, layer)
            cross.update(key_BHTD, value_BHTD, layer)
        # Only its presence counts: keys and values of the encoder's output are cached.
        encoded_BT1 = past[2][:, 0, :, :1]
        return self._step(input_ids_BL, encoded_BT1, EncoderDecoderCache(own, cross))


def _empty_caches() -> tuple[DynamicCache, DynamicCache]:
    return DynamicCache(), DynamicCache()


def make_graphs(model: WhisperForConditionalGeneration) -> Iterator[Graph]:
    """The graphs of a model on the CPU in evaluation mode, with inputs to trace them with.

    Batch and tokens are free; a window has the length that the positional embedding gives it.
    Layers must not be pivoted: selecting channels costs ONNX Runtime more than it saves.
    """
    config = model.config
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    frames, width = config.max_source_positions, config.d_model // heads
    batch, tokens = Dim("batch_size"), Dim("decoder_sequence_length")
    past, source = Dim("past_decoder_sequence_length"), Dim("encoder_sequence_length")

    def floats(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=model.dtype)

    ids_BL = torch.ones(2, 3, dtype=torch.long)
    yield Graph(
        ENCODER,
        _Encoder(model),
        (floats(2, config.num_mel_bins, 2 * frames),),
        ["input_features"],
        ["last_hidden_state"],
        ({0: batch},),
    )
    yield Graph(
        DECODER,
        _Decoder(model),
        (ids_BL, floats(2, frames, config.d_model)),
        ["input_ids", "encoder_hidden_states"],
        ["logits", *cache_names("present", layers)],
        ({0: batch, 1: tokens}, {0: batch, 1: source}),
    )
    # torch would take inputs that are the same tensor for one input.
    cached = [
        floats(2, heads, size, width) for _ in range(layers) for size in (4, 4, frames, frames)
    ]
    axes: list[Axes] = [{0: batch, 2: size} for size in (past, past, source, source)] * layers
    yield Graph(
        DECODER_WITH_PAST,
        _DecoderWithPast(model),
        (ids_BL, *cached),
        ["input_ids", *cache_names("past_key_values", layers)],
        ["logits", *cache_names("present", layers, ["decoder"])],
        ({0: batch, 1: tokens}, tuple(axes)),
    )


def write_graph(graph: Graph, folder: Path, opset: int = OPSET) -> None:
    """Trace a graph and write it; weights beyond 2 GiB go to ``<file>_data`` beside it.

    Args:
        graph: The graph.
        folder: Where to.
        opset: Version of ONNX's operators.
    """
    import onnx_ir

    with _quiet(), _low_rank_as_products(), torch.no_grad():
        program = torch.onnx.export(
            graph.module.eval(),
            graph.example,
            dynamo=True,
            verbose=False,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=graph.axes,
            opset_version=opset,
        )
    assert program is not None
    size = sum(tensor.nbytes for tensor in graph.module.state_dict().values())
    beside = f"{graph.file}_data" if size > MOST_BYTES else None
    onnx_ir.save(program.model, folder / graph.file, external_data=beside)


@contextmanager
def _low_rank_as_products() -> Iterator[None]:
    """Let low-rank layers be traced as products of the input as it is.

    The fused form would become products and Gemms between reshapes.
    """
    fused = LowRankLinear.forward

    def in_products(self: LowRankLinear, x_BTI: Tensor) -> Tensor:
        return x_BTI @ self.weight1 @ self.weight2 + self.bias

    LowRankLinear.forward = in_products  # type: ignore[method-assign]
    try:
        yield
    finally:
        LowRankLinear.forward = fused  # type: ignore[method-assign]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its passes, of packages and of classes."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
