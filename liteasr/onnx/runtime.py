"""Running an ONNX folder with ONNX Runtime, behind the interface of Hugging Face's Whisper.

Shape suffixes: B windows in a batch, M mel bins, F mel frames, T encoder frames, D width,
L tokens, V vocabulary, H heads, S tokens so far.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    WhisperConfig,
)
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from liteasr.config import ConfigError
from liteasr.modeling import LiteWhisperConfig, LiteWhisperForConditionalGeneration
from liteasr.onnx import DECODER, DECODER_WITH_PAST, find_encoder, require_packages
from liteasr.onnx.graphs import cache_names

__all__ = ["OnnxWhisper", "Session", "load_onnx"]

# transformers 5 has renamed the cache on its way.
CACHE = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"


class Session:
    """A graph in ONNX Runtime on the CPU, with torch's number of threads.

    Args:
        file: The graph.

    Attributes:
        dtype: Type of its floating-point inputs.

    Raises:
        ConfigError: If ONNX Runtime does not take it.
    """

    def __init__(self, file: Path) -> None:
        require_packages("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # classes of its own, without a common one
            raise ConfigError(f"{file}: ONNX Runtime cannot use it: {error}") from error
        types = [one.type for one in self._session.get_inputs()]
        self.dtype = torch.float16 if "tensor(float16)" in types else torch.float32
        self._outputs = [one.name for one in self._session.get_outputs()]

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Outputs by name, on the CPU."""
        arrays = {
            name: tensor.detach()
            .to("cpu", self.dtype if tensor.is_floating_point() else None)
            .contiguous()
            .numpy()
            for name, tensor in inputs.items()
        }
        outputs = self._session.run(self._outputs, arrays)
        return dict(zip(self._outputs, map(torch.from_numpy, outputs), strict=True))


class _OnnxEncoder(WhisperEncoder):
    """An encoder that has the layers of another to be counted, and a graph to be run."""

    def __init__(self, skeleton: WhisperEncoder, session: Session) -> None:
        super().__init__(skeleton.config)
        self.conv2, self.layers = skeleton.conv2, skeleton.layers
        self._session = session

    def forward(self, input_features: Tensor, *_: Any, **__: Any) -> BaseModelOutput:
        """Encode windows, (B, M, F), to (B, T, D)."""
        outputs = self._session(input_features=input_features)
        return BaseModelOutput(last_hidden_state=outputs["last_hidden_state"])

    @property
    def device(self) -> torch.device:
        """Where outputs are."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of inputs and outputs."""
        return self._session.dtype

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        """Stay as it is: nothing here can be moved or cast."""
        return self


class OnnxWhisper(LiteWhisperForConditionalGeneration):
    """A Whisper whose encoder and decoder run in ONNX Runtime, on the CPU.

    ``generate`` and all that is built on it are those of
    :class:`transformers.WhisperForConditionalGeneration`. It has parameters without values, so
    that layers can be looked at and counted; it cannot be trained, compressed or moved.

    Args:
        config: Of the model that was exported, low-rank layers included.
        encoder: The graph of the encoder.
        decoder: The graph of the first step.
        decoder_with_past: The graph of later steps.
    """

    def __init__(
        self,
        config: LiteWhisperConfig,
        encoder: Session,
        decoder: Session,
        decoder_with_past: Session,
    ) -> None:
        with torch.device("meta"):
            super().__init__(config)
            self.model.encoder = _OnnxEncoder(self.model.encoder, encoder)
        self.requires_grad_(False)
        self._decoder, self._decoder_with_past = decoder, decoder_with_past
        self._dtype = encoder.dtype

    @property
    def device(self) -> torch.device:
        """Where outputs are."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of inputs and outputs."""
        return self._dtype

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        """Stay as it is: nothing here can be moved or cast."""
        return self

    def generate(self, input_features: Tensor | None = None, **options: Any) -> Any:
        """As in transformers, with inputs on any device and outputs on the CPU."""
        inputs = None if input_features is None else input_features.cpu()
        options = {
            name: value.cpu() if isinstance(value, Tensor) else value
            for name, value in options.items()
        }
        return super().generate(inputs, **options)

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        use_cache: bool | None = None,
        **options: Any,
    ) -> Seq2SeqLMOutput:
        """One step of decoding.

        Args:
            input_features: Windows (B, M, F), if they are not encoded yet.
            attention_mask: Not used, as Whisper attends to padding.
            decoder_input_ids: Tokens (B, L), without those that the cache has.
            decoder_attention_mask: Of ones, if given.
            encoder_outputs: The encoder's output, (B, T, D), as its first item.
            use_cache: Whether to give a cache back.
            options: The cache under either name; what is left is not used.

        Raises:
            ValueError: If the mask hides tokens, for which the graphs have no input.
        """
        assert decoder_input_ids is not None
        if decoder_attention_mask is not None and not bool(decoder_attention_mask.all()):
            raise ValueError("an ONNX decoder takes no padded prompts")
        if encoder_outputs is None:
            encoder_outputs = self.model.encoder(input_features)
        cache = options.get("cache", options.get("past_key_values"))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if cache is None else cache
        if cache.get_seq_length() == 0:
            outputs = self._decoder(
                input_ids=decoder_input_ids, encoder_hidden_states=encoder_outputs[0]
            )
        else:
            names = cache_names("past_key_values", self.config.decoder_layers)
            past = dict(zip(names, _cached(cache, self.config.decoder_layers), strict=True))
            outputs = self._decoder_with_past(input_ids=decoder_input_ids, **past)
        _extend(cache, outputs, self.config.decoder_layers)
        kept = {} if use_cache is False else {CACHE: cache}
        return Seq2SeqLMOutput(
            logits=outputs["logits"], encoder_last_hidden_state=encoder_outputs[0], **kept
        )


def _cached(cache: EncoderDecoderCache, layers: int) -> list[Tensor]:
    # transformers may prepare more layers than the decoder has.
    parts = (
        cache.self_attention_cache.layers[:layers],
        cache.cross_attention_cache.layers[:layers],
    )
    pairs = zip(*parts, strict=True)
    return [tensor for pair in pairs for one in pair for tensor in (one.keys, one.values)]


def _extend(cache: EncoderDecoderCache, outputs: dict[str, Tensor], layers: int) -> None:
    """Put what a step has brought into the cache: all tokens so far, and once the encoder's."""
    known = cache.get_seq_length()
    for layer in range(layers):
        key_BHSD, value_BHSD = (outputs[f"present.{layer}.decoder.{k}"] for k in ("key", "value"))
        cache.self_attention_cache.update(key_BHSD[:, :, known:], value_BHSD[:, :, known:], layer)
        if f"present.{layer}.encoder.key" in outputs:
            key_BHTD, value_BHTD = (
                outputs[f"present.{layer}.encoder.{k}"] for k in ("key", "value")
            )
            cache.cross_attention_cache.update(key_BHTD, value_BHTD, layer)
            cache.is_updated[layer] = True


def load_onnx(folder: str | Path, config: WhisperConfig) -> OnnxWhisper:
    """Load an ONNX folder that liteasr has written.

    Args:
        folder: The folder.
        config: What its ``config.json`` says.

    Returns:
        The model, in evaluation mode.

    Raises:
        ConfigError: If a file is absent or cannot be used, or ONNX Runtime is not installed.
    """
    require_packages("onnxruntime")
    folder = Path(folder).expanduser()
    encoder = find_encoder(folder)
    files = [folder / name for name in (DECODER, DECODER_WITH_PAST)]
    missing = [file.name for file in files if not file.is_file()]
    if encoder is None or missing:
        raise ConfigError(f"model.id: {folder} has no {', '.join(missing) or 'ONNX encoder'}")
    options = config.to_dict()
    for key in ("model_type", "architectures"):
        options.pop(key, None)
    model = OnnxWhisper(LiteWhisperConfig(**options), *map(Session, (encoder, *files)))
    try:
        model.generation_config = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.id: {folder} has no usable generation_config.json") from error
    model.eval()
    return model
