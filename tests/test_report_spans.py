"""The page of an audit whose long answers have labels of spans: its figures, words, commands and texts."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from foreknow.categories import CATEGORIES
from foreknow.config import MixConfig, TuneConfig
from foreknow.data.spans.schema import is_new
from foreknow.format.numbers import percent
from foreknow.inference.slick import PROBES
from foreknow.report.audit import render_audit
from foreknow.report.span_data import LONGEST, TEXTS
from foreknow.stages.audit.result import AuditResult
from foreknow.stages.audit.verdict.figures import audit_figures
from foreknow.stages.audit.verdict.labelled_spans import labelled_spans, share_over_rows
from foreknow.stats import Interval
from span_files import Label, span_table
from test_audit_report import HOSTILE, browse, needs_chromium, section, summary_of, text_of
from test_report_long import long_rows

NO_PROBES = pl.DataFrame(schema=PROBES)
PATHS: dict[str, str | None] = {"AUDIT": "runs/a b", "TRAIN": "faq.jsonl", "DATA": "faq.jsonl", "MODEL": "m"}


def mixed(text: str, at: int) -> Label:
    """All kinds of labels; a few spans have none."""
    if at % 23 == 5:
        return None, None
    category = CATEGORIES[(at * 7 + len(text)) % 4]
    return category, at % 3 == 0 if category == "Unknown" else True


def texts(count: int = 24) -> pl.DataFrame:
    """Long rows of two groups with names and numbers."""
    rows = long_rows(count)
    text = "In {year} Zaragoza AB built {k} houses. Ask Anna Berg or Oslo {n}.\nIt is <b>so</b>."
    answers = [text.format(year=1900 + k % 7, k=k, n=k % 3) for k in range(count)]
    return rows.with_columns(
        pl.Series("answer", answers), pl.Series("group", ["fees", "permits"] * (count // 2)), spans=pl.lit([])
    )


def page_of(rows: pl.DataFrame, spans: pl.DataFrame, **given: Any) -> str:
    return render_audit(rows, NO_PROBES, summary_of(rows), spans=spans, paths=PATHS, **given)


ROWS_24 = texts()
SPANS_24 = span_table(dict(ROWS_24.select("row", "answer").iter_rows()), mixed)


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(ROWS_24, SPANS_24)


def test_the_page_opens_with_what_is_new_and_its_shares_are_those_of_the_spans(page: str) -> None:
    labelled = SPANS_24.filter(pl.col("category").is_not_null())
    new = labelled.filter(is_new())
    known = labelled.filter(pl.col("category") != "Unknown").height / labelled.height
    said = text_of(section(page, "verdict"))
    assert said.startswith(" What in these texts is new to the model")
    assert re.findall('<section id="([a-z-]+)"', page)[:5] == ["verdict", "actions", "new-spans", "new-things", "texts"]
    assert f"{percent(new.height / labelled.height)} of the names, numbers" in said
    assert f"{percent(known)} are expressed in place" in said
    assert f"{percent(1 - known - new.height / labelled.height)} are recognised only" in said
    assert f"{SPANS_24.height - labelled.height} more spans could not be labelled" in said
    for word in ("given the text before it", "expressed in place", "recognised", "neither: new"):
        assert word in said
    rows = labelled.group_by("row").agg(new=is_new().sum(), spans=pl.len())
    counts = text_of(section(page, "new-spans"))
    assert f"{rows.filter(pl.col('new') == pl.col('spans')).height} rows: every labelled span is new" in counts
    assert f"{rows.filter(pl.col('new') == 0).height} rows: none is new" in counts


@pytest.mark.parametrize(("column", "values"), [("type", ("name", "number")), ("group", ("fees", "permits"))])
def test_the_tables_by_type_and_group_count_the_spans(page: str, column: str, values: tuple[str, str]) -> None:
    titles = {"name": "names", "number": "numbers"}
    every = SPANS_24.join(ROWS_24.select("row", "group"), on="row").filter(pl.col("category").is_not_null())
    for value in values:
        own = every.filter(pl.col(column) == value)
        new = own.filter(is_new())
        line = re.search(rf'<tr><th scope="row"><bdi[^>]*>{titles.get(value, value)}</bdi>.*?</tr>', page, re.DOTALL)
        assert line
        words = text_of(line[0]).split()
        assert words[:2] == [titles.get(value, value), str(own.height)]
        assert f"{new['row'].n_unique()} of {own['row'].n_unique()}" in text_of(line[0])


def test_new_things_are_ranked_by_rows(page: str) -> None:
    new = SPANS_24.filter(is_new(), pl.col("type") == "name")
    most = Counter(text.lower() for _, text in set(new.select("row", pl.col("text").str.to_lowercase()).iter_rows()))
    table = section(page, "new-things").split("Numbers")[0]
    pattern = r'<th scope="row"><bdi>(.*?)</bdi>.*?data-label="In rows">(\d+)<'
    shown = [(text_of(name).strip().lower(), int(n)) for name, n in re.findall(pattern, table, re.DOTALL)]
    assert shown == sorted(most.items(), key=lambda item: (-item[1], item[0]))[: len(shown)]


def test_every_command_is_one_that_the_settings_take(page: str) -> None:
    blocks = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    lines = [text_of(line).strip() for block in blocks for line in block.split("\n")]
    ours = [shlex.split(line) for line in lines if line.startswith("foreknow")]
    kinds = Counter(line[1] for line in ours)
    assert kinds["mix"] == 4
    assert kinds["tune"] == 3
    for line in ours:
        given = {line[n][2:].replace("-", "_"): line[n + 1] for n in range(3, len(line), 2) if line[n].startswith("--")}
        if line[1] == "mix":
            assert line[2] == "runs/a b"
            assert MixConfig(audit=Path(line[2]), **given).uses_spans
        elif line[1] == "tune":
            assert TuneConfig(train=line[2], **given).audit == Path("runs/a b")
    assert any(line.startswith("python -c") and line.endswith("'runs/a b' new_spans.csv") for line in lines)


def test_new_spans_are_listed_for_an_index(tmp_path: Path) -> None:
    ROWS_24.select("row", "question").write_parquet(tmp_path / "rows.parquet")
    SPANS_24.write_parquet(tmp_path / "spans.parquet")
    new = AuditResult(tmp_path).new_spans
    new.write_csv(tmp_path / "new.csv")
    assert pl.read_csv(tmp_path / "new.csv").height == SPANS_24.filter(is_new()).height
    assert new.columns == ["row", "question", "text", "type", "start", "end"]


def test_texts_come_back_whole_from_their_pieces(page: str) -> None:
    block = re.search(r'<script type="application/json" id="text-data">(.*?)</script>', page, re.DOTALL)
    assert block
    data = json.loads(block[1])
    answers = dict(ROWS_24.select("row", "answer").iter_rows())
    assert len(data["rows"]) == 24
    for row, _, _, pieces in data["rows"]:
        assert "".join(p if isinstance(p, str) else p[0] for p in pieces) == answers[row]
        own = SPANS_24.filter(pl.col("row") == row)
        assert [p[0] for p in pieces if not isinstance(p, str)] == own["text"].to_list()
        new = [p[1] == 4 for p in pieces if not isinstance(p, str)]
        assert new == own.select(is_new()).to_series().to_list()


def text_data(page: str) -> str:
    return re.findall(r'id="text-data">(.*?)</script>', page, re.DOTALL)[0]  # type: ignore[no-any-return]


def test_of_many_rows_a_draw_is_shown_and_said_and_every_link_leads_to_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = texts(600)
    spans = span_table(dict(rows.select("row", "answer").iter_rows()), mixed)
    page = page_of(rows, spans)
    assert f"holds {TEXTS} of the 600 rows that have spans, drawn at random" in text_of(section(page, "texts"))
    data = json.loads(re.search(r'id="text-data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    embedded = {line[0] for line in data["rows"]}
    assert len(embedded) == TEXTS
    assert {int(n) for n in re.findall(r'data-text="(\d+)"', page)} <= embedded
    monkeypatch.setattr("foreknow.report.audit.TEXT_BYTES", len(text_data(page)) // 2)
    fewer = page_of(rows, spans)
    drawn = {line[0] for line in json.loads(text_data(fewer))["rows"]}
    assert len(text_data(fewer)) <= len(text_data(page)) // 2
    assert {int(n) for n in re.findall(r'data-text="(\d+)"', fewer)} <= drawn
    assert f"holds {len(drawn)} of the 600 rows" in text_of(section(fewer, "texts"))
    monkeypatch.undo()
    long = rows.with_columns(answer=pl.col("answer") + " x" * LONGEST)
    assert all(len("".join(map(str, line[3]))) < 2 * LONGEST for line in json.loads(
        re.search(r'id="text-data">(.*?)</script>', page_of(long, spans), re.DOTALL)[1]  # type: ignore[index]
    )["rows"])  # fmt: skip


def test_without_rows_no_text_of_the_data_is_on_the_page() -> None:
    page = page_of(ROWS_24, SPANS_24, show_rows=False)
    for text in ("Zaragoza", "Anna Berg", 'id="text-data"', "What about permit"):
        assert text not in page
    assert "How much is new, and where" in page


def test_a_file_of_mostly_short_answers_says_what_is_labelled_inside_its_long_ones() -> None:
    short = [{"row": 100 + n, "question": f"Where is {n}?", "answer": "Oslo", "group": "fees"} for n in range(30)]
    both = pl.concat([ROWS_24, pl.DataFrame(short).with_columns(category=pl.lit("Unknown"))], how="diagonal_relaxed")
    figures = audit_figures(both, summary_of(both), None, SPANS_24)
    assert not figures.mostly_long
    labelled = SPANS_24.filter(pl.col("category").is_not_null()).height
    assert f"of {labelled} facts inside them" in figures.verdict.cautions[-1]
    page = page_of(both, SPANS_24)
    assert f"of {labelled} facts inside them" in page
    assert "What in these texts is new" not in page


def test_an_audit_without_labels_has_the_page_it_had() -> None:
    assert "What in these texts is new" not in render_audit(ROWS_24, NO_PROBES, summary_of(ROWS_24))
    assert labelled_spans(ROWS_24, SPANS_24.with_columns(category=pl.lit(None, pl.String)), 24) is None


def test_the_interval_treats_the_spans_of_a_row_as_one_draw() -> None:
    apart = share_over_rows([1, 0] * 50, [1] * 100)
    together = share_over_rows([10, 0] * 5, [10] * 10)
    assert apart.value == together.value == 0.5
    assert together.high - together.low > 2.5 * (apart.high - apart.low)
    assert share_over_rows([3], [4]) == Interval(0.75, 0.0, 1.0)


@pytest.mark.browser
@needs_chromium
def test_in_a_browser_texts_are_marked_filtered_and_stay_text(tmp_path: Path) -> None:
    rows = ROWS_24.with_columns(question=pl.lit(HOSTILE))
    page = page_of(rows, SPANS_24)
    dom, log = browse(page, tmp_path)
    assert log == ""
    assert "Texts 1–10 of 24" in dom
    assert dom.count('<article class="reading">') == 10
    assert "&lt;b&gt;so&lt;/b&gt;" in dom
    acts = """<script>
        const part = document.getElementById("text-part"); part.value = "0"; part.dispatchEvent(new Event("change"));
        const type = document.getElementById("text-type"); type.value = "1"; type.dispatchEvent(new Event("change"));
        document.querySelector("#text-list mark.un").click();
    </script></body>"""
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    dom, log = browse(open_page.replace("</body>", acts), tmp_path)
    assert log == ""
    numbers = SPANS_24.filter(is_new(), pl.col("type") == "number")
    count = numbers["row"].n_unique()
    assert f"Texts 1–{min(count, 10)} of {count}" in dom
    first = numbers.filter(pl.col("row") == numbers["row"][0])["text"].to_list()
    article = dom.split('<article class="reading">')[1].split("</article>")[0]
    assert re.findall(r'<mark class="span un"[^>]*>(.*?)</mark>', article) == first
    assert "neither expressed in place nor recognised: new" in article


FACTS, TASK = "To teach these facts", "To teach a task or a style"


@pytest.mark.parametrize(
    ("new", "advised"),
    [
        (0.02, {"Train on the texts as they are": f"{FACTS} and {TASK[0].lower()}{TASK[1:]}"}),
        (0.3, {"Train on the texts as they are": FACTS, "Mask what is new": TASK}),
        (0.8, {"Put what is new into retrieval": FACTS, "Mask what is new": TASK}),
    ],
)
def test_the_advice_follows_the_share_of_new_spans_and_what_the_rows_are_for(
    new: float, advised: dict[str, str]
) -> None:
    chosen = [text_of(card) for card in advice_cards(texts(60), new) if 'chosen">' in card]
    assert len(chosen) == len(advised)
    for card in chosen:
        (title,) = [title for title in advised if title in card]
        assert advised[title] in card


def test_below_a_hundred_labelled_spans_nothing_is_recommended() -> None:
    rows = texts(12)
    assert not any('chosen">' in card for card in advice_cards(rows, 0.5))
    said = text_of(section(page_of(rows, spans_with(rows, 0.5)), "actions"))
    assert re.search(r"Nothing is recommended here: with \d\d labelled spans the shares are too uncertain", said)


def spans_with(rows: pl.DataFrame, new: float) -> pl.DataFrame:
    """Spans of which a share is new."""
    answers = dict(rows.select("row", "answer").iter_rows())
    return span_table(answers, lambda _, at: ("Unknown", False) if at % 50 < 50 * new else ("HighlyKnown", True))


def advice_cards(rows: pl.DataFrame, new: float) -> list[str]:
    return section(page_of(rows, spans_with(rows, new)), "actions").split("<article")[1:]
