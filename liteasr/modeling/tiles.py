"""Encoder layers that work on a few hundred frames at a time, which stay in the cache.

The hidden activations of the MLP are four times as wide as the encoder: for eight clips of
Whisper tiny 74 MB, which are written to memory, activated there and read back. On a CPU that takes
as long as the products of a low-rank layer. In tiles they stay in the cache.

Attention between factors, and in reduced heads, chooses the faster way of :func:`attend` too, with
gradients as without; here is what gives dense heads the same.

Shape suffixes: B batch, T frames, N frames of all clips, D width of the encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoderLayer

from .attention import attend, split_heads
from .linear import ready, run

__all__ = ["TiledAttention", "TiledEncoderLayer", "use_tiles", "use_whole_clips"]

TILE = 512
"""Frames at a time."""


class TiledEncoderLayer(WhisperEncoderLayer):
    """Whisper's encoder layer with an MLP in tiles, where nothing is differentiated.

    Made by :func:`use_tiles` alone, from a layer that has its weights already. With gradients, in
    training, while it is compiled or exported, on other devices than a CPU, and where ``fc1`` or
    ``fc2`` has hooks, it runs as its parent does.
    """

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        """Frames to frames, (B, T, D)."""
        if not self._can_tile(hidden_states):
            whole: Tensor = super().forward(hidden_states, attention_mask, **kwargs)
            return whole
        normed = self.self_attn_layer_norm(hidden_states)
        attended, _ = self.self_attn(normed, attention_mask=attention_mask, **kwargs)
        # The convolutions before the first layer leave frames apart in memory.
        summed: Tensor = (attended + hidden_states).contiguous()
        frames_ND = summed.view(-1, summed.shape[-1])
        fc1, fc2 = ready(self.fc1, frames_ND), ready(self.fc2, frames_ND)
        for tile_ND in (
            frames_ND[start : start + TILE] for start in range(0, len(frames_ND), TILE)
        ):
            tile_ND += fc2(self.activation_fn(fc1(self.final_layer_norm(tile_ND))))
        return summed

    def _can_tile(self, hidden_states: Tensor) -> bool:
        hooked = any(
            layer._forward_hooks or layer._forward_pre_hooks for layer in (self.fc1, self.fc2)
        )
        return not (
            hooked
            or self.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
            or hidden_states.device.type != "cpu"
            or hidden_states.dtype == torch.float16
        )


class TiledAttention(WhisperAttention):
    """Whisper's self-attention by :func:`attend`.

    Made by :func:`use_tiles` alone, from an attention that has its weights already. Where gradients
    are computed on another device than a CPU, it runs as its parent does.
    """

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As its parent does."""
        is_trained_elsewhere = torch.is_grad_enabled() and hidden_states.device.type != "cpu"
        if key_value_states is not None or cache is not None or is_trained_elsewhere:
            whole: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states,
                key_value_states=key_value_states,
                cache=cache,
                attention_mask=attention_mask,
                output_attentions=output_attentions,
                **kwargs,
            )
            return whole
        mixed_BHTV, weights_BHTT = attend(
            *(
                split_heads(run(layer, hidden_states), self.num_heads)
                for layer in (self.q_proj, self.k_proj, self.v_proj)
            ),
            scale=self.scaling,
            mask=attention_mask,
            dropout=self.dropout if self.training else 0.0,
            need_weights=output_attentions,
        )
        return run(self.out_proj, mixed_BHTV.transpose(1, 2).flatten(2)), weights_BHTT


def use_tiles(encoder: nn.Module) -> None:
    """Let each layer of Hugging Face's Whisper encoder work in tiles; idempotent.

    Parameters and their names stay as they are; :func:`use_whole_clips` undoes it.

    Args:
        encoder: The encoder, or a model that has it.
    """
    for module in encoder.modules():
        if type(module) is WhisperEncoderLayer:
            module.__class__ = TiledEncoderLayer
        elif type(module) is WhisperAttention and not module.is_decoder:
            module.__class__ = TiledAttention


def use_whole_clips(encoder: nn.Module) -> None:
    """Undo :func:`use_tiles`; idempotent."""
    for module in encoder.modules():
        if type(module) is TiledEncoderLayer:
            module.__class__ = WhisperEncoderLayer
        elif type(module) is TiledAttention:
            module.__class__ = WhisperAttention
