"""The machine that times were taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

__all__ = ["cpu_name", "hardware"]


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, GPU, and what torch makes of them.

    Example:
        >>> sorted(hardware())
        ['cores', 'cpu', 'cpu_bf16', 'cpu_capability', 'cuda', 'gpu', 'threads', 'torch']
    """
    has_gpu = torch.cuda.is_available()
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu_name(),
        "cores": len(affinity(0)) if affinity is not None else os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_bf16": _has_bf16(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def _has_bf16() -> bool | None:
    """Whether the processor has instructions for bfloat16; ``None`` if torch does not say."""
    checks = [
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    found = [bool(check()) for check in checks if check is not None]
    return any(found) if found else None


def cpu_name(listing: str | Path = "/proc/cpuinfo") -> str:
    """Name of the processor as the system has it.

    Args:
        listing: Where Linux says it.
    """
    try:
        lines = Path(listing).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
