"""Self-attention of low-rank projections, computed between their factors.

Another order of the same products: nothing is approximated and no parameter changes.

Shape suffixes: B batch, T frames, D width of the encoder, H heads, E width of a head, O output of
the first factor of ``out_proj`` (or of all of it), Q, K, V ranks of ``q_proj``, ``k_proj``,
``v_proj``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperAttention

from .attention import attend, split_heads
from .linear import LowRankLinear, PivotedLinear, run
from .products import affine
from .tiles import TiledAttention

__all__ = [
    "AttentionRanks",
    "RankSpaceAttention",
    "RankSpacePlan",
    "use_plain_attention",
    "use_rank_space",
]


@dataclass(frozen=True)
class RankSpacePlan:
    """What is computed between the factors.

    Attributes:
        scores: ``heads``: in the heads' width, as the dense layer does. ``keys``: in the rank of
            the keys, which all heads share. ``queries``: in the rank of the queries, which all
            heads share, and one dimension for the bias.
        values: Whether the values are mixed in their rank, which all heads share.
    """

    scores: str = "heads"
    values: bool = False


@dataclass(frozen=True)
class AttentionRanks:
    """Sizes that the costs depend on.

    Attributes:
        width: D.
        heads: H.
        query: Q.
        key: K.
        value: V.
        out: Rank of ``out_proj``, or ``None`` where it is dense.
        pivoted: Whether q, k and v are pivoted. Plain attention then has less to do; between their
            factors it works with both of them put together.
        out_pivoted: The same of ``out_proj``, where values are mixed in the heads' width.
    """

    width: int
    heads: int
    query: int
    key: int
    value: int
    out: int | None
    pivoted: bool = False
    out_pivoted: bool = False

    def best_plan(self, frames: int) -> RankSpacePlan:
        """The plan of least arithmetic for T frames, as :func:`attend` does it.

        Example:
            >>> AttentionRanks(1280, 20, query=32, key=32, value=48, out=32).best_plan(1500)
            RankSpacePlan(scores='keys', values=True)
            >>> AttentionRanks(1280, 20, query=256, key=256, value=512, out=None).best_plan(1500)
            RankSpacePlan(scores='heads', values=False)
        """
        choices = product(("heads", "keys", "queries"), (False, True))
        plans = [RankSpacePlan(*one) for one in choices]
        return min(plans, key=lambda plan: self.flops(plan, frames, padded=True))

    def flops(self, plan: RankSpacePlan, frames: int, *, padded: bool = False) -> int:
        """Multiplications and additions of the whole attention for T frames.

        Args:
            plan: What is computed between the factors.
            frames: T.
            padded: Count what is padded to the common width of a fused kernel.
        """
        first = self.width * (self.query + self.key + self.value)
        score_projection, score_width, score_once = self._scores(plan)
        value_projection, value_width, value_once = self._values(plan)
        second = 0 if self.out is None else self.out * self.width
        widths = (score_width, value_width)
        core = frames * self.heads * (2 * max(widths) if padded else sum(widths))
        each_frame = first + score_projection + value_projection + second + core
        if self.pivoted and plan == RankSpacePlan():
            each_frame -= self.query**2 + self.key**2 + self.value**2
        if self.out_pivoted and not plan.values:
            each_frame -= (self.out or 0) ** 2
        return 2 * (frames * each_frame + score_once + value_once)

    def _scores(self, plan: RankSpacePlan) -> tuple[int, int, int]:
        """Products a frame after the first factors, width of the scores, products once a call."""
        head = self.width // self.heads
        between = self.heads * self.query * self.key
        once = (self.query + 1) * self.key * self.width
        if plan.scores == "keys":
            return between, self.key, once
        if plan.scores == "queries":
            return between + self.heads * self.key, self.query + 1, once
        return self.width * (self.query + self.key), head, 0

    def _values(self, plan: RankSpacePlan) -> tuple[int, int, int]:
        """The same for the values, up to the second factor of ``out_proj``."""
        out = self.out or self.width
        if plan.values:
            return self.heads * self.value * out, self.value, (self.value + 1) * self.width * out
        return self.width * (self.value + out), self.width // self.heads, 0


class RankSpaceAttention(TiledAttention):
    """Whisper's self-attention with the scores and the values between low-rank factors.

    With ``q = x A_q B_q + b_q`` and ``k = x A_k B_k + b_k`` the scores of a head are

        (x A_q) (B_q,h B_k,hᵀ) (x A_k)ᵀ + b_q,h B_k,hᵀ (x A_k)ᵀ + what is the same for all keys

    whose last part the softmax ignores (the reduced self-attention of arXiv 2502.20583). Values
    are mixed as ``P_h (x A_v)`` and go through ``B_v,h W_o,h``; the rows of ``P_h`` sum to 1, so
    the bias of the values is a part of the output's. The first factors of q, k and v are one
    product.

    Made by :func:`use_rank_space` alone, from an attention that has its weights already. Forward
    hooks of ``q_proj``, ``k_proj`` and ``v_proj``, and with ``values`` of ``out_proj``, do not
    run.
    """

    rank_space: RankSpacePlan

    @property
    def ranks(self) -> AttentionRanks:
        """Sizes of the projections."""
        return _ranks(self)

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As :class:`~liteasr.modeling.ReducedAttention` does.

        Cross-attention and training go the plain way: after a dropout the weights do not sum to 1,
        and the bias of the keys, which has no part in this, must have a gradient all the same.
        """
        if key_value_states is not None or cache is not None or self.training:
            plain: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states,
                key_value_states=key_value_states,
                cache=cache,
                attention_mask=attention_mask,
                output_attentions=output_attentions,
                **kwargs,
            )
            return plain
        layers = (self.q_proj, self.k_proj, self.v_proj)
        first_DX = torch.cat([layer.weight1 for layer in layers], dim=1)
        ranks = [layer.rank for layer in layers]
        q_BTQ, k_BTK, v_BTV = torch.split(_affine(hidden_states, first_DX), ranks, dim=-1)
        mixed, weights_BHTT = attend(
            *self._queries_and_keys(q_BTQ, k_BTK),
            v_BTV[:, None] if self.rank_space.values else self._heads(v_BTV, self.v_proj),
            scale=self.scaling,
            mask=attention_mask,
            need_weights=output_attentions,
        )
        return self._output(mixed.transpose(1, 2).flatten(2)), weights_BHTT

    def _queries_and_keys(self, q_BTQ: Tensor, k_BTK: Tensor) -> tuple[Tensor, Tensor]:
        if self.rank_space.scores == "heads":
            return self._heads(q_BTQ, self.q_proj), self._heads(k_BTK, self.k_proj)
        q_QHE = _split(self.q_proj.weight2, self.num_heads)
        k_KHE = _split(self.k_proj.weight2, self.num_heads)
        bias_HE = _split(self.q_proj.bias, self.num_heads)
        if self.rank_space.scores == "keys":
            between_QX = torch.einsum("qhe,khe->qhk", q_QHE, k_KHE).flatten(1)
            bias_X = torch.einsum("he,khe->hk", bias_HE, k_KHE).flatten()
            return split_heads(_affine(q_BTQ, between_QX, bias_X), self.num_heads), k_BTK[:, None]
        with_bias_XHE = torch.cat([q_QHE, bias_HE[None]])
        between_KX = torch.einsum("khe,xhe->khx", k_KHE, with_bias_XHE).flatten(1)
        q_BTX = torch.cat([q_BTQ, torch.ones_like(q_BTQ[..., :1])], dim=-1)
        return q_BTX[:, None], split_heads(_affine(k_BTK, between_KX), self.num_heads)

    def _heads(self, x_BTK: Tensor, layer: LowRankLinear) -> Tensor:
        return split_heads(_affine(x_BTK, layer.weight2, layer.bias), self.num_heads)

    def _output(self, mixed_BTX: Tensor) -> Tensor:
        out: LowRankLinear | nn.Linear = self.out_proj
        if not self.rank_space.values:
            return run(out, mixed_BTX)
        first_DO = out.weight1 if isinstance(out, LowRankLinear) else out.weight.T
        v_VHE = _split(self.v_proj.weight2, self.num_heads)
        out_HEO = first_DO.reshape(self.num_heads, -1, first_DO.shape[1])
        through_XO = torch.einsum("vhe,heo->hvo", v_VHE, out_HEO).flatten(0, 1)
        bias_O = self.v_proj.bias @ first_DO
        if isinstance(out, LowRankLinear):
            return _affine(_affine(mixed_BTX, through_XO, bias_O), out.weight2, out.bias)
        return _affine(mixed_BTX, through_XO, bias_O + out.bias)


def use_rank_space(
    encoder: nn.Module, frames: int = 1500, *, fuse_all: bool = False
) -> dict[str, RankSpacePlan]:
    """Let each self-attention compute scores and values between factors where that is less work.

    Parameters and their names stay as they are; :func:`use_plain_attention` undoes it. Layers whose
    q, k and v are not all low-rank, and those that would not gain, keep their plain attention.
    Idempotent; with another number of frames it decides anew.

    Args:
        encoder: Hugging Face's Whisper encoder, or a model that has it.
        frames: Frames T of a window.
        fuse_all: Let also those that would not gain compute the first factors of q, k and v in
            one product, where they are not pivoted.

    Returns:
        Name of each layer that computes between factors → what it does there.

    Example:
        >>> from transformers import WhisperConfig
        >>> from transformers.models.whisper.modeling_whisper import WhisperEncoder
        >>> use_rank_space(WhisperEncoder(WhisperConfig(encoder_layers=1)))
        {}
    """
    changed = {}
    for name, module in encoder.named_modules():
        if type(module) not in (WhisperAttention, RankSpaceAttention) or not _can_change(module):
            continue
        plan = _ranks(module).best_plan(frames)
        gains = plan != RankSpacePlan() or (fuse_all and not _ranks(module).pivoted)
        if not gains:
            _make_plain(module)
            continue
        # As torch's own parametrizations do: hooks, mode and parameters stay with the module.
        module.__class__ = RankSpaceAttention
        module.rank_space = plan
        changed[name] = plan
    return changed


def use_plain_attention(encoder: nn.Module) -> None:
    """Undo :func:`use_rank_space`; idempotent."""
    for module in encoder.modules():
        _make_plain(module)


def _make_plain(module: nn.Module) -> None:
    if type(module) is RankSpaceAttention:
        module.__class__ = WhisperAttention
        del module.rank_space


def _can_change(attention: Any) -> bool:
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return (
        not attention.is_decoder
        and all(type(one) in (LowRankLinear, PivotedLinear) for one in projections)
        and type(attention.out_proj) in (LowRankLinear, PivotedLinear, nn.Linear)
    )


def _ranks(attention: Any) -> AttentionRanks:
    out = attention.out_proj
    return AttentionRanks(
        attention.embed_dim,
        attention.num_heads,
        attention.q_proj.rank,
        attention.k_proj.rank,
        attention.v_proj.rank,
        out.rank if isinstance(out, LowRankLinear) else None,
        all(type(getattr(attention, f"{x}_proj")) is PivotedLinear for x in "qkv"),
        type(out) is PivotedLinear,
    )


def _split(stacked: Tensor, heads: int) -> Tensor:
    """Heads side by side in the last dimension to a dimension of their own."""
    return stacked.reshape(*stacked.shape[:-1], heads, -1)


def _affine(x_BTI: Tensor, weight_IO: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x @ weight + bias`` in one product, also under autocast."""
    y_XO = affine(x_BTI.flatten(0, -2), weight_IO, bias_O)
    return y_XO.reshape(*x_BTI.shape[:-1], y_XO.shape[-1])
