"""What is computed: statistics → spectra → ranks → plan → surgery."""

from liteasr.compression.allocate import (
    Budget,
    LinearShape,
    Option,
    ThresholdRule,
    allocate_budget,
    allocate_error,
    kept_energy,
    rank_for_energy,
)
from liteasr.compression.factorize import (
    LowRankFactors,
    OutputPCA,
    low_rank_factors,
    pca_of_image,
    pca_of_output,
)
from liteasr.compression.methods import (
    METHODS,
    AllocationError,
    CalibrationBatch,
    CompressionMethod,
    PCAMethod,
    Processes,
    RefinedMethod,
    SensitivityMethod,
    build_method,
    find_method,
)
from liteasr.compression.plan import CompressionPlan, LayerPlan
from liteasr.compression.spectra import Spectra, SpectrumCurve
from liteasr.compression.statistics import MomentStatistics
from liteasr.compression.surgery import (
    ENCODER_LINEARS,
    apply_plan,
    collect_ranks,
    encoder_flops,
    encoder_parameters,
    find_linears,
)

__all__ = [
    "ENCODER_LINEARS",
    "METHODS",
    "AllocationError",
    "Budget",
    "CalibrationBatch",
    "CompressionMethod",
    "CompressionPlan",
    "LayerPlan",
    "LinearShape",
    "LowRankFactors",
    "MomentStatistics",
    "Option",
    "OutputPCA",
    "PCAMethod",
    "Processes",
    "RefinedMethod",
    "SensitivityMethod",
    "Spectra",
    "SpectrumCurve",
    "ThresholdRule",
    "allocate_budget",
    "allocate_error",
    "apply_plan",
    "build_method",
    "collect_ranks",
    "encoder_flops",
    "encoder_parameters",
    "find_linears",
    "find_method",
    "kept_energy",
    "low_rank_factors",
    "pca_of_image",
    "pca_of_output",
    "rank_for_energy",
]
