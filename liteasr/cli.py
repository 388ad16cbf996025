"""The console script ``liteasr <command>`` and what all entry points share."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

import transformers

from liteasr.config import ConfigError
from liteasr.distributed import lost_a_process
from liteasr.errors import RunError

__all__ = ["COMMANDS", "main", "recipe_parser", "run_main"]

COMMANDS = {
    "fit": "compress a checkpoint as a recipe says, and measure it",
    "evaluate": "measure the word error rate of a checkpoint",
    "transcribe": "write down what is said in audio of any length",
    "benchmark": "time a compressed checkpoint beside the dense one, in turn",
    "compare": "compress a checkpoint by several methods to several sizes, and measure all",
    "export": "write a checkpoint as ONNX graphs, or as a folder for transformers",
    "report": "make the pictures and the page of a finished run once more",
}


def recipe_parser(command: str) -> argparse.ArgumentParser:
    """Arguments of a command that runs a recipe: ``config``, the two looks at it, ``overrides``.

    Args:
        command: A key of :data:`COMMANDS`.
    """
    parser = argparse.ArgumentParser(prog=f"liteasr {command}", description=COMMANDS[command])
    parser.add_argument("--config", required=True, metavar="RECIPE", help="YAML file or its name")
    parser.add_argument("--print-config", action="store_true", help="show the resolved recipe")
    parser.add_argument("--dry-run", action="store_true", help="check all but the weights")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. run.dir=out")
    return parser


def run_main(body: Callable[[], None], command: str | None = "fit") -> int:
    """Run an entry point and turn its end into an exit code.

    Args:
        body: The work.
        command: What goes on with ``run.resume=true`` after an interrupt, if it can.

    Returns:
        0 done; 2 the configuration or an input is wrong, said on stderr without a traceback; 1
        anything else (1 for an interrupt too).
    """
    _quiet()
    try:
        body()
    except ConfigError as error:
        print(f"liteasr: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit):
        # Lightning turns an interrupt within a trainer into SystemExit.
        hint = "" if command is None else f" ({command} goes on with run.resume=true)"
        print(f"liteasr: interrupted{hint}", file=sys.stderr)
        return 1
    except (RunError, OSError) as error:
        print(f"liteasr: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not lost_a_process(error):
            raise
        hint = "" if command is None else f"; {command} goes on with run.resume=true"
        print(f"liteasr: another process of this run has ended{hint}\n  {error}", file=sys.stderr)
        return 1
    return 0


def _quiet() -> None:
    """Leave the screen to what the user asked for: warnings of ours, not of libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "datasets", "fsspec", "urllib3", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    for message in (
        "LeafSpec",
        "exists and is not empty",
        "does not have many workers",
        "in eval mode",
        "overrides the configure_model callback",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a command.

    Args:
        argv: Arguments without the program's name; those of the process if absent.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(prog="liteasr")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    arguments, rest = parser.parse_known_args(argv)
    command: Callable[[Sequence[str]], int] = importlib.import_module(
        f"liteasr.{arguments.command}"
    ).main
    return command(rest)
