"""Numbers as a person reads them."""

from __future__ import annotations

__all__ = ["duration", "megabytes", "signed"]


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
