"""What is computed: statistics → spectra → ranks → plan → surgery."""

from liteasr.compression.allocate import LinearShape, ThresholdRule, kept_energy, rank_for_energy
from liteasr.compression.factorize import (
    LowRankFactors,
    OutputPCA,
    low_rank_factors,
    pca_of_image,
    pca_of_output,
)
from liteasr.compression.methods import (
    METHODS,
    CalibrationBatch,
    CompressionMethod,
    PCAMethod,
    build_method,
    find_method,
)
from liteasr.compression.plan import CompressionPlan, LayerPlan
from liteasr.compression.statistics import MomentStatistics
from liteasr.compression.surgery import (
    ENCODER_LINEARS,
    apply_plan,
    collect_ranks,
    encoder_parameters,
    find_linears,
)

__all__ = [
    "ENCODER_LINEARS",
    "METHODS",
    "CalibrationBatch",
    "CompressionMethod",
    "CompressionPlan",
    "LayerPlan",
    "LinearShape",
    "LowRankFactors",
    "MomentStatistics",
    "OutputPCA",
    "PCAMethod",
    "ThresholdRule",
    "apply_plan",
    "build_method",
    "collect_ranks",
    "encoder_parameters",
    "find_linears",
    "find_method",
    "kept_energy",
    "low_rank_factors",
    "pca_of_image",
    "pca_of_output",
    "rank_for_energy",
]
