"""The scripts for clusters, with stand-ins for what only a cluster has."""

import os
import signal
import subprocess
import time

import pytest
from runs import ROOT

from liteasr.config import load_recipe

SCRIPTS = ROOT / "recipes" / "cluster"
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$LOG/srun"
trap 'echo killed > "$LOG/killed"; exit 1' TERM
trap 'echo ended > "$LOG/ended"; exit 1' USR1
[ -z "${DEAF:-}" ] || trap '' USR1
echo $$ > "$LOG/pid"
[ -n "${HANGS:-}" ] || exit "${CODE:-0}"
sleep 60 &
wait
"""
SCANCEL = """#!/usr/bin/env bash
echo "$@" > "$LOG/scancel"
kill -USR1 "$(cat "$LOG/pid")"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Puts programs of SLURM on the path; returns the folder of their notes.

    As the real one, srun kills its processes when it gets SIGTERM; scancel reaches them.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "srun": SRUN,
        "scancel": SCANCEL,
        "scontrol": '#!/usr/bin/env bash\necho "$@" > "$LOG/scontrol"\n',
        "python": '#!/usr/bin/env bash\nprintf \'%s\\n\' "$@" > "$LOG/python"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    return tmp_path


def start(script, *arguments):
    return subprocess.Popen(["bash", str(SCRIPTS / script), *arguments], cwd=ROOT)


def overrides(file):
    """What a stand-in got as overrides of the recipe, which have to be ones that exist."""
    words = file.read_text().splitlines()
    found = [word for word in words if "=" in word and not word.startswith("-")]
    recipe = load_recipe(words[words.index("--config") + 1], found)
    return recipe, words


def test_slurm_starts_a_process_for_each_device(cluster):
    assert start("slurm.sbatch", "recipes/large_v3.yaml", "run.dir=runs/a").wait(20) == 0
    recipe, words = overrides(cluster / "srun")
    assert words[1:4] == ["python", "-m", "liteasr.fit"]
    assert (recipe.trainer.num_nodes, recipe.trainer.devices) == (2, 4)
    assert recipe.run.resume
    assert recipe.run.dir == "runs/a"
    assert recipe.trainer.strategy == "auto", "that of the recipe"
    assert not (cluster / "scontrol").exists(), "a job that is done is not put back"


def until_started(cluster):
    until = time.monotonic() + 20
    while not (cluster / "pid").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)


def test_slurm_job_near_its_limit_is_put_back(cluster, monkeypatch):
    monkeypatch.setenv("HANGS", "1")
    script = start("slurm.sbatch", "recipes/large_v3.yaml", "run.dir=runs/a")
    until_started(cluster)
    script.send_signal(signal.SIGTERM)
    assert script.wait(20) != 0
    assert (cluster / "scancel").read_text().split() == ["--signal=TERM", "7"]
    assert (cluster / "ended").exists(), "the processes were told, and waited for"
    assert not (cluster / "killed").exists()
    assert (cluster / "scontrol").read_text().split() == ["requeue", "7"]


def test_slurm_job_that_does_not_listen_is_put_back_in_time(cluster, monkeypatch):
    for name, value in {"HANGS": "1", "DEAF": "1", "GRACE": "1"}.items():
        monkeypatch.setenv(name, value)
    script = start("slurm.sbatch", "recipes/large_v3.yaml", "run.dir=runs/a")
    until_started(cluster)
    script.send_signal(signal.SIGTERM)
    try:
        assert script.wait(20) != 0
        assert (cluster / "scontrol").read_text().split() == ["requeue", "7"]
    finally:
        os.kill(int((cluster / "pid").read_text()), signal.SIGTERM)


def test_a_job_that_fails_is_not_put_back(cluster, monkeypatch):
    monkeypatch.setenv("CODE", "2")
    assert start("slurm.sbatch", "recipes/large_v3.yaml", "run.dir=runs/a").wait(20) == 2
    assert not (cluster / "scontrol").exists()


def test_torchrun_on_several_machines(cluster, monkeypatch):
    for name, value in {"HEAD": "10.0.0.1", "NODES": "2", "DEVICES": "8"}.items():
        monkeypatch.setenv(name, value)
    assert start("torchrun.sh", "recipes/large_v3.yaml", "run.dir=runs/a").wait(20) == 0
    recipe, words = overrides(cluster / "python")
    assert words[:2] == ["-m", "torch.distributed.run"]
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=10.0.0.1:29400"} <= set(words)
    assert (recipe.trainer.num_nodes, recipe.trainer.devices) == (2, 8)


@pytest.mark.parametrize("script", ["slurm.sbatch", "torchrun.sh"])
def test_without_a_recipe_the_usage_is_said(script):
    result = subprocess.run(
        ["bash", str(SCRIPTS / script)], capture_output=True, text=True, timeout=20, check=False
    )
    assert result.returncode != 0
    assert "usage:" in result.stderr
