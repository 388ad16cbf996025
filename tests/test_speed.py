import pytest

from liteasr import speed


def test_blocks_add_up_and_what_is_between_them_does_not(monkeypatch):
    clock = iter([10.0, 10.5, 100.0, 101.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    watch = speed.Stopwatch()
    with watch.running():
        pass
    with pytest.raises(KeyError), watch.running():
        raise KeyError
    assert watch.seconds == 1.5
