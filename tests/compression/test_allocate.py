"""Allocation under a budget against all choices there are, and on the shapes of real models."""

import itertools

import pytest
import torch

from liteasr.compression import Budget, LinearShape, Option, allocate_budget, allocate_error
from liteasr.compression.allocate import rank_options


def random_items(seed, convex):
    generator = torch.Generator().manual_seed(seed)
    items = {}
    for name in "abcd":
        steps = torch.rand(4, generator=generator).tolist()
        drops = sorted(steps, reverse=True) if convex else steps
        size = 1 + int(torch.randint(1, 4, (), generator=generator))
        damages = [sum(drops[index:]) for index in range(5)]
        items[name] = [Option(size * (1 + i), damages[i], i) for i in range(5)]
    return items


def every_choice(items):
    for options in itertools.product(*items.values()):
        yield sum(o.cost for o in options), sum(o.damage for o in options)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("convex", [True, False])
def test_no_choice_within_the_budget_is_much_better(seed, convex):
    items = random_items(seed, convex)
    cheapest, dearest = (f(c for c, _ in every_choice(items)) for f in (min, max))
    for budget in range(cheapest, dearest + 1, 3):
        choice = allocate_budget(items, budget)
        cost = sum(option.cost for option in choice.values())
        damage = sum(option.damage for option in choice.values())
        assert cost <= budget
        # Exact up to one step: as good as the best choice with one step less to spend.
        step = max(b.cost - a.cost for o in items.values() for a, b in itertools.pairwise(o))
        allowed = budget - step if convex else budget - 4 * step
        rivals = [d for c, d in every_choice(items) if c <= allowed]
        assert not rivals or damage <= min(rivals) + 1e-12


def test_a_budget_of_everything_takes_everything_and_too_small_a_one_is_refused():
    items = random_items(0, convex=True)
    assert all(o.damage == 0 for o in allocate_budget(items, 10**6).values())
    with pytest.raises(ValueError, match="even the smallest ranks cost"):
        allocate_budget(items, 1)


@pytest.mark.parametrize("seed", range(8))
def test_an_error_is_never_exceeded_and_nothing_cheaper_by_one_step_would_do(seed):
    items = random_items(seed, convex=True)
    for allowed in (0.0, 0.3, 1.0, 3.0):
        choice = allocate_error(items, allowed)
        damage = sum(option.damage for option in choice.values())
        assert damage <= allowed + 1e-12
        for name, options in items.items():
            for option in options:
                if option.cost < choice[name].cost:
                    assert damage - choice[name].damage + option.damage > allowed


def test_dense_layers_stay_options_and_ranks_that_save_nothing_are_none():
    shape = LinearShape(384, 384, bias=False)
    options = rank_options(torch.ones(384), shape, granularity=8)
    assert options[0] == Option(384 * 384, 0.0, None)
    assert all(o.cost < 384 * 384 for o in options[1:])
    assert {o.value % 8 for o in options[1:]} == {0}
    assert options[1].damage == 384 - 8


SHAPES = {
    "tiny": (384, 4, 7.632384e6, (7.41e6, 7.00e6, 6.48e6)),
    "base": (512, 6, 19.822592e6, (18.64e6, 17.44e6, 16.07e6)),
    "small": (768, 12, 86.999808e6, (76.99e6, 70.16e6, 63.11e6)),
    "medium": (1024, 24, 305.680384e6, (269.93e6, 239.99e6, 215.31e6)),
    "large-v3": (1280, 32, 635.048960e6, (429e6, 377e6, 308e6)),
    "large-v3-turbo": (1280, 32, 635.048960e6, (421e6, 374e6, 313e6)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_recipes_land_within_a_thousandth_below_their_size_on_true_shapes(name):
    """Synthetic spectra that decay faster in early layers, the true widths and counts."""
    width, layers, dense, budgets = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    items = {}
    for layer, part in itertools.product(range(layers), ("q", "k", "v", "out", "fc1", "fc2")):
        wide = {"fc1": (width, 4 * width), "fc2": (4 * width, width)}
        shape = LinearShape(*wide.get(part, (width, width)), bias=part != "k")
        speed = 8 + 60 * (layer + 1) / layers * float(torch.rand((), generator=generator))
        spectrum = torch.exp(-torch.arange(width) / speed)
        items[layer, part] = rank_options(spectrum, shape, granularity=8)
    linears = sum(options[0].cost for options in items.values())
    for budget in budgets:
        choice = allocate_budget(items, budget - (dense - linears))
        size = dense - linears + sum(option.cost for option in choice.values())
        assert 0.999 * budget <= size <= budget


@pytest.mark.parametrize(
    ("kind", "amount", "granularity", "message"),
    [
        ("encoder_size", 1, 8, "none of encoder_params"),
        ("encoder_params", 0, 8, "not above 0"),
        ("encoder_ratio", 1.0, 8, "below 1"),
        ("max_error", -0.1, 8, "not above 0"),
        ("max_error", 0.1, 0, "granularity"),
    ],
)
def test_impossible_budgets_are_refused(kind, amount, granularity, message):
    with pytest.raises(ValueError, match=message):
        Budget(kind, amount, granularity)
