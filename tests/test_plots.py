"""The plots: what is drawn where, not how it looks."""

import pytest
from matplotlib.figure import Figure

import liteasr.plots
from liteasr.plots import pareto_plot

DENSE = {"encoder_params": 7_632_384, "wer": 17.9}


def result(name, size, wer, error):
    return {
        "name": name,
        "encoder_params": None if size is None else round(size * 1e6),
        "wer": wer,
        "encoder_relative_error": error,
    }


GOOD = [result("auto", 7.1, 17.6, 0.003), result("auto", 5.2, 21.4, 0.08)]
BAD = [result("pca", 7.09, 21.7, 0.076), result("pca", 6.02, 75.0, 0.33)]


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Draws, and gives the figure that was saved."""
    figures = []

    class Noted(Figure):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            figures.append(self)

    monkeypatch.setattr(liteasr.plots, "Figure", Noted)

    def draw(results, dense=DENSE):
        pareto_plot({"dense": dense, "results": results}, tmp_path / "plot.png")
        assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        return figures[-1]

    return draw


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_sizes_increase_to_the_right_in_both_panels(draw):
    wer, error = draw([*GOOD, *BAD]).axes
    for axes in (wer, error):
        assert list(lines(axes)["auto"].get_xdata()) == [5.2, 7.1]
        assert axes.get_xlabel() == "encoder parameters, M"
        low, high = axes.get_xlim()
        assert low < 5.2
        assert high > 7.632384
    assert list(lines(wer)["auto"].get_ydata()) == [21.4, 17.6]
    assert wer.get_ylabel().startswith("WER, % (mean of sets)")
    assert error.get_ylabel() == "relative error of the encoder's output"
    assert error.get_yscale() == "log"


def test_entries_differ_in_more_than_colour(draw):
    results = [result(f"m{index}", 7 - index / 10, 18 + index, 0.01) for index in range(12)]
    entries = [line for name, line in lines(draw(results).axes[0]).items() if name[:1] == "m"]
    looks = {(line.get_marker(), line.get_markerfacecolor() == "white") for line in entries}
    assert len(entries) == len(looks) == 12


def test_the_dense_wer_is_written(draw):
    (legend,) = draw(GOOD).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["auto", "dense: 17.9 % at 7.63 M"]


def test_a_collapse_leaves_the_good_ones_apart(draw):
    linear = draw(GOOD).axes[0]
    assert linear.get_yscale() == "linear"
    logarithmic = draw([*GOOD, *BAD]).axes[0]
    assert logarithmic.get_yscale() == "log"
    assert "log" in logarithmic.get_ylabel()
    low, high = logarithmic.get_ylim()
    assert low < 17.6
    assert high > 75.0


def test_what_was_not_reached_or_measured_is_left_out(draw):
    wer, error = draw([*GOOD, result("pca", None, None, None), result("x", 6.0, 20.0, None)]).axes
    assert list(lines(wer)["pca"].get_xdata()) == []
    assert list(lines(wer)["x"].get_ydata()) == [20.0]
    assert list(lines(error)["x"].get_ydata()) == []


@pytest.mark.parametrize("wer", [0.0, None])
def test_no_words_wrong_or_nothing_measured(draw, wer):
    dense = {"encoder_params": 7_632_384, "wer": wer}
    axes = draw([result("auto", 7.1, wer, 0.0), result("pca", 6.0, wer, 0.1)], dense).axes
    assert axes[0].get_yscale() == axes[1].get_yscale() == "linear"
