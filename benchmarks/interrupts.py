"""Kills a run at random moments, lets it go on, and compares the end with an uninterrupted one.

    python benchmarks/interrupts.py MODEL --data FOLDER [--kills 20] [--signal KILL|TERM] [--seed 0]

A small run of every stage (dense WER, calibration, compression, fine-tuning with validation, WER)
is done once as it is. Then, for each kill: the same run in a folder of its own, ended after a
random share of the time that the first one took, and the same command with ``run.resume=true``
until it is done. What must be equal: every weight of ``model/`` and of the checkpoints bit for bit,
``plan.json``, and ``metrics.json`` but for times and memory. No file may be left whose name begins
with a dot, as those do that are being written. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

TIMES = ("rtfx", "encoder_rtfx", "ran_on")


def recipe(model: str, data: str) -> dict[str, Any]:
    def clips(skip: int, limit: int) -> dict[str, Any]:
        return {"speech": {"kind": "folder", "path": data, "skip": skip, "limit": limit}}

    return {
        "model": {"id": model},
        "data": {
            "calibration": clips(0, 6),
            "train": clips(6, 8),
            "val": clips(14, 2),
            "test": clips(16, 3),
            "calibration_clips": 6,
            "calibration_batch_size": 2,
            "train_batch_size": 2,
            "num_workers": 0,
        },
        "decoding": {"long_form": "windows"},
        "compression": {
            "budget": {"encoder_ratio": 0.7},
            "options": {"refine_steps": 3, "joint_steps": 3},
            "save_every": 1,
        },
        "finetune": {
            "max_steps": 6,
            "val_every": 2,
            "warmup_steps": 1,
            "encoder_distillation_weight": 1.0,
        },
        "trainer": {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
    }


def command(file: Path, folder: Path) -> list[str]:
    run = [f"run.dir={folder}", "run.resume=true"]
    return [sys.executable, "-m", "liteasr.fit", "--config", str(file), *run]


def finish(file: Path, folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command(file, folder), check=True, capture_output=True)
    return time.perf_counter() - started


def interrupt(file: Path, folder: Path, seconds: float, how: signal.Signals) -> str:
    """Start a run and end it; says what it had finished."""
    process = subprocess.Popen(
        command(file, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(how)
        process.wait()
    stages = folder / "stages.json"
    done = list(json.loads(stages.read_text())) if stages.is_file() else []
    done += [file.name for file in sorted((folder / "checkpoints").glob("*.ckpt"))]
    return ", ".join(done) or "nothing"


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Of the model that a run has made, and of the checkpoints that it has left."""
    files = {file.name: file for file in (folder / "checkpoints").glob("*.ckpt")}
    found = {
        name: torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        for name, file in files.items()
    }
    return {**found, "model": load_file(folder / "model" / "model.safetensors")}


def differing(one: Path, other: Path) -> list[str]:
    """What is not the same at the end of two runs."""
    parts = [name for name in ("metrics", "plan") if outcome(one)[name] != outcome(other)[name]]
    ours, theirs = weights(one), weights(other)
    if ours.keys() != theirs.keys():
        return [*parts, "names of checkpoints"]
    for name, own in ours.items():
        same_names = own.keys() == theirs[name].keys()
        if not same_names or not all(torch.equal(own[key], theirs[name][key]) for key in own):
            parts.append(f"weights of {name}")
    return parts + [path.name for path in other.rglob(".*")]


def outcome(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    for key in ("timing_s", "peak_memory_mb"):
        del metrics[key]
    for stage in ("dense", "compressed", "finetuned"):
        metrics[stage] = {k: v for k, v in metrics[stage].items() if k not in TIMES}
    plan = json.loads((folder / "plan.json").read_text())
    return {"metrics": metrics, "plan": plan}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True, metavar="FOLDER")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    how = getattr(signal, f"SIG{options.signal}")
    draw, failures = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe(options.model, options.data)))
        seconds = finish(file, Path(name) / "whole")
        print(f"uninterrupted: {seconds:.0f} s", flush=True)
        for index in range(options.kills):
            folder, moment = Path(name) / f"run{index}", draw.uniform(0, seconds)
            done = interrupt(file, folder, moment, how)
            finish(file, folder)
            parts = differing(Path(name) / "whole", folder)
            failures += bool(parts)
            verdict = f"DIFFERENT: {', '.join(parts)};" if parts else "same"
            shutil.rmtree(folder)
            print(
                f"{options.signal} after {moment:5.1f} s: {verdict:10} had done: {done}", flush=True
            )
    print(f"{options.kills - failures} of {options.kills} as if never interrupted")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
