"""Principal components of a layer's output and the low-rank factors they give.

Tensors in, tensors out. Shape suffixes: I input width, O output width, R components kept in
memory, K rank, D width of the side of a layer that is projected (its output, or its input where
that is narrower). ``y = W x + b`` with ``W`` (O, I). Everything is fp64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "LowRankFactors",
    "OutputPCA",
    "PivotedFactors",
    "Whitening",
    "low_rank_factors",
    "pca_of_image",
    "pca_of_output",
    "pivot",
]


@dataclass
class OutputPCA:
    """Principal components of a layer's output ``y``.

    Attributes:
        mean_O: Mean of ``y``, (O,) fp64.
        eigenvalues_R: Variances along the components, descending, never negative, fp64. Variances
            that are not listed are zero.
        basis_OR: Orthonormal components in columns, fp64.
    """

    mean_O: Tensor
    eigenvalues_R: Tensor
    basis_OR: Tensor


@dataclass
class LowRankFactors:
    """Parameters of a :class:`~liteasr.modeling.LowRankLinear`.

    Attributes:
        weight1: (I, K).
        weight2: (K, O).
        bias: (O,).
        whitening: Coordinates in which the factors may be refined; not part of the layer.
    """

    weight1: Tensor
    weight2: Tensor
    bias: Tensor
    whitening: Whitening | None = None

    def parameters(self) -> dict[str, Tensor]:
        """What is in the layer, by the name of its parameter there."""
        return {"weight1": self.weight1, "weight2": self.weight2, "bias": self.bias}


@dataclass
class PivotedFactors:
    """Parameters of a :class:`~liteasr.modeling.PivotedLinear`, which explains them.

    Attributes:
        skeleton: (K, O), or (I, K) for O < I.
        interpolation: (I - K, K), or (K, O - K) for O < I; ``None`` at full rank.
        bias: (O,).
        order: (I,) or, for O < I, (O,), whole numbers; ``None`` at full rank.
    """

    skeleton: Tensor
    interpolation: Tensor | None
    bias: Tensor
    order: Tensor | None


@dataclass
class Whitening:
    """Factors of a layer in coordinates where every entry matters alike.

    ``weight1 = left @ (a * scale)`` and ``weight2 = (b / scale)ᵀ @ right``: a unit change of any
    entry of ``a`` or ``b`` costs about the same error, which a gradient step may then take for
    all of them (K-FAC's approximation of the curvature; arXiv 1503.05671, section 3).

    Attributes:
        left_ID: From the layer's input to whitened coordinates.
        right_DO: From whitened coordinates to the layer's output.
        a_DK: First factor, whitened.
        b_DK: Second factor, whitened.
        scale_K: Root of the kept components' standard deviations.
        centre_D: Mean of the projected side in whitened coordinates.
        mean_O: Mean of the layer's output, which the bias keeps exact.
    """

    left_ID: Tensor
    right_DO: Tensor
    a_DK: Tensor
    b_DK: Tensor
    scale_K: Tensor
    centre_D: Tensor
    mean_O: Tensor

    def factors(self, a_DK: Tensor, b_DK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``weight1``, ``weight2`` and ``bias`` of whitened factors; differentiable."""
        scaled_DK = a_DK * self.scale_K
        weight2_KO = (b_DK / self.scale_K).T @ self.right_DO
        bias_O = self.mean_O - (self.centre_D @ scaled_DK) @ weight2_KO
        return self.left_ID @ scaled_DK, weight2_KO, bias_O

    def to(self, device: torch.device, dtype: torch.dtype) -> Whitening:
        """The same on another device and in another type."""
        return Whitening(**{name: value.to(device, dtype) for name, value in vars(self).items()})


def descending_eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending and never negative, and eigenvectors in columns."""
    eigenvalues, eigenvectors = torch.linalg.eigh(symmetric)
    return eigenvalues.flip(0).clamp_min(0), eigenvectors.flip(1)


def pca_of_output(mean_O: Tensor, covariance_OO: Tensor) -> OutputPCA:
    """Components from the output's own moments (arXiv 2502.20583, section 3.1).

    Args:
        mean_O: Mean of ``y``, (O,).
        covariance_OO: Covariance of ``y``, (O, O).

    Example:
        >>> pca = pca_of_output(torch.zeros(2), torch.diag(torch.tensor([1.0, 4.0])))
        >>> pca.eigenvalues_R
        tensor([4., 1.], dtype=torch.float64)
    """
    eigenvalues_O, basis_OO = descending_eigh(covariance_OO.double())
    return OutputPCA(mean_O.double(), eigenvalues_O, basis_OO)


def pca_of_image(
    mean_I: Tensor, covariance_II: Tensor, weight_OI: Tensor, bias_O: Tensor | None
) -> OutputPCA:
    """Components of ``y = W x + b`` from the moments of ``x``, without forming those of ``y``.

    ``Cov(y) = W S Wᵀ = A Aᵀ`` with ``A = W S^{1/2}``, so the components are the left singular
    vectors of ``A`` and the variances its squared singular values. For O > I only the I
    directions that ``y`` can move in are returned.

    Args:
        mean_I: Mean of ``x``, (I,).
        covariance_II: Covariance of ``x``, (I, I).
        weight_OI: Weight of the layer, (O, I).
        bias_O: Bias of the layer, (O,), or none.
    """
    weight_OI = weight_OI.to(covariance_II.device).double()
    mean_O = weight_OI @ mean_I.double()
    if bias_O is not None:
        mean_O = mean_O + bias_O.to(mean_O.device).double()
    if weight_OI.shape[0] <= weight_OI.shape[1]:
        covariance_OO = weight_OI @ covariance_II.double() @ weight_OI.T
        return pca_of_output(mean_O, (covariance_OO + covariance_OO.T) / 2)
    variances_I, directions_II = descending_eigh(covariance_II.double())
    root_OI = weight_OI @ (directions_II * variances_I.sqrt())
    basis_OI, singular_I, _ = torch.linalg.svd(root_OI, full_matrices=False)
    return OutputPCA(mean_O, singular_I.square(), basis_OI)


def low_rank_factors(
    weight_OI: Tensor, bias_O: Tensor | None, pca: OutputPCA, rank: int
) -> LowRankFactors:
    """Factors of ``ŷ = mu + V Vᵀ (y − mu)``, V the first K components (arXiv 2502.20583, eq. 4-6).

    ``weight1 = Wᵀ V``, ``weight2 = Vᵀ``, ``bias = mu + V Vᵀ (b − mu)``: the mean output is exact
    at any rank, and the layer itself is exact at full rank.

    Args:
        weight_OI: Weight of the dense layer, (O, I).
        bias_O: Its bias, (O,); zero if none (the low-rank layer gains one).
        pca: Components of its output.
        rank: K, at most the number of components.

    Raises:
        ValueError: If there are fewer components than ``rank``.
    """
    if not 1 <= rank <= pca.basis_OR.shape[1]:
        raise ValueError(f"rank {rank} is not in 1…{pca.basis_OR.shape[1]}")
    basis_OK = pca.basis_OR[:, :rank]
    weight_OI = weight_OI.to(basis_OK.device).double()
    bias_O = torch.zeros_like(pca.mean_O) if bias_O is None else bias_O.to(basis_OK.device).double()
    return LowRankFactors(
        weight1=weight_OI.T @ basis_OK,
        weight2=basis_OK.T.contiguous(),
        bias=pca.mean_O + basis_OK @ (basis_OK.T @ (bias_O - pca.mean_O)),
    )


def pivot(factors: LowRankFactors) -> PivotedFactors:
    """The same layer in ``K (I + O - K)`` numbers; exact in exact arithmetic.

    Of the rows of the factor on the narrower side, in an orthonormal basis of its columns, K are
    chosen by Gaussian elimination with partial pivoting and then by exchanges, until no other row
    has more than ``_LARGEST`` of one of them in it (Goreinov et al., "How to find a good
    submatrix", 2010). So rounding is amplified little. At full rank the skeleton is the whole
    weight.

    Args:
        factors: Factors of rank K, at most the narrower of I and O.

    Example:
        >>> one, two = torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0, 3.0]])
        >>> pivoted = pivot(LowRankFactors(one, two, bias=torch.zeros(2)))
        >>> pivoted.order.tolist(), pivoted.skeleton.tolist(), pivoted.interpolation.tolist()
        ([1, 0], [[4.0, 12.0]], [[0.5]])
    """
    weight1_IK, weight2_KO = factors.weight1.double(), factors.weight2.double()
    by_inputs = weight1_IK.shape[0] <= weight2_KO.shape[1]
    rank = weight1_IK.shape[1]
    if rank == min(weight1_IK.shape[0], weight2_KO.shape[1]):
        return PivotedFactors(weight1_IK @ weight2_KO, None, factors.bias, None)
    side_DK = weight1_IK if by_inputs else weight2_KO.T
    order_D, interpolation_XK = _interpolation(side_DK)
    pivots_KK = side_DK[order_D[: side_DK.shape[1]]]
    if by_inputs:
        return PivotedFactors(pivots_KK @ weight2_KO, interpolation_XK, factors.bias, order_D)
    return PivotedFactors(
        weight1_IK @ pivots_KK.T, interpolation_XK.T.contiguous(), factors.bias, order_D.argsort()
    )


_LARGEST = 1.05
"""Of any entry of an interpolation; with 1 exactly, rounding may exchange rows for ever."""


def _interpolation(side_DK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in the order pivots, others, and what of each pivot is in each of the others."""
    rank = side_DK.shape[1]
    basis_DK = torch.linalg.qr(side_DK).Q
    permutation_DD, lower_DK, _ = torch.lu_unpack(*torch.linalg.lu_factor(basis_DK))
    order_D = permutation_DD.argmax(dim=0)
    others_XK = torch.linalg.solve_triangular(
        lower_DK[:rank], lower_DK[rank:], upper=False, left=False, unitriangular=True
    )
    while others_XK.numel() and float(others_XK.abs().max()) > _LARGEST:
        row, column = divmod(int(others_XK.abs().argmax()), rank)
        # One row of the identity and one of the others change places.
        pivot_value = others_XK[row, column].clone()
        change_K = others_XK[row].clone()
        change_K[column] -= 1.0
        others_XK -= torch.outer(others_XK[:, column], change_K) / pivot_value
        others_XK[row] = -change_K / pivot_value
        others_XK[row, column] = 1.0 / pivot_value
        order_D[[column, rank + row]] = order_D[[rank + row, column]]
    return order_D, others_XK
