"""Cells of CSV: nothing in them is computed, nothing of them is lost."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.io.csv_escape import FORMULA, csv_of, escape_formula, number_of, table_of

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1) | st.builds(
    lambda head, rest: head + rest,
    st.sampled_from(["=", "+", "-", "@", "\t=", "'", "'=", "''+", "'-5"]),
    st.text("a1=.'"),
)


@given(st.lists(texts, min_size=1))
def test_what_is_written_is_read_again_to_the_letter(cells: list[str]) -> None:
    frame = pl.DataFrame({"relation": cells, "rows": range(len(cells))})
    assert table_of(csv_of(frame), "relation").equals(frame)


@given(texts)
def test_no_text_begins_as_a_formula_does(cell: str) -> None:
    shown = escape_formula(cell)
    assert isinstance(shown, str)
    assert shown[:1] not in FORMULA or number_of(shown) is not None


@pytest.mark.parametrize("cell", ["-5", "+3.5", "-1e9", "Paris", "", "a=b", "'quoted", None, 3, -1.5])
def test_numbers_and_plain_text_are_left_alone(cell: object) -> None:
    assert escape_formula(cell) == cell


def test_names_of_digits_stay_text() -> None:
    frame = pl.DataFrame({"relation": ["007", "12"], "rows": [1, 2]})
    assert table_of(csv_of(frame), "relation").equals(frame)
