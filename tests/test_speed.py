import itertools
import types

import pytest

from liteasr import speed


@pytest.fixture
def waits(monkeypatch):
    """Times at which the device was waited for; each look at the clock is a second later."""
    seen, clock = [], itertools.count()
    monkeypatch.setattr(speed, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(speed, "_finish_queued", lambda: seen.append(next(clock)))
    return seen


def test_blocks_add_up_and_what_is_between_them_does_not(waits):
    watch = speed.Stopwatch()
    with watch.running():
        pass
    waits.clear()
    with pytest.raises(KeyError), watch.running():
        raise KeyError
    assert len(waits) == 2, "before the clock starts, and before it stops"
    assert watch.seconds == 4, "two blocks, each with one wait and one look within"
