"""Who runs when, and what follows from given times."""

import itertools
import types

import pytest

from liteasr import speed
from liteasr.benchmarking.timing import alternate, compare, spread


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless somebody works."""
    now = types.SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(speed, "time", types.SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def working(clock, seconds, order, name):
    def work():
        order.append(name)
        clock.seconds += seconds

    return work


def test_the_order_changes_from_round_to_round_and_times_stay_with_their_owner(clock):
    order, told = [], []

    def rounds():
        for number in itertools.count(1):
            clock.seconds += 100  # what is made between runs does not count
            yield {
                "lite": working(clock, number, order, "lite"),
                "dense": working(clock, 10 * number, order, "dense"),
            }

    seconds = alternate(itertools.islice(rounds(), 4), told.append)
    assert order == ["dense", "lite", "lite", "dense", "dense", "lite", "lite", "dense"]
    assert told == order
    assert seconds == {"dense": [10, 20, 30, 40], "lite": [1, 2, 3, 4]}


def test_speed_up_is_of_medians_and_within_rounds_apart():
    seconds = {"dense": [2.0, 2.0, 8.0], "lite": [1.0, 4.0, 1.0]}
    result = compare(seconds, flop_ratio=1.6)
    assert result.speed_up == pytest.approx(2.0)
    assert result.by_round["median"] == pytest.approx(2.0)
    assert result.by_round["lower_quartile"] == pytest.approx(1.25)
    assert result.by_round["upper_quartile"] == pytest.approx(5.0)
    assert result.flop_ratio == 1.6
    assert result.efficiency == pytest.approx(1.25)
    # A round in which both were slow moves the medians, and not the ratio within it.
    drift = compare({"dense": [2.0, 4.0, 40.0], "lite": [1.0, 2.0, 20.0]}, flop_ratio=1.0)
    assert (drift.speed_up, drift.by_round["upper_quartile"]) == (2.0, 2.0)


def test_the_spread_of_a_single_round_is_none():
    assert set(spread([0.5]).values()) == {0.5}
