"""Lightning callbacks."""

from liteasr.callbacks.compression import CompressionCallback
from liteasr.callbacks.decoding_progress import DecodingProgress

__all__ = ["CompressionCallback", "DecodingProgress"]
