"""Unicode: one answer however its letters are spelled, and characters that nobody sees."""

from __future__ import annotations

import unicodedata

import polars as pl
import pytest

from foreknow.checks.checking import check
from foreknow.data.rows import ROWS, flag_rows, majority_floor
from foreknow.evaluation.answers import collapse, frequent
from foreknow.protocol.exemplars import Exemplar, same_fact
from foreknow.training.before import labels_of
from foreknow.training.training_rows import ceiling

COMBINED, APART = "Zürich", "Zu\u0308rich"


def rows_of(*pairs: tuple[str, str], **more: object) -> pl.DataFrame:
    """Rows with these questions and golds."""
    data = [
        {"row": n, "question": q, "answers": [a], "group": "all", "flags": [], **more} for n, (q, a) in enumerate(pairs)
    ]
    return pl.DataFrame(data, schema=ROWS)


def test_golds_that_differ_only_in_their_spelling_do_not_conflict() -> None:
    rows = flag_rows(rows_of(("Where?", COMBINED), ("Where?", APART), ("Where?", "Zurich")))
    assert rows["flags"].to_list() == [["conflicting"], ["conflicting", "duplicate"], ["conflicting"]]
    asked = flag_rows(rows_of(("Where is é?", COMBINED), ("Where is e\u0301?", APART)))
    assert asked["flags"].to_list() == [[], ["duplicate"]]
    assert ceiling(rows_of(("Where?", COMBINED), ("Where?", APART))) == (1.0, 0)


def test_check_counts_one_answer() -> None:
    found = check(rows_of(("Où est-ce ?", COMBINED), (unicodedata.normalize("NFD", "Où est-ce ?"), APART)))
    assert found.summary["flags"] == {"duplicate": 1}
    assert found.summary["fit_ceiling"] == 1.0
    assert found.by_group["golds"].to_list() == [1]


def test_the_majority_answer_is_counted_over_spellings() -> None:
    floor = majority_floor(rows_of(("a?", COMBINED), ("b?", APART), ("c?", "Bern"), ("d?", "Bern"), ("e?", APART)))
    assert floor.row(0, named=True) == {"group": "all", "floor": 0.6, "majority_answer": COMBINED, "rows": 5}


def test_an_exemplar_that_asks_the_rows_own_question_is_known_in_any_spelling() -> None:
    assert same_fact(Exemplar(f"Who is {APART}?", "x", None), f"who is {COMBINED}?", None)
    assert same_fact(Exemplar("a?", "x", APART), "b?", COMBINED.upper())
    assert not same_fact(Exemplar("a?", "x", "Zurich"), "b?", COMBINED)


def test_wrong_answers_are_tallied_over_spellings() -> None:
    rows = pl.DataFrame({"said": [COMBINED, APART, "Bern"], "wrong": True, "refused": False, "answer": ["a", "b", "c"]})
    assert frequent(rows, 2)[0] == {"said": COMBINED, "count": 2, "share": pytest.approx(2 / 3)}
    assert collapse(rows)["said"]["distinct"] == 2


def test_an_audits_labels_are_found_under_another_spelling() -> None:
    audited = pl.DataFrame({
        "row": [0], "question": ["Where?"], "answer": [COMBINED], "category": ["HighlyKnown"], "p_greedy": [1.0],
        "model_answer": ["x"],
    })  # fmt: skip
    assert labels_of(rows_of(("Where?", APART)), audited, same_file=False)["category"].to_list() == ["HighlyKnown"]
