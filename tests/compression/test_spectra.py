"""What is kept of spectra: the curves say what a rank leaves out."""

import pytest
import torch

from liteasr.compression import (
    Budget,
    CalibrationBatch,
    PCAMethod,
    SensitivityMethod,
    Spectra,
    ThresholdRule,
    find_linears,
)


def calibrated(method, model, features):
    method.prepare(model.model.encoder, find_linears(model))
    for x, frames in features:
        method.observe(CalibrationBatch(x, frames))
    method.reduce(lambda tensor: tensor)
    return method


def test_of_pca_the_cut_leaves_out_what_is_not_kept(tiny_model, tiny_features):
    rule = ThresholdRule(attention=0.9999, mlp=0.995, multiple=8)
    method = calibrated(PCAMethod(rule), tiny_model, tiny_features)
    plan = method.allocate()
    spectra = Spectra.of(method.spectra(), method.spectra_unit, plan.ranks)
    assert spectra.layers.keys() == plan.layers.keys()
    assert plan.ranks
    for name, rank in plan.ranks.items():
        curve = spectra.layers[name]
        left_out = curve.left_out[curve.ranks.index(rank)]
        assert left_out == pytest.approx(1 - plan.layers[name].kept_energy, rel=1e-4)
        assert curve.left_out[0] == pytest.approx(1)


def test_of_a_metric_the_cuts_add_up_to_the_error_of_first_order(tiny_model, tiny_features):
    method = calibrated(SensitivityMethod(Budget("encoder_ratio", 0.7)), tiny_model, tiny_features)
    plan = method.allocate()
    spectra = Spectra.of(method.spectra(), method.spectra_unit, plan.ranks)
    cuts = {
        name: curve.left_out[curve.ranks.index(plan.ranks[name])]
        for name, curve in spectra.layers.items()
        if name in plan.ranks
    }
    whole = sum(cuts.values())
    of_ranks = sum(one.predicted_error for one in plan.layers.values())
    for name, cut in cuts.items():
        share = plan.layers[name].predicted_error / of_ranks
        assert cut / whole == pytest.approx(share, rel=1e-3, abs=1e-12)


def test_long_spectra_are_thinned_out_and_come_back_from_the_file(tmp_path):
    values = torch.exp(-torch.arange(1280.0) / 200)
    spectra = Spectra.of({"fc1": values, "fc2": values}, "cost", {"fc1": 333})
    assert 333 in spectra.layers["fc1"].ranks
    assert 333 not in spectra.layers["fc2"].ranks
    for curve in spectra.layers.values():
        assert len(curve.ranks) < 70
        assert curve.ranks == sorted(set(curve.ranks))
        assert (curve.ranks[0], curve.ranks[-1]) == (0, 1280)
        assert curve.left_out == sorted(curve.left_out, reverse=True)
        assert curve.left_out[-1] == 0
    (tmp_path / "spectra.json").write_text(spectra.to_json())
    assert Spectra.load(tmp_path / "spectra.json") == spectra
