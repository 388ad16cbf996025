import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from speech_files import make_processor
from torch.utils.data import DataLoader
from transformers import WhisperForConditionalGeneration

from liteasr import CompressionCallback, WhisperModule
from liteasr.compression import (
    Budget,
    CompressionPlan,
    PCAMethod,
    RefinedMethod,
    ThresholdRule,
    apply_plan,
    collect_ranks,
    find_linears,
)

TESTS = Path(__file__).parents[1]
PATHS = os.pathsep.join(map(str, (TESTS / "callbacks", TESTS / "helpers", TESTS.parent)))
RULE = ThresholdRule(attention=0.9999, mlp=0.995, multiple=8)


class Clips(L.LightningDataModule):
    """Random features in the shape of the real data module's batches."""

    def __init__(self, clips=12, fingerprint="one"):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.features = torch.randn(clips, 80, 100, generator=generator)
        self.fingerprint = fingerprint
        self.served = 0

    def _loader(self, start=0, step=1):
        world, rank = (
            (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        )
        indices = list(range(rank, len(self.features), world))[start * 2 :]

        def collate(batch):
            self.served += len(batch)
            return {
                "input_features": torch.stack([self.features[i] for i in batch]),
                "frames": torch.full((len(batch),), 50),
                "labels": torch.tensor([[2, 3, 4]] * len(batch)),
            }

        return DataLoader(indices, batch_size=2, collate_fn=collate)

    def calibration_dataloader(self, skip_batches=0):
        return self._loader(skip_batches)

    def calibration_fingerprint(self):
        return self.fingerprint

    def train_dataloader(self):
        return self._loader()


@pytest.fixture
def folder(tiny_model, tmp_path):
    """The tiny model with a byte-level tokenizer beside it."""
    processor = make_processor(chunk_length=1)
    tiny_model.resize_token_embeddings(len(processor.tokenizer))
    tiny_model.save_pretrained(tmp_path / "tiny")
    processor.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def trainer(tmp_path, callbacks, steps=0, **options):
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        limit_train_batches=None if steps else 0,
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=tmp_path,
        **options,
    )


def callback(**options):
    return CompressionCallback(PCAMethod(RULE), **options)


def test_fit_compresses_before_anything_is_trained(folder, tmp_path):
    module, compression = WhisperModule(str(folder)), callback()
    names = set(find_linears(module.model))
    trainer(tmp_path, [compression]).fit(module, datamodule=Clips())
    assert compression.plan is not None
    assert collect_ranks(module.model) == compression.plan.ranks
    assert 4 <= len(compression.plan.ranks) < 12
    assert compression.plan.layers.keys() == names
    assert compression.plan.calibration == {"clips": 12, "fingerprint": "one"}
    assert all(seconds > 0 for seconds in compression.timing_s.values())


def test_the_optimizer_holds_the_factors_and_they_move(folder, tmp_path):
    module = WhisperModule(str(folder), learning_rate=1e-2, warmup_steps=0)
    first = {}

    class Watch(L.Callback):
        def on_train_start(self, trainer, pl_module):
            held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
            factors = {
                name: parameter
                for name, parameter in pl_module.model.named_parameters()
                if "weight1" in name or "weight2" in name
            }
            assert factors
            assert {id(p) for p in factors.values()} <= held
            first.update({name: p.detach().clone() for name, p in factors.items()})

    trainer(tmp_path, [callback(), Watch()], steps=2).fit(module, datamodule=Clips())
    after = dict(module.model.named_parameters())
    assert all(not torch.equal(value, after[name]) for name, value in first.items())


class Utterances(Clips):
    """One utterance to evaluate."""

    test_names = val_names = ("one",)

    def _evaluation(self):
        one = {
            "input_features": self.features[:1],
            "frames": torch.tensor([50]),
            "segments": [1],
            "references": ["a b"],
            "ids": ["x"],
            "seconds": [1.0],
        }
        return DataLoader([0], collate_fn=lambda _: one)

    test_dataloader = val_dataloader = predict_dataloader = _evaluation


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_stages_run_and_leave_the_model_alone(folder, tmp_path, stage):
    module, compression = WhisperModule(str(folder), max_new_tokens=3), callback()
    output = getattr(trainer(tmp_path, [compression]), stage)(module, datamodule=Utterances())
    assert compression.plan is None
    assert collect_ranks(module.model) == {}
    if stage == "predict":
        assert isinstance(output[0][0], str)
    else:
        assert module.results["one"]["words"] == 2


def test_one_callback_compresses_one_model_after_another(folder, tmp_path):
    compression = callback()
    modules = [WhisperModule(str(folder)) for _ in range(2)]
    for module in modules:
        trainer(tmp_path, [compression]).fit(module, datamodule=Clips())
    assert collect_ranks(modules[0].model) == collect_ranks(modules[1].model) != {}


def test_nothing_of_the_calibration_is_kept(folder, tmp_path):
    compression = callback()
    trainer(tmp_path, [compression]).fit(WhisperModule(str(folder)), datamodule=Clips())
    assert compression.method.statistics == {}
    assert compression.method.linears == {}


def test_spectra_are_handed_over(folder, tmp_path):
    module, compression = WhisperModule(str(folder)), callback()
    trainer(tmp_path, [compression]).fit(module, datamodule=Clips())
    assert compression.spectra.layers.keys() == compression.plan.layers.keys()
    assert compression.spectra.unit == PCAMethod.spectra_unit


def test_an_error_in_a_methods_spectra_costs_nothing_but_them(folder, tmp_path, caplog):
    class Odd(PCAMethod):
        def spectra(self):
            raise RuntimeError("no prism")

    module, compression = WhisperModule(str(folder)), CompressionCallback(Odd(RULE))
    trainer(tmp_path, [compression]).fit(module, datamodule=Clips())
    assert collect_ranks(module.model) == compression.plan.ranks
    assert compression.spectra is None
    assert "no prism" in caplog.text


def test_a_second_fit_does_not_compress_again(folder, tmp_path):
    module, compression, clips = WhisperModule(str(folder)), callback(), Clips()
    train = trainer(tmp_path, [compression])
    train.fit(module, datamodule=clips)
    ranks, served = collect_ranks(module.model), clips.served
    train.fit(module, datamodule=clips)
    assert collect_ranks(module.model) == ranks
    assert clips.served == served


def test_resuming_rebuilds_the_structure_without_calibrating(folder, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "ckpt", save_last=True, every_n_train_steps=1)
    module = WhisperModule(str(folder))
    trainer(tmp_path, [callback(), checkpoint], steps=1).fit(module, datamodule=Clips())
    resumed, clips = WhisperModule(str(folder)), Clips(fingerprint="never asked for")
    path = str(tmp_path / "ckpt" / "last.ckpt")
    compression = callback()
    again = trainer(tmp_path, [compression], steps=2)
    again.ckpt_path = path
    again.fit(resumed, datamodule=clips)
    assert again.global_step == 2
    assert clips.served == 2, "one training batch, no calibration batch"
    assert collect_ranks(resumed.model) == collect_ranks(module.model)


def test_resuming_by_argument_works_too_but_calibrates_again(folder, tmp_path):
    """Lightning 2.6 does not tell callbacks of ``fit(ckpt_path=…)`` before ``setup`` is over."""
    train = trainer(tmp_path, [callback()], steps=1)
    train.fit(WhisperModule(str(folder)), datamodule=Clips())
    train.save_checkpoint(tmp_path / "one.ckpt")
    again, clips = trainer(tmp_path, [callback()], steps=2), Clips()
    again.fit(WhisperModule(str(folder)), datamodule=clips, ckpt_path=str(tmp_path / "one.ckpt"))
    assert again.global_step == 2
    assert clips.served == 12 + 2


def test_load_from_checkpoint_rebuilds_too(folder, tmp_path):
    module = WhisperModule(str(folder))
    train = trainer(tmp_path, [callback()], steps=1)
    train.fit(module, datamodule=Clips())
    train.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)[WhisperModule.PLAN_KEY]
    loaded = WhisperModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    for name, tensor in module.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])


def test_a_checkpoint_of_an_uncompressed_run_is_refused(folder, tmp_path):
    module = WhisperModule(str(folder), trainable="all")
    train = trainer(tmp_path, [], steps=1)
    train.fit(module, datamodule=Clips())
    train.save_checkpoint(tmp_path / "dense.ckpt")
    again = trainer(tmp_path, [callback()], steps=2)
    again.ckpt_path = str(tmp_path / "dense.ckpt")
    with pytest.raises(ValueError, match=r"dense\.ckpt has no compression plan"):
        again.fit(WhisperModule(str(folder)), datamodule=Clips())


def test_calibration_killed_in_the_middle_goes_on(folder, tmp_path):
    class Killed(PCAMethod):
        left = 4

        def observe(self, batch):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            super().observe(batch)

    statistics = tmp_path / "statistics"
    killed = CompressionCallback(Killed(RULE), statistics_dir=statistics, save_every=2)
    module = WhisperModule(str(folder))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(tmp_path, [killed]).fit(module, datamodule=Clips())
    assert collect_ranks(module.model) == {}
    assert [path.name for path in statistics.iterdir()] == ["partial-0.pt"]

    clips = Clips()
    resumed, whole = WhisperModule(str(folder)), WhisperModule(str(folder))
    trainer(tmp_path, [callback(statistics_dir=statistics)]).fit(resumed, datamodule=clips)
    assert clips.served == 12 - 4 * 2
    assert [path.name for path in statistics.iterdir()] == ["total.pt"]
    trainer(tmp_path, [callback()]).fit(whole, datamodule=Clips())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def test_finished_statistics_serve_other_thresholds_but_not_other_clips(folder, tmp_path):
    options = {"statistics_dir": tmp_path / "statistics"}
    trainer(tmp_path, [callback(**options)]).fit(WhisperModule(str(folder)), datamodule=Clips())
    clips, tighter = Clips(), ThresholdRule(attention=0.5, mlp=0.5, multiple=8)
    again = CompressionCallback(PCAMethod(tighter), **options)
    trainer(tmp_path, [again]).fit(WhisperModule(str(folder)), datamodule=clips)
    assert clips.served == 0
    assert again.plan.calibration["clips"] == 12
    others = Clips(fingerprint="two")
    trainer(tmp_path, [callback(**options)]).fit(WhisperModule(str(folder)), datamodule=others)
    assert others.served == 12


def test_a_damaged_statistics_file_is_left_aside(folder, tmp_path):
    (tmp_path / "statistics").mkdir()
    (tmp_path / "statistics" / "total.pt").write_bytes(b"not a zip file")
    compression, clips = callback(statistics_dir=tmp_path / "statistics"), Clips()
    trainer(tmp_path, [compression]).fit(WhisperModule(str(folder)), datamodule=clips)
    assert clips.served == 12


def test_every_step_can_be_overridden(folder, tmp_path):
    class OnlyMLP(CompressionCallback):
        seen = ()

        def select_modules(self, pl_module):
            return find_linears(pl_module.model, ["*encoder.layers.*.fc1"])

        def on_layer_compressed(self, trainer, pl_module, name, layer):
            self.seen = (*self.seen, (name, layer.rank))

        def report(self, trainer, pl_module, plan):
            (tmp_path / "report.json").write_text(json.dumps(plan.ranks))

    compression = OnlyMLP(PCAMethod(RULE))
    module = WhisperModule(str(folder))
    trainer(tmp_path, [compression]).fit(module, datamodule=Clips())
    assert dict(compression.seen) == collect_ranks(module.model)
    assert json.loads((tmp_path / "report.json").read_text()) == collect_ranks(module.model)
    assert all(name.endswith("fc1") for name, _ in compression.seen)


def refined():
    """``auto`` on a few windows, at a size that costs something."""
    steps = {"refine_steps": 6, "learning_rate": 1e-4, "joint_steps": 3}
    return RefinedMethod(Budget("encoder_ratio", 0.4), **steps)


def test_a_model_is_left_as_it_was_where_compression_fails(folder, tmp_path):
    module = WhisperModule(str(folder))
    before = {name: one.clone() for name, one in module.model.state_dict().items()}
    compression = CompressionCallback(RefinedMethod(Budget("encoder_ratio", 0.001)))
    with pytest.raises(ValueError, match="cannot be reached"):
        trainer(tmp_path, [compression]).fit(module, datamodule=Clips())
    after = module.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(one, before[name]) for name, one in after.items())


def test_blocks_that_were_finished_are_not_refined_again(folder, tmp_path, monkeypatch):
    import liteasr.compression.blockwise

    done, real = [], liteasr.compression.blockwise.refine_block

    def refine(block, *rest):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(block)
        return real(block, *rest)

    monkeypatch.setattr(liteasr.compression.blockwise, "refine_block", refine)
    options = {"statistics_dir": tmp_path / "statistics"}
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(tmp_path, [CompressionCallback(refined(), **options)]).fit(
            WhisperModule(str(folder)), datamodule=Clips()
        )
    assert (tmp_path / "statistics" / "block-0.pt").is_file()
    calls = []

    def count(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(liteasr.compression.blockwise, "refine_block", count)
    resumed, whole = WhisperModule(str(folder)), WhisperModule(str(folder))
    again, clips = CompressionCallback(refined(), **options), Clips()
    trainer(tmp_path, [again]).fit(resumed, datamodule=clips)
    assert (clips.served, len(calls)) == (0, 1)
    trainer(tmp_path, [CompressionCallback(refined())]).fit(whole, datamodule=Clips())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])

    monkeypatch.setattr(
        RefinedMethod, "before_block", lambda *_: pytest.fail("all factors are there")
    )
    third = WhisperModule(str(folder))
    trainer(tmp_path, [CompressionCallback(refined(), **options)]).fit(third, datamodule=Clips())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, third.model.state_dict()[name])


def test_no_clips_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match="no clips"):
        trainer(tmp_path, [callback()]).fit(WhisperModule(str(folder)), datamodule=Clips(clips=0))


def test_modes_and_hooks_are_as_before(folder, tmp_path):
    module = WhisperModule(str(folder))
    module.model.train()
    module.model.model.decoder.eval()
    modes = {
        name: m.training for name, m in module.model.named_modules() if "encoder.layers" not in name
    }
    trainer(tmp_path, [callback()]).fit(module, datamodule=Clips())
    after = dict(module.model.named_modules())
    assert {name: after[name].training for name in modes} == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in after.values())


def test_two_processes_give_the_ranks_of_one(folder, tmp_path):
    """Real processes and a real all-reduce; the strategy wraps the model after the swap."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    for world in (1, 2):
        command = [sys.executable, str(script), str(folder), str(world), str(tmp_path)]
        subprocess.run(command, check=True, timeout=600, env={**os.environ, "PYTHONPATH": PATHS})
    x = torch.randn(2, 80, 100)
    for method in ("pca", "auto"):
        files = [tmp_path / f"{method}-{part}.pt" for part in ("1-0", "2-0", "2-1")]
        one, two, other = (torch.load(file, weights_only=True) for file in files)
        assert one["ranks"] == two["ranks"] == other["ranks"] != {}
        for name, tensor in two["weights"].items():
            assert torch.equal(tensor, other["weights"][name]), "both hold the same factors"
        outputs = []
        for result in (one, two):
            model = WhisperForConditionalGeneration.from_pretrained(folder)
            apply_plan(model, CompressionPlan.from_dict(result["plan"]))
            model.load_state_dict(result["weights"])
            with torch.no_grad():
                outputs.append(copy.deepcopy(model).model.encoder(x).last_hidden_state)
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)


TWO_PROCESSES = """
import sys
import torch
import lightning as L
from test_compression import Clips, RULE, PCAMethod, refined
from liteasr import CompressionCallback, WhisperModule
from liteasr.compression import collect_ranks

folder, world, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
for method in (PCAMethod(RULE), refined()):
    module = WhisperModule(folder)
    callback = CompressionCallback(method)
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_steps=0,
        limit_train_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[callback],
    )
    trainer.fit(module, datamodule=Clips())
    content = {
        "ranks": collect_ranks(module.model),
        "plan": callback.plan.to_dict(),
        "weights": module.model.state_dict(),
    }
    torch.save(content, f"{out}/{method.name}-{world}-{trainer.global_rank}.pt")
"""
