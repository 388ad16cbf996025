import pytest
import torch

from liteasr.compression import MomentStatistics


@pytest.fixture
def blocks():
    """Blocks with means far from zero, as Whisper's activations have."""
    generator = torch.Generator().manual_seed(0)
    return [50 + torch.randn(3, 40, 8, generator=generator).double() for _ in range(5)]


def filled(blocks, weights=None, dtype=torch.float64):
    statistics = MomentStatistics(8, block_dtype=dtype)
    for index, block in enumerate(blocks):
        statistics.update(block, None if weights is None else weights[index])
    return statistics


def test_streamed_moments_equal_those_of_all_vectors(blocks):
    x_ND = torch.cat(blocks).reshape(-1, 8)
    statistics = filled(blocks)
    torch.testing.assert_close(statistics.mean(), x_ND.mean(0), rtol=1e-12, atol=0)
    expected = torch.cov(x_ND.T, correction=0)
    torch.testing.assert_close(statistics.covariance(), expected, rtol=1e-9, atol=1e-12)


def test_fp32_blocks_survive_a_mean_far_from_zero(blocks):
    x_ND = torch.cat(blocks).reshape(-1, 8)
    shifted = [block + 1000 for block in blocks]
    expected = torch.cov(x_ND.T, correction=0)
    actual = filled(shifted, dtype=torch.float32).covariance()
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


def test_weights_equal_repeated_vectors(blocks):
    weights = [torch.full((3, 40), float(1 + index % 2)) for index in range(5)]
    repeated = [block for index, block in enumerate(blocks) for _ in range(1 + index % 2)]
    weighted, plain = filled(blocks, weights), filled(repeated)
    torch.testing.assert_close(weighted.mean(), plain.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(weighted.covariance(), plain.covariance(), rtol=1e-9, atol=1e-12)


def test_merged_shards_equal_the_whole(blocks):
    first, second, whole = filled(blocks[:2]), filled(blocks[2:]), filled(blocks)
    before = second.state_dict()
    first.merge(second)
    torch.testing.assert_close(first.mean(), whole.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(first.covariance(), whole.covariance(), rtol=1e-8, atol=1e-10)
    assert all(torch.equal(before[k], v) for k, v in second.state_dict().items())


def test_all_reduce_adds_what_other_processes_have(blocks):
    mine, other, whole = filled(blocks[:2]), filled(blocks[2:]), filled(blocks)
    other._unshift()
    theirs = iter([other.weight, other.sum_D, other.gram_DD])
    mine.all_reduce(lambda tensor: tensor + next(theirs))
    torch.testing.assert_close(mine.covariance(), whole.covariance(), rtol=1e-8, atol=1e-10)


def test_state_dict_round_trip_goes_on_exactly(blocks):
    whole, part = filled(blocks), filled(blocks[:3])
    resumed = MomentStatistics(8, block_dtype=torch.float64)
    resumed.load_state_dict(part.state_dict())
    for block in blocks[3:]:
        resumed.update(block)
    assert torch.equal(resumed.gram_DD, whole.gram_DD)
    assert torch.equal(resumed.mean(), whole.mean())


def test_empty_and_misfitting_statistics_are_refused(blocks):
    with pytest.raises(ValueError, match="no vectors"):
        MomentStatistics(8).mean()
    with pytest.raises(ValueError, match="widths 8 and 4"):
        filled(blocks).merge(MomentStatistics(4))
    with pytest.raises(ValueError, match="width 8 do not fit width 4"):
        MomentStatistics(4).load_state_dict(filled(blocks).state_dict())


def test_mixed_precision_of_the_forward_pass_does_not_reach_the_sums(blocks):
    plain, mixed = filled(blocks, dtype=torch.float32), MomentStatistics(8)
    with torch.autocast("cpu", torch.bfloat16):
        for block in blocks:
            mixed.update(block)
    assert torch.equal(plain.gram_DD, mixed.gram_DD)


def test_an_empty_block_changes_nothing(blocks):
    statistics = filled(blocks)
    before = statistics.covariance()
    statistics.update(torch.empty(0, 8))
    assert torch.equal(before, statistics.covariance())
