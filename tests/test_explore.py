"""`foreknow explore`: its queries against plain Python, who is answered, and the page in a browser."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import foreknow
from browser import Browser
from builders import write_jsonl
from conftest import Cli, chromium, fact_rows
from foreknow.categories import CATEGORIES
from foreknow.errors import ConfigError, InputError
from foreknow.stages.explore.query import PAGE_ROWS, Query, RowQueries, read_query
from foreknow.stages.explore.responses import HEADERS, RowPages
from foreknow.stages.explore.row_detail import row_detail
from foreknow.stages.explore.row_table import RowTable, evaluation_table, open_table, train_table
from foreknow.stages.explore.server import Explorer
from large_runs import enlarge
from test_hostile import MARKUP
from test_tune_report import evaluated, made

ROWS = 1_200


@pytest.fixture(scope="module")
def run_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of 1,200 rows: a small real one, repeated."""
    folder = tmp_path_factory.mktemp("explore")
    data = write_jsonl(folder / "facts.jsonl", [{**row, "answer": row["answer"]} for row in fact_rows()])
    foreknow.audit(data, model=tiny_folder, out=folder / "small", shots=2, exemplar_sets=3)
    return enlarge(folder / "small", folder / "large", ROWS)


@pytest.fixture(scope="module")
def table(run_folder: Path) -> RowTable:
    return open_table(run_folder)


@pytest.fixture(scope="module")
def pages(table: RowTable) -> RowPages:
    return RowPages(table)


@pytest.fixture(scope="module")
def explorer(run_folder: Path) -> Iterator[Explorer]:
    with foreknow.explore(run_folder) as served:
        yield served


def get(
    pages: RowPages, target: str, host: str = "127.0.0.1:8000", token: str | None = None, method: str = "GET"
) -> Any:
    bearer = f"Bearer {pages.token if token is None else token}"
    response = pages.respond(method, target, [host], bearer)
    value = (
        json.loads(response.body) if response.content_type.startswith("application/json") else response.body.decode()
    )
    return response.status, value


# ---- queries ----


def test_a_table_holds_every_row_of_the_run(table: RowTable, run_folder: Path) -> None:
    rows = pl.read_parquet(run_folder / "rows.parquet")
    assert table.frame.height == rows.height == ROWS
    assert table.frame["question"].equals(rows["question"])
    assert [c.title for c in table.columns][:5] == ["#", "Question", "Gold answer", "Model says", "Category"]
    assert [f.name for f in table.filters][:2] == ["category", "group"]


WORDS = st.sampled_from(["capital", "RIVER", "copy 3", "amber", "Avens", "of", "nowhere", "river callow", "17", "?"])


@settings(max_examples=60)
@given(
    find=st.lists(WORDS, max_size=2).map(" ".join),
    category=st.none() | st.integers(0, 4),
    group=st.none() | st.integers(0, 1),
    sort=st.sampled_from([None, "row", "question", "model_answer", "category", "p_greedy", "p_sampled"]),
    down=st.booleans(),
    page=st.integers(0, 30),
)
def test_a_query_answers_what_plain_python_does(
    table: RowTable, find: str, category: int | None, group: int | None, sort: str | None, down: bool, page: int
) -> None:
    filters = [(n, v) for n, v in (("category", category), ("group", group)) if v is not None]
    answer = RowQueries(table).page(Query(find, tuple(filters), sort, down, page))

    rows = pl.read_parquet(table.run.folder / "rows.parquet").to_dicts()
    groups = sorted({row["group"] for row in rows})
    matching = []
    for place, row in enumerate(rows):
        text = "\n".join(
            str(part)
            for part in (row["row"], row["question"], *row["answers"], row["model_answer"], row["group"])
            if part is not None
        ).lower()
        own = 4 if row["category"] is None else CATEGORIES.index(row["category"])
        if (
            all(word in text for word in find.lower().split())
            and category in (None, own)
            and (group is None or row["group"] == groups[group])
        ):
            matching.append((place, row))

    def key(row: dict[str, Any]) -> Any:
        value = row[sort or "row"]
        if sort == "category" and value is not None:
            return CATEGORIES.index(value)
        return value.lower() if isinstance(value, str) else value

    if sort is not None:
        present = [pair for pair in matching if pair[1][sort] is not None]
        # descending, equal rows still stand in the run's order
        present.sort(key=lambda pair: key(pair[1]), reverse=False)
        if down:
            present = [
                pair
                for value in sorted({key(row) for _, row in present}, reverse=True)
                for pair in present
                if key(pair[1]) == value
            ]
        matching = present + [pair for pair in matching if pair[1][sort] is None]
    last = max(0, (len(matching) - 1) // PAGE_ROWS)
    start = min(page, last) * PAGE_ROWS
    assert answer.total == len(matching)
    assert answer.places == [place for place, _ in matching[start : start + PAGE_ROWS]]
    assert [line[1] for line in answer.rows] == [row["question"] for _, row in matching[start : start + PAGE_ROWS]]
    counts = [0] * 5
    for _, row in matching:
        counts[4 if row["category"] is None else CATEGORIES.index(row["category"])] += 1
    assert answer.categories == counts


def test_the_pages_of_a_sorted_table_hold_every_row_once(table: RowTable) -> None:
    queries = RowQueries(table)
    pages = [queries.page(Query(sort="model_answer", page=page)).places for page in (0, *reversed(range(1, 24)))]
    assert sorted(place for page in pages for place in page) == list(range(ROWS))


def test_a_flag_filters(table: RowTable, run_folder: Path) -> None:
    [flags] = [f for f in table.filters if f.name == "flag"]
    rows = pl.read_parquet(run_folder / "rows.parquet")
    for place, flag in enumerate(flags.values):
        expected = rows.filter(pl.col("flags").list.contains(flag)).height
        assert 0 < expected == RowQueries(table).page(Query(filters=(("flag", place),))).total


@pytest.mark.parametrize(
    "values",
    [{"sort": "search"}, {"filter-category": "9"}, {"filter-nothing": "1"}, {"filter-group": "x"}, {"page": "b"}],
)
def test_a_query_that_makes_no_sense_is_refused_in_a_line(table: RowTable, values: dict[str, str]) -> None:
    with pytest.raises(InputError, match="reload the page"):
        RowQueries(table).page(read_query(values, table))


def test_long_texts_are_cut_in_the_table_and_searched_whole(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    rows = pl.read_parquet(run_folder / "rows.parquet")
    rows = rows.with_columns(
        question=pl.when(pl.col("row") == 3).then(pl.lit("x" * 900 + " Needle")).otherwise("question")
    )
    rows.write_parquet(tmp_path / "run" / "rows.parquet")
    unchecked(tmp_path / "run")
    page = RowQueries(open_table(tmp_path / "run")).page(Query("needle"))
    assert (page.places, len(page.rows[0][1]), page.rows[0][1][-1]) == ([3], 400, "…")


def unchecked(folder: Path) -> None:
    """Let a run folder that a test has edited be opened."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        json.dumps({key: value for key, value in manifest.items() if key not in ("seal", "files")})
    )


# ---- one row ----


def test_a_row_is_explained_as_python_does(table: RowTable, run_folder: Path) -> None:
    audit = foreknow.open_audit(run_folder)
    for place in (0, 47, 700):
        row = int(table.frame["row"][place])
        expected, detail = audit.explain(row), row_detail(table, place)
        sections = {section["title"]: section for section in detail["sections"]}
        assert (detail["question"], detail["lead"], detail["category"]) == (
            expected.question,
            expected.why,
            expected.category,
        )
        assert [text for _, text in sections["The prompts"]["prompts"]] == list(expected.prompts)
        assert len(sections["Behind each exemplar set"]["rows"]) == expected.probes.height == 3
        assert sections["Accepted answers"]["lines"] == list(expected.answers)
        assert str(expected.question) in expected.prompts[0]


def test_an_evaluation_shows_what_became_of_each_row(tmp_path: Path) -> None:
    evaluation = evaluated(tmp_path / "evaluation", taught=True)
    table = evaluation_table(evaluation)
    queries = RowQueries(table)
    rows = evaluation.rows
    tests = (rows["correct"], ~rows["correct"] & ~rows["refused"], rows["refused"])
    for place, expected in enumerate(tests):
        assert 0 < queries.page(Query(filters=(("result", place),))).total == expected.sum()
    lost = queries.page(Query(filters=(("change", 2),)))
    assert lost.total == (rows["base_correct"] & ~rows["correct"]).sum()
    path = evaluation.folder / "rows.parquet"
    pl.read_parquet(path).drop("long_answer", "base_prediction").write_parquet(path)  # as an older run's
    detail = row_detail(table, 1)
    assert detail["lead"].startswith("The model's answer is wrong.")
    assert ["Gold 1"] in [section.get("lines") for section in detail["sections"]]


def test_a_tune_run_shows_when_each_row_was_right(tmp_path: Path) -> None:
    train = made(tmp_path / "run")
    table = train_table(train)
    last = train.results["convergence"]["metrics"]["step"]
    right = train.outcomes.filter(pl.col("step") == last, pl.col("correct")).height
    both, alone = (RowQueries(table).page(Query(filters=(("change", place),))).total for place in (0, 1))
    assert both + alone == right
    place = table.frame["set"].to_list().index("dev")
    history = row_detail(table, place)["sections"][1]["rows"]
    own = train.outcomes.filter(pl.col("set") == "dev", pl.col("row") == table.frame["row"][place]).sort("step")
    assert [line[2].startswith("✓") for line in history] == own["correct"].to_list()


# ---- who is answered ----


TARGETS = ("/", "/explore.css", "/explore.js", "/table", "/rows", "/row?place=0", "/other")


@pytest.mark.parametrize("target", TARGETS)
def test_without_the_token_nothing_is_answered(pages: RowPages, target: str) -> None:
    joint = "&" if "?" in target else "?"
    refused = [
        pages.respond("GET", target, ["127.0.0.1:1"], None),
        pages.respond("GET", target, ["127.0.0.1:1"], "Bearer "),
        pages.respond("GET", target, ["127.0.0.1:1"], f"Bearer {pages.token[:-1]}"),
        pages.respond("GET", f"{target}{joint}token=é", ["127.0.0.1:1"], None),
        pages.respond("GET", f"{target}{joint}token=", ["127.0.0.1:1"], ""),
        RowPages(pages.table).respond("GET", target, ["127.0.0.1:1"], f"Bearer {pages.token}"),  # another one's token
    ]
    assert {response.status for response in refused} == {403}
    assert {response.body for response in refused} == {refused[0].body}
    assert len(pages.token) >= 32


@pytest.mark.parametrize(
    "hosts", [["evil.example"], ["evil.example:8000"], ["127.0.0.1.evil.example"], ["localhost@evil"], [], [""],
              ["127.0.0.1", "evil.example"], ["0.0.0.0:80"], ["127.0.0.1:80 "]],
)  # fmt: skip
def test_a_name_that_was_pointed_at_this_machine_gets_nothing(pages: RowPages, hosts: list[str]) -> None:
    for target in TARGETS:
        assert pages.respond("GET", target, hosts, f"Bearer {pages.token}").status == 403


def test_who_has_the_token_is_answered(pages: RowPages) -> None:
    assert get(pages, "/table")[1]["rows"] == ROWS
    for host in ("127.0.0.1:8000", "localhost:9000", "LOCALHOST"):  # 9000: the end of a tunnel
        assert get(pages, "/rows?find=capital", host)[0] == 200
    assert pages.respond("GET", f"/?token={pages.token}", ["localhost"], None).status == 200
    assert get(pages, "/rows", method="POST")[0] == 405
    assert get(pages, "/nothing")[0] == 404
    assert get(pages, "/../../etc/passwd")[0] == 404
    assert get(pages, "/row?place=99999")[0] == get(pages, "/row?place=-1")[0] == get(pages, "/row")[0] == 400
    assert get(pages, f"/rows?find={'a' * 9000}")[0] == 414


def test_a_fault_and_a_missing_file_are_said(pages: RowPages, run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    mine = RowPages(open_table(tmp_path / "run"))
    (tmp_path / "run" / "rows.parquet").unlink()
    (tmp_path / "run" / "rows.parquet").mkdir()
    status, value = get(mine, "/row?place=0")
    assert status in (400, 500)
    assert str(tmp_path / "run") in value["error"]


def test_the_page_runs_no_script_but_its_own_file(pages: RowPages) -> None:
    status, page = get(pages, "/")
    assert status == 200
    assert re.findall(r"<script\b[^>]*>(.*?)</script>", page, re.S) == [""]
    assert re.findall(r"<style|\sstyle=|\son\w+=", page) == []
    assert "'unsafe" not in HEADERS["Content-Security-Policy"]
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(HEADERS["Content-Security-Policy"].split("; "))
    assert re.findall(r"(?:src|href)=\"(https?:|//)", page) == []


def test_over_a_socket(explorer: Explorer) -> None:
    address = urlsplit(explorer.url)
    token = address.query.removeprefix("token=")
    connection = http.client.HTTPConnection("127.0.0.1", explorer.port, timeout=20)
    for headers, status in (({}, 403), ({"Authorization": f"Bearer {token}"}, 200)):
        connection.request("GET", "/rows?find=capital", headers=headers)
        response = connection.getresponse()
        body = response.read()
        assert response.status == status
        assert {name: response.headers[name] for name in HEADERS} == HEADERS
    assert json.loads(body)["total"] > 0
    connection.request("GET", f"/?{address.query}", headers={"Host": "evil.example"})
    assert connection.getresponse().status == 403
    connection.close()


def test_it_listens_on_loopback_alone(explorer: Explorer) -> None:
    assert explorer._server.server_address[0] == "127.0.0.1"
    for kind, host in ((socket.AF_INET, "127.0.0.2"), (socket.AF_INET6, "::1")):
        with socket.socket(kind) as other:
            other.settimeout(2)
            with pytest.raises((ConnectionRefusedError, OSError)):
                other.connect((host, explorer.port))


# ---- the verb ----


def test_what_cannot_be_explored_is_refused_in_a_line(
    run: Cli, run_folder: Path, explorer: Explorer, tmp_path: Path
) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".run.json").write_text("{}")
    shutil.copytree(run_folder, tmp_path / "edited")
    with (tmp_path / "edited" / "rows.parquet").open("ab") as file:
        file.write(b"x")
    for words, reason in (
        ([tmp_path / "nothing"], "there is no such folder"),
        ([tmp_path], "it has no manifest.json"),
        ([tmp_path / "begun"], "it was begun and has not ended"),
        ([tmp_path / "edited"], "damaged or edited"),
        ([run_folder, "--port", explorer.port], "another program uses it"),
        ([run_folder, "--port", 70000], "expected a number from 1 to 65535"),
    ):
        code, _, err = run("explore", *words)
        lines = [line for line in err.splitlines() if not line.startswith("reading the rows")]
        assert (code, len(lines)) == (2, 1), err
        assert reason in lines[0]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_it_with_a_line(run_folder: Path, sent: int, code: int) -> None:
    words = [sys.executable, "-c", "from foreknow.cli import main; main()", "explore", str(run_folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline()
    assert re.fullmatch(r"explore: http://127\.0\.0\.1:\d+/\?token=[\w-]{32,}\n", address)
    time.sleep(0.3)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    ends = [line for line in err.splitlines() if line and not line.startswith("reading the rows")]
    assert process.returncode == code
    assert len(ends) == 1
    assert ends[0].startswith("foreknow: ")
    assert ("explore has ended" in ends[0]) is (sent == signal.SIGINT)


def test_in_python(run_folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected a finished run"):
        foreknow.explore(17)  # type: ignore[arg-type]
    explorer = foreknow.explore(foreknow.open_audit(run_folder))
    assert explorer.url in repr(explorer)
    assert f'href="{explorer.url}"' in explorer._repr_html_()
    explorer.close()
    explorer.close()
    assert repr(explorer) == "Explorer(closed)"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", explorer.port), timeout=2)


# ---- in a browser ----


needs_chromium = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
STATUS = "document.getElementById('status').textContent"
FILLED = "document.querySelectorAll('#row-body tr').length"


def opened(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.wait(FILLED)


@pytest.mark.browser
@needs_chromium
class TestInABrowser:
    def test_it_searches_filters_sorts_and_turns_pages(self, explorer: Explorer, table: RowTable) -> None:
        with Browser() as browser:
            opened(browser, explorer.url)
            assert browser.run(STATUS) == "Rows 1–50 of 1,200"
            browser.run("document.getElementById('next').click()")
            browser.wait(f"{STATUS}.startsWith('Rows 51')")
            browser.run("document.getElementById('find').focus()")
            browser.type("avens capital")
            browser.wait(f"{STATUS}.endsWith('(1,200 in all)')")
            expected = RowQueries(table).page(Query("avens capital"))
            assert browser.run(STATUS) == f"Rows 1–{min(50, expected.total)} of {expected.total} (1,200 in all)"
            browser.run("document.getElementById('reset').click()")
            browser.wait(f"{STATUS} === 'Rows 1–50 of 1,200'")
            change = (
                "(id, value) => { const select = document.getElementById(id); "
                "select.value = value; select.dispatchEvent(new Event('change')); }"
            )
            browser.run(f"({change})('by-category', '3')")
            browser.wait(f"{STATUS}.endsWith('(1,200 in all)')")
            browser.run(f"({change})('sort', 'p_sampled 1')")
            browser.wait("document.querySelector('[aria-sort=descending]')")
            unknown = RowQueries(table).page(Query(filters=(("category", 3),), sort="p_sampled", down=True))
            shown = browser.run("[...document.querySelectorAll('.open')].map((b) => Number(b.dataset.place))")
            assert shown == unknown.places
            assert browser.run("document.querySelectorAll('#row-body i.un').length") == len(unknown.places)
            browser.reload()  # what was chosen stands in the address
            browser.wait("document.querySelector('[aria-sort=descending]')")
            assert browser.run(STATUS).endswith("(1,200 in all)")
            assert browser.log == []

    def test_a_row_opens_and_closes_by_keyboard(self, explorer: Explorer, table: RowTable) -> None:
        with Browser() as browser:
            opened(browser, explorer.url)
            for _ in range(40):
                browser.press("Tab")
                if browser.run("document.activeElement.classList.contains('open')"):
                    break
            assert browser.run("document.activeElement.dataset.place") == "0"
            browser.press("Enter")
            browser.wait("document.getElementById('detail').open")
            detail = row_detail(table, 0)
            assert browser.run("document.activeElement.id") == "detail-title"
            assert browser.run("document.getElementById('detail-title').textContent") == detail["question"]
            assert browser.run("document.getElementById('detail-lead').textContent") == detail["lead"]
            prompts = browser.run("[...document.querySelectorAll('#detail pre')].map((p) => p.textContent)")
            assert prompts == [text for _, text in detail["sections"][-1]["prompts"]]
            browser.run("document.getElementById('row-next').click()")
            browser.wait("document.getElementById('detail-heading').textContent.startsWith('Row 1')")
            browser.press("Escape")
            browser.wait("!document.getElementById('detail').open")
            # the dialog gives the focus back to row 0 itself; the page moves it in the event that follows
            browser.wait("document.activeElement.dataset.place === '1'")
            assert browser.log == []

    @pytest.mark.parametrize("width", [390, 1280])
    def test_it_fits_the_screen(self, explorer: Explorer, width: int) -> None:
        with Browser(width, 844) as browser:
            opened(browser, f"{explorer.url}#row=3")
            browser.wait("document.getElementById('detail').open")
            for root in ("document.documentElement", "document.getElementById('detail')"):
                assert browser.run(f"{root}.scrollWidth <= {root}.clientWidth")
            assert browser.log == []

    def test_hostile_text_stays_text(self, run_folder: Path, tmp_path: Path) -> None:
        shutil.copytree(run_folder, tmp_path / "run")
        text = "".join(MARKUP.values())
        sets = next(iter(json.loads((run_folder / "exemplars.json").read_text()).values()))
        shots = [[{"question": text, "answer": text} for _ in shots] for shots in sets]
        (tmp_path / "run" / "exemplars.json").write_text(json.dumps({text: shots}))
        for name in ("rows", "probes"):
            path = tmp_path / "run" / f"{name}.parquet"
            frame = pl.read_parquet(path)
            if name == "rows":
                frame = frame.with_columns(
                    *(pl.lit(text).alias(c) for c in ("question", "answer", "model_answer", "group")),
                    answers=pl.concat_list(pl.lit(text), pl.lit(text + "2")),
                    flags=pl.concat_list(pl.lit(MARKUP["image"])),
                )
            frame.write_parquet(path)
        unchecked(tmp_path / "run")
        with foreknow.explore(tmp_path / "run") as explorer, Browser(390, 844) as browser:
            opened(browser, f"{explorer.url}#row=0")
            browser.wait("document.getElementById('detail').open")
            assert browser.log == []
            assert browser.run("document.querySelectorAll('main img, main iframe, main style, main a').length") == 0
            assert browser.run("document.title") == "foreknow explore: run"
            assert browser.run("document.getElementById('detail-title').textContent") == text
            assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    def test_it_says_when_explore_has_ended(self, run_folder: Path) -> None:
        with Browser() as browser:
            with foreknow.explore(run_folder) as explorer:
                opened(browser, explorer.url)
            browser.run("document.getElementById('next').click()")
            browser.wait(f"{STATUS}.includes('foreknow explore has ended')")

    def test_no_page_of_another_origin_may_read_it(self, explorer: Explorer) -> None:
        target = (
            f"http://127.0.0.1:{explorer.port}/rows?{urlencode({'find': 'capital'})}&{urlsplit(explorer.url).query}"
        )
        with Browser() as browser:
            browser.open("data:text/html,<p>another page</p>")
            assert browser.run(f"fetch('{target}').then(() => 'read', () => 'refused')") == "refused"
            browser.open(target)
            assert browser.run(f"fetch('{target}').then(() => 'read', () => 'refused')") == "read"
