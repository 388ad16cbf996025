import json

import pytest

from liteasr.predictions import differences, read_predictions, write_predictions


def text(set_name, id_, reference, hypothesis):
    return {"set": set_name, "id": id_, "reference": reference, "hypothesis": hypothesis}


def test_a_file_a_set_worst_first_and_back(tmp_path):
    texts = [
        text("mine", "b.wav", "one two", "one two"),
        text("mine", "a.wav", "one two", "won two three"),
        text("org/set: é", "c", "naïve", ""),
    ]
    write_predictions(tmp_path / "kept", "dense", texts)
    files = sorted(file.name for file in (tmp_path / "kept").iterdir())
    assert files == ["dense-mine.jsonl", "dense-org%2Fset%3A %C3%A9.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "kept" / files[0]).read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a.wav", "b.wav"]
    assert rows[0]["words"] == 2
    assert rows[0]["edits"] == 2
    assert rows[0]["substitutions"] == rows[0]["insertions"] == 1
    back = read_predictions(tmp_path / "kept", "dense")
    assert {(one.set, one.id, one.reference, one.hypothesis) for one in back} == {
        tuple(one.values()) for one in texts
    }
    assert back[-1].deletions == 1
    assert read_predictions(tmp_path / "kept", "compressed") == []


@pytest.mark.parametrize(
    ("reference", "hypothesis"),
    [("a b c", "a b c"), ("a b c", ""), ("a b c", "x a c c d"), ("a", "b c d")],
)
def test_differences_hold_both_texts(reference, hypothesis):
    found = differences(reference, hypothesis)
    assert " ".join(one.reference for one in found if one.reference) == reference
    assert " ".join(one.hypothesis for one in found if one.hypothesis) == hypothesis
    for one in found:
        assert (one.kind == "equal") == (one.reference == one.hypothesis)
        assert (one.kind == "insert") == (not one.reference)
        assert (one.kind == "delete") == (not one.hypothesis)
