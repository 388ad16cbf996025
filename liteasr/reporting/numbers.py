"""Numbers as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["duration", "megabytes", "signed", "speed", "speed_ratio"]


def signed(value: float, digits: int) -> str:
    """A difference, with a minus as wide as the plus.

    >>> signed(1.25, 2), signed(-0.7, 1), signed(-0.001, 1)
    ('+1.25', '−0.7', '+0.0')
    """
    text = f"{round(value, digits) + 0.0:+.{digits}f}"
    return text.replace("-", "−")


def megabytes(amount: float) -> str:
    """Memory.

    >>> megabytes(893.2), megabytes(12345)
    ('893 MB', '12.3 GB')
    """
    return f"{amount / 1000:.1f} GB" if amount >= 10_000 else f"{amount:.0f} MB"


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(4.21), duration(83), duration(3700)
    ('4.2 s', '1 min 23 s', '1 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def speed(rtfx: float) -> str:
    """RTFx in three digits.

    >>> speed(25.0), speed(1234.5), speed(0.0123)
    ('25.0', '1230', '0.0123')
    """
    return f"{float(f'{rtfx:.3g}'):.0f}" if rtfx >= 100 else f"{rtfx:#.3g}"


def speed_ratio(key: str, first: Mapping[str, Any], last: Mapping[str, Any]) -> str | None:
    """How many times as fast the last stage was as the first; ``None`` if that is not known.

    Args:
        key: ``rtfx`` or ``encoder_rtfx``.
        first: A stage of ``metrics.json``.
        last: Another.

    Example:
        >>> stage = {"rtfx": 4.0, "ran_on": "1 × CPU"}
        >>> speed_ratio("rtfx", stage, stage | {"rtfx": 5.0})
        '× 1.25'
        >>> speed_ratio("rtfx", stage, stage | {"ran_on": "1 × GPU"})
        'not on the same device'
    """
    before, after = first.get(key), last.get(key)
    if not (before and after):
        return None
    if first.get("ran_on") != last.get("ran_on"):
        return "not on the same device"
    return f"× {after / before:.2f}"
