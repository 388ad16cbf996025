"""With what a run was made: versions and hardware, kept beside its numbers."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

__all__ = ["FORMAT", "environment"]

FORMAT = 1
"""Of the files in a run folder that reports are made from."""

_PACKAGES = (
    *("torch", "lightning", "transformers", "datasets", "torchmetrics", "jiwer", "numpy"),
    *("soundfile", "soxr", "safetensors", "whisper-normalizer", "matplotlib"),
)


def environment() -> dict[str, Any]:
    """The content of ``environment.json``: format, Python, system, device, versions of packages.

    >>> sorted(environment())
    ['device', 'format', 'packages', 'python', 'system']
    """
    versions = {name: _version(name) for name in ("liteasr", *_PACKAGES)}
    return {
        "format": FORMAT,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": _device(),
        "packages": {name: version for name, version in versions.items() if version is not None},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    """The NVIDIA GPU that did the work, or the processor."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
