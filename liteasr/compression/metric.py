"""Low-rank factors in a metric: what an error costs, not how large it is.

Tensors in, tensors out. Shape suffixes: I input width, O output width, D width of the side of a
layer that is projected (its output, or its input where that is narrower), R components, K rank.
``y = W x + b`` with ``W`` (O, I). Everything is fp64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from liteasr.compression.factorize import LowRankFactors, Whitening, descending_eigh

__all__ = [
    "MetricPCA",
    "balanced",
    "damped",
    "pca_in_metric",
    "projected_factors",
    "spectrum_in_metric",
    "whitening_of",
]


@dataclass
class MetricPCA:
    """Principal components of a vector ``y`` in a metric ``G`` (an error ``e`` costs ``eᵀ G e``).

    The projection of rank K that loses least is ``ŷ = mu + B (Aᵀ (y − mu))`` with ``A`` and ``B``
    the first K columns of ``analysis_DR`` and ``synthesis_DR``; what it loses is the sum of the
    other eigenvalues.

    Attributes:
        mean_D: Mean of ``y``, fp64.
        eigenvalues_R: Costs of leaving a component out, descending, never negative, fp64.
        analysis_DR: ``A``, fp64.
        synthesis_DR: ``B``, fp64; ``Aᵀ B`` is the identity.
    """

    mean_D: Tensor
    eigenvalues_R: Tensor
    analysis_DR: Tensor
    synthesis_DR: Tensor


def _roots(symmetric_DD: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Square root and its inverse, after adding ``damping`` times the mean eigenvalue."""
    eigenvalues_D, vectors_DD = torch.linalg.eigh((symmetric_DD + symmetric_DD.T).double() / 2)
    eigenvalues_D = eigenvalues_D.clamp_min(0)
    # A metric or a covariance of nothing but zeros must not divide by zero.
    tiny = torch.finfo(torch.float64).tiny ** 0.5
    damped_D = (eigenvalues_D + damping * eigenvalues_D.mean()).clamp_min(tiny)
    return (vectors_DD * damped_D.sqrt()) @ vectors_DD.T, (
        vectors_DD * damped_D.rsqrt()
    ) @ vectors_DD.T


def pca_in_metric(
    mean_D: Tensor, covariance_DD: Tensor, metric_DD: Tensor, damping: float = 0.1
) -> MetricPCA:
    """Components of ``G^{1/2} S G^{1/2}``: the best projection in the metric ``G``.

    Args:
        mean_D: Mean of the vector, (D,).
        covariance_DD: Its covariance ``S``, (D, D).
        metric_DD: ``G``, (D, D), symmetric and non-negative.
        damping: Added to ``G``, as a share of its mean eigenvalue.

    Example:
        >>> pca = pca_in_metric(
        ...     torch.zeros(2), torch.diag(torch.tensor([4.0, 1.0])),
        ...     torch.diag(torch.tensor([1.0, 9.0])), damping=0.0,
        ... )
        >>> pca.eigenvalues_R
        tensor([9., 4.], dtype=torch.float64)
    """
    root_DD, inverse_DD = _roots(metric_DD, damping)
    eigenvalues_D, vectors_DD = descending_eigh(root_DD @ covariance_DD.double() @ root_DD)
    return MetricPCA(mean_D.double(), eigenvalues_D, root_DD @ vectors_DD, inverse_DD @ vectors_DD)


def damped(metric_DD: Tensor, damping: float) -> Tensor:
    """A metric with ``damping`` times its mean eigenvalue added to each."""
    mean = metric_DD.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
    identity_DD = torch.eye(len(metric_DD), dtype=metric_DD.dtype, device=metric_DD.device)
    result_DD: Tensor = metric_DD + damping * mean * identity_DD
    return result_DD


def spectrum_in_metric(covariance_DD: Tensor, metric_DD: Tensor, damping: float = 0.1) -> Tensor:
    """The eigenvalues that :func:`pca_in_metric` gives, (D,), in a fraction of its time.

    With a damping so small that rounding leaves the metric indefinite it takes as long.

    Example:
        >>> covariance, metric = torch.diag(torch.tensor([4.0, 1.0])), torch.eye(2)
        >>> spectrum_in_metric(covariance, metric, damping=1.0).round(decimals=6)
        tensor([8., 2.], dtype=torch.float64)
    """
    symmetric_DD = (metric_DD + metric_DD.T).double() / 2
    root_DD, info = torch.linalg.cholesky_ex(damped(symmetric_DD, damping))
    if int(info) != 0:
        root_DD, _ = _roots(symmetric_DD, damping)
    spectrum_D: Tensor = torch.linalg.eigvalsh(root_DD.T @ covariance_DD.double() @ root_DD)
    return spectrum_D.flip(0).clamp_min(0)


def projected_factors(
    weight_OI: Tensor, bias_O: Tensor | None, pca: MetricPCA, rank: int, *, on_input: bool
) -> LowRankFactors:
    """Factors of a layer whose output, or input, is projected onto K components.

    On the output ``ŷ = mu + B Aᵀ (W x + b − mu)``; on the input ``ŷ = W (mu + B Aᵀ (x − mu)) + b``.
    The mean output is exact at any rank, and the layer itself at full rank.

    Args:
        weight_OI: Weight of the dense layer, (O, I).
        bias_O: Its bias, (O,), or none.
        pca: Components of its output or input.
        rank: K, at most the number of components.
        on_input: Which of the two.

    Raises:
        ValueError: If there are fewer components than ``rank``.
    """
    if not 1 <= rank <= pca.analysis_DR.shape[1]:
        raise ValueError(f"rank {rank} is not in 1…{pca.analysis_DR.shape[1]}")
    analysis_DK, synthesis_DK = pca.analysis_DR[:, :rank], pca.synthesis_DR[:, :rank]
    weight_OI = weight_OI.to(analysis_DK.device).double()
    bias_O = _or_zeros(bias_O, weight_OI)
    if on_input:
        lost_D = pca.mean_D - synthesis_DK @ (analysis_DK.T @ pca.mean_D)
        factors = LowRankFactors(
            analysis_DK, (weight_OI @ synthesis_DK).T, bias_O + weight_OI @ lost_D
        )
    else:
        kept_O = synthesis_DK @ (analysis_DK.T @ (bias_O - pca.mean_D))
        factors = LowRankFactors(weight_OI.T @ analysis_DK, synthesis_DK.T, pca.mean_D + kept_O)
    return balanced(factors)


def whitening_of(
    weight_OI: Tensor,
    bias_O: Tensor | None,
    mean_D: Tensor,
    covariance_DD: Tensor,
    metric_DD: Tensor,
    rank: int,
    *,
    on_input: bool,
    damping: float = 0.1,
    covariance_damping: float = 1e-3,
) -> Whitening:
    """The projection of :func:`pca_in_metric` in coordinates that are white in ``S`` and ``G``.

    ``S^{1/2} G^{1/2} = U Λ Vᵀ`` gives ``A = S^{-1/2} U Λ`` and ``B = G^{-1/2} V``; entries of
    ``U Λ^{1/2}`` and ``V Λ^{1/2}`` are what is refined.

    Args:
        weight_OI: Weight of the dense layer, (O, I).
        bias_O: Its bias, (O,), or none.
        mean_D: Mean of the projected side, (D,).
        covariance_DD: Its covariance ``S``, (D, D).
        metric_DD: ``G``, (D, D).
        rank: K.
        on_input: Whether the input is projected rather than the output.
        damping: Of ``G``, as a share of its mean eigenvalue.
        covariance_damping: Of ``S``, likewise.
    """
    weight_OI = weight_OI.to(mean_D.device).double()
    bias_O = _or_zeros(bias_O, weight_OI)
    metric_root_DD, metric_inverse_DD = _roots(metric_DD, damping)
    root_DD, inverse_DD = _roots(covariance_DD, covariance_damping)
    left_DD, values_D, right_DD = torch.linalg.svd(root_DD @ metric_root_DD)
    scale_K = values_D[:rank].clamp_min(torch.finfo(torch.float64).tiny ** 0.25).sqrt()
    return Whitening(
        left_ID=inverse_DD if on_input else weight_OI.T @ inverse_DD,
        right_DO=metric_inverse_DD @ weight_OI.T if on_input else metric_inverse_DD,
        a_DK=left_DD[:, :rank] * scale_K,
        b_DK=right_DD[:rank].T * scale_K,
        scale_K=scale_K,
        centre_D=inverse_DD @ (mean_D if on_input else mean_D - bias_O),
        mean_O=weight_OI @ mean_D + bias_O if on_input else mean_D,
    )


def balanced(factors: LowRankFactors) -> LowRankFactors:
    """Equal norms of each component in the two factors; their product stays as it is.

    Low-precision types and optimizers need it.
    """
    norm1_K = factors.weight1.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
    norm2_K = factors.weight2.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
    ratio_K = (norm2_K / norm1_K).sqrt()
    return LowRankFactors(
        factors.weight1 * ratio_K,
        (factors.weight2 / ratio_K[:, None]).contiguous(),
        factors.bias,
        factors.whitening,
    )


def _or_zeros(bias_O: Tensor | None, weight_OI: Tensor) -> Tensor:
    return weight_OI.new_zeros(len(weight_OI)) if bias_O is None else bias_O.to(weight_OI)
