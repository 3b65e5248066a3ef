"""The pages of tune and evaluate: their numbers are the outcomes', no text can break out, and they say what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import comb
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from conftest import chromium, fact_rows
from foreknow.categories import CATEGORIES, HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN
from foreknow.config import TuneConfig
from foreknow.data.schema import ROWS
from foreknow.format.numbers import exact, p_value
from foreknow.format.text import without_folders
from foreknow.report.audit_options import Option
from foreknow.report.evaluation import render_evaluation, taken_over
from foreknow.report.train_report_data import Control, TrainReportData
from foreknow.report.tune import read, render_tune
from foreknow.report.tune_charts import LABEL, Curve, Mark, apart, epochs_chart
from foreknow.report.tune_examples import examples
from foreknow.report.tune_options import options
from foreknow.report.tune_spans import span_reports
from foreknow.report.tune_tables import (
    Count,
    MetricCurve,
    PairedCounts,
    TrainRunView,
    against,
    as_good,
    between,
    fates,
    mcnemar,
)
from foreknow.report.tune_text import early_stop_rule, verdict
from foreknow.settings import settings_of
from foreknow.stages.evaluate.metrics import answered, summarise_answers
from foreknow.stages.evaluate.result import EvaluateResult
from foreknow.stages.train import curves, selection
from foreknow.stages.train import run as train_run
from foreknow.stages.train.curves import TRAIN, measures
from foreknow.stages.train.result import OUTCOMES, WATCHED, TrainResult
from test_audit_report import section, text_of

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">&'\u202e\u2028😀"
SIZES = {TRAIN: 120, "dev": 80, "ood": 200}
PRIVATE = "/home/someone/runs"


def rows_of(sizes: Mapping[str, int], seed: int, *, unknown: bool = True, labelled: bool = True) -> pl.DataFrame:
    """Watched rows: questions that name their set, of three relations, categories in turn."""
    generator = np.random.default_rng(seed)
    lines = []
    for name, size in sizes.items():
        for row in range(size):
            category = CATEGORIES[row % 4]
            if name == TRAIN and category == UNKNOWN and not unknown:
                category = MAYBE_KNOWN
            group = f"relation {generator.integers(3)}"
            lines.append((name, row, group, category if labelled else None, f"Who is {name} {row}?", f"Gold {row}"))
    return pl.DataFrame(lines, schema=WATCHED, orient="row")


def outcomes_of(rows: pl.DataFrame, steps: Sequence[tuple[float, int]], seed: int, *, falling: bool) -> pl.DataFrame:
    """Right or not at each evaluation: train rows are fitted in time; others rise, and fall if they are to."""
    generator = np.random.default_rng(seed)
    start = {HIGHLY_KNOWN: 0.9, MAYBE_KNOWN: 0.6, "WeaklyKnown": 0.2, UNKNOWN: 0.02, None: 0.5}
    luck = generator.random(rows.height)
    frames = []
    for epoch, step in steps:
        chance = []
        for name, category in rows.select("set", "category").iter_rows():
            if name == TRAIN:
                chance.append(min(1.0, epoch / (6 if category == UNKNOWN else 2.5)))
            else:
                fall = 1 - 0.12 * max(0.0, epoch - 2) if falling else 1.0
                chance.append(start[category] * min(1.0, epoch / 2) * fall)
        right = luck * 0.8 + 0.2 * generator.random(rows.height) < np.array(chance)
        epochs, at = pl.lit(float(epoch)), pl.lit(step, pl.Int64)
        lenient = pl.lit(None, pl.Boolean)
        frames.append(rows.select("set", "row", epoch=epochs, step=at, correct=pl.Series(right), lenient=lenient))
    return pl.concat(frames).select(*OUTCOMES)


def made(
    folder: Path,
    *,
    epochs: int = 7,
    sizes: Mapping[str, int] = SIZES,
    unknown: bool = True,
    labelled: bool = True,
    falling: bool = True,
    before: bool = False,
    finished: bool = True,
    texts: Mapping[str, str] | None = None,
    seed: int = 3,
    **config: Any,
) -> TrainResult:
    """A run's folder as tune writes it. `before`: measured before training too. `texts`: put into every row."""
    folder.mkdir(parents=True)
    rows = rows_of(sizes, seed, unknown=unknown, labelled=labelled)
    steps = [*([(0.0, 0), (0.5, 2)] if before else []), *((float(e), 4 * e) for e in range(1, epochs + 1))]
    outcomes = outcomes_of(rows, steps, seed, falling=falling)
    frames = {name: rows.filter(pl.col("set") == name) for name in sizes}
    lines = []
    for epoch, step in steps:
        line = {"epoch": int(epoch) if epoch >= 1 else epoch, "step": step, "train_loss": 2.0 if step else None}
        line |= measures(outcomes.filter(step=step).select("set", "row", "correct", "lenient"), frames)
        lines.append({**line, "seconds": 3.0, "measuring_seconds": 1.0, "saving_seconds": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = {
        "train": f"{PRIVATE}/mixed.jsonl", "dev": f"{PRIVATE}/dev.jsonl", "metric": "dev_em", "epochs": 7,
        "method": "full", "learning_rate": 1e-5, "match": "strict", "lora_rank": 16, "seed": 0, **config,
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(chosen))
    if not finished:
        return TrainResult(folder)
    outcomes.write_parquet(folder / "outcomes.parquet")
    shown = rows.with_columns(pl.lit(text).alias(column) for column, text in (texts or {}).items())
    shown.write_parquet(folder / "rows.parquet")
    early, last = selection.best(lines, chosen["metric"]), curves.epochs(lines)[-1]
    assert early is not None
    results = {
        "metric": chosen["metric"], "epochs": last["epoch"], "steps": last["step"], "stopped_by_patience": False,
        "early_stop": {"epoch": early["epoch"], "step": early["step"], "metrics": early, "folder": "early_stop"},
        "convergence": {"epoch": last["epoch"], "step": last["step"], "metrics": last, "folder": "convergence"},
        "overfitting_epoch": curves.overfitting_epoch(lines), "ceiling": 1.0,
        "model": {"name": "tiny", "fingerprint": "sha256:ab", "folder": f"{PRIVATE}/model", "note": "made for a test"},
        "method": {"name": chosen["method"], "dtype": "float32", "device": "cpu", "reasons": ["no GPU was found"],
                   "training_text": {"prompt": "Answer. {question}\n", "instruction": "", "bos": "auto"}},
        "data": {name: {"file": f"{PRIVATE}/{'mixed' if name == TRAIN else name}.jsonl", "rows": size, "skipped": 0,
                        "fingerprint": f"sha256:{name if name != TRAIN else unknown}{size}",
                        "categories": f"the audit {PRIVATE}/audit" if labelled else None}
                 for name, size in sizes.items()},
        "config": chosen, "seconds": {"training": 60.0, "measuring": 20.0, "saving": 4.0},
        "rows_per_second": 14.0, "version": "0.1.0",
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    return TrainResult(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, TrainResult]:
    """A run that overfits, and a control on Known rows that does not."""
    folder = tmp_path_factory.mktemp("runs")
    return made(folder / "mixed"), made(folder / "known", unknown=False, falling=False)


@pytest.fixture(scope="module")
def page(pair: tuple[TrainResult, TrainResult]) -> str:
    return render_tune(*pair)


def cells(html: str, heading: str) -> list[str]:
    """The text of the table row that begins so."""
    for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL):
        if text_of(row).strip().startswith(heading):
            return [text_of(cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
    raise AssertionError(heading)


def right_at(run: TrainResult, epoch: float, name: str, category: str | None = None) -> pl.DataFrame:
    """The oracle: `row, right` straight from the two frames."""
    rows = run.rows.filter(pl.col("set") == name)
    rows = rows if category is None else rows.filter(pl.col("category") == category)
    return run.outcomes.filter(epoch=epoch, set=name).join(rows.select("row"), on="row").select("row", "correct")


def test_kept_lost_and_gained_are_the_outcomes_of_run_and_control(
    pair: tuple[TrainResult, TrainResult], page: str
) -> None:
    run, control = pair
    points = [(r, r.results[p]["epoch"]) for p in ("early_stop", "convergence") for r in (run, control)]
    table = section(page, "kept").split("<h3>")[1]
    assert "ood" in table.split("</h3>")[0]
    for what, category, right in (
        ("Kept HighlyKnown", HIGHLY_KNOWN, True),
        ("Kept MaybeKnown", MAYBE_KNOWN, True),
        ("Lost HighlyKnown", HIGHLY_KNOWN, False),
        ("Gained Unknown", UNKNOWN, True),
    ):
        shown = cells(table, what)[1:]
        for cell, (of, epoch) in zip(shown, points, strict=True):
            rows = right_at(of, epoch, "ood", category)
            hits = int((rows["correct"] == right).sum())
            assert cell.startswith(f"{hits} of {rows.height} {exact(hits / rows.height)} (")


def test_rows_that_turned_are_counted_with_their_exact_p(pair: tuple[TrainResult, TrainResult], page: str) -> None:
    run, _ = pair
    early, last = (run.results[p]["epoch"] for p in ("early_stop", "convergence"))
    table = section(page, "turned").split("<h3>")[1]
    for name, category in (("all", None), *((c, c) for c in CATEGORIES)):
        was, now = (right_at(run, epoch, "ood", category)["correct"] for epoch in (early, last))
        lost, won = int((was & ~now).sum()), int((~was & now).sum())
        p = binomtest(lost, lost + won).pvalue if lost + won else 1.0
        assert cells(table, name)[1:4] == [str(lost), str(won), p_value(p)]


def test_run_and_control_are_compared_row_by_row(pair: tuple[TrainResult, TrainResult], page: str) -> None:
    run, control = pair
    mine = right_at(run, run.results["convergence"]["epoch"], "ood")["correct"]
    theirs = right_at(control, control.results["convergence"]["epoch"], "ood")["correct"]
    here, there = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    found = against(read(run), read(control), "ood")
    assert found is not None
    assert (found[1].lost, found[1].won) == (here, there)
    assert f"right on {there} rows that this run gets wrong, and wrong on {here} that this run gets right" in text_of(
        page
    )


def test_the_verdict_names_the_epoch_the_cost_the_onset_and_the_deed(
    pair: tuple[TrainResult, TrainResult], page: str
) -> None:
    results = pair[0].results
    early, last = results["early_stop"], results["convergence"]
    said = text_of(section(page, "verdict"))
    assert f"keep epoch {early['epoch']} of 7, the best one: dev EM {exact(early['metrics']['em']['dev'])}" in said
    cost = 100 * (early["metrics"]["em"]["ood"] - last["metrics"]["em"]["ood"])
    assert f"It cost {cost:.1f} points: ood EM {exact(early['metrics']['em']['ood'])} at epoch" in said
    assert f"Overfitting to new facts began at epoch {results['overfitting_epoch']}:" in said
    assert "To do Train on the Known rows only. Even with each run" in said or "To do Keep the checkpoint" in said
    assert "One run, one seed" in said


def test_every_curve_is_labelled_and_chosen_epochs_are_marked(pair: tuple[TrainResult, TrainResult], page: str) -> None:
    early = pair[0].results["early_stop"]["epoch"]
    chart = section(page, "fit").split('<div class="narrow">')[0]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", chart)
    for label in ("Known rows, fitted 100 %", "Unknown rows, fitted 100 %", f"EARLY_STOP, epoch {early}", "epoch"):
        assert label in texts
    assert "CONVERGENCE, epoch 7" in texts
    assert any(t.startswith("dev EM, control") for t in texts)
    assert any(t.startswith("overfitting began, epoch") for t in texts)
    by_category = section(page, "categories").split('<div class="narrow">')[0]
    for category in CATEGORIES:
        assert re.search(rf"<text[^>]*>{category}, 50 rows: \d+ %</text>", by_category)
    assert "ood" not in "".join(re.findall(r"<svg.*?</svg>", by_category, re.DOTALL))


def with_spans(run: TrainResult) -> list[dict[str, Any]]:
    """Add counts of spans to every evaluation: train spans are fitted in time, new ones last; dev spans are lost."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        at = line["epoch"]
        train = {c: [min(90 - 7 * n, round((30 - 8 * n) * at)), 90 - 7 * n] for n, c in enumerate(CATEGORIES)}
        dev = {c: [max(0, 31 - round(n + at)), 31 + n] for n, c in enumerate(CATEGORIES)}
        line["spans"] = {
            "train": {**train, "new": [min(41, round(5 * at)), 41]},
            "dev": {**dev, "new": [round(at), 23], "kept": [37 - round(2 * at), 37]},
        }
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = json.loads((run.folder / "results.json").read_text())
    for point in ("early_stop", "convergence"):
        results[point]["metrics"] = next(line for line in lines if line["epoch"] == results[point]["epoch"])
    (run.folder / "results.json").write_text(json.dumps(results))
    return lines


def test_fitted_spans_are_drawn_by_category_and_counted_at_the_chosen_epochs(tmp_path: Path) -> None:
    run = made(tmp_path / "run", before=True)
    assert 'id="spans"' not in render_tune(run)
    lines = {line["epoch"]: line["spans"] for line in with_spans(run)}
    early, last = run.results["early_stop"]["epoch"], run.results["convergence"]["epoch"]
    html = render_tune(TrainResult(run.folder))
    section = html[html.index('id="spans"') : html.index('id="actions"')]
    for name in ("train", "dev"):
        for part in lines[last][name]:
            for epoch in (early, last):
                fitted, spans = lines[epoch][name][part]
                assert f">{fitted} of {spans}<br>" in section
    labels = [f"{c}, {90 - 7 * n} spans: " for n, c in enumerate(CATEGORIES)]
    labels += ["new to the model, 41: ", "kept, 37 spans: ", "Unknown, learnt, 34 spans: ", "new, learnt, 23 "]
    assert all(label in section for label in labels)
    view = read(TrainResult(run.folder))
    train, dev = span_reports(view, [])
    assert (train.name, train.spans, dev.name, dev.spans) == ("train", 318, "dev", 130)
    kept = next(point for point in dev.points if point.name.startswith("said before training"))
    assert (kept.early.hits, kept.last.hits) == (37 - 2 * early, 37 - 2 * last)
    assert not span_reports(read(made(tmp_path / "none")), [])


def test_examples_are_rows_to_which_it_happened(pair: tuple[TrainResult, TrainResult], page: str) -> None:
    run, _ = pair
    early, last = (run.results[p]["epoch"] for p in ("early_stop", "convergence"))
    found = examples(read(run), None)
    right = {
        (s, q): (then, now)
        for s, q, then, now in run.rows.join(
            run.outcomes.filter(epoch=early).select("set", "row", then="correct"), on=["set", "row"]
        )
        .join(run.outcomes.filter(epoch=last).select("set", "row", now="correct"), on=["set", "row"])
        .select("set", "question", "then", "now")
        .iter_rows()
    }
    expected = {"lost": (None, False), "turned": (True, False), "gained": (None, True), "taken": (True, None)}
    assert {"lost", "turned", "taken"} <= set(found)
    for kind, lines in found.items():
        for example in lines:
            assert example.question in section(page, "examples")
            for want, got in zip(expected.get(kind, (False, True)), right[example.set, example.question], strict=True):
                assert want in (None, got)
            assert len(example.history) == 7
            assert (example.set == TRAIN) == (kind == "taken")


def test_without_rows_no_text_of_a_row_is_in_the_page(tmp_path: Path) -> None:
    run = made(tmp_path / "r", texts={"question": "Secret question", "answer": "Secret answer"})
    assert "Secret question" in render_tune(run)
    bare = render_tune(run, show_rows=False)
    assert "Secret" not in bare
    assert "--no-rows" in section(bare, "examples")
    assert "relation 1" in section(bare, "turned")


def test_pages_are_complete_in_themselves_and_name_no_folder_of_the_machine(page: str, tmp_path: Path) -> None:
    for html in (page, render_evaluation(evaluated(tmp_path / "e"))):
        assert html.startswith("<!doctype html>")
        assert "default-src &#39;none&#39;" in html
        assert "http" not in html.replace("http-equiv", "")
        assert not re.search(r"\ssrc=|<link|@import|\sstyle=|\son\w+=|<script", html)
        assert "url(" not in html.replace("url(#unknown)", "")
        assert "/home/someone" not in html
        assert "#0100" not in html  # every sentinel has become a colour of the theme
        assert "None" not in text_of(html)


def test_no_text_can_break_out(tmp_path: Path) -> None:
    run = made(tmp_path / "r", texts={"question": HOSTILE, "answer": HOSTILE, "group": HOSTILE})
    pages = [render_tune(run), render_evaluation(evaluated(tmp_path / "e", text=HOSTILE))]
    for html in pages:
        assert "<img" not in html
        assert "</script" not in html
        assert "&lt;/script&gt;&lt;img" in html
        assert "\u202e" not in text_of(html)


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_a_browser_shows_it_without_a_complaint(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render_tune(made(tmp_path / "r", texts={"question": HOSTILE})), encoding="utf-8")
    done = subprocess.run(
        [str(chromium()), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr",
         "--virtual-time-budget=2000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert "<title>foreknow tune: tiny on mixed.jsonl</title>" in done.stdout


ODD: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "no test sets": ({"sizes": {TRAIN: 120, "dev": 80}}, ["This run measured no test set", "dev EM"], ["ood"]),
    "no categories": (
        {"labelled": False},
        ["The rows have no categories", "train rows, fitted 100 %", "one line stands for all"],
        ["Facts kept, lost and gained", "HighlyKnown 50 rows"],
    ),
    "one epoch": (
        {"epochs": 1},
        ["One epoch was trained: dev EM", "EARLY_STOP and CONVERGENCE, epoch 1", "Train longer"],
        ["Further training It", "From EARLY_STOP to CONVERGENCE, row by row"],
    ),
    "the last epoch is the best": (
        {"epochs": 2, "falling": False},
        ["The last epoch, 2, is the best one", "--epochs 5 --patience 5"],
        ["From this run, keep"],
    ),
    "measured before training": ({"before": True}, ["of 9 evaluations"], []),
    "no Unknown rows": (
        {"unknown": False},
        ["No row trained on is Unknown"],
        ["Put the Unknown facts", "Overfitting to new facts began at epoch"],
    ),
    "LoRA": ({"method": "lora"}, ["Low-rank adapters were trained", "LoRA rank"], ["All weights"]),
    "all weights": (
        {},
        ["All weights were trained", "Find out what the Unknown rows cost"],
        ["LoRA rank", "Control ends"],
    ),
    "interrupted": (
        {"finished": False, "epochs": 4},
        ["This run has not ended: 4 of 7 epochs", "best so far, epoch", "not hold the rows themselves",
         "Continue the run"],
        ["EARLY_STOP, epoch", "rows lost,", "DIR/early_stop"],
    ),
    "interrupted in the first epoch": (
        {"finished": False, "epochs": 0, "before": True},
        ["No epoch has ended yet"],
        ["keep epoch", "What to do next"],
    ),
    "another metric": (
        {"metric": "dev_HighlyKnown_em"},
        ["the best one: dev_HighlyKnown_em", "the epoch with the best dev_HighlyKnown_em"],
        ["could as well be"],
    ),
    "lenient": ({"match": "lenient"}, ["without regard to case"], ["letter by letter"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_runs_are_told_as_they_are(kind: str, tmp_path: Path) -> None:
    given, there, absent = ODD[kind]
    html = render_tune(made(tmp_path / "run", **given))
    told = text_of(html) + " ".join(re.findall(r'aria-label="([^"]*)"', html))
    for text in there:
        assert text in told
    for text in absent:
        assert text not in told
    assert "nan" not in told.lower().split()


def test_a_folder_without_its_rows_shows_all_but_examples(
    pair: tuple[TrainResult, TrainResult], tmp_path: Path, page: str
) -> None:
    shutil.copytree(pair[0].folder, tmp_path / "old")
    (tmp_path / "old" / "rows.parquet").unlink()
    html = render_tune(TrainResult(tmp_path / "old"), pair[1])
    assert "does not hold the rows themselves" in html
    assert section(html, "kept") == section(page, "kept")


def test_a_control_that_is_none_is_said_to_be_none(pair: tuple[TrainResult, TrainResult], tmp_path: Path) -> None:
    other = made(tmp_path / "other", learning_rate=3e-4)
    said = text_of(section(render_tune(pair[0], other), "verdict"))
    assert "30 Unknown rows too, so it does not serve as a control" in said
    assert "learning_rate" in said
    assert "3e-04" in said or "0.0003" in said
    apart_from = made(tmp_path / "elsewhere", unknown=False, sizes={**SIZES, "ood": 100})
    html = render_tune(pair[0], apart_from)
    assert "did not measure the same rows as ood" in text_of(section(html, "verdict"))
    assert cells(section(html, "kept").split("<h3>")[1], "Kept HighlyKnown")[2] == "–"


def test_a_control_on_the_same_known_rows_is_recognised(pair: tuple[TrainResult, TrainResult], tmp_path: Path) -> None:
    run = pair[0]
    shutil.copytree(pair[1].folder, tmp_path / "known")
    kept = run.rows.filter((pl.col("set") != TRAIN) | (pl.col("category") != UNKNOWN))
    kept.write_parquet(tmp_path / "known" / "rows.parquet")
    said = text_of(section(render_tune(run, TrainResult(tmp_path / "known")), "verdict"))
    assert "Trained on the same 120 Known rows alone" in said
    assert "Trained on 120 rows, none of them Unknown" in text_of(section(render_tune(*pair), "verdict"))


def course(early: int, last: int, lost: int, won: int, name: str = "test", rows: int = 500) -> MetricCurve:
    return MetricCurve(name, Count(early, rows), Count(last, rows), PairedCounts(rows, lost, won))


def story(**given: Any) -> TrainReportData:
    base: dict[str, Any] = {
        "steps": 40, "best": 3, "last": 9, "planned": 9, "metric": "dev_em", "chosen": 0.4,
        "courses": (course(200, 150, 60, 10), course(40, 30, 12, 2, "dev", 100)),
        "unknown": (Count(10, 100), Count(100, 100)), "began": 4,
    }  # fmt: skip
    return TrainReportData(**{**base, **given})


def control(early: PairedCounts, last: PairedCounts, **given: Any) -> Control:
    base: dict[str, Any] = {
        "rows": 100, "unknown": 0, "same_known": True, "early": 4, "last": 9, "steps": 40,
        "courses": {"test": course(220, 215, 10, 5)}, "against": {"test": (early, last)},
    }  # fmt: skip
    return Control(**{**base, **given})


def test_a_loss_is_no_percentage() -> None:
    one = story(best=1, last=1, planned=1, metric="dev_loss", chosen=1.771, chooser="loss", dev_loss=(1.771, 1.771))
    assert verdict(one).headline == "One epoch was trained: dev loss 1.771."


def test_dev_is_not_said_to_have_fallen_where_it_rose_after_the_kept_epoch() -> None:
    rose = story(began=None, falls=True, courses=(course(16, 18, 5, 7, "dev", 100),))
    told = dict(verdict(rose).points)["New facts"]
    assert "Dev EM was higher at another epoch, by no more than chance" in told
    fell = story(began=None, falls=True, courses=(course(18, 16, 7, 5, "dev", 100),))
    assert "Dev EM fell meanwhile, by no more than chance" in dict(verdict(fell).points)["New facts"]


def test_the_page_says_what_chose_the_epoch() -> None:
    assert early_stop_rule("metric", "dev_em") == "the epoch with the best dev_em"
    assert "lowest dev loss" in early_stop_rule("tie", "dev_em")
    assert "dev loss chose" in early_stop_rule("chance", "dev_em")
    told = " ".join(verdict(story(as_good=(2, 3, 4), chooser="tie", dev_loss=(1.0, 2.0))).cautions)
    assert "could as well be" not in told
    assert "could as well be" in " ".join(verdict(story(as_good=(2, 3, 4))).cautions)


def test_commands_that_train_again_take_every_setting_of_the_run() -> None:
    of = {card.key: card.command for card in options(story(best=9))}
    assert of["longer"] == "foreknow tune --config DIR/config.yaml --epochs 18 --patience 5 --out NEW"
    assert "foreknow tune known.jsonl --config DIR/config.yaml --out CONTROL" in of["control"]
    assert of["hold"].startswith("foreknow tune --config DIR/config.yaml --audit AUDIT --replay")
    assert "--known-of TRAIN" in of["control"]
    assert "--drop unknown" in {c.key: c.command for c in options(story(is_mix=False))}["control"]


def test_a_change_that_chance_gives_is_not_called_one() -> None:
    told = dict(verdict(story(courses=(course(200, 196, 20, 16),))).points)
    assert told["Further training"].startswith("It made no difference that these rows can show")
    assert "p = 0.62" in told["Further training"]
    told = dict(verdict(story(courses=(course(150, 200, 10, 60),))).points)
    assert told["Further training"].startswith("It gained 10.0 points, though dev_em was past its best")


def test_dropping_the_unknown_rows_is_advised_where_the_control_is_better_at_its_best() -> None:
    better = story(control=control(PairedCounts(500, 10, 40), PairedCounts(500, 5, 90)))
    assert options(better)[0].key == "drop"
    alike = story(control=control(PairedCounts(500, 20, 25), PairedCounts(500, 5, 90)))
    assert [o.key for o in options(alike) if o.why] == ["keep"]
    assert "drop" in [o.key for o in options(alike)]
    worse = story(control=control(PairedCounts(500, 40, 10), PairedCounts(500, 5, 90)))
    assert options(worse)[0].key == "keep"
    none = story(control=control(PairedCounts(500, 10, 40), PairedCounts(500, 5, 90), unknown=30))
    assert "drop" not in [o.key for o in options(none)]
    unfinished = story(best=9, control=control(PairedCounts(500, 10, 40), PairedCounts(500, 5, 90)))
    assert [o.key for o in options(unfinished) if o.why] == ["longer"]


def test_facts_lost_besides_the_rows_stand_in_the_verdict_and_come_first_in_the_advice() -> None:
    lost = story(canaries=(PairedCounts(33, 18, 0), PairedCounts(33, 23, 0)))
    told = dict(verdict(lost).points)
    assert told["Old facts"] == (
        "Kept of 33 facts besides these rows that the model knew before training: 15 at epoch 3, 10 at epoch 9. Lost "
        "at the end: 69.7 % (53–83)."
    )
    assert [o.key for o in options(lost) if o.why] == ["hold"]
    assert told["To do"].endswith("18 of the 33 other facts that were watched are lost at epoch 3 (p < 0.001).")
    few = story(canaries=(PairedCounts(33, 2, 0), PairedCounts(33, 3, 0)))
    assert "no loss that so many facts can show (p = 0.25)" in dict(verdict(few).points)["Old facts"]
    assert [o.key for o in options(few) if o.why] == ["keep"]
    held = story(canaries=(PairedCounts(33, 18, 0), PairedCounts(33, 23, 0)), held=True)
    assert [o.key for o in options(held) if o.why] == ["keep"]
    longer = story(best=9, canaries=(PairedCounts(33, 18, 0), PairedCounts(33, 18, 0)))
    assert [o.key for o in options(longer) if o.why] == ["hold"]
    assert "Old facts" not in dict(verdict(story()).points)


def test_dev_rows_that_are_never_right_do_not_show_that_nothing_was_lost() -> None:
    never = story(courses=(course(0, 0, 0, 0, "dev", 10),), began=None)
    assert "dev does not show what that cost" in dict(verdict(never).points)["New facts"]
    fell = story(courses=(course(4, 3, 1, 0, "dev", 10),), began=None, falls=True)
    assert "by no more than chance gives" in dict(verdict(fell).points)["New facts"]
    some = story(courses=(course(3, 3, 0, 0, "dev", 10),), began=None)
    assert dict(verdict(some).points)["New facts"].startswith("No overfitting to new facts was seen")


@given(
    best=st.integers(1, 9),
    more=st.integers(0, 9),
    planned=st.integers(0, 9),
    hits=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    turned=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    unknown=st.booleans(),
    tested=st.booleans(),
    has_control=st.booleans(),
    finished=st.booleans(),
)
@hypothesis.example(
    best=1, more=0, planned=0, hits=(0, 0), turned=(0, 6), unknown=True, tested=True, has_control=True, finished=True
)
def test_there_is_always_one_thing_to_do_first(
    best: int, more: int, planned: int, hits: tuple[int, int], turned: tuple[int, int], unknown: bool, tested: bool,
    has_control: bool, finished: bool,
) -> None:  # fmt: skip
    of = story(
        best=best, last=best + more, planned=best + more + planned, finished=finished,
        courses=(*([course(*hits, *turned)] if tested else []), course(*hits, *turned, "dev", 50)),
        unknown=(Count(1, 50), Count(50, 50)) if unknown else None,
        control=control(PairedCounts(500, *turned), PairedCounts(500, *hits)) if has_control else None,
    )  # fmt: skip
    found = options(of)
    assert [bool(o.why) for o in found] == [True] + [False] * (len(found) - 1)
    said = verdict(of)
    assert said.headline.endswith(".")
    assert all(text.endswith(".") and "  " not in text and ".." not in text for _, text in said.points)


@given(st.integers(0, 400), st.integers(0, 400))
def test_p_is_the_exact_binomial_one(lost: int, won: int) -> None:
    n, few = lost + won, min(lost, won)
    expected = min(1.0, 2 * sum(comb(n, k) for k in range(few + 1)) / 2**n)
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_labels_keep_their_order_and_their_distance(values: list[float]) -> None:
    placed = apart(values, LABEL)
    order = sorted(range(len(values)), key=lambda n: (values[n], -n))
    gaps = [placed[b] - placed[a] for a, b in pairwise(order)]
    assert all(gap >= LABEL - 1e-9 for gap in gaps)
    assert max(placed) <= 1.0


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60))
def test_any_number_of_epochs_can_be_drawn_without_crowding(epochs: int, chosen: int) -> None:
    points = tuple((float(e), e / epochs) for e in range(1, epochs + 1))
    svg = epochs_chart([Curve("a", "a", points)], [Mark(min(chosen, epochs), "chosen")], 330)
    ticks = [int(t) for t in re.findall(r">(\d+)</text>", svg)]
    assert epochs in ticks
    assert len(ticks) <= 7


def test_epochs_that_dev_cannot_tell_apart_are_named(pair: tuple[TrainResult, TrainResult]) -> None:
    run = read(pair[0])
    found = as_good(run)
    assert pair[0].results["early_stop"]["epoch"] in found
    assert len(found) < 7
    assert between(run, "ood") is not None
    assert [f.what for f in fates(run, None, "dev")] == ["kept", "kept", "lost", "gained"]


def test_paths_are_cut_to_their_last_part() -> None:
    assert without_folders("the audit /home/me/runs/base of a/b") == "the audit base of b"
    assert without_folders("the column 'category'") == "the column 'category'"


def evaluated(
    folder: Path, *, labelled: bool = True, probed: bool = True, text: str = "", taught: bool = False
) -> EvaluateResult:
    """An evaluation's folder as evaluate writes it: 80 rows of two relations; in one, one guess stands for all."""
    folder.mkdir(parents=True)
    lines = [
        {"row": n, "group": f"relation {n % 2}", "relation": f"relation {n % 2}", "question": f"Who is {n}? {text}",
         "answers": [f"Gold {n} {text}".strip()], "flags": []}
        for n in range(80)
    ]  # fmt: skip
    rows = pl.DataFrame([{k: line.get(k) for k in ROWS} for line in lines], schema=ROWS)
    known = [n % 3 == 0 for n in range(80)]
    said = [
        f"Gold {n} {text}".strip() if known[n] else "I don't know." if taught and n % 5 == 0 else f"Usual {text}"
        if n % 2 else f"Odd {n}"
        for n in range(80)
    ]  # fmt: skip
    answers = pl.DataFrame(
        {"row": range(80), "prediction": said, "ended": True, "correct": known, "correct_lenient": known}
    )
    labels = pl.DataFrame(
        {
            "row": range(80),
            "category": [CATEGORIES[n % 4] if labelled else None for n in range(80)],
            "base_p_greedy": [(1.0, 0.6, 0.0, 0.0)[n % 4] if probed else None for n in range(80)],
            "base_answer": [f"Base {n} {text}" if probed else None for n in range(80)],
        },
        schema={"row": pl.Int64, "category": pl.String, "base_p_greedy": pl.Float64, "base_answer": pl.String},
    )
    frame = answered(rows, answers, labels)
    frame.write_parquet(folder / "rows.parquet")
    summary = {
        **summarise_answers(frame), "skipped": 2, "categories_from": f"the audit {PRIVATE}/audit" if labelled else None,
        "protocol": {"match": "strict", "max_new_tokens": "auto", "prompt": "Answer. {question}\n", "device": "cpu"},
        "model": {"name": "tuned/early_stop", "fingerprint": "sha256:cd", "folder": f"{PRIVATE}/x", "note": "tuned",
                  "method": "whole", "base": {"name": "tiny", "fingerprint": "sha256:ab"}},
        "audit": None, "data": {"name": "test.jsonl", "fingerprint": "sha256:ef", "reason": "question and answer"},
        "seconds": 12.0, "rows_per_second": 6.7, "version": "0.1.0",
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return EvaluateResult(folder)


def test_the_evaluations_numbers_are_those_of_its_rows(tmp_path: Path) -> None:
    found = evaluated(tmp_path / "e")
    html = render_evaluation(found)
    for category in CATEGORIES:
        part = found.rows.filter(pl.col("category") == category)
        hits, base = int(part["correct"].sum()), int(part["base_correct"].sum())
        line = cells(section(html, "categories"), category)
        assert line[1] == f"{hits} of 20"
        assert line[2].startswith(f"{exact(hits / 20)} (")
        assert line[-1] == f"{base} of 20"
    was, now = found.rows["base_correct"], found.rows["correct"]
    lost, won = int((was & ~now).sum()), int((~was & now).sum())
    said = text_of(section(html, "verdict"))
    assert f"Of {was.sum()} rows that the base model answered right with few-shot examples, {lost} (" in said
    assert f"of the {(~was).sum()} others, {won} (" in said
    chart = section(html, "categories").split('<div class="narrow">')[0]
    assert re.findall(r"<text[^>]*>base (\d+) %</text>", chart)[-4:] == ["100", "100", "0", "0"]


def test_a_guess_that_stands_for_many_rows_is_shown(tmp_path: Path) -> None:
    found = evaluated(tmp_path / "e")
    guesses = taken_over(found.rows.with_columns(counts="correct"))
    usual = found.rows.filter(pl.col("prediction") == "Usual ")
    assert [(g.group, g.prediction, g.rows.hits, g.golds) for g in guesses] == [
        ("relation 1", "Usual ", usual.height, 0)
    ]
    html = render_evaluation(found)
    assert "far more often than it is right: relation 1" in text_of(section(html, "verdict"))
    assert cells(section(html, "wrong").split("Most frequent wrong answers")[1], "Usual")[1] == str(usual.height)


def test_refusals_are_told_with_coverage_accuracy_and_yield(tmp_path: Path) -> None:
    found = evaluated(tmp_path / "e", taught=True)
    html = render_evaluation(found)
    refused = int(found.rows["refused"].sum())
    assert refused > 0
    line = cells(section(html, "refusals"), "all rows")
    right = int(found.rows["correct"].sum())
    shares = (1 - refused / 80, right / (80 - refused), right / 80)
    assert [cell.split(" (")[0] for cell in line[1:]] == [exact(s) for s in shares]
    assert "Over-refusal" in section(html, "refusals")
    assert "No row was refused" in render_evaluation(evaluated(tmp_path / "f"))


def test_an_evaluation_without_categories_or_probe_says_what_is_missing(tmp_path: Path) -> None:
    bare = text_of(render_evaluation(evaluated(tmp_path / "a", labelled=False, probed=False)))
    assert "No categories are known for these rows" in bare
    assert "Facts kept, lost and gained" not in bare
    mixed = text_of(render_evaluation(evaluated(tmp_path / "b", probed=False)))
    assert "name its audit with --audit" in mixed
    assert "Base model right" not in mixed


def test_an_evaluations_texts_are_left_out_on_request(tmp_path: Path) -> None:
    found = evaluated(tmp_path / "e", text="Secret")
    assert "Secret" in render_evaluation(found)
    bare = render_evaluation(found, show_rows=False)
    assert "Secret" not in bare
    assert "Usual" not in bare
    assert "relation 1" in bare


def test_a_real_run_has_a_page(tiny_folder: Path, tmp_path: Path) -> None:
    """What tune writes is what the page reads."""
    rows = [
        {**{k: r[k] for k in ("question", "answer", "relation")}, "category": CATEGORIES[n % 4]}
        for n, r in enumerate(fact_rows())
    ]
    for name, part in (("train", rows[8:24]), ("dev", rows[:8]), ("ood", rows[40:48])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    given = {
        "train": str(tmp_path / "train.jsonl"), "dev": str(tmp_path / "dev.jsonl"), "out": tmp_path / "run",
        "test": [f"ood={tmp_path / 'ood.jsonl'}"], "model": str(tiny_folder), "dtype": "float32", "device": "cpu",
        "epochs": 2, "learning_rate": 3e-4, "batch_size": 8,
    }  # fmt: skip
    run = train_run.run(settings_of(TuneConfig, given))
    html = render_tune(run)
    em = run.results["convergence"]["metrics"]["em"]["ood"]
    assert exact(em) in cells(section(html, "verdict"), "CONVERGENCE this run")[4]
    assert str(tmp_path) not in html
    if any(of["correct"] for line in run.metrics for of in line["counts"].values()):
        assert "8 rows" in text_of(section(html, "categories"))
    else:
        assert 'id="categories"' not in html, "a chart of nothing but zeros"
        assert "No row of any set is answered right" in text_of(section(html, "fit"))
    assert "dev loss" in text_of(section(html, "fit"))


def test_the_page_says_what_an_early_epoch_has_not_learnt_and_whose_weights_there_are() -> None:
    def keep(**given: Any) -> Option:
        return next(option for option in options(story(**given)) if option.key == "keep")

    less = keep(fitted=(0.35, 0.98))
    assert less.how.startswith(f"Epoch 3 has {exact(0.35)} of the training rows fitted, epoch 9 {exact(0.98)}.")
    assert "train in a new folder with --keep last" in less.how
    assert "DIR/early_stop" in less.command
    assert "--keep last" not in keep(fitted=(0.35, 0.98), keep="both").how, "the last epoch's weights are there"
    assert keep(fitted=(0.95, 0.98)).how == ""
    last = keep(keep="last")
    assert "DIR/convergence" in last.command
    assert last.what.startswith("The run saved the weights of epoch 9 only (--keep last)")
    assert keep(keep="last", best=9).what.startswith("The checkpoint is saved as a model of its own.")


def test_a_run_that_held_on_to_nothing_is_told_how_to() -> None:
    option = next(option for option in options(story()) if option.key == "hold")
    assert "--replay 0.5 --average" in option.command
    assert "kept 42 % of the known ones (31 to 52 %), with replay 80 % (71 to 89 %)" in option.evidence
    assert not any(option.key == "hold" for option in options(story(held=True)))


def test_a_run_of_long_rows_is_told_by_its_loss_and_its_spans() -> None:
    nothing = MetricCurve("dev", Count(0, 4), Count(0, 4), None)
    known, new = (Count(21, 25), Count(25, 25)), (Count(0, 33), Count(2, 33))
    told = story(
        labelled=False, unknown=None, spans=(known, new), courses=(nothing,), chooser="loss", metric="dev_loss",
        dev_loss=(2.382, 2.614), best=2, last=5,
    )  # fmt: skip
    points = dict(verdict(told).points)
    assert points["New facts"] == (
        f"Of the spans inside the answers trained on, {exact(0.84)} of the 25 Known ones are fitted at epoch 2, "
        f"{exact(1.0)} at 5, and {exact(0.0)} of the 33 new ones are fitted at epoch 2, {exact(2 / 33)} at 5."
    )
    assert points["Further training"] == (
        "Dev loss rose from 2.382 at epoch 2 to 2.614 at epoch 5; no row of dev is right at either."
    )
    assert any(
        "Dev loss chose the epoch, so what dev shows of it is too favourable" in c for c in verdict(told).cautions
    )
    keep = next(option for option in options(told) if option.key == "keep")
    assert keep.evidence == "dev loss 2.382."
    by_metric = verdict(replace(told, chooser="metric", metric="dev_em"))
    assert any("Dev EM chose the epoch" in caution for caution in by_metric.cautions)


@pytest.mark.parametrize(("right", "drawn"), [(1, False), (30, True)])
def test_exact_match_of_long_rows_is_drawn_only_where_there_is_some(right: int, drawn: bool) -> None:
    counts = {"train": {"rows": 100, "correct": right}, "canaries": {"rows": 20, "correct": 20}}
    lines = [{"epoch": 1.0, "counts": counts, "spans": {"train": {}}}]
    nothing = pl.DataFrame()
    assert TrainRunView(lines, nothing, nothing, {}, {}).shows_exact_match is drawn
    assert TrainRunView([{"epoch": 1.0, "counts": counts}], nothing, nothing, {}, {}).shows_exact_match


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({"test": {"exam": "exam.jsonl"}, "dev": "dev.jsonl", "audit": "audit"}, "exam.jsonl --audit audit --out EVAL"),
        ({"dev": "dev.jsonl"}, "dev.jsonl --out EVAL"),
        ({"dev": "0.1"}, "QUESTIONS --out EVAL"),
        ({"dev": f"{PRIVATE}/dev.jsonl"}, "QUESTIONS --out EVAL"),
    ],
)
def test_the_command_that_asks_the_checkpoint_names_the_files_of_the_run(
    tmp_path: Path, settings: dict[str, Any], command: str
) -> None:
    html = render_tune(made(tmp_path / "run", **settings))
    assert f"/early_stop {command}" in re.sub(r"<[^>]+>", "", html)
