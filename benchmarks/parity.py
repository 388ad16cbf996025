"""``pca`` on a real encoder against an SVD of its stored, centred activations.

    python benchmarks/parity.py [--model M] [--speech D] [--clips 8]

Prints, for the three published pairs of thresholds, whether all ranks agree, the smallest cosine
of the principal angles between the subspaces, and the relative difference of the encoder's output.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from calibration import datamodule
from torch import Tensor, nn

from liteasr import WhisperModule
from liteasr.compression import (
    CalibrationBatch,
    PCAMethod,
    ThresholdRule,
    apply_plan,
    encoder_parameters,
    find_linears,
)

THRESHOLDS = ((0.999, 0.999), (0.99, 0.999), (0.99, 0.995))


def stored_spectra(module: WhisperModule, batches: list[CalibrationBatch]) -> dict[str, Any]:
    """Mean, energies and right singular vectors of every layer's stored outputs, in fp64."""
    decomposed = {}
    for name, linear in find_linears(module.model).items():
        outputs: list[Tensor] = []
        handle = linear.register_forward_hook(lambda _m, _i, y, kept=outputs: kept.append(y))
        with torch.no_grad():
            for batch in batches:
                module.encoder(batch.input_features)
        handle.remove()
        y = torch.cat(outputs).flatten(0, 1).double()
        mean = y.mean(0)
        # R of a QR has the singular values and right vectors of the stored matrix, and is small.
        _, values, right = torch.linalg.svd(torch.linalg.qr(y - mean, mode="r")[1])
        decomposed[name] = (mean, values.square(), right)
    return decomposed


def published_rank(energy: Tensor, threshold: float, cap: float, linear: nn.Linear) -> int | None:
    """The published rule with strict saving."""
    total = energy.sum()
    for rank in range(0, len(energy), 16):
        if energy[:rank].sum() / total > threshold:
            saves = rank * (linear.in_features + linear.out_features) < linear.weight.numel()
            return rank if rank <= cap and saves else None
    return None


def compare(
    module: WhisperModule,
    method: PCAMethod,
    stored: dict[str, Any],
    features: Tensor,
) -> dict[str, Any]:
    """One pair of thresholds."""
    rule, width = method.rule, module.model.config.d_model
    reference, ours = copy.deepcopy(module.model), copy.deepcopy(module.model)
    ranks, cosines = {}, []
    for name, linear in find_linears(module.model).items():
        mean, energy, right = stored[name]
        is_mlp = name.endswith(("fc1", "fc2"))
        cap = (rule.max_rank_mlp if is_mlp else rule.max_rank_attention) * width
        rank = published_rank(energy, rule.mlp if is_mlp else rule.attention, cap, linear)
        if rank is None:
            continue
        ranks[name], basis = rank, right[:rank].T
        overlap = method.pca(name).basis_OR[:, :rank].T @ basis
        cosines.append(float(torch.linalg.svdvals(overlap).min()))
        target = reference.get_submodule(name)
        bias = torch.zeros_like(mean) if target.bias is None else target.bias.detach().double()
        with torch.no_grad():
            target.weight.copy_(basis @ basis.T @ target.weight.double())
            target.bias = nn.Parameter((mean + basis @ basis.T @ (bias - mean)).float())
    plan = method.allocate()
    apply_plan(ours, plan, {n: method.factorize(n, rank) for n, rank in plan.ranks.items()})
    with torch.no_grad():
        expected = reference.get_encoder()(features).last_hidden_state
        actual = ours.get_encoder()(features).last_hidden_state
    return {
        "thresholds": f"{rule.attention}:{rule.mlp}",
        "same_ranks": plan.ranks == ranks,
        "compressed_layers": len(ranks),
        "encoder_m": encoder_parameters(ours.get_encoder()) / 1e6,
        "smallest_cosine": min(cosines),
        "output_difference": float((actual - expected).norm() / expected.norm()),
    }


def main() -> None:
    """Parse, compare, print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="../shared/models/whisper-tiny-libri")
    parser.add_argument("--speech", type=Path, default=Path("../shared/speech"))
    parser.add_argument("--clips", type=int, default=8)
    args = parser.parse_args()
    module = WhisperModule(args.model)
    data = datamodule(module, args.speech, args.clips)
    data.setup("fit")
    batches = [
        CalibrationBatch(batch["input_features"], batch["frames"])
        for batch in data.calibration_dataloader()
    ]
    stored = stored_spectra(module, batches)
    for attention, mlp in THRESHOLDS:
        method = PCAMethod(ThresholdRule(attention, mlp))
        method.prepare(module.encoder, find_linears(module.model))
        for batch in batches:
            method.observe(batch)
        print(json.dumps(compare(module, method, stored, batches[0].input_features)))


if __name__ == "__main__":
    main()
