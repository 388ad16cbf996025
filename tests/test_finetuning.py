"""Training after compression, or alone: what is kept, and how it goes on after an interrupt."""

import csv
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
import transformers
from runs import ROOT
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainable import Training, make_shape

import liteasr.evaluation_steps
from liteasr import WhisperModule
from liteasr.compression import CompressionPlan, LayerPlan
from liteasr.config import ConfigError, load_recipe
from liteasr.distillation import Teacher
from liteasr.loading import load_model


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


@pytest.fixture
def wers(monkeypatch):
    """Sets the WER of each evaluation, in turn; the last one again and again."""

    def of(*values):
        remaining, given = list(values), []

        def average(_):
            given.append(remaining.pop(0) if len(remaining) > 1 else remaining[0])
            return given[-1]

        monkeypatch.setattr(liteasr.evaluation_steps, "macro_average", average)
        monkeypatch.setattr("liteasr.stages.macro_average", lambda _: given[-1])

    return of


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


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return Training(tmp_path_factory.mktemp("uninterrupted")).run("run")[0]


@pytest.mark.parametrize(
    ("how", "step"),
    [(kill, 4), (kill, 10), (terminate, 3), (press_ctrl_c, 4), (fail, 4), (fail, 5)],
)
def test_goes_on_to_the_same_weights(uninterrupted, tmp_path, monkeypatch, step, how):
    """At any step, the last one of an epoch (3) too, with dropout and SpecAugment: bit for bit."""
    training = Training(tmp_path)
    with monkeypatch.context() as patch:
        interrupt(patch, step, how)
        if how is kill:
            with pytest.raises(Killed):
                training.run("run")
        elif how is fail:
            with pytest.raises(ValueError, match="something else"):
                training.run("run")
            assert checkpoint(tmp_path / "run")["global_step"] == step, "no step is lost"
        else:
            folder, code = training.run("run")
            assert code == 1
            assert checkpoint(folder)["global_step"] == step + 1, "saved when told to end"
    folder, code = training.run("run", "run.resume=true")
    assert code == 0
    assert differing(weights(uninterrupted), weights(folder)) == []


def test_goes_on_after_the_last_batch_of_an_epoch(uninterrupted, tmp_path, monkeypatch):
    training = Training(tmp_path, {"val_every": 4})
    with monkeypatch.context() as patch:
        interrupt(patch, 5, kill)
        with pytest.raises(Killed):
            training.run("run")
    assert checkpoint(tmp_path / "run")["global_step"] == 4
    folder, _ = training.run("run", "run.resume=true")
    assert differing(weights(uninterrupted), weights(folder)) == []


def test_told_to_end_within_a_step_it_ends_after_it(tmp_path, monkeypatch):
    """A step of two batches: the gradient of the first would be lost."""
    training = Training(tmp_path, {"max_steps": 4})
    whole, _ = training.run("whole", "trainer.accumulate_grad_batches=2")
    with monkeypatch.context() as patch:
        interrupt(patch, 4, terminate)
        assert training.run("broken", "trainer.accumulate_grad_batches=2")[1] == 1
    assert checkpoint(tmp_path / "broken")["global_step"] == 3
    broken, _ = training.run("broken", "run.resume=true", "trainer.accumulate_grad_batches=2")
    assert differing(weights(whole), weights(broken)) == []


def test_told_to_end_within_a_validation_it_ends_after_it(tmp_path, monkeypatch, wers):
    training = Training(tmp_path, validates=True)
    training.recipe["data"]["eval_batch_size"] = 1
    original = WhisperModule.validation_step

    def validation_step(self, *arguments):
        if self.global_step == 6:
            terminate()
        return original(self, *arguments)

    wers(60, 50, 40)
    with monkeypatch.context() as patch:
        patch.setattr(WhisperModule, "validation_step", validation_step)
        assert training.run("run")[1] == 1
    saved = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "run", "best")
    assert [one["global_step"] for one in saved] == [6, 6]
    wers(45, 46)
    folder, _ = training.run("run", "run.resume=true")
    assert kept(folder) == {"step": 6, "val_wer_before": 60.0, "val_wer": 40.0}


def test_the_last_steps_are_measured_where_epochs_end_within_a_step(tmp_path, wers):
    """Steps of 3, 1, 3, 1 batches: after six, a validation is due only every nine batches."""
    wers(60, 50, 40)
    training = Training(tmp_path, {"max_steps": 6}, validates=True)
    folder, _ = training.run("run", "trainer.accumulate_grad_batches=3")
    assert kept(folder) == {"step": 6, "val_wer_before": 60.0, "val_wer": 40.0}


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


def test_trains_in_bfloat16(tmp_path):
    training = Training(tmp_path, {"label_smoothing": 0.1})
    folder, code = training.run("run", "trainer.precision=bf16-mixed")
    assert code == 0
    losses = [float(row["train/loss"]) for row in rows(folder) if row["train/loss"]]
    assert losses[-1] < losses[0]
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}


def test_an_average_goes_on_where_it_was(tmp_path, monkeypatch, wers):
    training = Training(tmp_path, {"ema_decay": 0.9}, validates=True)
    wers(60, 50, 40, 30, 20)
    whole, _ = training.run("whole")
    wers(60, 50, 40)
    with monkeypatch.context() as patch:
        interrupt(patch, 7, kill)
        with pytest.raises(Killed):
            training.run("broken")
    wers(30, 20)
    broken, _ = training.run("broken", "run.resume=true")
    assert kept(whole) == kept(broken)
    assert differing(weights(whole), weights(broken)) == []


def test_files_that_one_process_cannot_read_end_both(tmp_path):
    training = Training(tmp_path)
    for index in range(0, 6, 2):
        (tmp_path / "speech" / f"{index}.flac").write_bytes(b"no sound")
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


def test_a_process_that_loses_another_says_so(tmp_path, monkeypatch, capsys):
    def training_step(*_):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        raise RuntimeError("Read error [127.0.0.1]:7: Connection reset by peer")

    monkeypatch.setattr(WhisperModule, "training_step", training_step)
    assert Training(tmp_path).run("run")[1] == 1
    expected = "another process of this run has ended; fit goes on with run.resume=true"
    assert expected in capsys.readouterr().err


def test_an_interrupted_run_keeps_its_best_weights(tmp_path, monkeypatch, wers):
    training = Training(tmp_path, validates=True)
    wers(60, 50, 40, 45, 46)
    whole, _ = training.run("whole")
    wers(60, 50, 40)
    with monkeypatch.context() as patch:
        interrupt(patch, 7, kill)
        with pytest.raises(Killed):
            training.run("broken")
    assert checkpoint(tmp_path / "broken")["global_step"] == 6
    wers(45, 46)
    broken, _ = training.run("broken", "run.resume=true")
    assert kept(whole) == kept(broken) == {"step": 6, "val_wer_before": 60.0, "val_wer": 40.0}
    assert differing(weights(whole), weights(broken)) == []


def test_the_best_weights_are_kept_and_not_the_last(tmp_path, wers):
    wers(60, 50, 30, 40, 35)
    folder, _ = Training(tmp_path, validates=True).run("run")
    assert kept(folder) == {"step": 6, "val_wer_before": 60.0, "val_wer": 30.0}
    best = checkpoint(folder, "best")
    assert best["global_step"] == 6
    names = {name: f"model.{name}" for name in weights(folder)}
    assert not [
        n
        for n, own in names.items()
        if not torch.equal(weights(folder)[n], best["state_dict"][own])
    ]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["finetuned"]["step"] == 6


def test_the_last_steps_are_measured_too(tmp_path, wers):
    """Step 11 is between two validations, and here the best."""
    wers(60, 50, 30, 40, 20)
    folder, _ = Training(tmp_path, validates=True).run("run")
    assert kept(folder) == {"step": 11, "val_wer_before": 60.0, "val_wer": 20.0}


def test_never_ends_worse_than_it_began(tmp_path, wers, caplog):
    wers(10, 50, 30, 40, 20)
    training = Training(tmp_path, validates=True)
    folder, _ = training.run("run")
    assert kept(folder) == {"step": 0, "val_wer_before": 10.0, "val_wer": 10.0}
    assert differing(load_file(training.dense / "model.safetensors"), weights(folder)) == []
    assert "the model stays as it was" in caplog.text


def test_logs_for_tensorboard_too(tmp_path):
    training = Training(tmp_path, {"max_steps": 2})
    folder, _ = training.run("run", "trainer.loggers=[tensorboard]")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx([float(row["train/loss"]) for row in rows(folder)])


def test_a_logger_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("liteasr.runfolder.find_spec", lambda _: None)
    folder, code = Training(tmp_path).run("run", "trainer.loggers=[wandb]")
    assert code == 2
    assert "trainer.loggers: wandb is not installed; pip install 'liteasr[wandb]'" in (
        capsys.readouterr().err
    )
    assert not folder.exists()


def test_stops_when_nothing_gets_better(tmp_path, wers):
    wers(60, 50, 51, 52, 53)
    training = Training(tmp_path, {"patience": 2}, validates=True)
    folder, _ = training.run("run")
    assert kept(folder)["step"] == 3
    assert checkpoint(folder)["global_step"] == 9
    # As if it had been killed before it wrote down that the stage is done.
    file = folder / "stages.json"
    stages = json.loads(file.read_text())
    file.write_text(json.dumps({"before_finetuning": stages["before_finetuning"]}))
    assert training.run("run", "run.resume=true")[1] == 0
    assert checkpoint(folder)["global_step"] == 9
    assert kept(folder)["step"] == 3


def test_the_average_of_the_weights_is_what_is_kept(tmp_path, wers):
    wers(60, 50, 30, 40, 35)
    training = Training(tmp_path, {"ema_decay": 0.9}, validates=True, pivoted=True)
    folder, _ = training.run("run")
    best, name = checkpoint(folder, "best"), "model.encoder.layers.0.fc1.skeleton"
    assert best["global_step"] == kept(folder)["step"] == 6
    assert torch.equal(weights(folder)[name], best["state_dict"][f"model.{name}"])
    assert not torch.equal(weights(folder)[name], best["current_model_state"][f"model.{name}"])
    before = load_file(tmp_path / "pivoted" / "model.safetensors")
    orders = [name for name in before if name.endswith(".order")]
    assert len(orders) == 5  # one layer is of full rank
    assert all(torch.equal(weights(folder)[name], before[name]) for name in orders)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch, capsys):
    original = WhisperModule.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        return loss * float("nan") if self.global_step == 5 else loss

    monkeypatch.setattr(WhisperModule, "training_step", training_step)
    folder, code = Training(tmp_path).run("run")
    assert code == 1
    message = capsys.readouterr().err
    assert "the loss is nan at step 5, batch 1 of epoch 1 (clips" in message
    assert ".flac" in message
    saved = checkpoint(folder)
    assert saved["global_step"] == 5
    assert all(torch.isfinite(tensor).all() for tensor in saved["state_dict"].values())


def test_gradients_that_are_no_numbers_stop_the_run(tmp_path, monkeypatch, capsys):
    original = WhisperModule.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        nothing = 0 * next(parameter for parameter in self.parameters() if parameter.requires_grad)
        return loss + nothing.sum().sqrt() if self.global_step == 5 else loss

    monkeypatch.setattr(WhisperModule, "training_step", training_step)
    folder, code = Training(tmp_path).run("run")
    assert code == 1
    assert "the largest gradient is nan at step 5" in capsys.readouterr().err
    saved = checkpoint(folder)
    assert saved["global_step"] == 5
    assert all(torch.isfinite(tensor).all() for tensor in saved["state_dict"].values())


def test_data_that_fail_late_do_not_cost_the_checkpoints(tmp_path, monkeypatch, capsys):
    training = Training(tmp_path)
    with monkeypatch.context() as patch:

        def unreadable():
            raise ConfigError("data.train.a: 9 of 12 cannot be read")

        interrupt(patch, 7, unreadable)
        folder, code = training.run("run")
    assert code == 2
    assert "9 of 12 cannot be read" in capsys.readouterr().err
    assert checkpoint(folder)["global_step"] == 7
    assert training.run("run", "run.resume=true")[1] == 0


def test_an_error_amid_the_batches_of_a_step_costs_only_them(tmp_path, monkeypatch):
    options = ["trainer.accumulate_grad_batches=2", "finetune.max_steps=5"]
    training = Training(tmp_path)
    whole, _ = training.run("whole", *options)
    with monkeypatch.context() as patch:
        interrupt(patch, 5, fail)
        with pytest.raises(ValueError, match="something else"):
            training.run("broken", *options)
    assert checkpoint(tmp_path / "broken")["global_step"] == 2
    broken, _ = training.run("broken", *options, "run.resume=true")
    assert differing(weights(whole), weights(broken)) == []


def test_a_moved_run_knows_its_best_weights(tmp_path, monkeypatch, wers):
    training = Training(tmp_path, validates=True)
    wers(60, 30, 40)
    with monkeypatch.context() as patch:
        interrupt(patch, 7, kill)
        with pytest.raises(Killed):
            training.run("here")
    (tmp_path / "here").rename(tmp_path / "there")
    wers(45, 46)
    folder, _ = training.run("there", "run.resume=true")
    assert kept(folder) == {"step": 3, "val_wer_before": 60.0, "val_wer": 30.0}


def test_going_on_saves_no_step_amid_its_batches(tmp_path, monkeypatch):
    training = Training(tmp_path)
    options = ["trainer.accumulate_grad_batches=2"]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    written = []
    for again, batch in (([], 7), (["run.resume=true"], 1)):
        with monkeypatch.context() as patch:
            interrupt(patch, batch, kill)
            with pytest.raises(Killed):
                training.run("run", *options, *again)
        written.append(last.stat().st_mtime_ns)
    assert written[0] == written[1]


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


def test_an_error_of_a_reader_ends_the_program(tmp_path):
    """Readers do not heed SIGTERM, by which Python ends them."""
    program = (
        "from liteasr.data.loader import make_loader\n"
        "class Broken:\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, index): raise KeyError(index)\n"
        "for _ in make_loader(Broken(), 1): pass\n"
    )
    with started([sys.executable, "-c", program]) as run:
        _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "KeyError" in said


def test_an_evaluation_ends_when_it_is_told_to(tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(WhisperModule, "decode", lambda *_, **__: terminate())
    assert Training(tmp_path, validates=True).run("run")[1] == 1
    assert "interrupted (fit goes on with run.resume=true)" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


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


def test_a_best_checkpoint_that_is_gone_is_looked_for_anew(tmp_path, monkeypatch, wers, caplog):
    training = Training(tmp_path, validates=True)
    wers(60, 30, 40)
    with monkeypatch.context() as patch:
        interrupt(patch, 7, kill)
        with pytest.raises(Killed):
            training.run("run")
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    wers(45, 46)
    folder, _ = training.run("run", "run.resume=true")
    assert "best.ckpt is gone" in caplog.text
    assert kept(folder) == {"step": 9, "val_wer_before": 60.0, "val_wer": 45.0}


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path, monkeypatch, capsys):
    save, saved = torch.save, []

    def full(content, path, *args):
        saved.append(path)
        save(content, path, *args)
        if len(saved) >= 2:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("liteasr.checkpoint_io.torch.save", full)
    folder, code = Training(tmp_path).run("run")
    assert code == 1
    assert "No space left on device" in capsys.readouterr().err
    assert checkpoint(folder)["global_step"] == 3
    assert [file.name for file in (folder / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    folder, _ = Training(tmp_path, {"max_steps": 1}).run("run")
    other = make_shape(tmp_path / "other", weights=True, encoder_ffn_dim=128)
    with pytest.raises(ConfigError, match=r"from .*dense, does not fit .*other: .*\(256, 64\)"):
        WhisperModule(str(other)).on_load_checkpoint(checkpoint(folder))
    plan = CompressionPlan(
        {"model.encoder.layers.0.fc1": LayerPlan(64, 256, 8, 0.9, 16640, 2816)}, "pca"
    )
    module = WhisperModule(str(tmp_path / "dense"))
    module.apply_plan(plan)
    with pytest.raises(ConfigError, match=r"which has no model\.model\.encoder\.layers\.0\.fc1"):
        module.on_load_checkpoint(checkpoint(folder))


def test_distillation_is_logged_and_begins_at_nothing(tmp_path):
    """The teacher is the model itself at first: both hear the same masked input."""
    losses = {"encoder_distillation_weight": 2.0, "logit_distillation_weight": 1.0}
    options = {"trainable": "encoder", "max_steps": 2, "warmup_steps": 0}
    training = Training(tmp_path, {**losses, **options}, chance=False)
    folder, _ = training.run("run")
    first, second = rows(folder)
    for name in ("encoder_distillation", "logit_distillation"):
        assert float(first[f"train/{name}_loss"]) == pytest.approx(0, abs=1e-5)
        assert float(second[f"train/{name}_loss"]) > 1e-5
    parts = [2 * float(second["train/encoder_distillation_loss"])]
    parts += [
        float(second[f"train/{name}_loss"]) for name in ("logit_distillation", "cross_entropy")
    ]
    assert float(second["train/loss"]) == pytest.approx(sum(parts), rel=1e-4)
    before = load_file(training.dense / "model.safetensors")
    moved = differing(before, weights(folder))
    assert moved
    assert all(name.startswith("model.encoder") for name in moved)


def test_masks_are_those_of_the_recipe_and_leave_no_trace(tmp_path, monkeypatch):
    """The checkpoint says 0.2 of the frames; the recipe says all of them, for training only."""
    seen = []
    original = WhisperModule.training_step

    def training_step(self, batch, batch_idx):
        masked = self.model.model._mask_input_features(batch["input_features"])
        seen.append(float((masked == 0).float().mean()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(WhisperModule, "training_step", training_step)
    training = Training(tmp_path, {"spec_augment": {"mask_time_prob": 1.0}, "max_steps": 2})
    folder, _ = training.run("run")
    assert min(seen) > 0.5
    before, after = (
        json.loads((path / "config.json").read_text())
        for path in (training.dense, folder / "model")
    )
    assert before["mask_time_prob"] == after["mask_time_prob"] == 0.2


def test_masks_do_not_reach_the_batch(tmp_path):
    """CTC finds the loud frames in it."""
    training = Training(tmp_path)
    module = WhisperModule(str(training.dense), spec_augment={"mask_time_prob": 1.0})
    module.model.train()
    module.model.config.update({"apply_spec_augment": True, "mask_time_prob": 1.0})
    features = torch.ones(1, 80, 100)
    batch = {"input_features": features, "labels": torch.tensor([[1, 2]])}
    module.objective(module.model, batch, 0)
    assert bool((features == 1).all())


def test_activations_may_be_computed_again_instead_of_kept(uninterrupted, tmp_path, monkeypatch):
    """Dropout and SpecAugment are the same in both passes, and so are the weights."""
    calls = []

    def checkpoint(*args, **options):
        calls.append(options)
        return original(*args, **options)

    original = transformers.modeling_utils.checkpoint
    monkeypatch.setattr("transformers.modeling_utils.checkpoint", checkpoint)
    folder, _ = Training(tmp_path, {"gradient_checkpointing": True}).run("run")
    config = load_model(str(folder / "model")).config
    assert len(calls) == 11 * (config.encoder_layers + config.decoder_layers)
    for name, weight in weights(uninterrupted).items():
        assert torch.allclose(weight, weights(folder)[name], rtol=0, atol=1e-4), name
    config = json.loads((folder / "model" / "config.json").read_text())
    assert "gradient_checkpointing" not in config


def test_without_a_loss_on_it_the_decoder_is_not_run(tmp_path, monkeypatch):
    training = Training(
        tmp_path,
        {"cross_entropy_weight": 0, "encoder_distillation_weight": 1, "trainable": "encoder"},
    )
    monkeypatch.setattr("liteasr.objective._decode", lambda *_: pytest.fail("decoded"))
    assert training.run("run", "finetune.max_steps=1")[1] == 0


def test_a_teacher_that_does_not_fit_is_told_before_anything_is_done(tmp_path, capsys):
    other = make_shape(tmp_path / "other", weights=True, num_mel_bins=128)
    losses = {"encoder_distillation_weight": 1, "teacher": str(other)}
    training = Training(tmp_path, losses, validates=True)
    folder, code = training.run("run")
    assert code == 2
    assert (
        f"finetune.teacher: {other} has num_mel_bins 128, the model 80" in capsys.readouterr().err
    )
    assert not folder.exists()
    (other / "config.json").unlink()
    assert training.run("run")[1] == 2
    assert f"liteasr: finetune.teacher: {other} has no config.json" in capsys.readouterr().err


def test_a_teacher_shares_the_decoder(tmp_path):
    training = Training(tmp_path)
    student, dense = (load_model(str(training.dense)) for _ in range(2))
    with torch.no_grad():
        student.model.decoder.layers[0].fc1.weight.add_(1)
    Teacher(dense).share_decoder(student)
    own, its = dense.model.decoder.layers[0], student.model.decoder.layers[0]
    assert own.fc2.weight.data_ptr() == its.fc2.weight.data_ptr()
    assert own.fc1.weight.data_ptr() != its.fc1.weight.data_ptr(), "this one is another"
    own, its = dense.model.encoder.layers[0], student.model.encoder.layers[0]
    assert own.fc1.weight.data_ptr() != its.fc1.weight.data_ptr(), "this one is to be trained"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_entropy_weight": 0}, r"logit_distillation_weight: one must be above 0"),
        (
            {"cross_entropy_weight": 0, "encoder_distillation_weight": 1},
            r"finetune\.trainable: all, but no loss with a weight looks at the decoder",
        ),
        ({"patience": 2}, r"finetune\.patience: needs validation sets in data\.val"),
        ({"ema_decay": 1.0}, r"finetune\.ema_decay: 1\.0 is not above 0 and below 1"),
        ({"teacher": "./nowhere"}, r"finetune\.teacher: \./nowhere does not exist"),
    ],
)
def test_refuses_what_makes_no_sense(tmp_path, changes, message):
    training = Training(tmp_path, changes)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(training.recipe))
    with pytest.raises(ConfigError, match=message):
        load_recipe(file)
