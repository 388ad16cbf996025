"""How training ends early, what it leaves, and how it goes on."""

import errno
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from finetuned import (
    Killed,
    checkpoint,
    differing,
    fail,
    interrupt,
    kept,
    kill,
    press_ctrl_c,
    started,
    terminate,
    weights,
)
from trainable import Training, make_shape

from liteasr import WhisperModule
from liteasr.callbacks import StopOnNonFiniteLoss
from liteasr.compression import CompressionPlan, LayerPlan
from liteasr.config import ConfigError


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


def killed_in_step(step, training, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, step, kill)
        with pytest.raises(Killed):
            training.run("broken")


@pytest.mark.parametrize("at", [3, 9])
def test_an_error_in_a_validation_costs_nothing_but_it(tmp_path, monkeypatch, wers, at):
    training = Training(tmp_path, validates=True)
    wers(60, 50, 40, 30, 35)
    whole, _ = training.run("whole")
    original = WhisperModule.validation_step
    with monkeypatch.context() as patch:

        def validation_step(self, *batch):
            if self.global_step == at:
                raise RuntimeError("out of memory")
            return original(self, *batch)

        patch.setattr(WhisperModule, "validation_step", validation_step)
        wers(*(60, 50, 40, 30)[: 1 + (at - 1) // 3])
        with pytest.raises(RuntimeError, match="out of memory"):
            training.run("cut")
    folder = tmp_path / "cut"
    assert checkpoint(folder)["global_step"] == at
    wers(*(50, 40, 30, 35)[(at - 1) // 3 :])
    assert training.run("cut", "run.resume=true")[1] == 0
    assert kept(folder) == kept(whole) == {"step": 9, "val_wer_before": 60.0, "val_wer": 30.0}
    assert not differing(checkpoint(whole)["state_dict"], checkpoint(folder)["state_dict"])


def test_an_average_goes_on_where_it_was(tmp_path, monkeypatch, wers):
    training = Training(tmp_path, {"ema_decay": 0.9}, validates=True)
    wers(60, 50, 40, 30, 20)
    whole, _ = training.run("whole")
    wers(60, 50, 40)
    killed_in_step(7, training, monkeypatch)
    wers(30, 20)
    broken, _ = training.run("broken", "run.resume=true")
    assert kept(whole) == kept(broken)
    assert differing(weights(whole), weights(broken)) == []


def test_an_interrupted_run_keeps_its_best_weights(tmp_path, monkeypatch, wers):
    training = Training(tmp_path, validates=True)
    wers(60, 50, 40, 45, 46)
    whole, _ = training.run("whole")
    wers(60, 50, 40)
    killed_in_step(7, training, monkeypatch)
    assert checkpoint(tmp_path / "broken")["global_step"] == 6
    wers(45, 46)
    broken, _ = training.run("broken", "run.resume=true")
    assert kept(whole) == kept(broken) == {"step": 6, "val_wer_before": 60.0, "val_wer": 40.0}
    assert differing(weights(whole), weights(broken)) == []


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


def test_a_process_with_none_of_a_split_tensor_looks_at_the_others(monkeypatch):
    """As FSDP leaves it with tensors of fewer rows than processes."""
    layers = [torch.nn.Parameter(torch.zeros(rows, 3)) for rows in (0, 2)]
    for one in layers:
        one.grad = torch.ones_like(one)
    checked = []
    callback = StopOnNonFiniteLoss()
    monkeypatch.setattr(callback, "_check", lambda _, what, value, **__: checked.append(value))
    trainer = SimpleNamespace(precision_plugin=None)
    callback.on_before_optimizer_step(trainer, None, torch.optim.AdamW(layers))
    callback.on_before_optimizer_step(trainer, None, torch.optim.AdamW(layers[:1]))
    assert checked == [1.0, 0.0]


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


def test_a_checkpoint_of_training_from_other_weights_is_refused(tmp_path, monkeypatch, capsys):
    """Of equal names and shapes, as two calibrations may give."""
    training = Training(tmp_path)
    with monkeypatch.context() as patch:
        interrupt(patch, 4, kill)
        with pytest.raises(Killed):
            training.run("run")
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    other = WhisperModule(str(tmp_path / "dense"))
    with torch.no_grad():
        other.encoder.layers[0].fc1.bias[0] += 1
    other.model.save_pretrained(tmp_path / "dense")
    capsys.readouterr()
    assert training.run("run", "run.resume=true")[1] == 2
    said = capsys.readouterr().err
    assert "began with other weights" in said
    assert said.count(f"{tmp_path / 'dense'}, encoder of 0.") == 2
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == before


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


@pytest.mark.parametrize("content", [b"", b"no archive", 2000])
def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch, capsys, content):
    """As by a copy that was broken off."""
    training = Training(tmp_path, {"max_steps": 6})
    killed_in_step(4, training, monkeypatch)
    last = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:content] if isinstance(content, int) else content)
    capsys.readouterr()
    assert training.run("broken", "run.resume=true")[1] == 2
    assert f"run.resume: {last} cannot be read" in capsys.readouterr().err
    last.unlink()
    assert training.run("broken", "run.resume=true")[1] == 0


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
