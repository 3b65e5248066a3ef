"""How long `foreknow explore` takes to answer on a large run, and what its page takes in Chromium.

    python benchmarks/explore.py RUN [--rows 1000000] [--rounds 5] [--folder DIR] [--browser]

RUN is a small finished audit, evaluation or tune run; its rows are repeated until there are enough (`large_runs.py`).
Each request goes through a socket, as from a browser, and what earlier queries selected is forgotten before it. Prints
the median and the largest of the rounds in milliseconds, and the processor time of all threads, which does not depend
on what else the machine does. With `--browser` it also types into the page and prints the
time until the rows are on the screen.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the runs and the browser are those of the tests

from browser import Browser
from foreknow.stages.explore.responses import RowPages
from foreknow.stages.explore.row_table import open_table
from foreknow.stages.explore.server import Explorer, _listen
from large_runs import WORDS, enlarge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the large run here; it is used again")
    parser.add_argument("--browser", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "large"
        if not folder.is_dir():
            enlarge(args.run, folder, args.rows)
        size = sum(path.stat().st_size for path in folder.rglob("*.parquet")) / 1e6
        start = time.perf_counter()
        table = open_table(folder)
        memory = psutil.Process().memory_info().rss / 1e6
        print(
            f"{table.frame.height:,} rows, {size:,.0f} MB of Parquet: read in {time.perf_counter() - start:.1f} s; "
            f"the table takes {table.frame.estimated_size() / 1e6:,.0f} MB, the process {memory:,.0f} MB"
        )
        pages = RowPages(table)
        with Explorer(_listen(0), pages) as explorer:
            measure(explorer, pages, args.rounds)
            if args.browser:
                look(explorer)


def measure(explorer: Explorer, pages: RowPages, rounds: int) -> None:
    """Print the time of each kind of request."""
    table = pages.table
    token = urlsplit(explorer.url).query.removeprefix("token=")
    connection = http.client.HTTPConnection("127.0.0.1", explorer.port)
    names = {c.name for c in table.columns}
    filters = {f.name: f for f in table.filters}
    number = next(name for name in ("p_sampled", "new_spans", "correct", "last") if name in names)
    draw = random.Random(0)
    category = {"filter-category": 3} if "category" in filters else {"filter-spans": 1}
    queries = {
        "first page": lambda: {},
        "last page": lambda: {"page": 10**6},
        "search, a word in most rows": lambda: {"find": "what"},
        "search, a word in a quarter of the rows": lambda: {"find": draw.choice(WORDS)},
        "search, two words in few rows": lambda: {"find": f"{draw.choice(WORDS)} {draw.randrange(10**5)}:"},
        "search, a word in no row": lambda: {"find": f"nowhere{draw.random()}"},
        "filter by category": lambda: category,
        "filter by group": lambda: {"filter-group": 0} if "group" in filters else category,
        "filter by category, sort by a number": lambda: {**category, "sort": number, "down": 1},
        "filter by category, sort by question": lambda: {**category, "sort": "question"},
        "filter, search and sort by question": lambda: {**category, "sort": "question", "find": draw.choice(WORDS)},
        "sort by question": lambda: {"sort": "question"},
        "sort by question, the last page": lambda: {"sort": "question", "page": 10**6},
        "sort by question, page 201": lambda: {"sort": "question", "page": 200},
        "sort by answer, descending": lambda: {"sort": "answer", "down": 1},
    }
    worst = 0.0
    for name, values in queries.items():
        times, busy = [], []
        for _ in range(rounds):
            pages._queries.forget()
            start = time.process_time()
            times.append(_ask(connection, f"/rows?{urlencode(values())}", token))
            busy.append(1000 * (time.process_time() - start))
        worst = max(worst, *times)
        print(_line(name, times, busy))
    times, busy = [], []
    for _ in range(2 * rounds):
        start = time.process_time()
        times.append(_ask(connection, f"/row?place={draw.randrange(table.frame.height)}", token))
        busy.append(1000 * (time.process_time() - start))
    worst = max(worst, *times)
    print(_line("a row, explained", times, busy))
    print(f"largest of all: {worst:.0f} ms")


def _line(name: str, times: list[float], busy: list[float]) -> str:
    return (
        f"{name:<48}{statistics.median(times):8.0f} ms{max(times):8.0f} ms at most"
        f"{statistics.median(busy):8.0f} ms of the processor"
    )


def _ask(connection: http.client.HTTPConnection, target: str, token: str) -> float:
    start = time.perf_counter()
    connection.request("GET", target, headers={"Authorization": f"Bearer {token}"})
    response = connection.getresponse()
    json.loads(response.read())
    assert response.status == 200, target
    return 1000 * (time.perf_counter() - start)


def look(explorer: Explorer) -> None:
    """Print what the page takes in a browser, from the key or click to the rows on the screen."""
    with Browser() as browser:
        seconds = browser.open(explorer.url) + browser.wait("document.querySelectorAll('#row-body tr').length")
        print(f"{'browser: the page, with its first rows':<48}{1000 * seconds:8.0f} ms")
        status = "document.getElementById('status').textContent"
        browser.run("document.getElementById('find').focus()")
        browser.type("amber")
        waited = browser.wait(f"{status}.includes('in all')")
        print(f"{'browser: a search, the 150 ms of typing included':<48}{1000 * waited:8.0f} ms")
        browser.run("document.querySelectorAll('#row-head button')[1].click()")
        waited = browser.wait("document.querySelector('#row-head [aria-sort]')")
        print(f"{'browser: the same, sorted by question':<48}{1000 * waited:8.0f} ms")
        browser.run("document.querySelector('.open').click()")
        print(f"{'browser: a row':<48}{1000 * browser.wait('document.getElementById(`detail`).open'):8.0f} ms")
        assert browser.log == [], browser.log


if __name__ == "__main__":
    main()
