"""Training on several processes, and what becomes of it where one of them ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from finetuned import (
    Killed,
    checkpoint,
    differing,
    interrupt,
    kept,
    kill,
    rows,
    started,
    wait_for,
    weights,
)
from runs import ROOT
from trainable import Training

from liteasr import WhisperModule


def make_texts_uneven(speech):
    file = speech / "metadata.jsonl"
    clips = [json.loads(line) for line in file.read_text().splitlines()]
    for index, clip in enumerate(clips):
        clip["text"] = " ".join([clip["text"]] * (1 + index % 3))
    file.write_text("".join(json.dumps(clip) + "\n" for clip in clips))


def on_two_devices(training, *shared):
    """Lightning starts the second process."""
    subprocess.run(
        [sys.executable, "-m", "liteasr.fit", *training.arguments("two", *shared)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )


def on_two_machines(training, *shared):
    """Two of torchrun's agents, each of which takes itself for a machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    both = {"HEAD": "localhost", "PORT": port, "NODES": "2", "DEVICES": "1"}
    _, recipe, *rest = training.arguments("two", *shared)
    agents = [
        subprocess.Popen(
            ["bash", str(ROOT / "recipes" / "cluster" / "torchrun.sh"), recipe, *rest],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **both},
        )
        for _ in range(2)
    ]
    assert [agent.wait(300) for agent in agents] == [0, 0]


@pytest.mark.parametrize(
    ("start", "options"),
    [
        (on_two_devices, ["trainer.devices=2", "trainer.strategy=ddp"]),
        (on_two_devices, ["trainer.devices=2", "trainer.strategy=fsdp"]),
        (
            on_two_devices,
            ["trainer.devices=2", "trainer.strategy=fsdp", "finetune.trainable=factors"],
        ),
        (on_two_machines, []),
    ],
    ids=["ddp", "fsdp", "fsdp, factors", "machines"],
)
def test_two_processes_learn_what_one_does(tmp_path, start, options):
    """With the same clips in every step: the same losses and weights, up to rounding."""
    of_both = [option for option in options if option.startswith("finetune.")]
    losses = {"encoder_distillation_weight": 1.0, "logit_distillation_weight": 0.5}
    changes = {"max_steps": 6, "learning_rate": 1e-3, **losses}
    training = Training(tmp_path, changes, chance=False, validates=True, pivoted=True)
    training.recipe["finetune"]["teacher"] = str(training.dense)
    training.recipe["data"]["train"]["a"]["limit"] = 6
    # One process has a batch to validate and the other none, and texts differ in length.
    training.recipe["data"]["val"]["a"]["limit"] = 1
    training.recipe["data"]["eval_batch_size"] = 1
    make_texts_uneven(tmp_path / "speech")
    one, _ = training.run("one", *of_both)
    start(training, *options, "data.train_batch_size=1")
    two = tmp_path / "two"
    curves = [
        [float(row["train/loss"]) for row in rows(folder) if row["train/loss"]]
        for folder in (one, two)
    ]
    assert len(curves[0]) == 6
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    ends = [checkpoint(folder) for folder in (one, two)]
    assert [end["global_step"] for end in ends] == [6, 6]
    for name, weight in ends[0]["state_dict"].items():
        if name.endswith("k_proj.bias"):
            continue  # the softmax ignores it: Adam follows the rounding of its gradients
        assert torch.allclose(weight, ends[1]["state_dict"][name], rtol=0, atol=2e-5), name
    assert kept(one) == kept(two)


@pytest.mark.parametrize(
    ("first", "second"),
    [("auto", "fsdp"), ("fsdp", "auto"), ("fsdp", "fsdp")],
)
def test_goes_on_with_another_strategy(tmp_path, first, second):
    """To the weights of a run that was never stopped; where both are split, over two processes."""
    changes = {"max_steps": 60, "val_every": 5, "learning_rate": 1e-3, "trainable": "factors"}
    training = Training(tmp_path, changes, chance=False, pivoted=True)
    training.recipe["data"]["train"]["a"]["limit"] = 6
    whole, _ = training.run("whole")
    devices = 2 if first == second else 1
    options = [f"trainer.devices={devices}", f"data.train_batch_size={2 // devices}"]
    command = [sys.executable, "-m", "liteasr.fit", *training.arguments("cut", *options)]
    cut = tmp_path / "cut"
    with started([*command, f"trainer.strategy={first}"]) as run:
        wait_for(cut / "checkpoints" / "last.ckpt", run)
        os.killpg(run.pid, signal.SIGTERM)
        assert run.wait(120) != 0
    assert checkpoint(cut)["global_step"] < 60
    with started([*command, f"trainer.strategy={second}", "run.resume=true"]) as run:
        assert run.wait(120) == 0, run.stderr.read()
    ends = [checkpoint(folder) for folder in (whole, cut)]
    assert [end["global_step"] for end in ends] == [60, 60]
    for name, weight in ends[0]["state_dict"].items():
        if not name.endswith("k_proj.bias"):  # the softmax ignores it
            assert torch.allclose(weight, ends[1]["state_dict"][name], rtol=0, atol=2e-5), name


def test_a_killed_worker_ends_the_run_which_then_goes_on(tmp_path):
    training = Training(tmp_path, {"max_steps": 3000, "val_every": 5})
    options = ["trainer.devices=2", "trainer.strategy=ddp", "data.train_batch_size=1"]
    command = [sys.executable, "-m", "liteasr.fit", *training.arguments("two", *options)]
    last = tmp_path / "two" / "checkpoints" / "last.ckpt"
    with started(command) as run:
        wait_for(last, run)
        for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        assert run.wait(120) != 0
    before = checkpoint(tmp_path / "two")["global_step"]
    assert not (tmp_path / "two" / "metrics.json").exists()
    written = last.stat().st_mtime_ns
    with started([*command, "run.resume=true"]) as run:
        while last.stat().st_mtime_ns == written:
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGTERM)
        run.wait(120)
    assert checkpoint(tmp_path / "two")["global_step"] > before


def test_a_file_that_one_process_cannot_read_ends_both_which_save_the_step_before(tmp_path):
    training = Training(tmp_path)
    (tmp_path / "speech" / "5.flac").write_bytes(b"no sound")
    training.recipe["data"]["max_bad_fraction"] = 0.1
    options = ["trainer.devices=2", "trainer.strategy=ddp", "data.train_batch_size=1"]
    run = subprocess.run(
        [sys.executable, "-m", "liteasr.fit", *training.arguments("two", *options)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "cannot be read, above data.max_bad_fraction" in run.stderr
    assert "Traceback" not in run.stderr
    assert checkpoint(tmp_path / "two")["global_step"] == 1


def test_a_process_that_loses_another_says_so(tmp_path, monkeypatch, capsys):
    def training_step(*_):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        raise RuntimeError("Read error [127.0.0.1]:7: Connection reset by peer")

    monkeypatch.setattr(WhisperModule, "training_step", training_step)
    assert Training(tmp_path).run("run")[1] == 1
    expected = "another process of this run has ended; fit goes on with run.resume=true"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_of_a_whole_job_is_heeded(tmp_path, number):
    """A signal to every process of it, those that read too."""
    training = Training(tmp_path, {"max_steps": 5000, "val_every": 5})
    arguments = training.arguments("run", "data.num_workers=1")
    with started([sys.executable, "-m", "liteasr.fit", *arguments]) as run:
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", run)
        os.killpg(run.pid, number)
        _, said = run.communicate(timeout=120)
        assert run.returncode == 1
    assert "interrupted (fit goes on with run.resume=true)" in said
    assert "Traceback" not in said
    assert checkpoint(tmp_path / "run")["global_step"] >= 5


def test_going_on_with_other_processes_ends_the_epoch_where_it_ends(tmp_path, monkeypatch):
    """As two processes would have saved it, after a batch each of the second epoch."""
    training = Training(tmp_path)
    whole, _ = training.run("whole")
    with monkeypatch.context() as patch:
        interrupt(patch, 7, kill)
        with pytest.raises(Killed):
            training.run("broken")
    saved = checkpoint(tmp_path / "broken")
    loop = saved["loops"]["fit_loop"]
    (loader,) = loop["state_dict"]["combined_loader"]
    count = loop["epoch_loop.batch_progress"]["current"]
    assert (loader["batches"], count["ready"], count["completed"]) == (2, 2, 1)
    loader.update(batches=1, processes=2)
    count.update(ready=1, started=1, processed=1, completed=0)
    torch.save(saved, tmp_path / "broken" / "checkpoints" / "last.ckpt")
    broken, _ = training.run("broken", "run.resume=true")
    assert differing(weights(whole), weights(broken)) == []
