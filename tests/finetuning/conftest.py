"""Fixtures of tests that train."""

import pytest
from trainable import Training

import liteasr.evaluation_steps


@pytest.fixture
def wers(monkeypatch):
    """Sets the WER of each evaluation, in turn; the last one again and again."""

    def of(*values):
        remaining, given = list(values), []

        def average(_):
            given.append(remaining.pop(0) if len(remaining) > 1 else remaining[0])
            return given[-1]

        monkeypatch.setattr(liteasr.evaluation_steps, "macro_average", average)
        monkeypatch.setattr("liteasr.stages.macro_average", lambda _: given[-1])

    return of


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return Training(tmp_path_factory.mktemp("uninterrupted")).run("run")[0]
