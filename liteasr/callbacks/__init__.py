"""Lightning callbacks."""

from liteasr.callbacks.compression import CompressionCallback
from liteasr.callbacks.decoding_progress import DecodingProgress
from liteasr.callbacks.training import (
    BestCheckpoint,
    EndAtOnce,
    LastCheckpoint,
    SeededSteps,
    StopEarly,
    StopOnBadData,
    StopOnNonFiniteLoss,
)

__all__ = [
    "BestCheckpoint",
    "CompressionCallback",
    "DecodingProgress",
    "EndAtOnce",
    "LastCheckpoint",
    "SeededSteps",
    "StopEarly",
    "StopOnBadData",
    "StopOnNonFiniteLoss",
]
