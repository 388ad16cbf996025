"""Ogg Opus files whose bytes depend on nothing but the sound."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

__all__ = ["with_serial", "write_ogg"]

_COMPRESSION = 0.92
"""Between 0 and 1; here about 26 kbit/s, at which Opus is hard to tell from the original."""

_SERIAL = slice(14, 18)
_CHECKSUM = slice(22, 26)
_SEGMENT_COUNT = 26
_HEADER = 27


def write_ogg(file: Path, samples: npt.NDArray[np.float32], rate: int) -> None:
    """Write mono sound; the file is there as a whole or not at all.

    Args:
        file: Where to.
        samples: (N,), full scale ±1.
        rate: Of the samples, in Hz; one that Opus knows (16000).
    """
    content = io.BytesIO()
    soundfile.write(
        content, samples, rate, format="OGG", subtype="OPUS", compression_level=_COMPRESSION
    )
    part = file.with_name(file.name + ".part")
    part.write_bytes(with_serial(content.getvalue(), 1))
    os.replace(part, file)


def with_serial(content: bytes, serial: int) -> bytes:
    """An Ogg file with another serial number of its stream.

    libsndfile draws it from the clock, which would make every file differ from its repetition.

    Args:
        content: An Ogg file of one stream.
        serial: Its new number.
    """
    pages, start = bytearray(content), 0
    while start < len(pages):
        lacing_end = start + _HEADER + pages[start + _SEGMENT_COUNT]
        end = lacing_end + sum(pages[start + _HEADER : lacing_end])
        page = pages[start:end]
        page[_SERIAL] = serial.to_bytes(4, "little")
        page[_CHECKSUM] = bytes(4)
        page[_CHECKSUM] = _crc(page).to_bytes(4, "little")
        pages[start:end] = page
        start = end
    return bytes(pages)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_TABLE = _crc_table()


def _crc(page: bytes | bytearray) -> int:
    """Ogg's checksum: CRC-32 without reflection, which zlib does not have."""
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ _TABLE[value >> 24 ^ byte]
    return value
