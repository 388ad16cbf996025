"""Runs what README and docs show."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from documented import absent, blocks, check_command, commands, write_recipes
from runs import ROOT

from liteasr.config import ConfigError, SourceConfig, SourceKind, load_recipe
from liteasr.data.sources import load_folder

PAGES = [
    ROOT / "README.md",
    ROOT / "liteasr" / "demo" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
COMMANDS = [
    pytest.param(page, command, id=f"{page.relative_to(ROOT)}: {shlex.join(command)[:90]}")
    for page in PAGES
    for body in blocks(page, "bash")
    for command in commands(body)
]
INTO = re.compile(r"\]\((?!https?://)([^)#]*)#([^)]+)\)")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = [t for t in LINK.findall(page.read_text()) if not (page.parent / t).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_pages_lead_to_headings(page):
    for target, anchor in INTO.findall(page.read_text()):
        text = (page.parent / target if target else page).read_text()
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        slugs = [re.sub(r"[^\w\- ]", "", one).lower().replace(" ", "-") for one in headings]
        assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """Blocks of a page share a namespace, in their order."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for body in blocks(page, "python"):
        exec(compile(body, page.name, "exec"), namespace)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder to work in that holds the shipped recipes, beside ``../shared`` if there is one."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "recipes").symlink_to(ROOT / "recipes")
    if (ROOT.parent / "shared").exists():
        (tmp_path / "shared").symlink_to(ROOT.parent / "shared")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_are_taken(page, command, desk, monkeypatch, capsys):
    """Options by the command's own parser, recipes and overrides by the loader that it uses."""
    write_recipes(page, desk)
    check_command(command, monkeypatch, capsys)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_shown_can_be_read(page, desk):
    for file in write_recipes(page, desk):
        said = ""
        try:
            load_recipe(file)
        except ConfigError as error:
            said = str(error)
        assert absent(said) == []


@pytest.mark.parametrize(
    "command",
    [
        "python -m liteasr.fit --config recipes/tiny.yaml data.clips=3",
        "python -m liteasr.fit --config recipes/tiny.yaml compression.options.steps=3",
        "python -m liteasr.fit --config recipes/tinny.yaml",
        "python -m liteasr.fit --config recipes/tiny.yaml --wet-run",
        "liteasr compare --config recipes/tiny.yaml",
        "python -m liteasr.evaluate --model a --data esb --beams 2",
        "python -m liteasr.evaluate --model a --data nothing_of_this_kind",
        "python -m liteasr.transcribe --model a",
        "python -m liteasr.benchmark",
        "torchrun --nproc_per_node=2 -m liteasr.fit --config recipes/tiny.yaml data.clips=3",
        "python benchmarks/parity.py --minutes 8",
        "bash tools/no_such.sh",
        "rm -r runs",
    ],
)
def test_wrong_commands_are_not_taken(command, desk, monkeypatch, capsys):
    (words,) = commands(command)
    with pytest.raises((AssertionError, pytest.fail.Exception, SystemExit)):
        check_command(words, monkeypatch, capsys)


def test_shell_blocks_are_read_as_a_shell_would():
    body = "A=1 liteasr fit \\\n  'x=[1, 2]' # why\ncd a && make b > c.txt\n"
    assert commands(body) == [["liteasr", "fit", "x=[1, 2]"], ["cd", "a"], ["make", "b"]]


MESSAGES = [
    " ".join(message.split())
    for message in re.findall(r"\*\*`([^`]+)`\*\*", (ROOT / "docs" / "faq.md").read_text())
]


def literals(file):
    """Every text in a source file, with ``…`` for what is filled in."""
    if file.suffix == ".sh":
        return [file.read_text()]
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(_literal(part) for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"%(?:d|s|g|\.3g)", "…", node.value))
    return found


def _literal(part):
    if isinstance(part, ast.Constant):
        return part.value
    # Names of files that messages are made with.
    return "metadata.jsonl or metadata.csv" if "join(METADATA_FILES)" in ast.unparse(part) else "…"


@pytest.fixture(scope="module")
def sources():
    files = [*(ROOT / "liteasr").rglob("*.py"), ROOT / "tools" / "install.sh"]
    return [literals(file) for file in files]


def occurs(message, sources):
    """Whether some source says all parts of a message."""
    parts = [part.strip(" .:,") for part in message.split("…")]
    parts = [part for part in parts if re.search(r"\w", part)]
    assert sum(map(len, parts)) >= 7, f"{message}: too little to be told from others"
    return any(all(any(part in text for text in texts) for part in parts) for texts in sources)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_that_the_faq_explains_are_there(message, sources):
    assert occurs(message, sources)


def test_a_message_that_nothing_says_is_found_out(sources):
    assert len(MESSAGES) > 30
    assert not occurs("run.dir: … contains a run already", sources)
    assert not occurs("model.id: … holds a run already", sources)


def test_metadata_shown_can_be_read(tmp_path):
    (body,) = blocks(ROOT / "docs" / "get_started.md", "jsonl")
    (tmp_path / "metadata.jsonl").write_text(body)
    for line in body.splitlines():
        file = tmp_path / json.loads(line)["file_name"]
        file.parent.mkdir(exist_ok=True)
        file.touch()
    rows = load_folder(SourceConfig(kind=SourceKind.folder, path=str(tmp_path)), "mine")
    assert rows["text"] == ["Good morning, everyone.", "Shall we begin?"]
    assert rows["duration"][1] == pytest.approx(1.9)
    assert rows["speaker"][1] == "anna"


def test_the_users_callback_and_method_run_by_dotted_path(
    real_model, real_speech, tmp_path, monkeypatch
):
    """docs/extending.md as a user would: the file on PYTHONPATH, both named in overrides."""
    page = ROOT / "docs" / "extending.md"
    source = "\n".join(body for body in blocks(page, "python") if "class " in body)
    (tmp_path / "my_compression.py").write_text(source)
    (command,) = (body for body in blocks(page, "bash") if "my_compression" in body)
    named = re.findall(r"compression\.(?:callback|method|options\.\w+)=\S+", command)
    assert len(named) == 3
    done = subprocess.run(
        [
            *(sys.executable, "-m", "liteasr.fit"),
            *("--config", str(ROOT / "recipes" / "whisper_tiny_libri.yaml"), *named),
            *(f"model.id={real_model}", f"data.root={real_speech}", "run.dir=run"),
            *("data.calibration_clips=3", "data.num_workers=0", "evaluation.dense=false"),
            *("data.test.librispeech=null", "data.test.common_voice=null"),
            *("data.test.ljspeech=null", "data.test.an4.limit=1"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    ranks = {name: layer["rank"] for name, layer in plan["layers"].items()}
    assert plan["method"] == "uniform"
    assert plan["options"] == {"share": 0.3}
    assert len(ranks) == 8, "four layers, fc1 and fc2 each"
    assert set(ranks.values()) == {115}
    assert done.stdout.count("% of the energy") == 8
