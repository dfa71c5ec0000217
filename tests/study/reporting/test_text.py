"""Tables, numbers and JSON, on cells made by hand."""

import math

from study.reporting.text import csv_text, markdown_table, plain_json, text_columns, with_bounds


def test_a_cell_stays_one_cell_of_one_line() -> None:
    text = markdown_table(["a", "b"], [["1 | 2", "x\ny"]], ["---", "---:"])
    assert text.splitlines() == ["| a | b |", "| --- | ---: |", r"| 1 \| 2 | x y |"]


def test_columns_are_as_wide_as_their_widest_cell_and_short_rows_are_not_measured() -> None:
    rows = [["name", "n"], ["a", "10"], ["b", "skipped: no reason"]]
    assert text_columns([*rows[:2], ["long name"]]) == ["name        n", "a          10", "long name"]
    assert text_columns(rows, last_is_text=True) == ["name  n", "a     10", "b     skipped: no reason"]
    assert text_columns([]) == []


def test_what_is_missing_is_empty_and_what_is_not_finite_is_null() -> None:
    assert csv_text(["a", "b"], [[None, 0]]) == "a,b\n,0\n"
    assert plain_json({"x": (math.nan, 1.5), "y": -math.inf}) == {"x": [None, 1.5], "y": None}
    assert (with_bounds(0.5, None, None), with_bounds(0.5, 0.25, 1)) == ("0.500", "0.500 [0.250, 1.000]")
