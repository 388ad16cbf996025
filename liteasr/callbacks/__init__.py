"""Lightning callbacks."""

from liteasr.callbacks.compression import CompressionCallback
from liteasr.callbacks.decoding_progress import DecodingProgress
from liteasr.callbacks.training import LastCheckpoint, SeededSteps, StopEarly, StopOnNonFiniteLoss

__all__ = [
    "CompressionCallback",
    "DecodingProgress",
    "LastCheckpoint",
    "SeededSteps",
    "StopEarly",
    "StopOnNonFiniteLoss",
]
