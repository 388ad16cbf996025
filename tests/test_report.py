"""Reports from run folders: what is in them, what is refused, and that no run is lost by one."""

import json
from html.parser import HTMLParser
from importlib.metadata import version

import pytest
from run_folders import RECIPE, REFERENCE, fake_comparison, fake_metrics, fake_run

from liteasr.cli import main as liteasr
from liteasr.config import ConfigError
from liteasr.report import main as report
from liteasr.reporting import write_report, write_report_or_warn
from liteasr.reporting.curves_plot import read_curves

PICTURES = {"outcome.png", "layers.png", "spectra.png", "timings.png"}
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Text, elements and marked words of a page; an element that is not closed is an error."""

    def __init__(self, file):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(file.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("class"), len(self.text)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text.append((data, [(tag, kind) for tag, kind, _ in self.open]))

    @property
    def words(self):
        return " ".join(" ".join(data for data, _ in self.text).split())

    def inside(self, tag, kind):
        return [data for data, within in self.text if (tag, kind) in within]


@pytest.fixture
def run(tmp_path):
    return fake_run(tmp_path / "run")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run folder with its report, to look at only."""
    folder = fake_run(tmp_path_factory.mktemp("reported") / "run")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(reported):
    return Page(reported / "report" / "report.html")


def test_pictures_and_page_are_written(reported):
    present = {file.name for file in (reported / "report").iterdir()}
    assert present == {*PICTURES, "report.html"}
    for name in PICTURES:
        assert (reported / "report" / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_else(page):
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object"}
    sources = [
        value for _, a in page.elements for key, value in a.items() if key in ("src", "href")
    ]
    assert len(sources) == len(PICTURES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    styles = " ".join(data for data, within in page.text if ("style", None) in within)
    assert styles
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_page_holds_the_numbers_of_the_run(page):
    for said in ("7.632 → 6.049 M (−20.7 %)", "17.25 → 19.75 % (+2.50)", "0.0456", "0.0321"):
        assert said in page.words
    for said in ("12 clips", "2 min 9 s", "893 MB", "37.25", "+4.25", "0.self_attn.q_proj"):
        assert said in page.words
    for package in ("torch", "transformers", "lightning"):
        assert f"{package} {version(package)}" in page.words


def test_speeds_are_compared_on_one_device_only(page, run):
    assert "40.0 → 60.0 × real time (× 1.50)" in page.words
    assert "10.0 → 12.5 × real time (× 1.25)" in page.words
    metrics = fake_metrics()
    metrics["compressed"] |= {"ran_on": "1 × GPU", "encoder_rtfx": None}
    (run / "metrics.json").write_text(json.dumps(metrics))
    page = Page(write_report(run))
    assert "10.0 → 12.5 × real time (not on the same device)" in page.words
    assert "RTFx, encoder and decoder" in page.words
    assert "RTFx, encoder 40" not in page.words


def test_text_is_escaped(reported, page):
    source = (reported / "report" / "report.html").read_text()
    assert "<unk>" not in source
    assert 'org/fake <unk> & "quotes"' in page.inside("dd", None)
    assert "unk" not in {tag for tag, _ in page.elements}
    assert RECIPE.strip() in "".join(page.inside("pre", None))


def test_differences_are_marked_by_kind_and_not_by_colour_alone(page):
    shown = page.inside("div", "utterance")
    assert any(REFERENCE in data for data in shown)
    in_utterances = [(data, within) for data, within in page.text if ("div", "utterance") in within]

    def marked(tag, kind):
        return [data for data, within in in_utterances if (tag, kind) in within]

    assert marked("del", "replaced") == ["the"]
    assert marked("ins", "replacement") == ["a"]
    assert marked("del", "deletion") == ["the"]
    assert marked("ins", "insertion") == ["right"]
    assert "compressed, 3 wrong" in page.words
    assert "dense, 0 wrong" in page.words
    assert "two.wav" not in page.words, "nothing was wrong there"


def test_rendering_again_gives_the_same(run, capsys):
    first = write_report(run)
    before = {file.name: file.read_bytes() for file in first.parent.iterdir()}
    for file in list(first.parent.iterdir()):
        file.unlink()
    assert liteasr(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(first)
    assert {file.name: file.read_bytes() for file in first.parent.iterdir()} == before


TABLES = (
    "epoch,step,train/loss,train/ctc_loss,val/wer,val/wer/a,val/wer/b\n"
    "0,9,5.0,2.5,,,\n0,9,,,40.0,30.0,50.0\n0,19,4.0,2.0,,,\n0,29,9.0,9.0,,,\n",
    "epoch,step,train/loss,train/ctc_loss,val/wer,val/wer/a,val/wer/b\n"
    "0,29,3.0,1.5,,,\n0,39,,,20.0,15.0,25.0\n",
)


def test_training_has_its_curves(run):
    """Those of an attempt that was interrupted too, up to where the next one went on."""
    names = ("metrics.1.csv", "metrics.csv")
    for name, text in zip(names, TABLES, strict=True):
        (run / name).write_text(text)
    curves = read_curves([run / name for name in names], before=60.0, kept=40, kept_wer=20.0)
    assert curves.losses == {
        "loss": {10: 5.0, 20: 4.0, 30: 3.0},
        "CTC": {10: 2.5, 20: 2.0, 30: 1.5},
    }
    assert curves.wers["mean of sets"] == {10: 40.0, 40: 20.0}
    assert curves.wers["b"] == {10: 50.0, 40: 25.0}
    metrics = fake_metrics()
    trained = metrics["compressed"] | {"step": 40, "val_wer_before": 60.0, "val_wer": 20.0}
    (run / "metrics.json").write_text(json.dumps(metrics | {"finetuned": trained}))
    page = Page(write_report(run))
    assert "Training losses, and validation WER" in page.words
    assert (run / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")
    (run / "metrics.csv").write_text("step,train/loss\n1,many\n")
    with pytest.raises(ConfigError, match=r"metrics\.csv cannot be read"):
        write_report(run)


def test_a_run_without_spectra_predictions_or_sets_has_a_report_too(run):
    write_report(run)
    (run / "spectra.json").unlink()
    for file in (run / "predictions").iterdir():
        file.unlink()
    metrics = fake_metrics()
    for stage in ("dense", "compressed"):
        metrics[stage] |= {"wer": None, "datasets": {}}
    (run / "metrics.json").write_text(json.dumps(metrics | {"encoder_relative_error": None}))
    page = Page(write_report(run))
    assert not (run / "report" / "spectra.png").exists(), "that of the earlier report"
    assert "Word error rate" not in page.words
    assert "7.632 → 6.049 M" in page.words


def test_a_dense_run_has_a_report(run):
    (run / "plan.json").unlink()
    (run / "spectra.json").unlink()
    metrics = fake_metrics() | {"compressed": None, "encoder_relative_error": None}
    (run / "metrics.json").write_text(json.dumps(metrics))
    page = Page(write_report(run))
    assert "17.25 %" in page.words
    assert "No word was wrong" in page.words


def test_heads_of_fewer_dimensions_stand_before_the_layers_of_their_block(run):
    plan, name = json.loads((run / "plan.json").read_text()), "model.encoder.layers.1.self_attn"
    heads = {"embed_dim": 64, "num_heads": 2, "qk_dim": 8, "v_dim": 12}
    plan["attention"] = {name: {**heads, "dense_params": 16576, "params": 5200}}
    (run / "plan.json").write_text(json.dumps(plan | {"format": 2}))
    words = Page(write_report(run)).words
    assert "1.self_attn 8 / 12 32 16,576 5,200 –" in words
    assert words.index("0.fc2") < words.index("1.self_attn 8 / 12") < words.index("1.self_attn.q")


def test_many_layers_are_all_in_the_table(tmp_path):
    page = Page(write_report(fake_run(tmp_path / "large", layers=32)))
    assert "31.fc2" in page.words
    assert ("details", {}) in page.elements, "folded"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("recipe.yaml", "holds no run of liteasr: recipe.yaml is missing"),
        ("metrics.json", "holds no finished run: metrics.json is missing"),
        ("plan.json", "plan.json is missing"),
        ("environment.json", "environment.json is missing: an earlier version"),
    ],
)
def test_a_missing_file_is_named(run, capsys, name, message):
    (run / name).unlink()
    assert report([str(run)]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "report").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "{", "metrics.json cannot be read"),
        ("metrics.json", '{"dense": {"wer": 1}}', "metrics.json is of another layout: compressed"),
        ("plan.json", "{}", "plan.json is not a compression plan: its format is None, not 1"),
        ("spectra.json", "[]", "spectra.json holds no spectra"),
        ("environment.json", '{"format": 99}', "its format is 99, not 1"),
        ("predictions/dense-an4.jsonl", '{"set": 1}\n', "dense-an4.jsonl does not hold"),
        ("recipe.yaml", "[]", "recipe.yaml is no recipe"),
    ],
)
def test_another_layout_is_refused(run, capsys, name, content, message):
    (run / name).write_text(content)
    assert report([str(run)]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "report").exists()


def test_no_folder_is_refused(tmp_path, capsys):
    assert report([str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_an_error_in_the_report_is_a_warning(run, monkeypatch, caplog):
    def broken(*_args):
        raise RuntimeError("no ink")

    monkeypatch.setattr("liteasr.reporting.page.heat_map", broken)
    assert write_report_or_warn(run) is None
    assert "RuntimeError: no ink" in caplog.text
    assert f"python -m liteasr.report {run}" in caplog.text


def test_a_comparison_has_a_page_too(tmp_path):
    page = Page(write_report(fake_comparison(tmp_path / "run")))
    for said in ("19.75 (0.0456)*", "17.25", "12 clips", "not reached", "none of those tried"):
        assert said in page.words
    assert "pca, 6.05M: no thresholds < 1 give it" in page.words
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 2
    assert all(one["src"].startswith("data:image/png;base64,") for one in pictures)


def test_a_comparison_of_another_layout_is_refused(tmp_path, capsys):
    run = fake_comparison(tmp_path / "run")
    (run / "compare.json").write_text('{"dense": {}}')
    assert report([str(run)]) == 2
    assert "compare.json is of another layout: calibration, results" in capsys.readouterr().err
