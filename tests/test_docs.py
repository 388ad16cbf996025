"""Runs what README and docs show."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def blocks(page, language):
    return [body for name, body in BLOCK.findall(page.read_text()) if name == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = [t for t in LINK.findall(page.read_text()) if not (page.parent / t).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """Blocks of a page share a namespace, in their order."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for body in blocks(page, "python"):
        exec(compile(body, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_what_exists(page):
    """Recipes, scripts and modules in shell blocks are there."""
    for body in blocks(page, "bash"):
        for word in re.findall(r"(?:recipes|tools|benchmarks)/[\w./-]+\w", body):
            assert (ROOT / word).exists(), word
        for module in re.findall(r"-m (liteasr[\w.]*)", body):
            assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


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
