"""Lightning callbacks."""

from liteasr.callbacks.compression import CompressionCallback
from liteasr.callbacks.decoding_progress import DecodingProgress
from liteasr.callbacks.same_start import SameStart
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
    "SameStart",
    "SeededSteps",
    "StopEarly",
    "StopOnBadData",
    "StopOnNonFiniteLoss",
]
