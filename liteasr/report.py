"""``python -m liteasr.report RUN_DIR``: pictures and page of a finished run once more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from liteasr.cli import COMMANDS, run_main
from liteasr.reporting import write_report

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="liteasr report", description=COMMANDS["report"])
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of fit or compare")
    arguments = parser.parse_args(argv)
    return run_main(lambda: print(write_report(arguments.run)), command=None)


if __name__ == "__main__":
    sys.exit(main())
