"""An encoder on a GPU as one graph of kernels, for which the CPU has nothing to launch.

A single window keeps a GPU busy for less time than it takes Python to launch the kernels of dozens
of layers; a low-rank encoder has more, and smaller ones. A CUDA graph is recorded once and
replayed.

Shape suffixes: B windows in a batch, M mel bins, F mel frames.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

__all__ = ["use_cuda_graphs", "use_no_cuda_graphs"]

_WARM_UP_CALLS = 3
"""Before recording; libraries choose their kernels and take their memory in them."""

_Key = tuple[torch.Size, torch.dtype, torch.device]


def use_cuda_graphs(encoder: nn.Module, most_shapes: int = 8) -> None:
    """Let an encoder replay a recorded graph for inputs of a shape that it has seen; idempotent.

    Only where nothing is differentiated, on a GPU, and for the last hidden state alone; otherwise
    it runs as before. Parameters may change in place, and be moved; when layers were replaced, call
    this again. The output is a copy, which the next call leaves alone. Hooks inside the encoder do
    not run.

    Args:
        encoder: Hugging Face's Whisper encoder, dense or with low-rank layers.
        most_shapes: Graphs kept; the one unused for longest makes room. Each holds the encoder's
            activations of its batch.
    """
    use_no_cuda_graphs(encoder)
    encoder.forward = _Replay(encoder, most_shapes)


def use_no_cuda_graphs(encoder: nn.Module) -> None:
    """Launch every kernel again; idempotent."""
    if isinstance(encoder.__dict__.get("forward"), _Replay):
        del encoder.forward


class _Replay:
    """In place of an encoder's ``forward``."""

    def __init__(self, encoder: nn.Module, most_shapes: int) -> None:
        # The encoder holds this object; it is not to be held by it in turn.
        self._encoder = weakref.ref(encoder)
        self._most_shapes = most_shapes
        self._recorded: OrderedDict[_Key, _Recorded] = OrderedDict()
        self._parameters: list[nn.Parameter] = []
        self._with_buffers: list[nn.Module] = []
        self._places = [0]  # nothing is recorded yet

    def __deepcopy__(self, memo: dict[int, Any]) -> _Replay:
        raise TypeError("an encoder that replays CUDA graphs cannot be copied: use_no_cuda_graphs")

    def __call__(
        self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        encoder = self._encoder()
        assert encoder is not None
        # Whisper's encoder does not look at the mask.
        config: Any = encoder.config
        wants_more = config.output_hidden_states or config.output_attentions
        # No tuple in place of the output, and nothing in it but the last state.
        asks = any(kwargs.get(key) for key in kwargs if key != "return_dict")
        asks = asks or kwargs.get("return_dict") is False
        if wants_more or asks or not self._can_replay(encoder, input_features):
            forward = type(encoder).forward
            return forward(encoder, input_features, attention_mask=attention_mask, **kwargs)
        with torch.cuda.device(input_features.device):
            return self._replay(encoder, input_features)

    def _replay(self, encoder: nn.Module, input_features: Tensor) -> BaseModelOutput:
        if self._places != self._places_now():
            self._recorded.clear()
            self._parameters = list(encoder.parameters())
            self._with_buffers = [one for one in encoder.modules() if one._buffers]
            self._places = self._places_now()
        key = (input_features.shape, input_features.dtype, input_features.device)
        if key not in self._recorded:
            while len(self._recorded) >= self._most_shapes:
                self._recorded.popitem(last=False)
            self._recorded[key] = self._record(encoder, input_features)
        self._recorded.move_to_end(key)
        return BaseModelOutput(last_hidden_state=self._recorded[key](input_features))

    def _places_now(self) -> list[int]:
        # Moving a module changes its parameters in place, but exchanges its buffers.
        buffers = [one for module in self._with_buffers for one in module._buffers.values()]
        return [one.data_ptr() for one in (*self._parameters, *buffers) if one is not None]

    @staticmethod
    def _can_replay(encoder: nn.Module, features_BMF: Tensor) -> bool:
        return not (
            features_BMF.device.type != "cuda"
            or torch.is_grad_enabled()
            or encoder.training
            or torch.is_autocast_enabled("cuda")
            or torch.compiler.is_compiling()
            or torch.cuda.is_current_stream_capturing()
        )

    def _record(self, encoder: nn.Module, features_BMF: Tensor) -> _Recorded:
        # A buffer that is made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            return _Recorded(encoder, features_BMF)


class _Recorded:
    """A graph, its input and its output."""

    def __init__(self, encoder: nn.Module, features_BMF: Tensor) -> None:
        self._input_BMF = features_BMF.clone()
        forward = type(encoder).forward
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                forward(encoder, self._input_BMF)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output_BTD: Tensor = forward(encoder, self._input_BMF).last_hidden_state

    def __call__(self, features_BMF: Tensor) -> Tensor:
        self._input_BMF.copy_(features_BMF)
        self._graph.replay()
        return self._output_BTD.clone()
