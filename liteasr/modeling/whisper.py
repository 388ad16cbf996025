"""Whisper with a compressed encoder, as a Hugging Face model of type ``lite-whisper``.

Hugging Face's Whisper is built as it is; its encoder's self-attention and linear layers are then
exchanged for smaller ones where the configuration names a size. The exchange happens after
``post_init()`` of the parent class has tied the weights and touches none of the tied ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoder

from .attention import ReducedAttention
from .configuration import LiteWhisperConfig
from .convolution import FramedConvolution
from .fast import use_fast_inference
from .linear import LowRankLinear, PivotedLinear

__all__ = ["LiteWhisperForConditionalGeneration"]

# Attention weights are recorded by class (``output_attentions``): of reduced heads too.
WhisperEncoder._can_record_outputs = {
    **(WhisperEncoder._can_record_outputs or {}),
    "attentions": [WhisperAttention, ReducedAttention],
}


class LiteWhisperForConditionalGeneration(WhisperForConditionalGeneration):
    """Whisper whose encoder layers have the sizes that the configuration names.

    Those are the ranks of ``config.low_rank_config`` and ``config.conv2_rank``, of pivoted layers
    with ``config.pivoted``, and the dimensions of the heads of ``config.reduced_attention``.

    Inputs, outputs, ``generate`` and decoding options are those of
    :class:`transformers.WhisperForConditionalGeneration`.

    Example:
        >>> config = LiteWhisperConfig(
        ...     d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        ...     decoder_attention_heads=1, encoder_ffn_dim=128, decoder_ffn_dim=128,
        ...     vocab_size=99, pad_token_id=0, low_rank_config=[{"fc1": 16}],
        ... )
        >>> LiteWhisperForConditionalGeneration(config).model.encoder.layers[0].fc1
        LowRankLinear(in_features=64, out_features=128, rank=16)
    """

    config_class = LiteWhisperConfig

    def __init__(self, config: LiteWhisperConfig) -> None:
        super().__init__(config)
        layers = self.model.encoder.layers
        for layer, dims in zip(layers, config.reduced_attention or [], strict=False):
            if dims:
                dense = layer.self_attn
                layer.self_attn = ReducedAttention(
                    dense.embed_dim,
                    dense.num_heads,
                    **dims,
                    dropout=dense.dropout,
                    device=dense.q_proj.weight.device,
                    dtype=dense.q_proj.weight.dtype,
                )
        for layer, ranks in zip(layers, config.low_rank_config or [], strict=False):
            for name, rank in ranks.items():
                parent = layer if name in ("fc1", "fc2") else layer.self_attn
                setattr(parent, name, _low_rank(getattr(parent, name), rank, config.pivoted))
        if config.conv2_rank is not None:
            framed = FramedConvolution(self.model.encoder.conv2)
            linear: Any = framed.linear
            framed.linear = _low_rank(linear, config.conv2_rank, config.pivoted)
            self.model.encoder.conv2 = framed
        use_fast_inference(self.model.encoder, config.max_source_positions)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, LowRankLinear):
            super()._init_weights(module)
        elif not getattr(module.bias, "_is_hf_initialized", False):
            module.reset_parameters()


def _low_rank(dense: nn.Linear, rank: int, pivoted: bool) -> LowRankLinear:
    return (PivotedLinear if pivoted else LowRankLinear)(
        dense.in_features,
        dense.out_features,
        rank,
        device=dense.weight.device,
        dtype=dense.weight.dtype,
    )
