"""Fixtures shared by all tests: a tiny Whisper, its processor, and the real model where present."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from tiny import tiny_config
from transformers import WhisperForConditionalGeneration

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
