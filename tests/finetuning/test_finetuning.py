"""Training after compression, or alone: what is trained, what is logged and what is kept."""

import json

import pytest
import torch
import transformers
from finetuned import Killed, checkpoint, differing, interrupt, kept, kill, rows, weights
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainable import Training, make_shape, part

from liteasr import WhisperModule
from liteasr.builders import build_trainer
from liteasr.config import ConfigError, load_recipe
from liteasr.distillation import Teacher
from liteasr.loading import load_model


def test_the_last_steps_are_measured_where_epochs_end_within_a_step(tmp_path, wers):
    """Steps of 3, 1, 3, 1 batches: after six, a validation is due only every nine batches."""
    wers(60, 50, 40)
    training = Training(tmp_path, {"max_steps": 6}, validates=True)
    folder, _ = training.run("run", "trainer.accumulate_grad_batches=3")
    assert kept(folder) == {"step": 6, "val_wer_before": 60.0, "val_wer": 40.0}


def test_trains_in_bfloat16(tmp_path):
    training = Training(tmp_path, {"label_smoothing": 0.1})
    folder, code = training.run("run", "trainer.precision=bf16-mixed")
    assert code == 0
    losses = [float(row["train/loss"]) for row in rows(folder) if row["train/loss"]]
    assert losses[-1] < losses[0]
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}


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
    assert "trainer.loggers: wandb is not installed; pip install wandb" in capsys.readouterr().err
    assert not folder.exists()


def test_a_run_that_goes_on_does_so_in_the_same_run_of_wandb(tmp_path, monkeypatch):
    given = []

    def wandb_logger(**options):
        given.append(options)
        return TensorBoardLogger(options["save_dir"], name="stands_for_wandb")

    monkeypatch.setattr("liteasr.runfolder.find_spec", lambda _: True)
    monkeypatch.setattr("liteasr.runfolder.WandbLogger", wandb_logger)
    training, logger = Training(tmp_path), "trainer.loggers=[wandb]"
    with monkeypatch.context() as patch:
        interrupt(patch, 4, kill)
        with pytest.raises(Killed):
            training.run("run", logger)
    training.run("run", logger, "run.resume=true")
    training.run("other", logger)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    training.run("third", logger)
    ids = [one["id"] for one in given]
    assert ids[0] == ids[1] != ids[2]
    assert ids[3] == "mine"
    assert {one["resume"] for one in given} == {"allow"}


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


def test_an_average_leaves_alone_what_is_not_trained(tmp_path):
    training = Training(tmp_path, {"ema_decay": 0.9, "trainable": "factors"}, pivoted=True)
    folder, _ = training.run("run")
    before = load_file(tmp_path / "pivoted" / "model.safetensors")
    changed = {name.rpartition(".")[0] for name in differing(before, weights(folder))}
    block = "model.encoder.layers.0."
    names = ("fc1", "fc2", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    assert changed == {block + name for name in (*names, "self_attn.out_proj")}


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


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.dtype", "float16", "model.dtype: float16 weights cannot be trained"),
        ("trainer.precision", "16-true", "trainer.precision: 16-true weights cannot be trained"),
        ("trainer.precision", "transformer-engine", "trainer: "),
        ("trainer.accelerator", "tpu", "trainer: "),
        ("trainer.strategy", "fsdp", "trainer: "),
    ],
)
def test_what_cannot_train_is_told_before_anything_is_done(tmp_path, capsys, key, value, message):
    """Precision 64-true can be trained in, but not where weights are split."""
    precision = ["trainer.precision=64-true"] if value == "fsdp" else []
    folder, code = Training(tmp_path).run("run", f"{key}={value}", *precision)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_lightning_does_not_requeue_jobs_of_slurm(tmp_path, monkeypatch):
    numbers = dict.fromkeys(("JOB_ID", "PROCID", "NODEID", "LOCALID"), "0")
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", **numbers}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    _, file, *overrides = Training(tmp_path).arguments("run", "trainer.strategy=ddp")
    recipe = load_recipe(file, overrides)
    environment = build_trainer(recipe, None).strategy.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue


def test_an_encoder_learns_from_speech_without_transcripts(tmp_path):
    losses = {"cross_entropy_weight": 0.0, "encoder_distillation_weight": 1.0}
    training = Training(tmp_path, {**losses, "trainable": "encoder"}, pivoted=True, chance=False)
    training.recipe["finetune"]["teacher"] = str(training.dense)
    (tmp_path / "speech" / "metadata.jsonl").unlink()
    folder, code = training.run("run")
    assert code == 0
    curve = [float(row["train/loss"]) for row in rows(folder) if row["train/loss"]]
    assert curve[-1] < curve[0]


def test_a_decoder_does_not(tmp_path, capsys):
    training = Training(tmp_path)
    (tmp_path / "speech" / "metadata.jsonl").unlink()
    folder, code = training.run("run")
    assert code == 2
    assert "data.train.a.path" in capsys.readouterr().err
    assert not folder.exists()


def test_what_is_trained_further_is_measured_against_its_teacher(tmp_path):
    losses = {"cross_entropy_weight": 0.0, "encoder_distillation_weight": 1.0}
    options = {**losses, "trainable": "encoder", "max_steps": 1, "learning_rate": 1e-9}
    training = Training(tmp_path, options, pivoted=True)
    training.recipe["finetune"]["teacher"] = str(training.dense)
    training.recipe["data"]["test"] = part(tmp_path / "speech", skip=9, limit=2)
    folder, _ = training.run("run")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["encoder_relative_error"] > 0.01, "nothing against the model it began with"
