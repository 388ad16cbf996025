"""The reference of a recipe's keys is made from the schema, and whole."""

import dataclasses
import re

import pytest

import make_config_reference
from liteasr.config import Recipe


def test_the_reference_is_what_the_schema_says():
    page = make_config_reference.PAGE.read_text(encoding="utf-8")
    assert page == make_config_reference.render(), "run: python tools/make_config_reference.py"


def test_the_reference_has_every_key():
    """Counted in another way: every key of the resolved defaults has a row."""
    page = make_config_reference.PAGE.read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([\w.<>]+)` \|", page, re.MULTILINE))

    def keys(value, prefix=""):
        if not dataclasses.is_dataclass(value):
            return {prefix}
        children = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {key for name, one in children for key in keys(one, f"{prefix}.{name}".strip("."))}

    assert keys(Recipe()) <= rows
    assert {"data.<role>.<set>.skip", "compare.methods.<method>.method"} <= rows
    assert "finetune.schedule` | `cosine`, `linear` or `constant` | `cosine` |" in page


def test_a_key_without_a_word_is_refused():
    with pytest.raises(ValueError, match="Silent: no docstring below b"):
        make_config_reference.docstrings(Silent)


@dataclasses.dataclass
class Silent:
    a: int = 1
    """Seconds."""
    b: int = 2
