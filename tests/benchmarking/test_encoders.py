"""Compiling, and what happens where it does not work."""

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from liteasr.benchmarking import encoders
from liteasr.benchmarking.encoders import measure_encoders, random_features
from liteasr.benchmarking.settings import Combination
from liteasr.benchmarking.timing import Skipped
from liteasr.loading import load_model

COMPILED = Combination(1, "float32", 1, "compiled")


@pytest.fixture
def pair(dense, lite):
    folders = {"dense": dense, "lite": lite}
    return {name: load_model(folder).get_encoder() for name, folder in folders.items()}


@pytest.fixture
def compiler(monkeypatch):
    """Puts a function in place of torch's compiler."""

    def use(compile_):
        monkeypatch.setattr(torch, "compile", compile_)

    return use


def measure(pair, combination, repeats=3):
    features = random_features(pair["dense"], combination.batch_size)
    assert features.shape == (combination.batch_size, 80, 100)
    return measure_encoders(pair, features, combination, repeats)


def test_compilation_is_timed_apart(pair, compiler):
    ran = []

    def compile_(encoder, **options):
        assert options == {"dynamic": False}

        def run(x):
            ran.append(encoder)
            return encoder(x)

        return run

    compiler(compile_)
    result = measure(pair, COMPILED)
    for name in ("dense", "lite"):
        assert result[name]["compile_s"] > 0
        assert len(result[name]["seconds"]) == 3
        # The first call, two to warm up, and the rounds.
        assert ran.count(pair[name]) == 3 + 3 * result["calls"]
    eager = measure(pair, Combination(2, "float32", 1))
    assert eager["dense"]["compile_s"] is None


def test_short_runs_are_repeated_and_divided(pair, monkeypatch):
    count = dict.fromkeys(pair, 0)
    for name, encoder in pair.items():

        def forward(x, name=name):
            count[name] += 1

        monkeypatch.setattr(encoder, "forward", forward)
    result = measure(pair, Combination(1, "float32", 1))
    assert result["calls"] > 10
    assert count == dict.fromkeys(pair, 2 + 3 * result["calls"])
    assert 1000 * max(result["dense"]["seconds"]) < 1000 * encoders._LEAST_SECONDS


def test_threads_are_set_and_set_back(pair, monkeypatch):
    before, seen = torch.get_num_threads(), set()
    for encoder in pair.values():
        monkeypatch.setattr(encoder, "forward", lambda x: seen.add(torch.get_num_threads()))
    measure(pair, Combination(1, "float32", before + 2), repeats=1)
    assert seen == {before + 2}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("first line\nsecond"), "torch.compile failed: first line"),
        (InvalidCxxCompiler(), r"no working C\+\+ compiler; install g\+\+"),
    ],
)
def test_a_failed_compilation_says_why(pair, compiler, error, message):
    def compile_(encoder, **options):
        def run(x):
            raise RuntimeError(str(error)) from error

        return run

    compiler(compile_)
    with pytest.raises(Skipped, match=message):
        measure(pair, COMPILED)


def test_a_full_gpu_skips_a_combination(pair, monkeypatch):
    def fill(x):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(pair["lite"], "forward", fill)
    with pytest.raises(Skipped, match="memory"):
        measure(pair, Combination(1, "float32", 1))
