"""Schema of the section ``compare`` of a recipe: several methods and sizes in one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

__all__ = ["CompareConfig", "CompareMethodConfig", "SearchConfig"]


@dataclass
class CompareMethodConfig:
    """One entry of a comparison: what it changes in the section ``compression``."""

    method: str = MISSING
    """As ``compression.method``, but not ``none``."""
    thresholds: str | None = None
    """As ``compression.thresholds``, scaled until the size is reached; those of the section
    ``compression`` if absent and the method is the same."""
    padding_weight: float | None = None
    """As ``compression.padding_weight``, which holds if this is absent."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the method, on top of ``compression.options`` if the method is
    the same."""


@dataclass
class SearchConfig:
    """The search for the smallest encoder that is good enough; needs ``data.val``."""

    max_wer_increase: float | None = None
    """WER on ``data.val`` (percent, mean of the sets) that the encoder may lose against the dense
    one, in points, at least 0; absent: no search."""
    method: str | None = None
    """Entry of ``compare.methods`` that is searched with; the first if absent."""
    tolerance: float = 0.01
    """How near to the smallest size the search goes, as a share of the dense encoder, above 0 and
    below 1."""


def _default_methods() -> dict[str, CompareMethodConfig]:
    return {name: CompareMethodConfig(method=name) for name in ("auto", "pca")}


@dataclass
class CompareConfig:
    """What ``liteasr compare`` compares; ``liteasr fit`` leaves it aside."""

    methods: dict[str, CompareMethodConfig] = field(default_factory=_default_methods)
    """Entries by name, which start from the section ``compression``; naming any replaces the two of
    the default."""
    encoder_params: list[str] = field(default_factory=list)
    """Sizes to compress to, as ``compression.budget.encoder_params``, e.g. ``269.93M``."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Search for the smallest encoder that is good enough."""

    @property
    def is_asked_for(self) -> bool:
        """Whether there is anything to compare or to search."""
        return bool(self.encoder_params) or self.search.max_wer_increase is not None
