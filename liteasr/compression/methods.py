"""Compression methods by name.

Methods have a name in :data:`METHODS`; one of your own is named by its dotted path.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from liteasr.compression.blockwise import RefinedMethod
from liteasr.compression.method import (
    AllocationError,
    CalibrationBatch,
    CompressionMethod,
    Processes,
)
from liteasr.compression.pca import PCAMethod
from liteasr.compression.sensitivity import SensitivityMethod

__all__ = [
    "METHODS",
    "AllocationError",
    "CalibrationBatch",
    "CompressionMethod",
    "PCAMethod",
    "Processes",
    "RefinedMethod",
    "SensitivityMethod",
    "build_method",
    "find_method",
]

METHODS: dict[str, type[CompressionMethod]] = {
    "auto": RefinedMethod,
    "pca": PCAMethod,
    "sensitivity": SensitivityMethod,
}


def build_method(name: str, **options: Any) -> CompressionMethod:
    """Make a method from its name in the registry or its dotted path.

    Args:
        name: ``pca``, or ``package.module.Class``.
        options: Arguments of the class.

    Raises:
        ValueError: If there is no such method, or it does not take these options.

    Example:
        >>> build_method("pca", padding_weight=0.05).options()["padding_weight"]
        0.05
    """
    cls = find_method(name)
    try:
        inspect.signature(cls).bind(**options)
    except TypeError as error:
        raise ValueError(f"method {name!r}: {error}") from error
    return cls(**options)


def find_method(name: str) -> type[CompressionMethod]:
    """The class of a method, from its name in the registry or its dotted path.

    Raises:
        ValueError: If there is no such method.
    """
    return METHODS.get(name) or _import_method(name)


def _import_method(path: str) -> type[CompressionMethod]:
    module_name, _, class_name = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise ValueError(f"no method {path!r}; there are {sorted(METHODS)}, or give a dotted path")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import the method {path!r}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, CompressionMethod)):
        raise ValueError(f"{path!r} is not a CompressionMethod")
    return cls
