"""Lightning callbacks."""

from liteasr.callbacks.compression import CompressionCallback

__all__ = ["CompressionCallback"]
