"""Encoders of the published sizes with random weights, for timings without a checkpoint.

Models are first laid out without memory (torch's ``meta`` device); only their encoders are made.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from liteasr.compression import (
    CompressionPlan,
    LinearShape,
    apply_plan,
    encoder_parameters,
    find_linears,
)
from liteasr.compression.plan import low_rank_config
from liteasr.config import ConfigError, parse_size
from liteasr.modeling import (
    LiteWhisperConfig,
    LiteWhisperForConditionalGeneration,
    use_fast_inference,
    use_plain_inference,
)

__all__ = ["SHAPES", "lay_out", "make_encoder", "plausible_ranks", "read_ranks", "shape_config"]

Ranks = list[dict[str, int]]

SHAPES = {
    "tiny": (384, 4, 6, 80),
    "base": (512, 6, 8, 80),
    "small": (768, 12, 12, 80),
    "medium": (1024, 24, 16, 80),
    "large-v3": (1280, 32, 20, 128),
    "large-v3-turbo": (1280, 32, 20, 128),
}
"""Width, layers, heads and mel bins of the encoders that OpenAI published."""

_FIRST_LAYERS = {
    "q_proj": 0.0375,
    "k_proj": 0.0375,
    "v_proj": 0.103,
    "out_proj": 0.091,
    "fc1": 0.225,
    "fc2": 0.225,
}
"""Ranks over width in the first four layers of lite-whisper-large-v3, on average."""

_GROWTH = 1.8
"""Ranks grow by a factor of e to this from the first layer to the last: so large-v3 with the ranks
above has about the 377 M parameters of lite-whisper-large-v3."""

_MULTIPLE = 8
_STEPS = 60


def shape_config(shape: str, **changes: Any) -> LiteWhisperConfig:
    """Configuration of a published size; only what concerns the encoder is that of the original.

    Args:
        shape: A key of :data:`SHAPES`.
        changes: Further arguments of the configuration.
    """
    width, layers, heads, bins = SHAPES[shape]
    options: dict[str, Any] = {
        "d_model": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "num_mel_bins": bins,
        "decoder_layers": 1,
        "decoder_attention_heads": heads,
    }
    return LiteWhisperConfig(**{**options, **changes})


def lay_out(
    config: LiteWhisperConfig, ranks: Ranks | CompressionPlan | None = None
) -> LiteWhisperForConditionalGeneration:
    """A model without memory for its weights.

    Args:
        config: Of a dense or a lite Whisper.
        ranks: Ranks in the format of ``low_rank_config``, or a plan; absent: a dense model, which
            runs as Hugging Face's does.

    Raises:
        ValueError: If they do not fit the configuration.
    """
    settings = {**config.to_dict(), "low_rank_config": ranks if isinstance(ranks, list) else None}
    with torch.device("meta"):
        model = LiteWhisperForConditionalGeneration(LiteWhisperConfig(**settings))
    if isinstance(ranks, CompressionPlan):
        apply_plan(model, ranks)
    if ranks is None:
        use_plain_inference(model)
    else:
        use_fast_inference(model.get_encoder(), model.config.max_source_positions)
    model.eval()
    return model


@torch.no_grad()
def make_encoder(
    model: LiteWhisperForConditionalGeneration, dtype: str, device: str
) -> PreTrainedModel:
    """The encoder of a laid-out model, with random weights.

    Args:
        model: Of :func:`lay_out`; its encoder is the result.
        dtype: Name of a torch type.
        device: Where the weights shall be.
    """
    encoder: PreTrainedModel = model.get_encoder()
    encoder.to(getattr(torch, dtype)).to_empty(device=device)
    for module in encoder.modules():
        draw = getattr(module, "reset_parameters", None)
        if draw is not None:
            draw()
            continue
        # Else there would be what the memory held before.
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.02)
    return encoder


def read_ranks(file: Path, config: LiteWhisperConfig) -> Ranks | CompressionPlan:
    """Ranks from a ``plan.json``, a ``config.json``, or a list as in ``low_rank_config``.

    Args:
        file: The file.
        config: Of the dense model, which they must fit.

    Raises:
        ConfigError: If the file is none of these, or of another size of Whisper.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "low_rank_config" in content:
            for key in ("reduced_attention", "conv2_rank"):
                if content.get(key):
                    raise ValueError(f"it has {key} besides; give the plan.json of its run")
            if bool(content.get("pivoted")) != config.pivoted:
                raise ValueError(
                    "--pivoted must be given where pivoted is true in it, and only there"
                )
            content = content["low_rank_config"]
        is_list = isinstance(content, list) and all(isinstance(one, dict) for one in content)
        ranks = content if is_list else CompressionPlan.load(file)
        if isinstance(ranks, CompressionPlan) and config.pivoted and not ranks.pivoted:
            raise ValueError("its layers are not pivoted: leave --pivoted out")
        lay_out(config, ranks)
    except OSError as error:
        raise ConfigError(f"--ranks: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--ranks: {file} cannot be used: {error}") from error
    return ranks


def plausible_ranks(config: LiteWhisperConfig, size: str) -> Ranks:
    """Ranks as calibration might choose them: low in early layers, higher in later ones.

    They follow the published ranks of large-v3: query and key lowest, then value and output, then
    the two of the MLP, all growing from layer to layer, multiples of 8. A layer that would not be
    smaller stays dense.

    Args:
        config: Of the dense model; says whether low-rank layers are pivoted.
        size: Parameters of the encoder, such as ``240M``; the result is just below.

    Raises:
        ConfigError: If it is no number, or one that cannot be reached.

    Example:
        >>> ranks = plausible_ranks(shape_config("tiny"), "5M")
        >>> ranks[0]["k_proj"] < ranks[0]["fc1"] < ranks[1]["fc1"]
        True
    """
    wanted = parse_size(size, "--encoder-params")
    model = lay_out(config)
    linears = find_linears(model)
    dense = encoder_parameters(model.get_encoder())
    if wanted >= dense:
        raise ConfigError(f"--encoder-params: {size} is not below the {dense:,} of the dense one")
    low, high = 0.0, 1.0 / min(_FIRST_LAYERS.values())
    least = dense - _saved(linears, low, config)
    if wanted < least:
        raise ConfigError(
            f"--encoder-params: {size} cannot be reached; with ranks of {_MULTIPLE} the encoder "
            f"still has {least:,}"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        fits = dense - _saved(linears, middle, config) <= wanted
        low, high = (middle, high) if fits else (low, middle)
    ranks = _ranks(linears, low, config)
    return low_rank_config(ranks.items(), config.encoder_layers)


def _ranks(
    linears: dict[str, nn.Linear], scale: float, config: LiteWhisperConfig
) -> dict[str, int]:
    """Ranks of the layers that become smaller by them."""
    last = max(1, config.encoder_layers - 1)
    ranks = {}
    for name, linear in linears.items():
        layer = int(name.split("encoder.layers.")[1].split(".")[0])
        share = scale * _FIRST_LAYERS[name.rsplit(".", 1)[1]] * math.exp(_GROWTH * layer / last)
        multiples = min(share, 1.0) * config.d_model / _MULTIPLE
        rank = max(_MULTIPLE, _MULTIPLE * round(multiples))
        if _shape(linear, config).saves(rank):
            ranks[name] = rank
    return ranks


def _shape(linear: nn.Linear, config: LiteWhisperConfig) -> LinearShape:
    widths = (linear.in_features, linear.out_features)
    return LinearShape(*widths, bias=linear.bias is not None, pivoted=config.pivoted)


def _saved(linears: dict[str, nn.Linear], scale: float, config: LiteWhisperConfig) -> int:
    shapes = {name: _shape(linear, config) for name, linear in linears.items()}
    ranks = _ranks(linears, scale, config)
    return sum(shapes[n].dense_params() - shapes[n].params(rank) for n, rank in ranks.items())
