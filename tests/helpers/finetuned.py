"""What tests of training look at, and ways for a run to end."""

import csv
import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress

import torch
from runs import ROOT
from safetensors.torch import load_file

from liteasr import WhisperModule


class Killed(BaseException):
    """Stands for an end that nothing in the program can heed."""


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def checkpoint(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def differing(one, other):
    return [name for name in one if not torch.equal(one[name], other[name])]


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def kept(folder):
    stage = json.loads((folder / "stages.json").read_text())["finetune"]
    return {key: stage[key] for key in ("step", "val_wer_before", "val_wer")}


def interrupt(monkeypatch, step, how):
    """End the process in the middle of a training step, once."""
    original, steps = WhisperModule.training_step, iter(range(step + 1))

    def training_step(self, batch, batch_idx):
        if next(steps, None) == step:
            how()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(WhisperModule, "training_step", training_step)


def kill():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def fail():
    raise ValueError("something else")


@contextmanager
def started(command):
    """A program in a session of its own, of which nothing is left behind."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def wait_for(file, run):
    end = time.monotonic() + 120
    while not file.exists():
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)
