"""Configuration of model type ``lite-whisper``."""

from __future__ import annotations

from typing import Any

from transformers import WhisperConfig

__all__ = ["LINEAR_NAMES", "LiteWhisperConfig"]

LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class LiteWhisperConfig(WhisperConfig):
    """A Whisper configuration that also says which encoder layers are low-rank.

    Args:
        low_rank_config: One dict for each encoder layer, from a name among ``q_proj``,
            ``k_proj``, ``v_proj``, ``out_proj``, ``fc1``, ``fc2`` to its rank; a missing name is
            a dense layer. Absent: every layer is dense.
        kwargs: Everything :class:`transformers.WhisperConfig` takes.

    Raises:
        ValueError: If the list has not one dict a layer, or a name or a rank is impossible.

    Example:
        >>> config = LiteWhisperConfig(encoder_layers=2, low_rank_config=[{"fc1": 16}, {}])
        >>> config.low_rank_config[0]
        {'fc1': 16}
    """

    model_type = "lite-whisper"

    def __init__(self, low_rank_config: list[dict[str, int]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low_rank_config = low_rank_config
        if low_rank_config is not None:
            self._check_ranks(low_rank_config)

    def _check_ranks(self, low_rank_config: list[dict[str, int]]) -> None:
        if len(low_rank_config) != self.encoder_layers:
            raise ValueError(
                f"low_rank_config has {len(low_rank_config)} entries, "
                f"but the encoder has {self.encoder_layers} layers"
            )
        for index, ranks in enumerate(low_rank_config):
            for name, rank in ranks.items():
                if name not in LINEAR_NAMES:
                    raise ValueError(
                        f"low_rank_config[{index}] names {name!r}; known are {LINEAR_NAMES}"
                    )
                if not isinstance(rank, int) or rank < 1:
                    where = f"low_rank_config[{index}][{name!r}]"
                    raise ValueError(f"{where} must be a positive integer, got {rank!r}")
