"""A compressed encoder as fast as its layers allow, with no change of its parameters."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .linear import PivotedLinear
from .products import onednn_is_faster
from .rank_space import use_plain_attention, use_rank_space
from .tiles import use_tiles, use_whole_clips

__all__ = ["use_fast_inference", "use_plain_inference"]


def use_fast_inference(encoder: nn.Module, frames: int = 1500) -> None:
    """Compute attention between low-rank factors where that is less work, and all in tiles.

    Outputs are the same to rounding. Pivoted layers keep their weights put together
    (:meth:`PivotedLinear.keep_weights`), which takes memory; call this again after a change of the
    ``data`` of parameters. :class:`~liteasr.modeling.LiteWhisperForConditionalGeneration`
    does it by itself; :func:`use_plain_inference` undoes it, and has to where hooks of the
    attention's projections are to run. Idempotent.

    Args:
        encoder: Hugging Face's Whisper encoder, or a model that has it, with low-rank layers.
        frames: Frames T of a window.
    """
    onednn_is_faster()  # which is found out now and not while the encoder is timed or watched
    use_plain_inference(encoder)
    use_rank_space(encoder, frames)
    use_tiles(encoder)
    for layer in _pivoted(encoder):
        layer.keep_weights()


def use_plain_inference(encoder: nn.Module) -> None:
    """Let every layer run as Hugging Face's own do; idempotent."""
    use_plain_attention(encoder)
    use_whole_clips(encoder)
    for layer in _pivoted(encoder):
        layer.keep_weights(False)


def _pivoted(encoder: nn.Module) -> Iterator[PivotedLinear]:
    return (one for one in encoder.modules() if isinstance(one, PivotedLinear))
