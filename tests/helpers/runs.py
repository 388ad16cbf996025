"""What tests of whole runs share."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DENSE_PARAMS = 7_632_384


def without(arguments, *prefixes):
    """Arguments that do not begin with any of the prefixes."""
    return [argument for argument in arguments if not argument.startswith(prefixes)]
