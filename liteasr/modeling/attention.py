"""Self-attention whose heads have fewer dimensions.

Shape suffixes: B batch, T frames, D width of the encoder, H heads, R dimensions of a head for
queries and keys, V dimensions of a head for values.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .linear import run
from .products import affine, by_onednn

__all__ = ["ReducedAttention", "attend", "split_heads"]

_LITTLE_TO_PAD = 0.75
"""Share of the wider of two widths above which padding the narrower one costs less than tiles."""

TILE = 512
"""Queries at a time, where scores are not computed by a fused kernel."""


class ReducedAttention(nn.Module):
    """``Σ_h softmax(q_h k_hᵀ / √d_h) v_h W_o,h`` with R dimensions for q and k, V for v.

    Stands in for the encoder's self-attention of Hugging Face's Whisper and has the names of its
    projections, which are narrower. Scores keep the scale ``1/√d_h`` of the dense heads, as the
    reduced queries and keys stand for the dense ones. Keys and values have no bias: that of the
    keys adds the same to all scores of a query, and that of the values, whose weights sum to 1,
    goes into the bias of ``out_proj``.

    Args:
        embed_dim: Width D.
        num_heads: Heads H.
        qk_dim: R.
        v_dim: V.
        head_dim: ``d_h`` of the dense heads, ``D / H`` if not given.
        dropout: Of the attention weights, in training.
        device: Where the parameters live.
        dtype: Type of the parameters.

    Raises:
        ValueError: If a width is not positive.

    Example:
        >>> attention = ReducedAttention(embed_dim=8, num_heads=2, qk_dim=3, v_dim=4)
        >>> attention(torch.zeros(1, 5, 8))[0].shape, attention.q_proj.weight.shape
        (torch.Size([1, 5, 8]), torch.Size([6, 8]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qk_dim: int,
        v_dim: int,
        *,
        head_dim: int | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(embed_dim, num_heads, qk_dim, v_dim) < 1:
            raise ValueError(
                f"widths must be at least 1, got {embed_dim=}, {num_heads=}, {qk_dim=}, {v_dim=}"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.qk_dim = qk_dim
        self.v_dim = v_dim
        self.head_dim = head_dim or embed_dim // num_heads
        self.scaling: float = self.head_dim**-0.5
        self.dropout = dropout
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.k_proj = nn.Linear(embed_dim, num_heads * qk_dim, bias=False, **place)
        self.v_proj = nn.Linear(embed_dim, num_heads * v_dim, bias=False, **place)
        self.q_proj = nn.Linear(embed_dim, num_heads * qk_dim, **place)
        self.out_proj = nn.Linear(num_heads * v_dim, embed_dim, **place)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within each clip.

        Args:
            hidden_states: Frames, (B, T, D).
            attention_mask: As :func:`attend` takes it; Whisper's encoder has none.
            output_attentions: Return the weights too, which takes memory of T² a head.

        Returns:
            Frames, (B, T, D), and the weights, (B, H, T, T), or ``None``.
        """
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

    def extra_repr(self) -> str:
        """Widths, for ``print(model)``."""
        return f"num_heads={self.num_heads}, qk_dim={self.qk_dim}, v_dim={self.v_dim}"


def split_heads(x_BTX: Tensor, heads: int) -> Tensor:
    """Heads side by side, (B, T, H·R), to heads of their own, (B, H, T, R)."""
    return x_BTX.reshape(*x_BTX.shape[:-1], heads, -1).transpose(1, 2)


def attend(
    q_BHTR: Tensor,
    k_BHTR: Tensor,
    v_BHTV: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``softmax(scale · q kᵀ) v``, where values may be wider or narrower than queries and keys.

    Args:
        q_BHTR: Queries; one head, H = 1, serves all.
        k_BHTR: Keys, likewise.
        v_BHTV: Values, likewise.
        scale: Of the scores.
        mask: Added to the scores, or, of type bool, true where a key is seen; broadcast to
            (B, H, T, T).
        dropout: Of the attention weights.
        need_weights: Return the weights, for which all scores are in memory at once.

    Returns:
        Mixed values, (B, H, T, V), and the weights, (B, H, T, T), or ``None``.

    Example:
        >>> q, k, v = torch.zeros(1, 2, 5, 3), torch.zeros(1, 1, 5, 3), torch.ones(1, 1, 5, 4)
        >>> attend(q, k, v, scale=1.0)[0].shape
        torch.Size([1, 2, 5, 4])
    """
    width = v_BHTV.shape[-1]
    if need_weights:
        scores_BHTT = q_BHTR @ k_BHTR.mT * scale
        if mask is not None and mask.dtype == torch.bool:
            scores_BHTT = scores_BHTT.masked_fill(~mask, float("-inf"))
        elif mask is not None:
            scores_BHTT = scores_BHTT + mask
        weights_BHTT = scores_BHTT.softmax(dim=-1)
        return F.dropout(weights_BHTT, dropout) @ v_BHTV, weights_BHTT
    heads = max(x.shape[1] for x in (q_BHTR, k_BHTR, v_BHTV))
    if mask is None and not dropout and _is_better_in_tiles(q_BHTR, width):
        q_BHTR, k_BHTR, v_BHTV = (x.expand(-1, heads, -1, -1) for x in (q_BHTR, k_BHTR, v_BHTV))
        way = _DifferentiableTiles.apply if torch.is_grad_enabled() else _attend_in_tiles
        mixed_BHTV: Tensor = way(q_BHTR * scale, k_BHTR, v_BHTV)
        return mixed_BHTV, None
    # The fused kernels take one width for all three. Padding costs little; without a fused kernel
    # all scores would be in memory, and it is several times as slow (torch 2.13, CPU).
    common = max(q_BHTR.shape[-1], width)
    q_BHTC, k_BHTC, v_BHTC = (
        F.pad(x, (0, common - x.shape[-1])).expand(-1, heads, -1, -1)
        for x in (q_BHTR, k_BHTR, v_BHTV)
    )
    mixed_BHTC = F.scaled_dot_product_attention(
        q_BHTC, k_BHTC, v_BHTC, attn_mask=mask, dropout_p=dropout, scale=scale
    )
    return mixed_BHTC[..., :width], None


def _is_better_in_tiles(q_BHTR: Tensor, width: int) -> bool:
    if q_BHTR.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if q_BHTR.dtype == torch.bfloat16 or torch.is_grad_enabled():
        # torch 2.13: the CPU's fused kernel leaves its matrix units for bfloat16 half idle, and
        # its way back does in any type.
        return q_BHTR.dtype != torch.float16
    # It knows of MKL alone. With MKL in fp32 it is a tenth faster than tiles, which pays as long as
    # there is little to pad.
    narrow, wide = sorted((q_BHTR.shape[-1], width))
    return by_onednn(q_BHTR) or narrow <= _LITTLE_TO_PAD * wide


def _attend_in_tiles(q_BHTR: Tensor, k_BHTR: Tensor, v_BHTV: Tensor) -> Tensor:
    """``softmax(q kᵀ) v``, head by head and some queries at a time, (B, H, T, V)."""
    clips, heads, queries = q_BHTR.shape[:3]
    mixed_BTHV = v_BHTV.new_empty(clips, queries, heads, v_BHTV.shape[-1])
    for clip, head in product(range(clips), range(heads)):
        k_TR, v_TV = k_BHTR[clip, head].contiguous(), v_BHTV[clip, head].contiguous()
        for tile in _tiles(queries):
            scores = affine(q_BHTR[clip, head, tile], k_TR.T)
            mixed_BTHV[clip, tile, head] = affine(scores.softmax(dim=-1), v_TV)
    return mixed_BTHV.transpose(1, 2)


class _DifferentiableTiles(torch.autograd.Function):
    """:func:`_attend_in_tiles` with gradients, for which no attention weights are kept.

    The way back computes them again, as FlashAttention does (arXiv 2205.14135, algorithm 4).
    """

    @staticmethod
    def forward(ctx: Any, q_BHTR: Tensor, k_BHTR: Tensor, v_BHTV: Tensor) -> Tensor:
        mixed_BHTV = _attend_in_tiles(q_BHTR, k_BHTR, v_BHTV)
        ctx.save_for_backward(q_BHTR, k_BHTR, v_BHTV, mixed_BHTV)
        return mixed_BHTV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, back_BHTV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BHTR, k_BHTR, v_BHTV, mixed_BHTV = ctx.saved_tensors
        clips, heads, queries = q_BHTR.shape[:3]
        back_q, back_k, back_v = (torch.empty_like(x) for x in (q_BHTR, k_BHTR, v_BHTV))
        # What the scores' gradients of a query add up to, for the softmax.
        sums_BHT1 = (back_BHTV * mixed_BHTV).sum(dim=-1, keepdim=True)
        for clip, head in product(range(clips), range(heads)):
            k_TR, v_TV = k_BHTR[clip, head].contiguous(), v_BHTV[clip, head].contiguous()
            back_k_RT, back_v_VT = (_zeros_to_sum_in(x.T) for x in (k_TR, v_TV))
            for tile in _tiles(queries):
                q_NR = q_BHTR[clip, head, tile].contiguous()
                back_NV = back_BHTV[clip, head, tile].contiguous()
                weights_NT = affine(q_NR, k_TR.T).softmax(dim=-1)
                back_v_VT += affine(back_NV.T, weights_NT)
                scores_NT = affine(back_NV, v_TV.T).sub_(sums_BHT1[clip, head, tile])
                scores_NT *= weights_NT
                back_q[clip, head, tile] = affine(scores_NT, k_TR)
                back_k_RT += affine(q_NR.T, scores_NT)
            back_k[clip, head], back_v[clip, head] = back_k_RT.T, back_v_VT.T
        return back_q, back_k, back_v


def _zeros_to_sum_in(like: Tensor) -> Tensor:
    """Zeros of a shape, in a type in which many small numbers can be summed."""
    return torch.zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float32))


def _tiles(queries: int) -> Iterator[slice]:
    return (slice(start, start + TILE) for start in range(0, queries, TILE))
