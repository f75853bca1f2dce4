"""Parts of messages: suggestions, a user's words in a table, one line of an error."""

import pytest

from hf_mamba.classification.support.markdown import markdown_table
from hf_mamba.classification.support.messages import did_you_mean, in_a_cell, nearest, one_line


@pytest.mark.parametrize(
    "name, expected", [("trian", "train"), ("TRAIN", "train"), ("predct", "predict"), ("x", None)]
)
def test_the_nearest_name_is_found_whatever_its_case(name, expected):
    assert nearest(name, ["train", "predict"]) == expected


def test_a_suggestion_is_a_sentence_of_its_own_or_what_stands_for_it():
    assert did_you_mean("trian", ["train"]) == " Did you mean 'train'?"
    assert (
        did_you_mean("x", ["train"]) == "" and did_you_mean("x", ["train"], otherwise=" See --help.") == " See --help."
    )


def test_candidates_of_any_type_are_returned_as_they_are():
    assert nearest("12", [123, 7]) == 123 and nearest("x", []) is None


@pytest.mark.parametrize("text", ["a|b", "two\nlines", "  much   space ", "x" * 50, "|" * 50, 5, None])
def test_any_text_stays_within_its_cell(text):
    row = markdown_table([["title", "other"], [in_a_cell(text, longest=20), "y"]]).splitlines()[-1]
    assert row.replace("\\|", "").count("|") == 3 and "\n" not in row
    assert len(in_a_cell(text, longest=20)) <= 20


def test_a_cut_cell_ends_with_an_ellipsis():
    assert in_a_cell("x" * 10, longest=5) == "xxxx…" and in_a_cell("x" * 10) == "x" * 10


def test_an_error_is_one_line_and_never_empty():
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(KeyError()) == "KeyError" and len(one_line(ValueError("x" * 900))) == 500
