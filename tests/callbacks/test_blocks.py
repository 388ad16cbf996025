"""Parts of a plan by encoder block."""

import pytest

from liteasr.callbacks.blocks import check_attention, part_of
from liteasr.compression import AttentionPlan, CompressionPlan, LayerPlan

ATTENTION = "model.encoder.layers.0.self_attn"
PROJECTIONS = {"q_proj": (64, 16), "k_proj": (64, 16), "v_proj": (64, 24), "out_proj": (24, 64)}


def plan_of(**ranks):
    layers = {
        f"{ATTENTION}.{last}": LayerPlan(*PROJECTIONS[last], rank, 1.0, 0, 0)
        for last, rank in ranks.items()
    }
    layers["model.encoder.layers.1.fc1"] = LayerPlan(64, 256, 8, 1.0, 0, 0)
    heads = {ATTENTION: AttentionPlan(64, 2, 8, 12, 0, 0)}
    return CompressionPlan(layers, attention=heads, pivoted=True)


def test_a_reduced_attention_goes_with_its_projections():
    plan = plan_of(q_proj=8, k_proj=16, v_proj=8, out_proj=24)
    check_attention(plan)
    first = part_of(plan, [name for name in plan.layers if name.startswith(ATTENTION)])
    assert first.head_dims == {ATTENTION: (8, 12)}
    assert len(first.layers) == 4
    assert not part_of(plan, ["model.encoder.layers.1.fc1"]).attention


@pytest.mark.parametrize("rank", [None, "absent"])
def test_a_projection_of_reduced_heads_without_a_rank_is_refused(rank):
    ranks = {"q_proj": 8, "k_proj": 16, "v_proj": 8, "out_proj": rank}
    if rank == "absent":
        del ranks["out_proj"]
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn, and so out_proj needs a rank"):
        check_attention(plan_of(**ranks))
