"""What a result shows and does: a line, a notebook's view, its page, charts, pandas, an explanation, saving."""

from __future__ import annotations

import gc
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import foreknow
from builders import write_jsonl
from conftest import fact_rows
from foreknow.categories import CATEGORIES
from foreknow.errors import ConfigError, GateCrossed, InputError, RunFolderError
from foreknow.notebook import bar, card, table
from foreknow.stages.audit.explain import explain_row
from foreknow.stages.study.result import open_study

SMALL: dict[str, Any] = {"shots": 2, "exemplar_sets": 3}
ROWS = fact_rows()


@pytest.fixture(scope="module")
def audit(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> foreknow.AuditResult:
    return foreknow.audit(ROWS, model=tiny_folder, out=tmp_path_factory.mktemp("run") / "audit", **SMALL)


def test_an_audit_in_a_line_and_in_a_notebook(audit: foreknow.AuditResult) -> None:
    assert re.fullmatch(
        r"AuditResult\(48 of 48 rows labelled with tiny: \d+ % HighlyKnown, .*; .*/audit\)", repr(audit)
    )
    shown = audit._repr_html_()
    page = html.unescape((audit.folder / "report.html").read_text(encoding="utf-8")).replace("\xa0", " ")
    headline = html.unescape(shown.split("font-weight:600")[1].split(">")[1].split("<")[0])
    assert headline.split(",")[0] in re.sub(r"<[^>]+>", "", page)  # the page's own verdict
    assert all(name in shown for name in CATEGORIES)
    assert 'role="img"' in shown


def test_no_text_of_a_file_gets_into_a_notebook_unescaped() -> None:
    shown = card("<b>", "<script>", table(["<i>"], [["<img>", None, 0.25]]), bar({"Unknown": 1.0}))
    assert not re.search(r"<(b|script|i|img)>", shown)
    assert "0.250" in shown


def test_the_page_shows_itself(audit: foreknow.AuditResult) -> None:
    page = audit.report()
    assert Path(page) == audit.folder / "report.html"
    assert 'sandbox="allow-scripts"' in page._repr_html_()
    assert html.escape("<!doctype html>") in page._repr_html_().lower()
    assert page._repr_html_().count("<") == 2  # the page itself is an attribute


def test_charts_hold_the_shares(audit: foreknow.AuditResult) -> None:
    chart = audit.plot().to_dict()
    lines = next(iter(chart["datasets"].values()))
    every = {line["category"]: line["share"] for line in lines if line["group"] == "all rows"}
    overall = audit.summary["categories"]["overall"]
    assert every == pytest.approx({name: share for name, share in overall.items() if share})
    assert {line["group"] for line in lines} == {"all rows", "capital", "river"}


def test_rows_in_pandas(audit: foreknow.AuditResult) -> None:
    frame = audit.to_pandas()
    assert list(frame["category"]) == audit.rows["category"].to_list()
    assert list(frame.columns) == audit.rows.columns


def test_an_explanation_rebuilds_the_prompts_and_says_why(audit: foreknow.AuditResult) -> None:
    seen = set()
    for line in audit.rows.iter_rows(named=True):
        said = audit.explain(line["row"])
        own = audit.probes.filter(pl.col("row") == line["row"]).sort("exemplar_set")
        assert said.probes["p_correct"].to_list() == own["p_correct"].to_list()
        assert len(said.prompts) == 3
        assert all(p.count("Q: ") == 3 and p.endswith(f"Q: {line['question']}\nA:") for p in said.prompts)
        assert all(f"Q: {line['question']}\nA: " not in p for p in said.prompts)  # its own fact was replaced
        right = int(own["greedy_correct"].sum())
        expected = {
            "HighlyKnown": "All 3 greedy answers",
            "MaybeKnown": f"{right} of 3 greedy answers",
            "WeaklyKnown": "None of 3 greedy answers, one behind each exemplar set, is right; 48 samples",
            "Unknown": "None of 3 greedy answers, one behind each exemplar set, is right; 48 samples",
        }[line["category"]]
        assert said.why.startswith(expected)
        if line["category"] == "Unknown":
            assert said.why.endswith("below 0.5.")
        seen.add(line["category"])
    assert {"HighlyKnown", "Unknown"} <= seen
    assert f"row {said.row}: {said.question}" in repr(said)
    assert "the prompt of set 0" in said._repr_html_()
    with pytest.raises(InputError, match=r"found no audited row 999; `.rows\['row'\]` has 0, 1, 2, 3, 4 and 43 more"):
        audit.explain(999)


def test_a_row_without_a_category_is_explained_by_its_flags(audit: foreknow.AuditResult) -> None:
    line = {**audit.rows.to_dicts()[0], "row": -1, "category": None, "flags": ["long_answer"]}
    said = explain_row(line, audit.probes, {}, audit.summary["protocol"], foreknow.Template())
    assert said.why == "The row has no category: its flags are long_answer."
    assert said.prompts == ()


def test_without_out_a_result_lives_as_long_as_it_is_used(tiny_folder: Path, tmp_path: Path) -> None:
    result = foreknow.audit(ROWS, model=tiny_folder, limit=4, **SMALL)
    folder = result.folder
    assert "temporary: save(path) keeps it" in repr(result)
    page = result.report()
    saved = result.save(tmp_path / "kept")
    assert saved.rows.equals(result.rows)
    assert "temporary" not in repr(saved)
    with pytest.raises(RunFolderError, match="exists already"):
        result.save(tmp_path / "kept")
    with pytest.raises(ConfigError, match="expected a local path"):
        result.save("s3://bucket/run")
    mixed = foreknow.mix(result, natural=True)
    del result
    gc.collect()
    assert folder.exists()  # its page is in use
    del page
    gc.collect()
    assert not folder.exists()
    foreknow.open_audit(tmp_path / "kept")
    assert {"question", "answer", "category"} <= set(mixed.records()[0])
    assert list(mixed.to_pandas()["category"]) == mixed.rows["category"].to_list()
    kept = mixed.save(tmp_path / "mixed.jsonl")
    assert kept.records() == mixed.records()
    assert (tmp_path / "mixed.jsonl.manifest.json").is_file()
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.jsonl"):
        mixed.save(tmp_path / "mixed.csv")
    assert re.fullmatch(r"MixResult\(\d rows: .*\)", repr(mixed))
    assert "training set" in mixed._repr_html_()


def test_a_crossed_gate_brings_its_result(tiny_folder: Path) -> None:
    with pytest.raises(GateCrossed) as caught:
        foreknow.audit(ROWS, model=tiny_folder, max_unknown=0.0, **SMALL)
    result = caught.value.result
    assert isinstance(result, foreknow.AuditResult)
    assert result.rows.height == 48


def test_a_run_without_a_page_says_how_to_write_it(audit: foreknow.AuditResult, tmp_path: Path) -> None:
    shutil.copytree(audit.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("report.html"))
    copy = foreknow.open_audit(tmp_path / "copy")
    with pytest.raises(InputError, match=r"foreknow\.write_report"):
        copy.report()
    foreknow.write_report(copy.folder)
    assert Path(copy.report()).is_file()


def test_training_and_evaluation(tiny_folder: Path, audit: foreknow.AuditResult, tmp_path: Path) -> None:
    train = write_jsonl(
        tmp_path / "train.jsonl", [{**r, "category": CATEGORIES[n % 4]} for n, r in enumerate(ROWS[:16])]
    )
    tuned = foreknow.tune(train, dev=ROWS[16:24], model=tiny_folder, epochs=2, canaries="none")
    assert re.fullmatch(r"TrainResult\(tiny: best epoch \d of 2: dev EM .*; .*\)", repr(tuned))
    assert "train rows fitted" in tuned._repr_html_()
    assert list(tuned.to_pandas()["epoch"]) == [line["epoch"] for line in tuned.metrics]
    curves = {line["curve"] for line in next(iter(tuned.plot().to_dict()["datasets"].values()))}
    assert {"EM: dev", "fitted: Unknown"} <= curves
    assert tuned.best.name == "early_stop"
    done = foreknow.evaluate(tuned, ROWS[24:], audit=audit, compare_base=False)
    right = int(done.rows["correct"].sum())
    assert f"of 24 answers right, {done.summary['answers']['wrong']} wrong" in repr(done)
    lines = next(iter(done.plot().to_dict()["datasets"].values()))
    assert next(line["share"] for line in lines if line["rows of"] == "all rows") == right / 24
    assert "exact match" in done._repr_html_()
    assert list(done.to_pandas()["row"]) == done.rows["row"].to_list()


def test_a_study_in_a_line() -> None:
    study = open_study(Path(__file__).parents[1] / "docs" / "studies" / "lab")
    assert re.match(r"StudyResult\(.*: 9 claims of the paper: \d holds", repr(study))
    assert "More Unknown rows in D" in study._repr_html_()
    assert json.loads(json.dumps(study.to_pandas().head(1).to_dict("records"), default=str))
