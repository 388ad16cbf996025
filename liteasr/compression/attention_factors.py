"""Heads in fewer dimensions: the best joint factors of a head's projections.

Tensors in, tensors out. Shape suffixes: I input width, H heads, E width of a dense head, O output
width, R dimensions of a head for queries and keys, V for values. Everything is fp64.

Of the queries and keys of a head only their scores matter, of its values and its part of the
output only their product. Both are a product ``aᵀ b`` of two vectors of the head's width, and of
all pairs of maps to R dimensions the one that errs least follows from the second moments ``A``
and ``B`` alone. With ``A^½ B^½ = U S Vᵀ``

    â = S^-½ Vᵀ B^½ a,   b̂ = S^-½ Uᵀ A^½ b     (the first R components)

has ``E (aᵀb − âᵀb̂)² = Σ_{i>R} S_i²``, the least there is (Eckart-Young; the formulas are those of
balanced truncation by square roots, and invert no covariance).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "AttentionFactors",
    "AttentionWeights",
    "HeadModes",
    "block_diagonal",
    "head_factors",
    "modes_in_metric",
    "score_modes",
    "value_modes",
]


@dataclass
class AttentionWeights:
    """Parameters of a dense self-attention.

    Attributes:
        q_weight: (D, I), heads side by side.
        q_bias: (D,).
        k_weight: (D, I). A bias of the keys would not matter.
        v_weight: (D, I).
        v_bias: (D,).
        out_weight: (O, D).
        out_bias: (O,).
        heads: H.
    """

    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    v_weight: Tensor
    v_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    heads: int


@dataclass
class AttentionFactors:
    """Parameters of a :class:`~liteasr.modeling.ReducedAttention`.

    Attributes:
        q_weight: (H·R, I).
        q_bias: (H·R,).
        k_weight: (H·R, I).
        v_weight: (H·V, I).
        out_weight: (O, H·V).
        out_bias: (O,).
    """

    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    v_weight: Tensor
    out_weight: Tensor
    out_bias: Tensor


@dataclass
class HeadModes:
    """Components of each head, those that matter most first.

    Attributes:
        energy_HE: What leaving a component out costs, descending in each head, never negative.
            The costs of several are their sum.
        left_HEE: Maps the head's ``a`` (queries, values) to components, in rows.
        right_HEE: Maps its ``b`` (keys, columns of the output's weight) to components, in rows.
    """

    energy_HE: Tensor
    left_HEE: Tensor
    right_HEE: Tensor

    def discarded(self, dim: int) -> Tensor:
        """Energy of each head that its first ``dim`` components leave out, (H,)."""
        return self.energy_HE[:, dim:].sum(dim=1)

    def maps(self, dim: int) -> tuple[Tensor, Tensor]:
        """Of all heads side by side: to the first components of ``a``, and of ``b``.

        Args:
            dim: R, at most E.

        Returns:
            Two block-diagonal matrices, (H·R, H·E).

        Raises:
            ValueError: If there are fewer components.
        """
        if not 1 <= dim <= self.energy_HE.shape[1]:
            raise ValueError(f"{dim} dimensions are not in 1…{self.energy_HE.shape[1]}")
        left, right = self.left_HEE[:, :dim], self.right_HEE[:, :dim]
        return block_diagonal(left), block_diagonal(right)


def modes_in_metric(
    moment_DD: Tensor, metric_DD: Tensor, heads: int, damping: float = 1e-6
) -> HeadModes:
    """Components of each head's part of a vector ``a`` when errors ``e`` of it cost ``eᵀ G e``.

    ``a`` is one of two vectors whose product alone matters, and ``G`` knows of the other. What a
    head loses with the components that are left out is their energy, as long as errors of
    different heads do not add up.

    Args:
        moment_DD: Second moment of ``a``, D = H·E.
        metric_DD: ``G``.
        heads: H.
        damping: Added to both, as a share of their mean eigenvalue.

    Example:
        >>> moment = torch.diag(torch.tensor([4.0, 1.0]))
        >>> modes = modes_in_metric(moment, torch.eye(2), heads=1, damping=0.0)
        >>> modes.energy_HE.round(decimals=6)
        tensor([[4., 1.]], dtype=torch.float64)
    """
    return _balanced(_diagonal(moment_DD, heads), _diagonal(metric_DD, heads), damping)


def score_modes(
    weights: AttentionWeights, mean_I: Tensor, covariance_II: Tensor, damping: float = 1e-6
) -> HeadModes:
    """Components of the scores ``q_hᵀ k_h / √E``; the energies are mean squares of scores.

    ``A`` is the second moment of the queries, about zero and with their bias; ``B`` is that of the
    keys about their mean, since what is the same for all keys does not pass the softmax. That is
    the SVD of ``C^½ W̃_qᵀ W̃_k C^½`` with the constant of the keys left out.

    Args:
        weights: Of the dense attention.
        mean_I: Mean of its input, (I,).
        covariance_II: Covariance of its input, (I, I).
        damping: Added to both moments, as a share of their mean eigenvalue: keeps directions that
            the data never used, at full width.
    """
    q_HEI, k_HEI = (_heads(one, weights.heads) for one in (weights.q_weight, weights.k_weight))
    covariance_II = covariance_II.double()
    q_mean_HE = q_HEI @ mean_I.double() + _heads(weights.q_bias, weights.heads)
    q_moment_HEE = q_HEI @ covariance_II @ q_HEI.mT + q_mean_HE[:, :, None] * q_mean_HE[:, None]
    modes = _balanced(q_moment_HEE, k_HEI @ covariance_II @ k_HEI.mT, damping)
    return HeadModes(modes.energy_HE / q_HEI.shape[1], modes.left_HEE, modes.right_HEE)


def value_modes(
    weights: AttentionWeights,
    mean_I: Tensor,
    covariance_II: Tensor,
    metric_OO: Tensor | None = None,
    damping: float = 1e-6,
) -> HeadModes:
    """Components of a head's values on their way to the output; energies in the metric of it.

    ``A`` is the covariance of the values (their mean becomes a part of the output's bias), ``B`` is
    ``W_o,hᵀ G W_o,h``: the SVD of ``G^½ W_o,h W_v,h S^½``. The values of one frame are meant; how
    attention mixes those of several is not looked at.

    Args:
        weights: Of the dense attention.
        mean_I: Mean of its input, (I,).
        covariance_II: Covariance ``S`` of its input, (I, I).
        metric_OO: ``G``: an error ``e`` of the output costs ``eᵀ G e``; ``eᵀ e`` if absent.
        damping: As in :func:`score_modes`.
    """
    v_HEI, out_HOE = _heads(weights.v_weight, weights.heads), _out_heads(weights)
    weighted_HOE = out_HOE if metric_OO is None else metric_OO.double() @ out_HOE
    return _balanced(v_HEI @ covariance_II.double() @ v_HEI.mT, out_HOE.mT @ weighted_HOE, damping)


def head_factors(
    weights: AttentionWeights,
    mean_I: Tensor,
    scores: HeadModes,
    values: HeadModes,
    qk_dim: int,
    v_dim: int,
) -> AttentionFactors:
    """Parameters of the attention that keeps the first components of every head.

    The dense attention itself at full width. The mean of the values passes exactly at any.

    Args:
        weights: Of the dense attention.
        mean_I: Mean of its input, (I,).
        scores: Of :func:`score_modes`.
        values: Of :func:`value_modes`.
        qk_dim: R, at most E.
        v_dim: V, at most E.

    Raises:
        ValueError: If there are fewer components.
    """
    full = scores.energy_HE.shape[1]
    if not 1 <= min(qk_dim, v_dim) <= max(qk_dim, v_dim) <= full:
        raise ValueError(f"{qk_dim=} and {v_dim=} must be in 1…{full}")
    heads = weights.heads
    to_q_HRE, to_k_HRE = scores.left_HEE[:, :qk_dim], scores.right_HEE[:, :qk_dim]
    to_v_HVE, to_out_HVE = values.left_HEE[:, :v_dim], values.right_HEE[:, :v_dim]
    v_weight_HVI = to_v_HVE @ _heads(weights.v_weight, heads)
    out_HOE = _out_heads(weights)
    out_HOV = out_HOE @ to_out_HVE.mT
    # Without a bias of its own the reduced head gives the components of W_v x; what it leaves out
    # of the mean is constant.
    v_mean_HE = _heads(weights.v_weight, heads) @ mean_I.double() + _heads(weights.v_bias, heads)
    kept_mean_HV = v_weight_HVI @ mean_I.double()
    constant_O = torch.einsum("hoe,he->o", out_HOE, v_mean_HE)
    constant_O = constant_O - torch.einsum("hov,hv->o", out_HOV, kept_mean_HV)
    return AttentionFactors(
        q_weight=(to_q_HRE @ _heads(weights.q_weight, heads)).flatten(0, 1),
        q_bias=(to_q_HRE @ _heads(weights.q_bias, heads)[:, :, None]).flatten(),
        k_weight=(to_k_HRE @ _heads(weights.k_weight, heads)).flatten(0, 1),
        v_weight=v_weight_HVI.flatten(0, 1),
        out_weight=out_HOV.transpose(0, 1).flatten(1),
        out_bias=weights.out_bias.double() + constant_O,
    )


def _balanced(a_HEE: Tensor, b_HEE: Tensor, damping: float) -> HeadModes:
    """Components of ``aᵀ b`` from the second moments of both."""
    a_root_HEE, b_root_HEE = _root(a_HEE, damping), _root(b_HEE, damping)
    u_HEE, values_HE, v_HEE = torch.linalg.svd(a_root_HEE @ b_root_HEE)
    # A head that is nothing but zeros must not divide by zero.
    scale_HE = values_HE.clamp_min(torch.finfo(torch.float64).tiny ** 0.5).rsqrt()[:, :, None]
    return HeadModes(
        values_HE.square(), scale_HE * (v_HEE @ b_root_HEE), scale_HE * (u_HEE.mT @ a_root_HEE)
    )


def _root(moment_HEE: Tensor, damping: float) -> Tensor:
    eigenvalues_HE, vectors_HEE = torch.linalg.eigh((moment_HEE + moment_HEE.mT) / 2)
    eigenvalues_HE = eigenvalues_HE.clamp_min(0)
    damped_HE = eigenvalues_HE + damping * eigenvalues_HE.mean(dim=1, keepdim=True)
    root_HEE: Tensor = (vectors_HEE * damped_HE.sqrt()[:, None]) @ vectors_HEE.mT
    return root_HEE


def block_diagonal(blocks: Iterable[Tensor]) -> Tensor:
    """Matrices along the diagonal of one, zeros beside them."""
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix


def _diagonal(matrix_DD: Tensor, heads: int) -> Tensor:
    """Blocks of a matrix that belong to one head, (H, E, E)."""
    width = len(matrix_DD) // heads
    blocks = [matrix_DD[i : i + width, i : i + width] for i in range(0, len(matrix_DD), width)]
    return torch.stack(blocks).double()


def _heads(stacked: Tensor, heads: int) -> Tensor:
    """Weight (H·E, I) or bias (H·E,) to one a head."""
    return stacked.double().reshape(heads, -1, *stacked.shape[1:])


def _out_heads(weights: AttentionWeights) -> Tensor:
    """Part of the output's weight that each head has, (H, O, E)."""
    weight_OD = weights.out_weight.double()
    return weight_OD.reshape(len(weight_OD), weights.heads, -1).transpose(0, 1)
