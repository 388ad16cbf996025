"""Configuration of model type ``lite-whisper``."""

from __future__ import annotations

from typing import Any

from transformers import WhisperConfig

__all__ = ["HEAD_DIMS", "LINEAR_NAMES", "LiteWhisperConfig"]

HEAD_DIMS = ("qk_dim", "v_dim")
LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class LiteWhisperConfig(WhisperConfig):
    """A Whisper configuration that also says which encoder layers are low-rank.

    Args:
        low_rank_config: One dict for each encoder layer, from a name among ``q_proj``,
            ``k_proj``, ``v_proj``, ``out_proj``, ``fc1``, ``fc2`` to its rank; a missing name is
            a dense layer. Absent: every layer is dense.
        reduced_attention: One dict for each encoder layer: the dimensions of each head of its
            self-attention, ``qk_dim`` for queries and keys and ``v_dim`` for values, or ``{}``
            for dense heads. Absent: all heads are dense. The published format does not know it;
            where it is absent, it is not in ``config.json`` either.
        pivoted: Whether the low-rank layers are :class:`~liteasr.modeling.PivotedLinear`. As for
            ``reduced_attention``, the key is in ``config.json`` only where it is true.
        conv2_rank: Rank of the encoder's second convolution, as a
            :class:`~liteasr.modeling.FramedConvolution`; dense if absent. The published format
            does not know it either.
        kwargs: Everything :class:`transformers.WhisperConfig` takes.

    Raises:
        ValueError: If a list has not one dict a layer, or a name or a number is impossible.

    Example:
        >>> config = LiteWhisperConfig(encoder_layers=2, low_rank_config=[{"fc1": 16}, {}])
        >>> config.low_rank_config[0]
        {'fc1': 16}
    """

    model_type = "lite-whisper"

    reduced_attention: list[dict[str, int]] | None = None
    pivoted: bool = False
    conv2_rank: int | None = None

    def __init__(
        self,
        low_rank_config: list[dict[str, int]] | None = None,
        reduced_attention: list[dict[str, int]] | None = None,
        pivoted: bool = False,
        conv2_rank: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.low_rank_config = low_rank_config
        if conv2_rank is not None:
            if not 1 <= conv2_rank <= self.d_model:
                raise ValueError(f"conv2_rank: {conv2_rank} is not in 1…{self.d_model}")
            self.conv2_rank = conv2_rank
        if pivoted:
            self.pivoted = True
            for index, ranks in enumerate(low_rank_config or []):
                for name, rank in ranks.items():
                    if isinstance(rank, int) and rank > self.d_model:
                        where = f"low_rank_config[{index}][{name!r}]"
                        raise ValueError(f"{where}: {rank} is above the width {self.d_model}")
        if low_rank_config is not None:
            self._check("low_rank_config", low_rank_config, LINEAR_NAMES)
        if reduced_attention is not None:
            self.reduced_attention = reduced_attention
            self._check("reduced_attention", reduced_attention, HEAD_DIMS)
            for index, dims in enumerate(reduced_attention):
                missing = set(HEAD_DIMS) - dims.keys()
                if dims and missing:
                    raise ValueError(f"reduced_attention[{index}] lacks {missing.pop()!r}")

    def _check(self, key: str, layers: list[dict[str, int]], known: tuple[str, ...]) -> None:
        if len(layers) != self.encoder_layers:
            raise ValueError(
                f"{key} has {len(layers)} entries, but the encoder has {self.encoder_layers} layers"
            )
        for index, values in enumerate(layers):
            for name, value in values.items():
                if name not in known:
                    raise ValueError(f"{key}[{index}] names {name!r}; known are {known}")
                if not isinstance(value, int) or value < 1:
                    where = f"{key}[{index}][{name!r}]"
                    raise ValueError(f"{where} must be a positive integer, got {value!r}")
