"""Normalisation for WER is Whisper's own."""

import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
from transformers import WhisperProcessor

from liteasr import text
from liteasr.text import is_english_only, is_scorable, make_normalizer


def tokenizer(languages=("en",), end=0, spellings=None):
    return SimpleNamespace(
        eos_token_id=end,
        english_spelling_normalizer=spellings,
        get_added_vocab=lambda: {f"<|{code}|>": 1 for code in languages},
    )


SENTENCE = "Mr. Brown's twenty-five colours aren't [noise] (cough) $3.50, um!"
ENGLISH = "mister brown is 25 colors are not $3.50"


@pytest.mark.parametrize("language", ["en", "English", "<|en|>"])
def test_english_by_any_name(language):
    assert make_normalizer(tokenizer(("en", "de")), language)(SENTENCE) == ENGLISH


def test_no_language_is_english_for_an_english_only_checkpoint():
    assert make_normalizer(tokenizer(), None)(SENTENCE) == ENGLISH
    assert make_normalizer(tokenizer(("en", "de"), end=50256), None)(SENTENCE) == ENGLISH


def test_no_language_is_basic_for_a_multilingual_checkpoint():
    normalized = make_normalizer(tokenizer(("en", "de")), None)("Twenty-five COLOURS [noise]")
    assert normalized.split() == ["twenty", "five", "colours"]


def test_the_tokenizer_own_spellings_win():
    own = tokenizer(spellings={"colours": "couleurs"})
    assert make_normalizer(own, "en")("colours organise") == "couleurs organise"


def test_basic_keeps_letters_and_splits_unspaced_languages():
    several = tokenizer(("en", "de", "ja"))
    assert make_normalizer(several, "de")("Größe, 25!").split() == ["größe", "25"]
    assert make_normalizer(several, "ja")("日本語").split() == list("日本語")


@pytest.mark.parametrize("language", ["en", "de"])
def test_normalizers_travel_to_other_processes(language):
    for own in (None, {"colour": "color"}):
        normalizer = make_normalizer(tokenizer(spellings=own), language)
        copied = pickle.loads(pickle.dumps(normalizer))
        assert copied(SENTENCE) == normalizer(SENTENCE)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("hello", True),
        ("", False),
        ("  ", False),
        ("(laughter)", False),
        ("ignore_time_segment_in_scoring", False),
        ("IGNORE TIME SEGMENT IN SCORING", False),
        ("do not ignore time segment in scoring", True),
    ],
)
def test_what_counts(raw, expected):
    normalizer = make_normalizer(tokenizer(), "en")
    assert is_scorable(normalizer(raw), raw) is expected


def test_a_marked_row_is_dropped_even_if_the_normalizer_keeps_the_mark():
    assert not is_scorable("ignore_time_segment_in_scoring", "ignore_time_segment_in_scoring")


def test_real_checkpoint(real_model):
    real = WhisperProcessor.from_pretrained(real_model).tokenizer
    assert is_english_only(real)
    assert make_normalizer(real, None)("The COLOUR, Mr. Smith") == "the color mister smith"


def test_import_needs_no_torch():
    # By its path, because the package itself imports torch.
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('text', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, text.__file__], check=True)
