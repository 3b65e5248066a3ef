"""Holding rows out for dev: whole families, about the share, whatever the order of the rows."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreknow.data.holdout import hold_out, row_families
from foreknow.data.schema import ROWS
from foreknow.data.validation import check
from foreknow.errors import InputError

BLANK: dict[str, Any] = {**dict.fromkeys(ROWS), "group": "all", "flags": []}
NAMES = [a + b for a in ("photo", "chemo", "macro", "neuro", "hydro", "cyto") for b in ("lysis", "genesis", "phobia")]
FORMS = ["What is {}?", "Explain {}, please.", "Could you tell me what {} means?", "I'd like to know about {}."]


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    lines = [{**BLANK, "row": n, "record": n, **row} for n, row in enumerate(rows)]
    return pl.DataFrame(lines, schema=ROWS)


def variants(names: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "question": form.format(name),
            "answers": [f"It is the {name} of a body that nobody has seen in {n} years so far"],
        }
        for n, name in enumerate(names)
        for form in FORMS
    ]


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(8)), st.integers(0, 5))
def test_variants_of_a_question_are_held_out_together_whatever_the_order(order: list[int], seed: int) -> None:
    rows = variants(NAMES[:8])
    held = hold_out(frame(rows), 0.25, seed)
    texts = {rows[n]["question"] for n in held.rows}
    assert (len(texts), held.families, held.of_families) == (8, 2, 8)
    mixed = [rows[4 * n + k] for n in order for k in range(4)]
    again = hold_out(frame(mixed), 0.25, seed)
    assert {mixed[n]["question"] for n in again.rows} == texts


def test_a_check_of_the_two_parts_finds_no_leak() -> None:
    rows = frame(variants(NAMES) + [
        {"question": f"Where was {name} born?", "answers": [place], "subject": name, "relation": "born"}
        for name in ("Ada", "Emil", "Zoe", "Otto") for place in ("Rome",)
    ])  # fmt: skip
    held = hold_out(rows, 0.2, 0)
    split = pl.when(pl.col("row").is_in(held.rows.implode())).then(pl.lit("dev")).otherwise(pl.lit("train"))
    names = {finding.name for finding in check(rows.with_columns(split=split)).findings}
    assert not {name for name in names if name.endswith("_in_other_split")}


def test_rows_of_one_subject_or_one_chat_stay_together() -> None:
    rows = frame([
        {"question": "Where was Ada born?", "answers": ["Rome"], "subject": "Ada"},
        {"question": "When did ADA die?", "answers": ["1852"], "subject": "ADA"},
        {"question": "How old is the moon?", "answers": ["old"], "record": 7},
        {"question": "And the sun?", "answers": ["older"], "record": 7},
        {"question": "Who wrote Dune?", "answers": ["Herbert"]},
    ])  # fmt: skip
    family = row_families(rows).to_list()
    assert family[0] == family[1]
    assert family[2] == family[3]
    assert len(set(family)) == 3


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_is_held_out_and_never_all(share: float) -> None:
    rows = frame([{"question": f"What is the code of {n}{n * 7}?", "answers": [f"c{n}"]} for n in range(40)])
    held = hold_out(rows, share, 0)
    assert len(held.rows) == max(1, round(40 * share))
    assert hold_out(rows, share, 1).rows.to_list() != held.rows.to_list()


def test_a_family_that_is_nearly_all_stays_in_train_and_one_family_is_refused() -> None:
    rows = [{"question": f"What about it, {n}?", "answers": ["x"], "subject": "Ada"} for n in range(20)]
    with pytest.raises(InputError, match="one family"):
        hold_out(frame(rows), 0.1, 0)
    rows.append({"question": "Who wrote Dune?", "answers": ["Herbert"], "subject": "Dune"})
    assert hold_out(frame(rows), 0.1, 0).rows.to_list() == [20]
