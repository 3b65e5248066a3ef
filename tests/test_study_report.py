"""The page of a study: its words follow from the numbers, what is missing is said, and nothing breaks out of it."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import chromium
from foreknow.report import study_charts, study_text
from foreknow.report.study import render_study
from foreknow.report.study_charts import Axes, Bar, ChartLine, ChartPosition
from foreknow.report.study_sections import epochs
from foreknow.report.study_text import moved, papers, signed
from foreknow.stages.study import tables as study_tables
from foreknow.stages.study.claims import SCORECARD
from foreknow.stages.study.result import StudyResult
from synthetic_study import grid, simulated, write_study

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">&'"
CLAIMS = 9


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    made = simulated(variants=grid((0.0, 0.5, 1.0)), sets={"dev": 100, "test": 300, "ood": 100})
    return StudyResult(write_study(tmp_path_factory.mktemp("page") / "whole", *made, model=f"M {HOSTILE}"))


@pytest.fixture(scope="session")
def tables(study: StudyResult) -> dict[str, pl.DataFrame]:
    return study_tables.all_tables(study)


@pytest.fixture(scope="session")
def page(study: StudyResult, tables: dict[str, pl.DataFrame]) -> str:
    return render_study(study, tables)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of one seed of D alone, at one share."""
    variants = [v for v in grid((0.5,)) if v.kind == "shares"]
    made = simulated(1, 3, 60, variants=variants, sets={"dev": 40, "test": 60})
    folder = write_study(tmp_path_factory.mktemp("page") / "small", *made)
    (folder / "ptrue.parquet").unlink()
    return render_study(StudyResult(folder))


def text_of(page: str) -> str:
    bare = re.sub(r"<(script|style|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    joined = re.sub(r"</?(bdi|span|strong)\b[^>]*>", "", bare)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", joined))).replace("\u00a0", " ")


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([\w-]+)"', page)


def test_the_scorecard_comes_first_and_then_the_papers_results_in_its_order(page: str) -> None:
    assert sections(page) == [
        "verdict", "claims", "curves", "shares", "fitted", "linear", "single", "ood", "sweep", "refusals", "method",
        "limits",
    ]  # fmt: skip


def test_every_claim_has_its_verdict_in_a_word_and_a_sign(page: str, tables: dict[str, pl.DataFrame]) -> None:
    found = re.search(r'<section id="claims".*?</tbody>', page, re.DOTALL)
    assert found
    rows = re.findall(r"<tr>.*?</tr>", found[0], re.DOTALL)[1:]
    assert len(rows) == CLAIMS
    signs = {"holds": "✓", "fails": "✗", "not decided": "?", "not tested": "–"}
    for row, line in zip(rows, tables["claims"].iter_rows(named=True), strict=True):
        assert f"<strong>{line['verdict']}</strong>" in row
        assert f">{signs[line['verdict']]}</text>" in row
        assert line["text"].split(" ")[0] in text_of(row)
        assert papers(line["claim"]).replace(" %", "") in text_of(row).replace(" %", "")


def test_each_section_has_a_sentence_a_chart_and_its_table(page: str) -> None:
    for name in ("curves", "shares", "fitted", "linear", "single", "ood", "sweep"):
        part = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
        assert part, name
        assert part[0].count('<p class="why">') == 1
        assert '<div class="wide"><svg' in part[0]
        assert '<div class="narrow"><svg' in part[0]
        assert "<details><summary>" in part[0]
        assert f"tables/{name}.csv" in part[0]
    refusals = re.search(r'<section id="refusals".*?</section>', page, re.DOTALL)
    assert refusals
    assert refusals[0].count('<svg class="stack') == 4


def test_the_sentences_are_made_of_the_tables_numbers(page: str, tables: dict[str, pl.DataFrame]) -> None:
    line = study_text.find(
        tables["differences"], set="test", contrast="share", second="unknown-100", second_point="convergence"
    )
    assert line
    assert f"{moved(line)} at CONVERGENCE" in text_of(page)
    assert "In the paper: −6.4 and −16.8 points." in text_of(page)


def test_nothing_is_fetched_and_no_text_breaks_out(page: str) -> None:
    assert "default-src 'none'" in html.unescape(page)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert "<img" not in page
    assert page.count("<script") <= 1
    assert "/somewhere/private" not in page
    assert "facts.jsonl" in page


def test_the_html_is_well_nested(page: str, small: str) -> None:
    class Nesting(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    for text in (page, small):
        parser = Nesting()
        parser.feed(text)
        assert parser.open == []
        ids = re.findall(r'<section id="([\w-]+)"', text)
        assert len(ids) == len(set(ids))


def test_no_number_is_missing_where_one_is_shown(page: str, small: str) -> None:
    for text in (page, small):
        assert not re.search(r"\bNaN\b|\bnan\b|\binf\b|\bNone\b|undefined|Infinity", text_of(text))
        assert not re.search(r"\bNaN\b|undefined|Infinity", text)


def test_colours_are_the_themes_and_none_is_left_over(page: str) -> None:
    assert "#0100" not in page
    assert "var(--un)" in page


def test_what_a_study_lacks_is_left_out_with_one_line_on_what_it_would_take(small: str) -> None:
    assert sections(small) == [
        "verdict", "claims", "curves", "shares", "fitted", "linear", "sweep", "missing", "method", "limits",
    ]  # fmt: skip
    told = text_of(small)
    assert "need the setting only" in told
    assert "EM on unseen relations needs" in told
    assert "in the setting idk" in told
    assert "One seed: no interval here says" in told
    assert "60 test rows" in told
    assert "(No interval: 1 runs, at least 5 are needed.)" in told
    assert "could not be tested" in told


@given(st.floats(-0.5, 0.5), st.floats(0, 0.3))
def test_a_difference_is_called_one_only_where_its_interval_excludes_none(value: float, half: float) -> None:
    words = moved({"difference": value, "ci_low": value - half, "ci_high": value + half})
    if value - half > 0:
        assert words.startswith("is higher by")
    elif value + half < 0:
        assert words.startswith("is lower by")
    else:
        assert words.startswith("does not clearly differ")


@pytest.mark.parametrize(("share", "text"), [(-0.031, "−3.1"), (0.0004, "0.0"), (-0.0004, "0.0"), (0.12, "+12.0")])
def test_points_have_a_sign_unless_they_are_nothing(share: float, text: str) -> None:
    assert signed(share) == text


def test_the_papers_side_of_the_claims_is_computed_from_its_figures() -> None:
    assert papers(1).startswith("−14.6")
    assert papers(2) == "at EARLY_STOP 0.0 points; at CONVERGENCE −3.2 points"
    assert papers(3).startswith("+61.8")
    assert papers(4) == "b_kn +7.3 points, b_unk −8.3 points"
    assert papers(5) == "b_kn +3.2 points, b_unk −3.0 points"
    assert papers(6).startswith("less HighlyKnown +3.1 points; less WeaklyKnown +4.4 points")
    assert papers(7) == "at most 3.2 %"
    assert papers(8).endswith("at CONVERGENCE +3.2 points")
    assert papers(9).startswith("0.0 points")


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (["holds"] * 9, "Of the paper's nine claims, on M 9 hold, none fails, and none is left open"),
        (["holds", "fails", "fails"] + ["not tested"] * 6, "Of the 3 of the paper's nine claims that were tested"),
        (["not tested"] * 9, "None of the paper's nine claims could be tested on M"),
    ],
)  # fmt: skip
def test_the_lead_counts_the_verdicts(verdicts: list[str], words: str) -> None:
    empty = dict.fromkeys(SCORECARD)
    lines = pl.DataFrame([{**empty, "verdict": verdict} for verdict in verdicts], schema=SCORECARD)
    assert study_text.lead(lines, "M").startswith(words)


def test_a_chart_has_every_label_and_a_range_that_shows_small_changes() -> None:
    lines = [
        ChartLine("first line", "1st", (ChartPosition(0, 0.42, 0.4, 0.44), ChartPosition(1, 0.40))),
        ChartLine("second line", "2nd", (ChartPosition(0, 0.42), ChartPosition(1, 0.41)), band=True),
    ]
    low, high = study_charts.used(lines)
    assert low <= 0.4
    assert 0.44 <= high < 0.5
    wide = study_charts.lines_chart(lines, Axes("share", (0.0, 1.0)), 530)
    assert "first line 40.0 %" in wide
    assert "second line 41.0 %" in wide
    narrow = study_charts.lines_chart(lines, Axes("share", (0.0, 1.0)), 330)
    assert "1st 40.0 %" in narrow
    bars = [Bar("one", 0.1, 0.05, 0.2, 0.3), Bar("two", -0.1, None, None)]
    assert "two" in study_charts.intervals_chart(bars, "points", 720, zero=True)


@given(st.integers(1, 400))
def test_ticks_of_epochs_are_few_and_start_at_the_first(last: int) -> None:
    ticks = epochs(last)
    assert ticks[0] == 1
    assert len(ticks) <= 12
    assert all(a < b for a, b in pairwise(ticks))
    assert ticks[-1] <= max(last, 2)


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no Chromium")
def test_the_page_does_not_scroll_sideways(page: str, tmp_path: Path) -> None:
    browser = chromium()
    assert browser is not None
    probe = "<script>document.title=innerWidth+' '+document.documentElement.scrollWidth</script>"
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", f"{probe}</body>")
    (tmp_path / "page.html").write_text(bare, encoding="utf-8")
    # a frame has the width asked for; a window has a least one
    frames = "".join(
        f'<iframe src="page.html" width="{w}" height="900" style="border:0"></iframe>' for w in (390, 1280)
    )
    tell = "addEventListener('load',()=>{t.textContent=[...frames].map(f=>f.document.title).join(' ')})"
    tell = tell.replace("[...frames]", "[frames[0],frames[1]]")
    (tmp_path / "both.html").write_text(f"{frames}<p id=t></p><script>{tell}</script>", encoding="utf-8")
    home = tmp_path / "profile"
    shown = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            f"--user-data-dir={home}", "--dump-dom", (tmp_path / "both.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    shutil.rmtree(home, ignore_errors=True)
    found = re.search(r'id="t">(\d+) (\d+) (\d+) (\d+)<', shown.stdout)
    assert found, shown.stdout[-500:]
    assert (int(found[1]), int(found[3])) == (390, 1280)
    assert int(found[2]) <= 390
    assert int(found[4]) <= 1280
