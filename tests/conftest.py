"""Fixtures shared by all tests: a tiny Whisper, its processor, and the real model where present."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers, and the processes that they start, leave each other room: threads that wait by
    # spinning make a run of seconds one of minutes where there are more of them than cores.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")

from pathlib import Path

import pytest
import torch
from checkpoints import save_checkpoint
from runs import ROOT
from tiny import tiny_config
from transformers import WhisperForConditionalGeneration

from liteasr.compression import CompressionPlan, apply_plan, find_linears
from liteasr.compression.plan import LayerPlan
from liteasr.export import export_model
from liteasr.loading import load

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def tiny_model():
    """A dense Whisper with random weights; all its layers but q_proj have low-rank outputs."""
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(tiny_config()).eval()
    with torch.no_grad():
        for layer in model.model.encoder.layers:
            for name, linear in layer.named_modules():
                if not isinstance(linear, torch.nn.Linear):
                    continue
                left, values, right = torch.linalg.svd(linear.weight, full_matrices=False)
                decay = torch.exp(-torch.arange(len(values)) / (1e3 if "q_proj" in name else 8))
                linear.weight.copy_(left @ torch.diag(decay) @ right)
                if linear.bias is not None:
                    torch.nn.init.normal_(linear.bias)
    return model


@pytest.fixture
def tiny_features():
    """Three batches of log-mel-like features, (4, 80, 100) each, with their encoder frames."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 80, 100, generator=generator), torch.tensor([50, 10, 30, 25]))
        for _ in range(3)
    ]


def _shared(relative: str) -> Path:
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"../shared/{relative} is not here")
    return path


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Folder of a real Whisper checkpoint."""
    return _shared("models/whisper-tiny-libri")


@pytest.fixture(scope="session")
def real_speech() -> Path:
    """Folder of real speech: ``<corpus>/{train,dev}``."""
    return _shared("speech")


@pytest.fixture
def arguments(real_model, real_speech, tmp_path, monkeypatch):
    """Arguments of a run of six clips and one utterance of two sets."""
    monkeypatch.chdir(ROOT)
    return [
        "--config",
        "recipes/whisper_tiny_libri.yaml",
        f"model.id={real_model}",
        f"data.root={real_speech}",
        f"run.dir={tmp_path / 'run'}",
        "data.calibration_clips=6",
        "data.calibration_batch_size=3",
        "data.num_workers=0",
        "compression.options={refine_steps: 2, joint_steps: 2}",
        "data.test.librispeech=null",
        "data.test.common_voice=null",
        "data.test.an4.limit=2",
        "data.test.ljspeech.limit=1",
        "trainer.num_threads=1",
    ]


@pytest.fixture(scope="session")
def finished(real_model, real_speech, tmp_path_factory):
    """One finished run that several tests look at."""
    run = tmp_path_factory.mktemp("finished") / "run"
    command = [
        *("--config", str(ROOT / "recipes" / "whisper_tiny_libri.yaml")),
        *(f"model.id={real_model}", f"data.root={real_speech}", f"run.dir={run}"),
        *("data.calibration_clips=6", "data.num_workers=0", "data.test.librispeech=null"),
        "compression.options={refine_steps: 2, joint_steps: 2}",
        *("data.test.common_voice=null", "data.test.an4.limit=3", "data.test.ljspeech.limit=1"),
    ]
    from liteasr.fit import main

    assert main(command) == 0
    return run


@pytest.fixture
def fp64(tiny_model, tiny_features):
    with torch.no_grad():
        for linear in find_linears(tiny_model).values():
            linear.weight.mul_(6)  # so that what a layer does is seen at the encoder's output
    return tiny_model.double(), [(x.double(), frames) for x, frames in tiny_features]


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    """Folder of a dense checkpoint over windows of one second."""
    return str(save_checkpoint(tmp_path_factory.mktemp("dense") / "model"))


@pytest.fixture(scope="session")
def lite(dense, tmp_path_factory):
    """Folder of the same with low-rank MLPs."""
    model, processor = load(dense)
    layers = {
        name: LayerPlan(one.in_features, one.out_features, 8, 1.0, 0, 0)
        for name, one in find_linears(model, ["*encoder.layers.*fc?"]).items()
    }
    apply_plan(model, CompressionPlan(layers))
    folder = tmp_path_factory.mktemp("lite") / "model"
    export_model(model, processor, folder)
    return str(folder)
