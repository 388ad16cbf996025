import pytest
import torch

from liteasr.compression import LinearShape, ThresholdRule, kept_energy, rank_for_energy

SQUARE = LinearShape(64, 64)


def published_rank(spectrum, threshold, multiple=16):
    """The loop of the published script, written as the publication describes it."""
    for rank in range(0, len(spectrum), multiple):
        if spectrum[:rank].sum() / spectrum.sum() > threshold:
            return rank
    return None


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("decay", [2.0, 10.0, 1000.0])
def test_rank_equals_the_published_loop(decay, threshold):
    spectrum = torch.exp(-torch.arange(100, dtype=torch.float64) / decay)
    assert rank_for_energy(spectrum, threshold) == published_rank(spectrum, threshold)


def test_the_threshold_must_be_exceeded_not_met():
    spectrum = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert rank_for_energy(spectrum, 0.5, multiple=1) == 2


def test_no_multiple_passes():
    assert rank_for_energy(torch.ones(40), threshold=0.99) is None
    assert rank_for_energy(torch.ones(8), threshold=0.1) is None
    assert rank_for_energy(torch.zeros(64), threshold=0.1) is None


def test_a_layer_above_its_cap_stays_dense():
    spectrum = torch.exp(-torch.arange(64.0) / 7)
    rank = rank_for_energy(spectrum, 0.99)
    assert rank == 48
    wide = LinearShape(64, 256)
    assert ThresholdRule(mlp=0.99).rank(spectrum, wide, mlp=True) == 48
    assert ThresholdRule(mlp=0.99, max_rank_mlp=0.7).rank(spectrum, wide, mlp=True) is None
    assert ThresholdRule(attention=0.99).rank(spectrum, SQUARE, mlp=False) is None


def test_a_rank_that_saves_nothing_is_never_taken():
    """At half the width the cap still allows the rank, but no parameter is saved."""
    spectrum = torch.cat([torch.ones(32), torch.zeros(32)])
    assert rank_for_energy(spectrum, 0.99) == 32
    assert ThresholdRule(attention=0.99).rank(spectrum, SQUARE, mlp=False) is None
    assert not SQUARE.saves(32)
    assert SQUARE.saves(31)


def test_the_bias_that_a_layer_gains_counts():
    without_bias = LinearShape(64, 64, bias=False)
    assert without_bias.dense_params() == 4096
    assert without_bias.low_rank_params(31) == 31 * 128 + 64
    assert without_bias.saves(31)
    assert not LinearShape(16, 16, bias=False).saves(8)
    assert not LinearShape(2, 100, bias=False).saves(1)


def test_each_kind_has_its_own_threshold():
    spectrum = torch.exp(-torch.arange(64.0) / 3)
    rule = ThresholdRule(attention=0.9, mlp=0.9999, multiple=4)
    wide = LinearShape(64, 256)
    assert rule.rank(spectrum, SQUARE, mlp=False) == published_rank(spectrum, 0.9, 4)
    assert rule.rank(spectrum, wide, mlp=True) == published_rank(spectrum, 0.9999, 4)


def test_kept_energy_of_a_constant_output_is_all():
    assert kept_energy(torch.zeros(4), rank=2) == 1.0
