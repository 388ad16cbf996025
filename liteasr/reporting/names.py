"""Where a layer is, from its name."""

from __future__ import annotations

import re

__all__ = ["LINEARS", "place_of", "short_name"]

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Linear layers of an encoder layer, in the order of the rows of plots and tables."""


def place_of(name: str) -> tuple[int, str] | None:
    """Number of the encoder layer and last part of a layer's name; ``None`` if it is elsewhere.

    >>> place_of("model.encoder.layers.3.self_attn.q_proj")
    (3, 'q_proj')
    """
    found = re.search(r"encoder\.layers\.(\d+)\.(?:.*\.)?(\w+)$", name)
    return (int(found[1]), found[2]) if found and found[2] in LINEARS else None


def short_name(linear: str) -> str:
    """Heading of a kind of layer.

    >>> short_name("q_proj"), short_name("fc1")
    ('q', 'fc1')
    """
    return linear.removesuffix("_proj")
