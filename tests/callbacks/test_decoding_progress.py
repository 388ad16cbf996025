"""The bar of an evaluation counts utterances, whatever the batches."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

import liteasr.callbacks.decoding_progress
from liteasr.callbacks import DecodingProgress
from liteasr.data.loader import Extent


class Loader(DataLoader):
    extents = None


def loader(name, sizes, rows):
    batches = [{"segments": [1] * size, "x": torch.zeros(size)} for size in sizes]
    made = Loader(batches, batch_size=None)
    made.extents = {} if rows is None else {name: Extent(rows)}
    return made


class Silent(L.LightningModule):
    failing = False

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        if self.failing:
            raise RuntimeError("out of tape")

    validation_step = test_step


@pytest.fixture
def shown(monkeypatch):
    """What bars were shown: total, and units done when they were taken away."""
    bars = []

    class Bar(SimpleNamespace):
        task_ids = (0,)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.is_open = False

        def advance(self, _, count):
            self.done += count

    def progress(description, total, unit, *, enabled):
        bars.append(Bar(total=total, done=0, is_open=True, enabled=enabled))
        return bars[-1]

    monkeypatch.setattr(liteasr.callbacks.decoding_progress, "progress", progress)
    return bars


def trainer():
    options = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return L.Trainer(
        accelerator="cpu", callbacks=[DecodingProgress()], **dict.fromkeys(options, False)
    )


@pytest.mark.parametrize("stage", ["test", "validate"])
def test_utterances_of_all_sets_are_counted(shown, stage):
    loaders = [loader("a", [3, 1], 4), loader("b", [2], 2)]
    getattr(trainer(), stage)(Silent(), loaders, verbose=False)
    (bar,) = shown
    assert (bar.total, bar.done, bar.is_open, bar.enabled) == (6, 6, False, True)


def test_the_total_of_a_stream_is_unknown(shown):
    trainer().test(Silent(), [loader("a", [3], 3), loader("b", [2], None)], verbose=False)
    assert (shown[0].total, shown[0].done) == (None, 5)


def test_an_error_takes_the_bar_away(shown):
    module = Silent()
    module.failing = True
    with pytest.raises(RuntimeError, match="out of tape"):
        trainer().test(module, [loader("a", [3], 3)], verbose=False)
    assert not shown[0].is_open
