"""Blocks of a Markdown page, and whether the commands in them would be taken.

Nothing is installed, loaded or computed: each command's own parser reads the arguments, recipes are
resolved, and the work that would follow is left out.
"""

import argparse
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from runs import ROOT
from torch.distributed.run import get_args_parser as torchrun_parser

from liteasr.benchmarking.settings import check_settings
from liteasr.builders import build_method_from_config
from liteasr.comparison import check_entries
from liteasr.config import METHOD_NAMES, check_goal
from liteasr.runfolder import RunFolder

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SEPARATORS = ("|", "||", "&&", ";")
ABSENT = ("does not exist", "there is no folder")
"""What is said of a user's own files, which are not here."""


class Parsed(Exception):
    """The arguments were taken; here the work would begin."""


def blocks(page: Path, language: str) -> list[str]:
    """Content of the blocks of a page in a language."""
    return [body for name, body in BLOCK.findall(page.read_text()) if name == language]


def commands(body: str) -> list[list[str]]:
    """Words of each command of a shell block, without comments, variables and redirections."""
    found: list[list[str]] = []
    for line in body.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        command: list[str] = []
        while words:
            word = words.pop(0)
            if word in SEPARATORS:
                found.append(command)
                command = []
            elif set(word) <= set("<>"):
                words.pop(0)
            elif command or not re.fullmatch(r"\w+=.*", word):
                command.append(word)
        found.append(command)
    return [command for command in found if command]


def write_recipes(page: Path, folder: Path) -> list[Path]:
    """The recipes that a page shows, under the names in their first lines."""
    files = []
    for body in blocks(page, "yaml"):
        (name,) = re.findall(r"\A# (\S+\.yaml)$", body, re.MULTILINE)
        files.append(folder / name)
        files[-1].write_text(body)
    return files


def check_command(words: list[str], monkeypatch, capsys) -> None:
    """Fail if a command would not be taken; its current folder must hold what it names."""
    match words:
        case ["python", "-m", module, *arguments] if module.startswith("liteasr."):
            _check_liteasr([module.removeprefix("liteasr."), *arguments], monkeypatch, capsys)
        case ["liteasr", *arguments]:
            _check_liteasr(arguments, monkeypatch, capsys)
        case ["torchrun", *arguments]:
            parsed = torchrun_parser().parse_args(arguments)
            assert parsed.module, "torchrun -m liteasr.…"
            command = parsed.training_script.removeprefix("liteasr.")
            _check_liteasr([command, *parsed.training_script_args], monkeypatch, capsys)
        case ["python", script, *arguments]:
            _check_script(ROOT / script, arguments, monkeypatch)
        case ["bash" | "sbatch", script, *_]:
            assert (ROOT / script).is_file(), script
        case ["source", ".venv/bin/activate"] | ["git", "clone", *_] | ["cd", _]:
            pass
        case _:
            pytest.fail(f"nothing here knows how to check: {shlex.join(words)}")


def absent(messages: str) -> list[str]:
    """Lines that say more than that files of the user's are not here."""
    lines = [line.removeprefix("liteasr: ") for line in messages.splitlines() if line.strip()]
    return [line for line in lines if not any(said in line for said in ABSENT)]


def _check_liteasr(arguments: list[str], monkeypatch, capsys) -> None:
    from liteasr.cli import COMMANDS, main

    command = arguments[0]
    assert command in COMMANDS, f"liteasr has no {command}"
    module = importlib.import_module(f"liteasr.{command}")
    for name, work in _WORK[command].items():
        monkeypatch.setattr(module, name, work)
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    said = capsys.readouterr().err
    assert code in (0, 2), said
    assert code == 0 or absent(said) == [], said


def _look_at_fit(recipe) -> None:
    assert list(check_goal(recipe)) == []
    if recipe.compression.method in METHOD_NAMES and recipe.compression.method != "none":
        build_method_from_config(recipe.compression)


def _look_at_comparison(recipe, *, keep_models: bool = False) -> None:
    check_entries(recipe, RunFolder(recipe))


_WORK = {
    "fit": {"fit": _look_at_fit, "dry_run": _look_at_fit},
    "compare": {"compare": _look_at_comparison, "dry_run": _look_at_comparison},
    "evaluate": {"evaluate": lambda recipe: {"wer": 0.0, "datasets": {}}},
    "benchmark": {"benchmark": lambda settings, command: check_settings(settings)},
    "transcribe": {"_run": lambda arguments: None},
    "export": {"_run": lambda arguments: None},
    "report": {"write_report": lambda folder: folder},
}
"""What each command does after its arguments were understood, and what stands in for it."""


def _check_script(script: Path, arguments: list[str], monkeypatch) -> None:
    """Run a script until its arguments are parsed."""
    assert script.is_file(), script
    if "argparse" not in script.read_text():
        assert arguments == [], f"{script} takes no arguments"
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.syspath_prepend(script.parent)
    with pytest.raises(Parsed):
        runpy.run_path(str(script), run_name="__main__")
