"""Unicode: one answer however its letters are spelled, and characters that nobody sees."""

from __future__ import annotations

import unicodedata

import polars as pl
import pytest
from rich.cells import cell_len

from foreknow.console import plain, print_table
from foreknow.data.schema import ROWS, flag_rows, has_word, majority_floor
from foreknow.data.validation import check
from foreknow.data.validation_result import finding_lines
from foreknow.prompts.few_shot import Exemplar, same_fact
from foreknow.stages.evaluate.metrics import collapse, frequent
from foreknow.stages.train.base_labels import labels_of
from foreknow.stages.train.dataset import ceiling

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
    texts = {"prediction": [COMBINED, APART, "Bern"], "answer": ["a", "b", "c"]}
    rows = pl.DataFrame({**texts, "wrong": True, "refused": False})
    assert frequent(rows, 2)[0] == {"prediction": COMBINED, "count": 2, "share": pytest.approx(2 / 3)}
    assert collapse(rows)["predictions"]["distinct"] == 2


def test_an_audits_labels_are_found_under_another_spelling() -> None:
    audited = pl.DataFrame({
        "row": [0], "question": ["Where?"], "answer": [COMBINED], "category": ["HighlyKnown"], "p_greedy": [1.0],
        "model_answer": ["x"], "earlier_turns": [None],
    }, schema_overrides={"earlier_turns": pl.String})  # fmt: skip
    assert labels_of(rows_of(("Where?", APART)), audited, same_file=False)["category"].to_list() == ["HighlyKnown"]


CLEAN = [
    "می\u200cخواهم",
    "क्\u200dष",
    "ശ്രീ\u200d",
    "👩\u200d👩\u200d👧\u200d👦",
    "👨🏽\u200d🚀",
    "1\ufe0f\u20e3",
    "❤\ufe0f",
    "葛\U000e0100",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "ភ្នំ\u200bពេញ",
    "ᠪ\u180bᠣ",
    "Qui est-il\u202f?",
    "naïve",
    "«Ø»",
    "CAFÉ”",
    "été…",
    "10 µm",
    "東京　大阪",
    "שלום",
    "e\u0301",
]
UNSEEN = {
    "a\u200bb": "U+200B ZERO WIDTH SPACE",
    "a\u200cb": "U+200C ZERO WIDTH NON-JOINER",
    "a\u200db": "U+200D ZERO WIDTH JOINER",
    "Par\u00adis": "U+00AD SOFT HYPHEN",
    "\ufeffx": "U+FEFF ZERO WIDTH NO-BREAK SPACE",
    "שלום\u200f": "U+200F RIGHT-TO-LEFT MARK",
    "a\u202eb\u202c": "U+202E RIGHT-TO-LEFT OVERRIDE",
    "a\u2066b": "U+2066 LEFT-TO-RIGHT ISOLATE",
    "ab\ufe0f": "U+FE0F VARIATION SELECTOR-16",
    "hi\U000e0041\U000e0042": "U+E0041 TAG LATIN CAPITAL LETTER A",
    "a\u2060b": "U+2060 WORD JOINER",
    "a\x07": "U+0007 control character",
    "a\x85b": "U+0085 control character",
    "a\u3164b": "U+3164 HANGUL FILLER",
    "a\u2028b": "U+2028 LINE SEPARATOR",
}
GARBLED = [
    "Orl\ufffdans",
    "Orl\u00c3\u00a9ans",
    "don\u00e2\u20ac\u2122t",
    "25 \u00c2\u00b0C",
    "x\ue000",
    "\u00d0\u009c\u00d0\u00be",
    "a\ufffe",
]


def flags_in(question: str, answer: str) -> set[str]:
    return set(check(rows_of((question, answer))).summary["flags"])


@pytest.mark.parametrize("text", CLEAN)
def test_characters_that_a_script_needs_are_not_flagged(text: str) -> None:
    assert not flags_in(f"What is {text} here?", "x") & {"invisible_characters", "odd_question", "mixed_scripts"}
    if "\u202f" not in text:
        assert not flags_in("What is it?", text) & {"invisible_characters", "odd_answer", "mixed_scripts"}


@pytest.mark.parametrize("text", UNSEEN)
def test_characters_that_nobody_sees_are_flagged_and_named(text: str) -> None:
    for pair in ((f"What is {text} here?", "x"), ("What is it?", text)):
        found = check(rows_of(pair, ("Other?", "y")))
        assert found.summary["flags"]["invisible_characters"] == 1
        assert found.flags.filter(pl.col("flags").list.contains("invisible_characters"))["row"].to_list() == [0]
        assert found.summary["invisible_characters"][UNSEEN[text]] == 1
        told = next(finding for finding in found.findings if finding.name == "invisible_characters")
        assert f"{UNSEEN[text]} in 1" in told.message
        assert "\u2066" not in "\n".join(finding_lines(found)).replace("\u2068", "").replace("\u2069", "")


@pytest.mark.parametrize("text", GARBLED)
def test_garbled_characters_are_flagged(text: str) -> None:
    assert "odd_question" in flags_in(f"What is {text}?", "x")
    assert "odd_answer" in flags_in("What is it?", text)


def test_a_blank_that_only_looks_like_one_is_flagged_in_answers() -> None:
    assert "invisible_characters" in flags_in("How many?", "1\u00a0000")
    assert "invisible_characters" not in flags_in("Combien\u00a0?", "1000")


def test_letters_of_two_scripts_in_one_word_are_noted() -> None:
    assert "mixed_scripts" in flags_in("What is in M\u043escow?", "x")
    assert "mixed_scripts" in flags_in("What is it?", "\u0420aris")
    assert "mixed_scripts" not in flags_in("What is Moscow in Russian, Москва?", "Москва or Moskva")


@pytest.mark.parametrize(
    ("text", "word", "inside"),
    [
        ("東京都の首都は", "東京", True), ("日本の首都", "大阪", False), ("กรุงเทพมหานครอยู่ที่ไหน", "กรุงเทพ", True),
        ("ភ្នំពេញនៅឯណា", "ភ្នំពេញ", True), ("서울은 어디에 있나요", "서울", True), ("남서울 공원", "서울", False),
        ("Parisian food", "Paris", False), ("Paris?", "paris", True), ("किताब क्या है", "क", False), ("क से", "क", True),
        (f"Where is {APART}?", COMBINED, True), ("مصرية", "مصر", False), ("عاصمة مصر", "مصر", True),
        ("Zu\u0308rich", "Zu", False),
        ("ドイツのベルリン市", "ベルリン", True), ("BMW東京", "BMW", True), ("x", "", False), (None, "x", False),
    ],
)  # fmt: skip
def test_an_answer_inside_a_question(text: str | None, word: str, inside: bool) -> None:
    assert has_word(text, word) is inside


def test_lines_of_a_terminal_keep_their_order_beside_text_from_right_to_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plain("مصر") == "\u2068مصر\u2069"
    assert plain("a\u202eb\x1b[2J") == "a\ufffdb\ufffd[2J"
    assert plain("می\u200cخواهم 👩\u200d👧") == "\u2068می\u200cخواهم 👩\u200d👧\u2069", "joiners are no threat"
    print_table(pl.DataFrame({"group": ["東京都", "ภูเขา", "Rom", "עברית"], "rows": ["1", "22", "333", "4"]}), "t")
    lines_of = capsys.readouterr().out.splitlines()[2:]
    assert {cell_len(line.rstrip()) for line in lines_of} == {cell_len(lines_of[0].rstrip())}, "columns align"
    found = check(rows_of(("ما هي عاصمة مصر؟", "القاهرة\u200b"), ("b?", "c")))
    told = "\n".join(finding_lines(found))
    assert ": \u2068ما هي عاصمة مصر؟\u2069 -> \u2068القاهرة\ufffd\u2069" in told
