"""Run folders as ``fit`` leaves them, written by hand."""

import json
import math

import torch

from liteasr.compression import CompressionPlan, LayerPlan, Spectra
from liteasr.environment import environment
from liteasr.predictions import write_predictions

RECIPE = 'run:\n  name: fake\nmodel:\n  id: org/fake <unk> & "quotes"\n'
REFERENCE = "the cat sat on the mat"
TEXTS = {
    "dense": {"one.wav": REFERENCE, "two.wav": 'a <unk> & "quotes"'},
    "compressed": {"one.wav": "a cat right sat on mat", "two.wav": 'a <unk> & "quotes"'},
}


def fake_plan(layers=2, width=64):
    """A plan, with its spectra, in which the first fc2 stays dense."""
    plan, spectra = {}, {}
    for layer in range(layers):
        for linear in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"):
            inside = "self_attn." if linear.endswith("proj") else ""
            wide, narrow = (4 * width, width) if linear[:2] == "fc" else (width, width)
            rank = None if (layer, linear) == (0, "fc2") else 8 * (1 + layer % 3)
            name = f"model.encoder.layers.{layer}.{inside}{linear}"
            values = torch.exp(-torch.arange(width) / (4.0 + layer))
            kept = 1.0 if rank is None else float(values[:rank].sum() / values.sum())
            dense = wide * narrow + narrow
            params = dense if rank is None else rank * (wide + narrow) + narrow
            sizes = (wide, narrow) if linear == "fc2" else (narrow, wide)
            plan[name] = LayerPlan(*sizes, rank, kept, dense, params, math.exp(-layer))
            spectra[name] = values
    whole = CompressionPlan(plan, "auto", calibration={"clips": 12}, predicted_error=0.0321)
    return whole, Spectra.of(spectra, "cost in the metric", whole.ranks)


def fake_metrics():
    """Content of ``metrics.json``."""
    return {
        "dense": {
            "encoder_params": 7_632_384,
            "wer": 17.25,
            "datasets": {"an4": 1.5, "lj": 33.0},
            "rtfx": 10.0,
            "encoder_rtfx": 40.0,
            "ran_on": "1 × CPU, 2 threads, 32-true",
        },
        "compressed": {
            "encoder_params": 6_049_152,
            "wer": 19.75,
            "datasets": {"an4": 2.25, "lj": 37.25},
            "rtfx": 12.5,
            "encoder_rtfx": 60.0,
            "ran_on": "1 × CPU, 2 threads, 32-true",
        },
        "finetuned": None,
        "encoder_relative_error": 0.0456,
        "timing_s": {"calibrate": 41.5, "factorize": 82.2, "finetune": 0.0, "evaluate": 12.0},
        "peak_memory_mb": 893.4,
    }


def fake_run(folder, layers=2):
    """Write the folder of a finished run and return it."""
    folder.mkdir()
    plan, spectra = fake_plan(layers)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "metrics.json").write_text(json.dumps(fake_metrics()))
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "spectra.json").write_text(spectra.to_json())
    (folder / "environment.json").write_text(json.dumps(environment()))
    (folder / "stages.json").write_text(json.dumps({"dense": {"seconds": 5.0}}))
    for stage, heard in TEXTS.items():
        texts = [
            {
                "set": "an4",
                "id": f"/speech/{name}",
                "reference": REFERENCE if name == "one.wav" else TEXTS["dense"][name],
                "hypothesis": text,
            }
            for name, text in heard.items()
        ]
        write_predictions(folder / "predictions", stage, texts)
    return folder


def fake_comparison(folder):
    """Write the folder of a finished comparison with a search, and return it."""
    dense = {"encoder_params": 7_632_384, "wer": 17.25, "datasets": {"an4": 1.5, "lj": 33.0}}
    reached = {
        "name": "auto & co",
        "method": "auto",
        "wanted_params": 6_050_000,
        "encoder_params": 6_049_152,
        "wer": 19.75,
        "datasets": {"an4": 2.25, "lj": 37.25},
        "encoder_relative_error": 0.0456,
        "reason": None,
    }
    nothing = {"encoder_params": None, "wer": None, "datasets": {}, "encoder_relative_error": None}
    missed = reached | nothing | {"name": "pca", "reason": "no thresholds < 1 give it"}
    content = {
        "dense": dense,
        "calibration": {"clips": 12},
        "results": [reached, missed],
        "best": {"6.05M": "auto & co"},
        "search": {
            "name": "auto & co",
            "max_wer_increase": 0.5,
            "tolerance": 0.01,
            "dense": dense,
            "tried": [reached | {"accepted": False}],
            "result": None,
        },
    }
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE + "compare:\n  encoder_params: [6.05M]\n")
    (folder / "compare.json").write_text(json.dumps(content))
    (folder / "environment.json").write_text(json.dumps(environment()))
    return folder
