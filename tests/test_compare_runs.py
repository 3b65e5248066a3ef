"""`foreknow compare` of several runs: paired tests against oracles, what the verdict says, and the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

import foreknow
from browser import Browser
from conftest import Cli, chromium
from foreknow.categories import CATEGORIES
from foreknow.errors import InputError, UsageError
from foreknow.report.comparison import comparison_verdict, render_comparison
from foreknow.stages.compare.comparison import compare_outcomes, paired_test
from foreknow.stages.compare.run_outcomes import OUTCOMES, RunOutcomes, of_evaluation, of_train
from test_hostile import MARKUP
from test_tune_report import evaluated, made


def outcomes(correct: Sequence[bool], *, first: int = 0, name: str = "") -> pl.DataFrame:
    """Rows `first`, `first` + 1, ... with these outcomes, the category by the number."""
    lines = [
        {"set": name, "question": f"Question {n}?", "answer": f"Answer {n}", "copy": 0, "group": "all",
         "category": CATEGORIES[n % 4], "correct": right}
        for n, right in enumerate(correct, first)
    ]  # fmt: skip
    return pl.DataFrame(lines, schema=OUTCOMES)


def run_of(
    name: str, correct: Sequence[bool], *, first: int = 0, stage: str = "evaluate", **chosen: Any
) -> RunOutcomes:
    return RunOutcomes(name, stage, f"model of {name}", outcomes(correct, first=first), {"epochs": "10", **chosen})


@settings(max_examples=60)
@given(
    was=st.lists(st.booleans(), min_size=1, max_size=40),
    now=st.lists(st.booleans(), min_size=1, max_size=40),
    apart=st.integers(0, 20),
)
def test_a_paired_test_is_that_of_the_rows_in_both(was: list[bool], now: list[bool], apart: int) -> None:
    found = paired_test(outcomes(was), outcomes(now, first=apart))
    before, after = dict(enumerate(was)), dict(enumerate(now, apart))
    both = sorted(set(before) & set(after))
    won = sum(after[n] and not before[n] for n in both)
    lost = sum(before[n] and not after[n] for n in both)
    assert (found.rows, found.won, found.lost) == (len(both), won, lost)
    assert (found.of_reference, found.of_run) == (len(was), len(now))
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert found.p == pytest.approx(expected)
    if both:
        assert found.difference.value == pytest.approx((won - lost) / len(both))
        assert found.difference.low < found.difference.high


def test_the_same_question_twice_is_two_rows() -> None:
    twice = outcomes([True, False]).with_columns(
        question=pl.lit("Q?"), answer=pl.lit("A"), copy=pl.Series([0, 1], dtype=pl.Int64)
    )
    found = paired_test(twice, twice.with_columns(correct=pl.Series([False, True])))
    assert (found.rows, found.won, found.lost) == (2, 1, 1)


def test_the_interval_of_a_difference_covers_the_true_one() -> None:
    generator, hits, draws = np.random.default_rng(0), 0, 400
    for _ in range(draws):
        was = generator.random(80) < 0.4
        now = np.where(generator.random(80) < 0.3, generator.random(80) < 0.7, was)  # the true difference is 0.09
        interval = paired_test(outcomes(was.tolist()), outcomes(now.tolist())).difference
        hits += interval.low <= 0.09 <= interval.high
    assert 0.92 <= hits / draws <= 0.99


def test_p_values_are_holms() -> None:
    generator = np.random.default_rng(1)
    base = (generator.random(200) < 0.5).tolist()
    others = [(generator.random(200) < share).tolist() for share in (0.52, 0.62, 0.7, 0.45)]
    compared = compare_outcomes([run_of("a", base), *(run_of(f"r{n}", other) for n, other in enumerate(others))])
    tests = [line.paired for line in compared.sets[0].lines if line.paired]
    expected = multipletests([test.p for test in tests], method="holm")[1]
    assert [test.holm for test in tests] == pytest.approx(list(expected))


UP = [n % 2 == 0 for n in range(100)]


@pytest.mark.parametrize(
    ("other", "headline"),
    [
        ([True] * 100, "B (b) answers more rows right than A (a)."),
        ([False] * 100, "B (b) answers fewer rows right than A (a)."),
        ([*UP[:-2], True, True], "No run differs from A (a) by more than chance allows."),
        (UP, "No run differs from A (a) by more than chance allows."),
    ],
)
def test_the_verdict_says_which_run_is_better(other: list[bool], headline: str) -> None:
    said = comparison_verdict(compare_outcomes([run_of("a", UP), run_of("b", other)]))
    assert said.headline == headline
    assert ("more than chance" in said.points[0]) is ("No run" not in headline)


def test_runs_without_a_common_row_are_not_tested() -> None:
    compared = compare_outcomes([run_of("a", UP), run_of("b", UP, first=500)])
    assert comparison_verdict(compared).headline == "No run has a row in common with A (a)."
    assert compared.table["p"].to_list() == [None, None]
    assert "no row in common" in render_comparison(compared)


def test_what_cannot_be_compared_is_refused_in_a_line() -> None:
    for runs, reason in (
        ([run_of("a", UP)], "found 1 runs, expected 2 to 26"),
        ([run_of("a", UP), run_of("b", UP, stage="audit")], "found runs of evaluate and audit"),
        ([run_of("a", UP), RunOutcomes("b", "evaluate", "m", outcomes(UP, name="dev"), {})], "no set of the first run"),
    ):
        with pytest.raises(UsageError, match=reason) as caught:
            compare_outcomes(runs)
        assert len(str(caught.value).splitlines()) == 1


def test_settings_that_differ_are_shown_and_those_of_the_protocol_are_cautioned() -> None:
    compared = compare_outcomes([run_of("a", UP, match="strict"), run_of("b", UP, match="lenient", rate="1e-4")])
    assert compared.settings == {"match": ("strict", "lenient"), "rate": ("–", "1e-4")}
    assert "The runs differ in match" in compared.cautions[0]
    page = render_comparison(compared)
    assert "lenient" in page
    assert "epochs" not in page
    assert compare_outcomes([run_of("a", UP), run_of("b", UP)]).cautions == ()


def finished(folder: Path, **config: Any) -> Path:
    """Add a settings file to a folder that a builder wrote."""
    (folder / "config.yaml").write_text(
        json.dumps({"out": str(folder), "data": "/private/folder/test.jsonl", **config})
    )
    return folder


def test_evaluations_are_read_as_their_own_pages_do(tmp_path: Path) -> None:
    evaluation = evaluated(tmp_path / "e", taught=True)
    finished(tmp_path / "e")
    run = of_evaluation(evaluation)
    assert run.rows["correct"].sum() == evaluation.summary["answers"]["correct"]
    assert run.settings["data"] == "test.jsonl"
    assert not any("private" in text for text in run.settings.values())
    compared = compare_outcomes([run, run])
    em = evaluation.summary["em"]
    for category, share in compared.sets[0].lines[0].categories.items():
        assert (share.right, share.rows) == tuple(em["by_category"][category]["strict"][k] for k in ("count", "rows"))


def test_tune_runs_are_compared_on_their_sets_with_the_weights_kept(tmp_path: Path) -> None:
    runs = [made(tmp_path / "a"), made(tmp_path / "b", seed=4)]
    compared = compare_outcomes([of_train(run) for run in runs])
    names = [of.name for of in compared.sets]
    assert "train" not in names
    assert names[-1] == "dev"
    for of in compared.sets:
        for line, run in zip(of.lines, runs, strict=True):
            assert line.overall.interval.value == pytest.approx(run.results["early_stop"]["metrics"]["em"][of.name])
            assert line.run.kept == run.results["early_stop"]["epoch"]


def test_the_page_holds_no_row_and_no_text_acts(tmp_path: Path) -> None:
    name = "".join(MARKUP.values())
    runs = [run_of(name, UP, rate=name), run_of("b", [True] * 100, rate="1")]
    page = render_comparison(compare_outcomes(runs))
    assert "Question 1?" not in page
    assert "Answer 1" not in page
    assert "<img src='http" not in page
    assert "default-src &#39;none&#39;" in page
    chart = page.split('<div class="wide">')[1].split("</div>")[0]
    assert "MaybeKnown" in chart
    assert "100.0 %" in chart


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_screen(tmp_path: Path, width: int) -> None:
    names = ("plain", "a run with a very long name that somebody gave it " * 3, "x" * 120)
    runs = [run_of(name, [n % (k + 2) == 0 for n in range(300)], rate="y" * 90 + name) for k, name in enumerate(names)]
    (tmp_path / "page.html").write_text(render_comparison(compare_outcomes(runs)), encoding="utf-8")
    with Browser(width, 900) as browser:
        browser.open((tmp_path / "page.html").as_uri())
        assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert browser.log == []


def test_on_the_command_line_and_in_python(run: Cli, tiny_folder: Path, facts_file: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"model": tiny_folder, "shots": 1, "exemplar_sets": 2}
    foreknow.audit(facts_file, out=tmp_path / "a", **common)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    folders = [tmp_path / name for name in "abc"]
    code, out, err = run("compare", *folders, "--page", tmp_path / "page.html")
    assert code == 0, err
    assert out.startswith("No run differs from A (a) by more than chance allows.\n")
    assert f"page: {tmp_path / 'page.html'}\n" in out
    assert "<h1>3 audits beside each other</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    for words, reason in (
        ([*folders, "--out", tmp_path / "x.csv"], "written for two audits, found 3 runs"),
        ([*folders, "--page", tmp_path / "x.pdf"], "expected .html"),
        ([folders[0]], "found 1 runs"),
        ([folders[0], tmp_path], "not a finished audit, evaluate or tune run"),
    ):
        code, _, err = run("compare", *words)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert reason in err
    compared = foreknow.compare_runs(foreknow.open_audit(folders[0]), folders[1])
    assert compared.table["difference"].to_list() == [None, 0.0]
    with pytest.raises(InputError, match="not a finished"):
        foreknow.compare_runs(folders[0], tmp_path / "nothing")
