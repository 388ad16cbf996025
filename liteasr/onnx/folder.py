"""Writing the graphs of a model, smaller ones of its encoder, and checking what was written."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from liteasr.modeling import LowRankLinear, PivotedLinear
from liteasr.onnx import ENCODER, ENCODER_INT8, require_packages
from liteasr.onnx.graphs import OPSET, make_graphs, write_graph
from liteasr.onnx.runtime import CACHE, OnnxWhisper, load_onnx

__all__ = [
    "TOLERANCE",
    "TOLERANCE_INT8",
    "check_graphs",
    "plain_config",
    "quantize_encoder",
    "rotate_factors",
    "write_graphs",
]

# Largest relative difference, in the norm of an output, between ONNX Runtime and torch in fp32
# with the same weights: rounding, or for int8 what tells a coarse encoder from a wrong one.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2}
TOLERANCE_INT8 = 0.3


def plain_config(config: WhisperConfig) -> WhisperConfig:
    """The configuration as that of a plain Whisper, which is what runs graphs elsewhere.

    ``low_rank_config``, if there is one, and what belongs to it stay as keys that only liteasr
    reads.
    """
    options = config.to_dict()
    for key in ("model_type", "architectures", "auto_map"):
        options.pop(key, None)
    plain = WhisperConfig(**options)
    plain.architectures = [WhisperForConditionalGeneration.__name__]
    return plain


def write_graphs(
    model: WhisperForConditionalGeneration, folder: Path, *, int8: bool = False, opset: int = OPSET
) -> dict[str, tuple[int, int]]:
    """Write ``encoder_model.onnx``, ``decoder_model.onnx`` and ``decoder_with_past_model.onnx``.

    Args:
        model: On the CPU, in fp32 or fp16. With ``int8`` its low-rank layers get other factors of
            the same product.
        folder: Where to.
        int8: Give the encoder's linear layers weights of 8 bits, one scale a channel, and
            activations of 8 bits, whose scale is found as they come; the file is called
            ``encoder_model_quantized.onnx``.
        opset: Version of ONNX's operators.

    Returns:
        Bytes of the graphs that were quantized, before and after.

    Raises:
        ConfigError: If packages of the extra are not installed.
    """
    require_packages("onnx", "onnxscript", "onnxruntime")
    if int8:
        rotate_factors(model)
    for graph in make_graphs(model):
        write_graph(graph, folder, opset)
    return {ENCODER: quantize_encoder(folder)} if int8 else {}


@torch.no_grad()
def rotate_factors(model: nn.Module) -> None:
    """Turn what passes between the factors of each low-rank layer by a random rotation.

    The layer's function is the same to rounding. Its components come in descending order of size,
    and one scale of 8 bits for all of them would round the small ones away; after a rotation all
    are of like size (QuaRot does so for language models: Ashkboos et al., arXiv 2404.00456).

    Args:
        model: On the CPU; its layers get new parameters, so that none is shared with a copy.

    Raises:
        ValueError: If a layer is pivoted: it has no components to turn.
    """
    if any(isinstance(layer, PivotedLinear) for layer in model.modules()):
        raise ValueError("pivoted layers cannot be rotated: unpivot_layers comes first")
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, LowRankLinear):
            gaussian_KK = torch.randn(layer.rank, layer.rank, generator=generator)
            rotation_KK = torch.linalg.qr(gaussian_KK.double()).Q
            for name, turned in (
                ("weight1", layer.weight1.double() @ rotation_KK),
                ("weight2", rotation_KK.T @ layer.weight2.double()),
            ):
                setattr(layer, name, nn.Parameter(turned.to(layer.bias)))


def quantize_encoder(folder: Path) -> tuple[int, int]:
    """Put an encoder in 8 bits in the place of the one that a folder has; see :func:`write_graphs`.

    Returns:
        Bytes before and after.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source, target = folder / ENCODER, folder / ENCODER_INT8
    with _silent_root():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    written = [file for file in (source, Path(f"{source}_data")) if file.is_file()]
    before = sum(file.stat().st_size for file in written)
    for file in written:
        file.unlink()
    return before, target.stat().st_size


@contextmanager
def _silent_root() -> Iterator[None]:
    """Without ONNX Runtime's advice to optimize the graph first, which the exporter has done."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def check_graphs(model: WhisperForConditionalGeneration, folder: Path) -> dict[str, float]:
    """Hold that the graphs are well-formed and that ONNX Runtime computes what torch does.

    Each graph gets the same inputs as its part of the model: a random spectrogram, and the
    encoder's output of torch.

    Args:
        model: The model that was written, with its weights as they were.
        folder: Where it was written.

    Returns:
        Relative difference of the encoder's output, and of the logits of two steps.

    Raises:
        ValueError: If one is above its tolerance.
    """
    import onnx

    for file in sorted(folder.glob("*.onnx")):
        onnx.checker.check_model(str(file))
    onnx_model = load_onnx(folder, model.config)
    reference = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    found = _differences(reference, onnx_model)
    tolerance = TOLERANCE[model.dtype]
    allowed = dict.fromkeys(found, tolerance)
    if (folder / ENCODER_INT8).is_file():
        allowed["encoder"] = TOLERANCE_INT8
    wrong = [name for name, difference in found.items() if not difference <= allowed[name]]
    if wrong:
        parts = ", ".join(f"{name} {found[name]:.2g} (at most {allowed[name]:g})" for name in wrong)
        raise ValueError(f"ONNX Runtime computes something else than torch: {parts}")
    return found


def _differences(
    reference: WhisperForConditionalGeneration, onnx_model: OnnxWhisper
) -> dict[str, float]:
    config, generator = reference.config, torch.Generator().manual_seed(0)
    shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
    features_BMF = 2 * torch.rand(shape, generator=generator) - 1
    ids_BL = torch.randint(config.vocab_size, (2, 4), generator=generator)
    encoded = reference.model.encoder(features_BMF)
    actual_BTD = onnx_model.model.encoder(features_BMF).last_hidden_state
    found = {"encoder": _relative(actual_BTD, encoded.last_hidden_state)}
    expected, actual = (_two_steps(model, encoded, ids_BL) for model in (reference, onnx_model))
    for name, one, other in zip(("first step", "later step"), actual, expected, strict=True):
        found[name] = _relative(one, other)
    return found


def _two_steps(
    model: WhisperForConditionalGeneration, encoded: BaseModelOutput, ids_BL: Tensor
) -> list[Tensor]:
    """Logits of all tokens but the last, and of the last one after them."""
    first = model(encoder_outputs=encoded, decoder_input_ids=ids_BL[:, :-1], use_cache=True)
    past = {CACHE: first[CACHE]}
    then = model(encoder_outputs=encoded, decoder_input_ids=ids_BL[:, -1:], use_cache=True, **past)
    return [first.logits, then.logits]


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.float() - expected).norm() / expected.norm())
