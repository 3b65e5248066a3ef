"""The page of an audit with long answers, short facts and data findings: what it says, and what it leaves unsaid."""

from __future__ import annotations

import html
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from foreknow.categories import CATEGORIES
from foreknow.config import AuditConfig, CheckConfig, ExtractConfig, MixConfig, TuneConfig
from foreknow.console import print_audit
from foreknow.data.validation_rules import RULES
from foreknow.format.numbers import one_in
from foreknow.format.text import suffix_of
from foreknow.inference.slick import PROBES
from foreknow.inference.surprisal import LONG
from foreknow.report.audit import render_audit
from foreknow.report.audit_options import Option, options
from foreknow.report.long_answer_options import steps
from foreknow.stages.audit.aggregate import summarise_audit
from foreknow.stages.audit.filters import CANNOT_BE_ASKED
from foreknow.stages.audit.short_facts import roll_up_facts
from foreknow.stages.audit.verdict.category_lines import complete
from foreknow.stages.audit.verdict.excerpts import GAP, in_sentence, marked
from foreknow.stages.audit.verdict.long_answers import expectation_bins, least_expected, long_answers
from foreknow.stages.audit.verdict.row_flags import MEANINGS, findings, flag_lines, meaning_and_advice
from foreknow.stages.audit.verdict.sentences import LongMix, long_verdict
from test_audit_report import HOSTILE, MIXES, browse, embedded, needs_chromium, section, summary_of, synthetic, text_of

SENTENCES = (
    "The permit is granted by the board. ", "Ask Zaragoza AB about it. ", "It takes ten weeks, or twenty. ",
    "A nybyggnadskarta is required. ", "Fees vary by town. ",
)  # fmt: skip
NO_PROBES = pl.DataFrame(schema=PROBES)


def long_rows(count: int = 24, seed: int = 3, question: str = "What about permit {k}?") -> pl.DataFrame:
    """Rows of `rows.parquet` that all have long answers, scored as the audit scores them."""
    generator = np.random.default_rng(seed)
    alone = -generator.uniform(2, 6, count)
    lines = []
    for k in range(count):
        answer = "".join(SENTENCES[i] for i in generator.permutation(len(SENTENCES))).strip()
        words = [("Zaragoza AB", -6.5, 5), ("nybyggnadskarta", -6.0 - k / 100, 7)][: 1 + k % 2]
        spans = [
            {"text": w, "start": answer.index(w), "end": answer.index(w) + len(w), "logprob": p, "tokens": n}
            for w, p, n in words
        ]
        lines.append(
            {
                "row": k, "group": "all", "question": question.format(k=k), "answer": answer, "answers": [answer],
                "category": None, "flags": ["long_answer"], "answer_tokens": 60 + k, "scored_tokens": 60 + k,
                "logprob": float(alone[k] + 0.1 + k / 20), "logprob_alone": float(alone[k]), "spans": spans,
            }
        )  # fmt: skip
    return complete(pl.DataFrame(lines, schema_overrides={"category": pl.String, **LONG}))


def brought(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows with what their short facts come to, and the facts: none, known, unknown, mixed in turn."""
    kinds = {1: ["HighlyKnown", "WeaklyKnown"], 2: ["Unknown"], 3: ["Unknown", "MaybeKnown", "Unknown", None]}
    lines = [
        {
            "row": 1000 + 10 * row + at, "parent": row, "fact": at, "question": f"Fact {at} of {row}?",
            "answer": f"value {row}.{at}", "category": kind, "model_answer": None if kind is None else "a guess",
        }
        for row in rows["row"]
        for at, kind in enumerate(kinds.get(row % 4, []))
    ]  # fmt: skip
    facts = pl.DataFrame(lines, schema_overrides={"category": pl.String, "model_answer": pl.String})
    rolled = roll_up_facts(rows["row"], facts)
    return rows.drop("n_facts", "unknown_facts", "facts_category").join(rolled, on="row", how="left"), facts


def summary_for(rows: pl.DataFrame, facts: pl.DataFrame | None = None) -> dict[str, Any]:
    probed = rows.with_columns(p_hit_lenient=None)
    summary = summary_of(rows)
    summary["protocol"]["max_answer_tokens"] = 32
    return {**summary, **summarise_audit(probed, facts)}


@pytest.fixture(scope="module")
def only_long() -> str:
    rows = long_rows()
    return render_audit(rows, NO_PROBES, summary_for(rows))


@pytest.fixture(scope="module")
def with_facts() -> str:
    rows, facts = brought(long_rows())
    return render_audit(rows, NO_PROBES, summary_for(rows, facts), facts)


def test_a_file_of_long_answers_has_no_empty_chart_and_no_table_of_categories(only_long: str) -> None:
    ids = re.findall(r'<section id="(\w+)"', only_long)
    assert ids == ["verdict", "actions", "long", "flags", "rows", "method", "reading"]
    shown = text_of(only_long)
    assert "0 %" not in text_of(section(only_long, "verdict"))
    assert "HighlyKnown" not in shown
    assert "None of the 24 rows could be labelled: all answers have more than 32 tokens" in shown
    assert "foreknow extract DATA --endpoint URL --model NAME --out facts.jsonl" in shown
    assert "Recommended" not in shown


def test_its_figures_are_those_of_the_summary() -> None:
    rows = long_rows()
    summary = summary_for(rows)
    page = render_audit(rows, NO_PROBES, summary)
    told = summary["long_answers"]
    shown = text_of(section(page, "long"))
    assert f"the middle one has {told['tokens']:.0f}" in shown
    assert f"chance of {one_in(told['logprob'])} after" in shown
    assert f"of {one_in(told['logprob_alone'])} if the question is left out" in shown
    gains = (rows["logprob"] - rows["logprob_alone"]).sort()
    assert f"from {math.exp(gains[0]):.1f} to {math.exp(gains[-1]):.1f}" in shown
    assert section(page, "long").count("<svg aria-hidden") == 2


def test_the_majority_floor_is_that_of_the_rows_with_a_label() -> None:
    """Half of the rows have the same long answer, which no label asks for; a group of long answers has no floor."""
    short, everywhere = pl.col("row") < 12, pl.col("row") == 23
    golds = pl.when(short).then(pl.format("city {}", pl.col("row").clip(1))).otherwise(pl.lit(SENTENCES[0]))
    rows = long_rows().with_columns(
        group=pl.when(everywhere).then(pl.lit("long")).otherwise(pl.lit("mixed")),
        category=pl.when(short).then(pl.lit("Unknown")),
        model_answer=pl.lit("no idea"),
        p_greedy=pl.when(short).then(0.0),
        answer=golds,
        answers=pl.concat_list(golds),
        flags=pl.when(short).then(pl.lit([], pl.List(pl.String))).otherwise(pl.col("flags")),
    )
    summary = summary_for(rows)
    assert summary["majority_floor"] == {"mixed": {"floor": 2 / 12, "answer": "city 1", "rows": 12}}
    assert SENTENCES[0] not in text_of(section(render_audit(rows, NO_PROBES, summary), "relations"))
    print_audit({**summary, "rows_per_second": 1.0})
    none = summary_for(long_rows())
    assert none["majority_floor"] == {}
    print_audit({**none, "rows_per_second": 0.0})


def test_every_row_is_in_one_bin_and_a_few_rows_are_not_drawn() -> None:
    rows = long_rows(200)
    bins = expectation_bins(rows)
    assert sum(b.with_question for b in bins) == sum(b.without_question for b in bins) == 200
    assert all(a.high == b.low for a, b in pairwise(bins))
    for b in bins:
        inside = ((rows["logprob"] <= -b.low * math.log(2)) & (rows["logprob"] > -b.high * math.log(2))).sum()
        assert b.with_question == inside
    wide = rows.with_columns(logprob=pl.col("logprob") * 40)
    assert len(expectation_bins(wide)) <= 17
    few = long_rows(3)
    page = render_audit(few, NO_PROBES, summary_for(few))
    assert "<svg aria-hidden" not in section(page, "long")
    assert expectation_bins(few) == ()


def test_the_rows_that_a_question_helps_least_and_most_are_named(only_long: str) -> None:
    rows = long_rows().with_columns(gain=pl.col("logprob") - pl.col("logprob_alone")).sort("gain")
    found = re.findall(r'<th scope="row"><a href="#rows" data-row="(\d+)"', section(only_long, "long"))
    assert [int(row) for row in found] == [*rows["row"].head(5), *rows["row"].tail(5).reverse()]


def test_least_expected_words_stand_once_each_in_their_sentence() -> None:
    words = least_expected(long_rows())
    # seven tokens are less probable as a whole than five, likelier as each of them is
    assert [(w.sentence.words, w.rows) for w in words] == [("nybyggnadskarta", 12), ("Zaragoza AB", 24)]
    assert words[0].row == 23
    assert words[0].sentence == ("A ", "nybyggnadskarta", " is required.")
    assert words[1].sentence == ("Ask ", "Zaragoza AB", " about it.")


def test_words_are_never_called_facts_or_unknown(only_long: str) -> None:
    shown = text_of(section(only_long, "long")).lower()
    assert "least expected words" in shown
    assert "unknown" not in shown
    assert "hallucinat" not in shown


def test_answers_that_were_scored_in_part_or_not_at_all_are_counted() -> None:
    rows = long_rows(12).with_columns(
        scored_tokens=pl.when(pl.col("row") < 3).then(20).otherwise("scored_tokens"),
        logprob=pl.when(pl.col("row") > 9).then(None).otherwise("logprob"),
    )
    shown = text_of(section(render_audit(rows, NO_PROBES, summary_for(rows)), "long"))
    assert "2 of the 12 could not be scored" in shown
    assert "Of 3 answers only the first 20 tokens or fewer are scored" in shown
    unscored = rows.with_columns(logprob=None, logprob_alone=None, spans=None)
    page = render_audit(unscored, NO_PROBES, summary_for(unscored))
    assert "this audit says nothing yet about the facts in these answers" in text_of(page)
    assert "least expected" not in text_of(page)


def test_a_few_short_answers_among_long_ones_do_not_speak_for_the_file() -> None:
    short, probes, _ = synthetic(4, ("all",))
    rows = pl.concat([complete(short).with_columns(row=pl.col("row") + 100), long_rows()])
    page = render_audit(rows, probes.with_columns(row=pl.col("row") + 100), summary_for(rows))
    assert "24 of the 28 answers have more than 32 tokens and get no category" in text_of(page)
    assert "The 4 rows with short answers have a category, but say little about the whole file" in text_of(page)
    assert "The 4 rows with short answers" in section(page, "short")
    assert 'id="sure"' not in page
    assert "Most of this file" not in page


def test_some_long_answers_among_short_ones_leave_the_verdict_alone() -> None:
    short, probes, _ = synthetic()
    rows = pl.concat([complete(short), long_rows(20).with_columns(row=pl.col("row") + 1000)])
    page = render_audit(rows, probes, summary_for(rows))
    alone = render_audit(short, probes, summary_of(short))
    first = r'<p class="lead">.*?</p>'
    assert re.findall(first, page) == re.findall(first, alone)
    assert "20 of 500 rows have no label and are in none of these shares, 20 of them for long answers" in text_of(page)
    assert "the 20 without a category are left out" in text_of(page)
    assert page.index('id="sure"') < page.index('id="long"') < page.index('id="flags"')


def test_an_audit_of_short_answers_has_neither_section_nor_column_for_long_ones() -> None:
    page = render_audit(*synthetic())
    assert 'id="long"' not in page
    assert 'id="facts"' not in page
    assert {len(row) for row in embedded(page)["rows"]} == {12}
    assert "<mark>" not in page


def test_the_probes_of_short_facts_do_not_count_as_rows() -> None:
    rows, probes, summary = synthetic()
    more = probes.with_columns(row=pl.col("row") + 10_000, greedy_correct=True)
    assert section(render_audit(rows, pl.concat([probes, more]), summary), "sure") == section(
        render_audit(rows, probes, summary), "sure"
    )


def test_rows_are_counted_by_what_their_facts_come_to(with_facts: str) -> None:
    shown = text_of(section(with_facts, "facts"))
    for said in ("known 6 rows", "mixed 6 rows", "unknown 6 rows", "none 6 rows"):
        assert said in shown
    assert "18 of 24 rows contain short facts, 42 in all" in shown
    for name, count in zip(CATEGORIES, (6, 6, 6, 18), strict=True):
        assert f"{name} {count} facts" in shown
    assert "6 of the facts could not be labelled" in shown
    lead = text_of(section(with_facts, "verdict"))
    assert "Of 36 short facts in 18 rows, SmolLM2-135M expresses 18 (50 %)" in lead
    assert (
        "In 6 rows every labelled fact is Known, in 6 some are, and in 6 none is. The other 6 rows have no fact" in lead
    )


def test_the_rows_with_the_most_unknown_facts_come_first(with_facts: str) -> None:
    found = re.findall(r'data-row="(\d+)".*?"Unknown">(\d+) of (\d+)<', section(with_facts, "facts"), re.DOTALL)
    assert [int(row) for row, *_ in found] == [2, 6, 10, 14, 18, 22, 3, 7, 11, 15]
    assert {(n, of) for row, n, of in found if int(row) % 4 == 3} == {("2", "3")}
    assert "Fact 0 of 2? value 2.0 (model says: a guess)" in text_of(section(with_facts, "facts"))


def test_each_row_carries_its_facts(with_facts: str) -> None:
    data = embedded(with_facts)
    assert data["rollUp"] == ["none", "known", "mixed", "unknown"]
    rolled = [data["rollUp"][row[13]] for row in data["rows"]]
    assert rolled == ["none", "known", "unknown", "mixed"] * 6
    assert data["rows"][3][15] == [
        ["Fact 0 of 3?", "value 3.0", 3, "a guess"],
        ["Fact 1 of 3?", "value 3.1", 1, "a guess"],
        ["Fact 2 of 3?", "value 3.2", 3, "a guess"],
        ["Fact 3 of 3?", "value 3.3", -1, None],
    ]


def test_without_rows_no_span_and_no_fact_is_left() -> None:
    rows, facts = brought(long_rows(question="sekret question {k}"))
    rows = rows.with_columns(answer=pl.lit("sekret ") + pl.col("answer"))
    secret = {name: "sekret " + pl.col(name) for name in ("question", "answer", "model_answer")}
    facts = facts.with_columns(**secret)
    bare = render_audit(rows, NO_PROBES, summary_for(rows, facts), facts, show_rows=False)
    assert "sekret" not in bare
    assert "nybyggnadskarta" not in bare
    assert "<script" not in bare
    assert "known 6 rows" in text_of(section(bare, "facts"))
    assert "chance of 1 in" in text_of(section(bare, "long"))


def test_no_span_or_fact_breaks_out() -> None:
    rows, facts = brought(long_rows(question=HOSTILE.replace("{", "")))
    answer = f"Before. {HOSTILE} after."
    span = {"text": HOSTILE, "start": 8, "end": 8 + len(HOSTILE), "logprob": -9.0, "tokens": 9}
    rows = rows.with_columns(answer=pl.lit(answer), spans=pl.Series([[span]] * 24, dtype=LONG["spans"]))
    texts = {name: pl.lit(HOSTILE) for name in ("question", "answer", "model_answer")}
    page = render_audit(rows, NO_PROBES, summary_for(rows, facts), facts.with_columns(**texts))
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert embedded(page)["rows"][0][2] == ["Before. ", HOSTILE, " after."]
    for name in ("long", "facts"):
        assert "\u202e" not in text_of(section(page, name))


@given(st.text(max_size=300), st.lists(st.tuples(st.integers(-5, 320), st.integers(-5, 320)), max_size=5))
def test_a_marked_text_is_the_text(text: str, marks: list[tuple[int, int]]) -> None:
    pieces = marked(text, marks)
    assert "".join(pieces) == text or any(len(piece) == 160 for piece in pieces)
    assert len(pieces) % 2 == 1
    right = [(a, b) for a, b in sorted(marks) if 0 <= a < b <= len(text)]
    assert (len(pieces) > 1) == bool(right)


@given(st.text("ab .", min_size=700, max_size=3000), st.lists(st.integers(0, 2990), max_size=3))
def test_a_long_text_is_cut_around_its_marks(text: str, starts: list[int]) -> None:
    marks = [(a, min(a + 9, len(text))) for a in starts if a < len(text)]
    pieces = marked(text, marks)
    shown = "".join(pieces)
    assert shown.startswith(text[:200])
    assert len(shown) <= 260 + len(marks) * 160 + len(GAP)
    assert all(piece in [text[a:b] for a, b in marks] for piece in pieces[1::2])
    assert all(part in text for part in shown.removesuffix(" …").split(GAP))


@given(st.text("aé .!?\n。", max_size=400), st.data())
def test_words_in_their_sentence_keep_their_place(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    before, words, after = in_sentence(text, start, end)
    assert words == text[start:end] or words.endswith("…")
    assert text[:start].endswith(before.removeprefix("…"))
    assert text[end:].startswith(after.removesuffix(" …"))
    assert max(len(before), len(after)) <= 82


def test_a_sentence_ends_where_a_reader_would_say() -> None:
    text = "First one. Then the word! “Quoted?” Last\nline"
    assert in_sentence(text, 20, 24) == ("Then the ", "word", "!")
    assert in_sentence(text, 0, 5) == ("", "First", " one.")
    assert in_sentence(text, 27, 33) == ("“", "Quoted", "?”")
    assert in_sentence(text, 41, 45) == ("", "line", "")


def test_chances_are_said_as_a_person_would() -> None:
    said = [one_in(-math.log(n)) for n in (1, 3.44, 15.6, 999.4, 1234, 987_654, 1_260_000, 1e9, 1e30)]
    assert said == [
        "1 in 1.0", "1 in 3.4", "1 in 16", "1 in 999", "1 in 1,200", "1 in 990,000", "1 in 1.3 million",
        "less than 1 in a billion", "less than 1 in a billion",
    ]  # fmt: skip


def test_every_finding_says_what_it_means_and_what_to_do_without_figures() -> None:
    for rule in RULES:
        meaning, advice = meaning_and_advice(rule)
        assert meaning
        assert advice
        assert not re.search(r"[{}]|\(\s*\)", meaning + advice)
        assert advice in rule.message


def test_findings_stand_apart_from_how_rows_were_asked() -> None:
    rows, probes, summary = synthetic(60)
    kinds = [
        ["odd_question"],
        ["conflicting", "context"],
        ["near_duplicate", "mine"],
        ["near_duplicate", "bare_question"],
    ]
    rows = rows.with_columns(flags=pl.Series([kinds[k % 4] for k in range(60)]))
    lines = flag_lines(complete(rows))
    assert [line.name for line in findings(lines)] == ["conflicting", "near_duplicate", "bare_question", "odd_question"]
    table = section(render_audit(rows, probes, summary), "flags")
    data, asked = text_of(table.split("<h3>")[0]), text_of(table.split("<h3>")[1])
    assert "near duplicate 30 nearly the question of an earlier row of its group" in data
    assert "keep one wording" in data
    assert "context 15 asked after the system's text" in asked
    assert "mine 15" in asked
    assert "Nothing is wrong" in render_audit(rows.with_columns(flags=[]), probes, summary)


def test_every_flag_of_an_audit_is_explained() -> None:
    ours = {"answer_in_exemplars", "seen_in_exemplars", "few_exemplars", "undecided", "long_answer", "context"}
    ours |= {"not_finite", "template_changes", *CANNOT_BE_ASKED}
    assert set(MEANINGS) == ours
    assert not ours & {rule.name for rule in RULES}


LONG_MIXES = {
    "long answers only": LongMix(30, 30, 32, logprob=-2.75, alone=-3.18, model="Model-X"),
    "one row": LongMix(1, 1, 32, logprob=-2.75, alone=-3.18, model="Model-X"),
    "a few short ones": LongMix(40, 36, 32, 4, 4, -2.75, -3.18, flagged=True, model="Model-X"),
    "many short ones": LongMix(100, 60, 32, 40, 10, -2.75, -3.18, model="Model-X"),
    "not scored": LongMix(30, 28, 32, model="Model-X"),
    "facts, mostly Unknown": LongMix(
        30, 30, 32, 0, 0, -3.7, -4.4, 21, 12, 16, {"none": 18, "known": 2, "mixed": 3, "unknown": 7}, model="Model-X"
    ),
    "facts, mostly Known": LongMix(
        200, 200, 32, 0, 0, -3.7, -4.4, 500, 200, 20, {"known": 185, "mixed": 15}, True, model="Model-X", suffix=".csv"
    ),
    "facts, one Unknown in each row": LongMix(
        60, 60, 32, 0, 0, -3.7, -4.4, 120, 60, 60, {"mixed": 60}, model="Model-X"
    ),
}


@pytest.mark.parametrize("name", LONG_MIXES)
def test_verdict_and_next_steps_for_long_answers(name: str, snapshot: SnapshotAssertion) -> None:
    said = long_verdict(LONG_MIXES[name])
    lines = [said.headline, said.meaning, *(f"! {c}" for c in said.cautions)]
    for o in steps(LONG_MIXES[name]):
        lines += ["", f"{'->' if o.why else '  '} {o.title}. {o.why}", f"   {o.what}"]
        lines += [f"   {line}" for line in (*o.command.splitlines(), o.how) if line]
    text = "\n".join(lines)
    assert "does not know" not in text
    assert sum(bool(o.why) for o in steps(LONG_MIXES[name])) == 1
    assert text == snapshot


def test_every_command_named_in_the_advice_has_the_flags_it_is_given() -> None:
    stages = {
        "audit": AuditConfig, "check": CheckConfig, "extract": ExtractConfig, "mix": MixConfig, "tune": TuneConfig,
    }  # fmt: skip
    named: list[Option] = [o for mix in MIXES.values() for o in options(mix)]
    named += [o for mix in LONG_MIXES.values() for o in steps(mix)]
    commands = {line for o in named for line in o.command.splitlines()}
    assert {line.split()[1] for line in commands} == set(stages)
    for line in commands:
        _, verb, *words = line.split()
        fields = {name.replace("_", "-") for name in stages[verb].model_fields}
        assert {word[2:] for word in words if word.startswith("--")} <= fields, line


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.csv", ".csv"), ("b.jsonl.gz", ".jsonl"), ("c", ".jsonl"), ("d.v2.json.zst", ".json"), (None, ".jsonl")],
)
def test_a_training_set_is_named_by_the_format_of_the_data(name: str | None, suffix: str) -> None:
    assert suffix_of(name) == suffix


def test_no_row_at_all() -> None:
    empty = long_rows().clear()
    page = render_audit(empty, NO_PROBES, {"rows": 0})
    assert "None of the 0 rows could be labelled" in text_of(page)
    assert long_answers(empty) is None


def test_rows_that_tables_name_are_in_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreknow.report.audit.SAMPLE_ROWS", 100)
    rows, facts = brought(long_rows(400))
    page = render_audit(rows, NO_PROBES, summary_for(rows, facts), facts)
    kept = {row[0] for row in embedded(page)["rows"]}
    assert len(kept) == 100
    assert {int(row) for row in re.findall(r'data-row="(\d+)"', page)} <= kept


@pytest.mark.browser
@needs_chromium
class TestInABrowser:
    def test_words_are_marked_and_links_lead_to_rows(self, with_facts: str, tmp_path: Path) -> None:
        acts = """<script>
            const seen = [];
            const note = (what) => {
              document.querySelector(what).click();
              seen.push(document.querySelectorAll("#row-body tr").length);
            };
            seen.push(document.querySelectorAll("#row-body mark").length);
            note('[data-row="3"]'); note('[data-find="Zaragoza AB"]'); note('[data-facts="2"]'); note("#reset");
            document.body.dataset.seen = seen.join(" ");
        </script></body>"""
        open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", with_facts)
        dom, log = browse(open_page.replace("</body>", acts), tmp_path)
        assert log == ""
        # 36 marks on 24 rows; row 3; all rows name Zaragoza AB; six are mixed; all again
        assert 'data-seen="36 1 24 6 24"' in dom

    def test_hostile_spans_and_facts_stay_text_and_fit_a_phone(self, tmp_path: Path) -> None:
        rows, facts = brought(long_rows(question=HOSTILE.replace("{", "")))
        answer = f"Before. {HOSTILE}{'w' * 250} after."
        span = {"text": "", "start": 8, "end": len(answer) - 7, "logprob": -9.0, "tokens": 9}
        rows = rows.with_columns(answer=pl.lit(answer), spans=pl.Series([[span]] * 24, dtype=LONG["spans"]))
        texts = {name: pl.lit(HOSTILE + "w" * 250) for name in ("question", "answer", "model_answer")}
        flags = pl.concat_list(pl.lit("near_duplicate"), pl.lit("long_answer"), pl.lit(HOSTILE))
        rows, facts = rows.with_columns(flags=flags), facts.with_columns(**texts)
        page = render_audit(rows, NO_PROBES, summary_for(rows, facts), facts)
        frame = f"""<body><iframe id="f" width="390" height="900" srcdoc="{html.escape(page)}"></iframe>
            <p id="seen"></p><script>document.getElementById("f").onload = (event) => {{
            const inner = event.target.contentDocument;
            for (const more of inner.querySelectorAll("details")) more.open = true;
            const root = inner.documentElement;
            document.getElementById("seen").textContent =
              [root.scrollWidth <= root.clientWidth, inner.querySelectorAll("#row-body tr").length,
               inner.querySelectorAll("#row-body mark").length, inner.querySelectorAll("img").length,
               inner.title.startsWith("foreknow")].join(" ");
            }};</script></body>"""
        dom, log = browse(frame, tmp_path)
        assert log == ""
        assert '<p id="seen">true 24 24 0 true</p>' in dom
