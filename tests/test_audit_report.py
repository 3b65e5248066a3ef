"""The audit's page: its numbers are the frames', no text can break out of it, and it says what to do."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from syrupy.assertion import SnapshotAssertion

from foreknow.categories import CATEGORIES
from foreknow.format.numbers import percent
from foreknow.format.text import display
from foreknow.report.audit import render_audit
from foreknow.report.audit_options import options, purposes
from foreknow.report.audit_tables import carriers, with_fifths
from foreknow.report.charts import theme_svg
from foreknow.report.markup import script_json
from foreknow.stages.audit.verdict.category_lines import complete, relation_lines
from foreknow.stages.audit.verdict.sentences import CategoryShares, bracket, verdict
from foreknow.stats import Interval

RELATIONS = (
    "capital of", "country of city", "continent", "currency", "headquarters", "founder", "founded in",
    "element symbol", "airport city", "discoverer",
)  # fmt: skip
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">&'\u202e\u2028😀"


def synthetic(count: int = 480, relations: tuple[str, ...] = RELATIONS, seed: int = 7, sets: int = 10) -> Any:
    """Frames and summary of an audit that could be real: hard and easy relations, ties with popularity."""
    generator = np.random.default_rng(seed)
    group = generator.integers(0, len(relations), count)
    easy = np.linspace(2.2, -4.5, len(relations))[group]
    popularity = np.exp(generator.normal(10, 2, count))
    logit = easy + 0.6 * (np.log(popularity) - 10) + generator.normal(0, 1.8, count)
    per_set = 1 / (1 + np.exp(-(1.6 * logit[:, None] + generator.normal(0, 0.8, (count, sets)))))
    per_set[logit < -3.2] *= 1e-3
    right = per_set > 0.5
    p_greedy, p_sampled = right.mean(axis=1), per_set.mean(axis=1)
    p_hit = 1 - np.prod((1 - per_set) ** 16, axis=1)
    places = np.select([p_greedy == 1, p_greedy > 0, p_hit >= 0.5], [0, 1, 2], 3)
    answers = 3 + 60 * (np.arange(len(relations)) % 4)
    golds = [f"{relations[g].title()} {int(generator.zipf(1.3)) % answers[g]}" for g in group]
    flags = [
        [f for f, share in (("answer_in_exemplars", 0.06), ("duplicate", 0.02)) if generator.random() < share]
        + (["undecided"] if 0.45 < hit < 0.55 else [])
        for hit in p_hit
    ]
    rows = pl.DataFrame(
        {
            "row": range(count),
            "group": [relations[g] for g in group],
            "relation": [relations[g] for g in group],
            "subject": [f"Subject {k}" for k in range(count)],
            "question": [f"What is the {relations[g]} of Subject {k}?" for k, g in enumerate(group)],
            "answer": golds,
            "answers": [[a] if k % 5 else [a, f"{a} City"] for k, a in enumerate(golds)],
            "p_greedy": p_greedy,
            "p_greedy_lenient": p_greedy,
            "p_sampled": p_sampled,
            "p_sampled_width": p_sampled * 0.001,
            "p_hit": p_hit,
            "p_hit_upper": np.minimum(1, p_hit + 0.01),
            "category": [CATEGORIES[p] for p in places],
            "category_lenient": [CATEGORIES[max(0, p - (k % 40 == 0))] for k, p in enumerate(places)],
            "model_answer": [golds[k] if right[k, 0] else f"Guess {k % 9}" for k in range(count)],
            "popularity": popularity,
            "flags": flags,
        },
        schema_overrides={"flags": pl.List(pl.String)},
    )  # fmt: skip
    probes = pl.DataFrame(
        {
            "row": np.repeat(np.arange(count), sets),
            "exemplar_set": np.tile(np.arange(sets), count),
            "greedy_correct": right.ravel(),
            "p_correct": per_set.ravel(),
            "p_correct_upper": per_set.ravel(),
        }
    )
    return rows, probes, summary_of(rows)


def summary_of(rows: pl.DataFrame) -> dict[str, Any]:
    labelled = rows.filter(pl.col("category").is_not_null())
    golds = (
        rows.group_by("group", "answer").len("n").sort(["n", "answer"], descending=[True, False])
        .group_by("group").agg(pl.col("answer").first(), pl.col("n").first(), pl.col("n").sum().alias("size"))
    )  # fmt: skip
    return {
        "rows": len(rows),
        "labelled": len(labelled),
        "expected_categories": expected_of(labelled),
        "majority_floor": {
            g: {"floor": n / size, "answer": a, "rows": size} for g, a, n, size in golds.iter_rows()
        },
        "protocol": {
            "name": "exact", "shots": 4, "exemplar_sets": 10, "samples": 16, "temperature": 0.5, "top_k": 40,
            "match": "strict", "bos": "no (the tokenizer adds none)", "chat_template": False,
            "prompt": "Q: {question}\nA: {answer}", "dtype": "bfloat16", "device": "cpu",
        },
        "model": {
            "name": "SmolLM2-135M", "fingerprint": "sha256:9f2ce1b4a07d", "folder": "/home/someone/.cache/x",
            "note": "SmolLM2-135M-Instruct, 4-bit weights dequantised: not the hub's model",
        },
        "data": {"name": "facts.jsonl", "fingerprint": "sha256:0c1d77aa31", "layout": "question and answer"},
        "seconds": 85.7, "rows_per_second": 5.6, "version": "0.1.0", "seed": 0,
    }  # fmt: skip


def expected_of(labelled: pl.DataFrame) -> dict[str, float]:
    """Greedily right rows keep their label; the others are WeaklyKnown with the probability of a hit."""
    if labelled.is_empty():
        return {}
    greedy = [float((labelled["category"] == c).mean() or 0) for c in CATEGORIES[:2]]
    rest = labelled.filter(pl.col("category").is_in(CATEGORIES[2:]))["p_hit"]
    weak = float(rest.sum()) / len(labelled)
    return dict(zip(CATEGORIES, (*greedy, weak, 1 - sum(greedy) - weak), strict=True))


def embedded(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="row-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def text_of(page: str) -> str:
    """What a reader sees: no scripts, styles or tags."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    joined = re.sub(r"</?(bdi|span|a|strong|mark)\b[^>]*>", "", bare)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", joined))).replace("\u00a0", " ")


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert found, name
    return found[0]


@pytest.fixture(scope="module")
def page() -> str:
    return render_audit(*synthetic())


def test_the_shares_on_the_page_are_those_of_the_frame(page: str) -> None:
    rows, _, _ = synthetic()
    table = section(page, "sure")
    for name in CATEGORIES:
        count = int((rows["category"] == name).sum())
        line = text_of(re.search(rf"<tr><th[^>]*>[^<]*<i[^>]*></i> {name}.*?</tr>", table)[0])  # type: ignore[index]
        assert line.split()[:2] == [name, str(count)]
        assert percent(count / len(rows)) in line
    known = 1 - float((rows["category"] == "Unknown").mean())
    assert f"expresses {percent(known)} (" in text_of(page)


def test_every_relation_has_its_counts_its_floor_and_its_answer(page: str) -> None:
    rows, _, summary = synthetic()
    shown = text_of(section(page, "relations"))
    for name in RELATIONS:
        group = rows.filter(group=name)
        unknown = float((group["category"] == "Unknown").mean())
        floor = summary["majority_floor"][name]
        usual = f"{percent(floor['floor'])} with “{floor['answer']}”"
        pattern = rf"{name} {len(group)} .*?{percent(unknown)} \(.*?{usual}"
        assert re.search(pattern, shown), name


def test_the_spread_over_exemplar_sets_is_that_of_the_probes(page: str) -> None:
    _, probes, _ = synthetic()
    shares = probes.group_by("exemplar_set").agg(pl.col("greedy_correct").mean())["greedy_correct"]
    low, high, sd = (float(x) for x in (shares.min(), shares.max(), shares.std()))  # type: ignore[arg-type]
    shown = text_of(section(page, "sure"))
    assert f"from {percent(low)} to {percent(high)}" in shown
    assert f"standard deviation {100 * sd:.1f} points" in shown


def test_the_page_of_a_zero_shot_audit_speaks_of_no_examples() -> None:
    rows, probes, summary = synthetic()
    probes = probes.with_columns(greedy_correct=pl.col("greedy_correct").first().over("row"))
    summary = {**summary, "protocol": {**summary["protocol"], "shots": 0}}
    shown = text_of(render_audit(rows, probes, summary))
    assert "right by greedy decoding, asked without examples" in shown
    assert "The model gets each question alone, without solved examples before it." in shown
    for wrong in (
        "different examples",
        "Other exemplars",
        "exemplar set is",
        "first exemplar set",
        "over the exemplar",
    ):
        assert wrong not in shown
    with_shots = text_of(render_audit(rows, probes, {**summary, "protocol": {**summary["protocol"], "shots": 1}}))
    assert with_shots.count("different examples") == 2
    assert "Other exemplars: across 10 exemplar sets" in with_shots


def test_the_table_holds_every_row(page: str) -> None:
    rows, _, _ = synthetic()
    data = embedded(page)
    assert [r[0] for r in data["rows"]] == rows["row"].to_list()
    assert [r[1] for r in data["rows"]] == rows["question"].to_list()
    assert [data["categories"][r[6]] for r in data["rows"]] == rows["category"].to_list()
    assert [data["groups"][r[10]] for r in data["rows"]] == rows["group"].to_list()
    assert [[data["flags"][f] for f in r[11]] for r in data["rows"]] == [sorted(f) for f in rows["flags"]]


def test_the_page_is_complete_in_itself(page: str) -> None:
    assert page.lstrip().startswith("<!doctype html>")
    assert '<html lang="en">' in page
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert not re.search(
        r"\ssrc=|<link|@import|\sstyle=|\son\w+=", re.sub(r"<script.*?</script>", "", page, flags=re.S)
    )
    assert "url(" not in page.replace("url(#unknown)", "")
    assert "/home/someone" not in page
    levels = [int(level) for level in re.findall(r"<h(\d)\b", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert render_audit(*synthetic()) == page


def test_charts_are_drawn_twice_and_in_theme_colours(page: str) -> None:
    for name in ("probability", "popularity"):
        assert section(page, name).count("<svg aria-hidden") == 2
    assert "var(--ink)" in page
    assert "#0100" not in page


def test_a_colour_name_in_a_chart_s_text_is_left_alone() -> None:
    assert theme_svg('<svg width="9" version="1.1"><text fill="#010001">#010001</text></svg>') == (
        '<svg aria-hidden="true" focusable="false" width="9"><text fill="var(--ink)">#010001</text></svg>'
    )


def test_no_text_of_the_data_breaks_out() -> None:
    rows, probes, _ = synthetic(120, ("", HOSTILE, "x" * 300, 'a "quoted" name'))
    texts = ("relation", "subject", "question", "answer", "model_answer")
    rows = rows.with_columns(*(pl.lit(HOSTILE).alias(c) for c in texts)).with_columns(
        answers=pl.concat_list(pl.lit(HOSTILE), pl.lit(HOSTILE + "2")), flags=pl.concat_list(pl.lit(HOSTILE))
    )
    summary = summary_of(rows)
    for part in ("model", "data", "protocol"):
        summary[part] = {**summary[part], "name": HOSTILE, "note": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}}
    hostile = render_audit(rows, probes, summary | {"version": HOSTILE})
    assert "<img" not in hostile
    assert hostile.count("</script>") == 2
    assert embedded(hostile)["rows"][0][1] == HOSTILE
    assert "\u202e" not in text_of(section(hostile, "verdict"))
    assert "\u2028" not in hostile.split('id="row-data">')[1].split("</script>")[0]
    assert "(no name)" in hostile


def test_script_json_round_trips_what_could_end_a_script() -> None:
    text = script_json([HOSTILE, "<!--", "]]>"])
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == [HOSTILE, "<!--", "]]>"]


def test_without_rows_no_text_of_them_is_left() -> None:
    rows, probes, _ = synthetic()
    secret = {c: "sekret-" + pl.col(c) for c in ("question", "answer", "model_answer", "subject")}
    rows = rows.with_columns(**secret).with_columns(answers=pl.concat_list("answer"))
    bare = render_audit(rows, probes, summary_of(rows), show_rows=False)
    assert "sekret" not in bare
    assert "<script" not in bare
    assert "Left out on request" in bare
    assert "sekret" in render_audit(rows, probes, summary_of(rows))


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_file_of_one_category_and_one_group(category: str) -> None:
    rows, probes, _ = synthetic(40, ("all",))
    rows = rows.with_columns(category=pl.lit(category), category_lenient=None, popularity=None)
    shown = text_of(render_audit(rows, probes, summary_of(rows)))
    assert f"{category} 100 % (91–100)" in shown
    assert "Are the popular facts" not in shown
    assert "Lenient matching" not in shown
    assert "nan" not in shown.lower().split()


def test_nothing_labelled() -> None:
    rows, _, _ = synthetic(20)
    rows = rows.with_columns(
        flags=pl.concat_list(pl.lit("long_answer")),
        **{name: pl.lit(None) for name in ("category", "category_lenient", "p_sampled", "p_greedy")},
    )
    probes = pl.DataFrame(
        schema={
            "row": pl.Int64,
            "exemplar_set": pl.Int64,
            "greedy_correct": pl.Boolean,
            "p_correct": pl.Float64,
        }
    )
    page = render_audit(rows, probes, {"rows": 20})
    assert "None of the 20 rows could be labelled" in text_of(page)
    assert "long answer" in text_of(page)
    assert "Recommended" not in page
    assert len(embedded(page)["rows"]) == 20


def test_columns_and_keys_that_are_missing_leave_their_parts_out() -> None:
    rows, probes, _ = synthetic(60)
    rows = rows.select("row", "group", "question", "answer", "category", "p_sampled").with_columns(
        question=pl.when(pl.col("row") > 0).then("question"), p_sampled=pl.lit(float("nan"))
    )
    page = render_audit(rows, probes, {})
    assert "How probable" not in page
    assert "Expected share" not in page
    assert embedded(page)["rows"][0][1] is None


def test_two_hundred_groups_are_folded() -> None:
    page = render_audit(*synthetic(1500, tuple(f"relation {k}" for k in range(200))))
    table = section(page, "relations")
    assert table.split("<details>")[0].count('<th scope="row">') == 24
    assert table.count('<th scope="row">') == 200
    assert "176 smaller relations" in table


def test_a_relation_without_known_rows_is_flagged() -> None:
    rows, probes, _ = synthetic()
    rows = rows.with_columns(
        category=pl.when(pl.col("group") == "founder").then(pl.lit("Unknown")).otherwise("category")
    )
    page = render_audit(rows, probes, summary_of(rows))
    assert "relations almost every row is Unknown (“founder”)" in text_of(page)
    assert section(page, "relations").count("nearly all Unknown") == 1


def test_answers_right_only_because_they_are_the_usual_one() -> None:
    rows, probes, summary = synthetic()
    right = pl.col("category").is_in(CATEGORIES[:2])
    rows = rows.with_columns(
        answer=pl.when((pl.col("group") == "continent") & right).then(pl.lit("Asia")).otherwise("answer")
    )
    summary["majority_floor"]["continent"] = {"floor": 0.6, "answer": "Asia", "rows": 40}
    lines = relation_lines(complete(rows), summary["majority_floor"], sorted(RELATIONS), 0)
    assert [line.name for line in lines if line.usual] == ["continent"]
    assert "nearly all the usual one" in section(render_audit(rows, probes, summary), "relations")


def test_unknown_answers_are_counted_over_relations() -> None:
    rows = pl.DataFrame(
        {
            "row": range(6),
            "group": ["a", "b", "b", "a", "a", "a"],
            "answer": ["x", "x", "x", "y", "y", "z"],
            "category": ["Unknown"] * 4 + ["HighlyKnown", "Unknown"],
        }
    )
    (line,) = carriers(complete(rows))
    assert (line.answer, line.rows, line.share, line.groups) == ("x", 3, 0.6, ("b", "a"))


def test_popularity_is_ranked_within_the_relation() -> None:
    rows = pl.DataFrame(
        {
            "row": range(20),
            "group": ["a"] * 10 + ["b"] * 10,
            "popularity": [*range(10), *range(1000, 1010)],
            "category": ["Unknown"] * 20,
        }
    )
    assert with_fifths(complete(rows))["fifth"].to_list() == [k // 2 for k in range(10)] * 2
    ties = rows.with_columns(popularity=pl.lit(1.0))
    assert with_fifths(complete(ties)).is_empty()


def test_more_rows_than_fit_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreknow.report.audit.SAMPLE_ROWS", 100)
    page = render_audit(*synthetic())
    kept = [r[0] for r in embedded(page)["rows"]]
    assert len(kept) == 100
    assert kept == sorted(set(kept))
    assert "random sample of 100 of the 480 rows" in text_of(page)


def test_long_rows_are_sampled_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, probes, summary = synthetic()
    rows = rows.with_columns(question=pl.col("question") + pl.lit(" é" * 150))
    monkeypatch.setattr("foreknow.report.audit.ROW_BYTES", 60_000)
    page = render_audit(rows, probes, summary)
    data = re.findall(r'id="row-data">(.*?)</script>', page, re.DOTALL)[0]
    drawn = len(embedded(page)["rows"])
    assert 50 < drawn < 480
    assert 40_000 < len(data.encode()) <= 60_000
    assert f"random sample of {drawn} of the 480 rows" in text_of(page)
    assert "foreknow explore" in text_of(section(page, "rows"))


def test_display_is_never_empty_and_never_long() -> None:
    assert display("") == display(None) == display("\u202e ") == "(no name)"
    assert len(display("x" * 300)) == 90
    assert display("a\x00b\u202ec") == "a b c"


def mix_of(unknown: float, highly: float, rows: int = 1000, **more: Any) -> CategoryShares:
    half = 1.96 * (unknown * (1 - unknown) / rows) ** 0.5
    share = Interval(unknown, unknown - half, unknown + half)
    known = Interval(1 - unknown, 1 - share.high, 1 - share.low)
    return CategoryShares(
        rows=rows, labelled=rows, known=known, unknown=share, highly_known=highly, model="Model-X", **more
    )


MIXES = {
    "next to nothing new": mix_of(0.02, 0.85),
    "a small part new": mix_of(0.23, 0.4),
    "a large part new": mix_of(0.39, 0.24, alarmed=("spouse", "child"), groups=12),
    "mostly new": mix_of(0.93, 0.01),
    "all new, few rows": mix_of(1.0, 0.0, rows=30),
    "nothing labelled": CategoryShares(30, 0, Interval(0, 0, 1), Interval(0, 0, 1), 0.0),
}


@pytest.mark.parametrize("name", MIXES)
def test_verdict_and_advice(name: str, snapshot: SnapshotAssertion) -> None:
    said = verdict(MIXES[name])
    lines = [said.headline, said.meaning, *(f"! {c}" for c in said.cautions)]
    for o in options(MIXES[name]):
        lines += ["", f"{'->' if o.why else '  '} {o.title}. {o.why}", f"   {o.what}", f"   {o.evidence}"]
        lines += [f"   {line}" for line in (*o.command.splitlines(), o.how) if line]
    text = "\n".join(lines)
    assert "does not know" not in text
    assert text == snapshot


def test_below_a_hundred_labels_nothing_is_recommended() -> None:
    few = replace(mix_of(0.5, 0.1), labelled=99)
    assert purposes(few) == ()
    assert not any(o.why or o.badge for o in options(few))
    assert any("Label 100 or more" in caution for caution in verdict(few).cautions)
    assert any(o.why for o in options(replace(few, labelled=200)))


def test_too_few_known_rows_are_not_advised_to_be_trained_on() -> None:
    (_, task) = purposes(replace(mix_of(0.9, 0.1), labelled=200))
    assert task.option is None
    assert "20 Known rows would remain, too few to train on" in task.why


def test_advice_turns_at_its_thresholds() -> None:
    shares = (0, 0.1, 0.249, 0.25, 0.5, 0.749, 0.75, 1)
    facts, task = zip(*[[p.option for p in purposes(mix_of(u, 0.1))] for u in shares], strict=True)
    assert facts == ("keep",) * 6 + ("retrieve",) * 2
    assert task == ("keep",) * 3 + ("drop",) * 4 + (None,), "no Known row would remain"
    assert [bracket(u) for u in (0, 0.25, 0.39, 0.999, 1)] == [(0,), (2,), (2, 3), (5, 6), (6,)]
    assert [percent(x) for x in (0, 0.001, 0.61, 0.999, 1)] == ["0 %", "<1 %", "61 %", ">99 %", "100 %"]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def browse(page: str, folder: Path) -> tuple[str, str]:
    """The page's DOM after its script ran, and what the browser logged."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    quiet = ["quiet", "background-networking", "component-update", "sync", "gpu"]
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-quic", "--no-first-run"]
        + [f"--disable-{what}" for what in quiet[1:]]
        + ["--enable-logging=stderr", "--virtual-time-budget=3000", f"--user-data-dir={folder / 'profile'}"]
        + ["--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.browser
@needs_chromium
class TestInABrowser:
    def test_the_table_is_filled_and_nothing_is_logged(self, page: str, tmp_path: Path) -> None:
        dom, log = browse(page, tmp_path)
        assert log == ""
        assert "Rows 1–50 of 480" in dom
        assert section(dom, "rows").count("<tr>") == 50

    def test_it_filters_and_sorts(self, page: str, tmp_path: Path) -> None:
        acts = """<script>
            document.querySelector('[data-category="3"]').click();
            const sort = document.getElementById("sort");
            sort.value = "0 1";
            sort.dispatchEvent(new Event("change"));
        </script></body>"""
        open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        dom, log = browse(open_page.replace("</body>", acts), tmp_path)
        rows, _, _ = synthetic()
        unknown = rows.filter(category="Unknown")["row"].to_list()
        body = dom.split('id="row-body">')[1].split("</tbody>")[0]
        assert log == ""
        assert [int(n) for n in re.findall(r'data-label="Row"[^>]*>(\d+)<', body)] == unknown[::-1][:50]
        assert f"Rows 1–50 of {len(unknown)} (480 in all)" in dom

    def test_hostile_text_stays_text_and_fits_a_phone(self, tmp_path: Path) -> None:
        rows, probes, _ = synthetic(120, (HOSTILE, "x" * 300, 'a "quoted" name', ""))
        rows = rows.with_columns(question=pl.lit(HOSTILE), answer=pl.lit("w" * 250), model_answer=pl.lit(HOSTILE))
        hostile = render_audit(rows, probes, summary_of(rows))
        frame = f"""<body><iframe id="f" width="390" height="900" srcdoc="{html.escape(hostile)}"></iframe>
            <p id="seen"></p><script>document.getElementById("f").onload = (event) => {{
            const inner = event.target.contentDocument;
            for (const more of inner.querySelectorAll("details")) more.open = true;
            const root = inner.documentElement;
            document.getElementById("seen").textContent =
              [root.scrollWidth <= root.clientWidth, inner.querySelectorAll("#row-body tr").length,
               inner.querySelectorAll("img").length, inner.title.startsWith("foreknow")].join(" ");
            }};</script></body>"""
        dom, log = browse(frame, tmp_path)
        assert log == ""
        assert '<p id="seen">true 50 0 true</p>' in dom
