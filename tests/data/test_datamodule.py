"""The data module as a whole: roles kept apart, Lightning's rank, pickling."""

import os
import pickle
import warnings

import lightning as L
import pytest
import torch
from speech_files import audio_bytes, source

from liteasr.config import ConfigError


def errors_of(call):
    with pytest.raises(ConfigError) as caught:
        call()
    return caught.value.errors


ROLE_PAIRS = [
    ("calibration", "val"),
    ("calibration", "test"),
    ("train", "val"),
    ("train", "test"),
]


@pytest.mark.parametrize(("one", "other"), ROLE_PAIRS)
def test_no_file_in_two_roles(make_datamodule, make_folder, tmp_path, one, other):
    folder = make_folder("a", [0.05] * 5)
    os.symlink(folder, tmp_path / "link")
    manifest = tmp_path / "some.jsonl"
    manifest.write_text(
        "\n".join(f'{{"audio": "link/0{n}.flac", "text": "x"}}' for n in range(1, 5))
    )
    sets = {one: {"x": source(folder)}, other: {"y": source(manifest, "manifest")}}
    (message,) = errors_of(make_datamodule(**sets).check)
    files = ", ".join(str(folder / f"0{n}.flac") for n in (1, 2, 3))
    assert message == f"data.{one}.x, data.{other}.y: 4 files in both: {files}, …"
    sets[one]["x"].limit = 1
    make_datamodule(**sets).check()
    sets[one]["x"].limit = 2
    (message,) = errors_of(make_datamodule(**sets).check)
    assert message.endswith(f"1 file in both: {folder / '01.flac'}")


def test_val_and_test_may_share_and_so_may_calibration_and_train(make_datamodule, make_folder):
    folder, other = make_folder("a", [0.05]), make_folder("b", [0.05])
    for pair, where in (("val", "test"), folder), (("calibration", "train"), other):
        make_datamodule(**{role: {"x": source(where)} for role in pair}).check()


def hub_source(mirror, streaming, **options):
    return source(mirror, "hub", subset="a", streaming=streaming, **options)


@pytest.mark.parametrize("one_streams", [False, True])
@pytest.mark.parametrize("other_streams", [False, True])
def test_hub_ranges(make_datamodule, make_mirror, one_streams, other_streams):
    mirror = make_mirror({"a/test-0.parquet": [(audio_bytes(0.05), "x")] * 6})

    def check(one, other):
        sets = {
            "calibration": {"c": hub_source(mirror, one_streams, **one)},
            "test": {"t": hub_source(mirror, other_streams, **other)},
        }
        make_datamodule(**sets).check()

    check({"limit": 3}, {"skip": 3})
    check({"skip": 4, "limit": 1}, {"limit": 4})
    for overlapping in (({"limit": 4}, {"skip": 3}), ({}, {})):
        (message,) = errors_of(lambda pair=overlapping: check(*pair))
        assert message.startswith("data.calibration.c, data.test.t: ")


def test_all_errors_at_once(make_datamodule, make_folder, tmp_path):
    datamodule = make_datamodule(
        calibration={"good": source(make_folder("a", [0.05])), "c": source(tmp_path / "x")},
        test={"t": source(tmp_path / "y"), "d": source("", "demo")},
    )
    messages = errors_of(datamodule.check)
    assert [message.split(":")[0] for message in messages] == [
        "data.calibration.c.path",
        "data.test.t.path",
        "data.test.d.split",
    ]


def test_setup_loads_what_a_stage_needs_and_once(make_datamodule, make_folder, monkeypatch):
    loaded = []
    from liteasr.data import sets

    load = sets.load_source
    monkeypatch.setattr(
        sets, "load_source", lambda s, key, **o: loaded.append(key) or load(s, key, **o)
    )
    roles = {
        role: {"x": source(make_folder(role, [0.05]))}
        for role in ("calibration", "train", "val", "test")
    }
    datamodule = make_datamodule(**roles)
    datamodule.setup("test")
    assert loaded == ["data.test.x"]
    datamodule.setup("fit")
    assert loaded[1:] == ["data.calibration.x", "data.train.x", "data.val.x"]
    for stage in ("fit", "validate", "test", "predict", None):
        datamodule.setup(stage)
    datamodule.check()
    assert len(loaded) == 4


def test_sharding(make_datamodule):
    datamodule = make_datamodule()
    assert datamodule.sharding == (0, 1)
    datamodule.set_sharding(2, 3)
    assert datamodule.sharding == (2, 3)
    with pytest.raises(ValueError, match="rank 3 is not one of 3"):
        datamodule.set_sharding(3, 3)


def test_pickling(make_datamodule, make_folder, make_mirror):
    mirror = make_mirror({"a/test-0.parquet": [(audio_bytes(0.05), "x")] * 3})
    datamodule = make_datamodule(
        calibration={"a": source(make_folder("a", [0.05, 2.2]))},
        train={"b": source(make_folder("b", [0.05]))},
        test={"c": source(make_folder("c", [0.05])), "d": hub_source(mirror, True)},
    )
    copy = pickle.loads(pickle.dumps(datamodule))
    assert copy.calibration_fingerprint() == datamodule.calibration_fingerprint()
    loaders = [copy.calibration_dataloader(), copy.train_dataloader(), *copy.test_dataloader()]
    for loader in loaders:
        assert len(list(pickle.loads(pickle.dumps(loader)))) == len(list(loader)) >= 1
    assert len(list(pickle.loads(pickle.dumps(copy)).test_dataloader()[0])) == 1


class Recorder(L.LightningModule):
    """Counts what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch["labels"].shape)
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen["val"] += [(dataloader_idx, name) for name in batch["ids"]]

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen["test"] += [(dataloader_idx, name) for name in batch["ids"]]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(tmp_path, **options):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )


def test_under_a_trainer(make_datamodule, make_folder, make_mirror, tmp_path):
    mirror = make_mirror({"a/test-0.parquet": [(audio_bytes(0.05), f"x {n}") for n in range(5)]})
    a = make_folder("a", [0.1, 0.3, 1.4, 0.2, 0.1], broken=[])
    (a / "04.flac").write_bytes(b"")
    datamodule = make_datamodule(
        calibration={"c": source(make_folder("c", [0.1] * 3))},
        train={"t": source(make_folder("t", [0.1] * 6))},
        val={"a": source(a)},
        test={"a": source(a), "d": hub_source(mirror, True), "e": hub_source(mirror, False)},
        train_batch_size=2,
        eval_batch_size=2,
        num_workers=1,
        max_bad_fraction=0.3,
    )
    module = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*(forked|IterableDataset).*")
        make_trainer(tmp_path, max_steps=5).fit(module, datamodule=datamodule)
        make_trainer(tmp_path).test(module, datamodule=datamodule, verbose=False)
    assert len(module.seen["train"]) == 5
    counts = [sum(index == n for index, _ in module.seen["test"]) for n in range(3)]
    assert counts == [4, 5, 5]
    assert {name for _, name in module.seen["val"]} == {
        name for index, name in module.seen["test"] if index == 0
    }


def test_too_many_bad_files_stop_a_trainer(make_datamodule, make_folder, tmp_path):
    folder = make_folder("a", [0.5] * 4, broken=[3])
    datamodule = make_datamodule(test={"a": source(folder)}, num_workers=1, eval_batch_size=4)
    with pytest.raises(ConfigError, match=r"data\.test\.a: 1 of 4"):
        make_trainer(tmp_path).test(Recorder(), datamodule=datamodule, verbose=False)
