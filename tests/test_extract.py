"""Short facts from an endpoint: against a real server on loopback, with every fault a server can have."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.data.dataset import read_dataset
from foreknow.errors import ConfigError, ForeknowError, InputError, MissingExtra, ResourceError, RunFolderError
from foreknow.inference.server.client import Endpoint, RequestFailure, RequestSession
from foreknow.settings import settings_of
from foreknow.stages.extract.grounding import REASONS, Pair, grounded, parse, span
from foreknow.stages.extract.run import FACTS, ExtractConfig, Extraction, extract
from serving import RESET, Asked, Reply, Script, Server, always, completion, refuses, says, serving, speaks

SECRET = "sk-4b1d-not-to-be-seen-anywhere"


pytestmark = pytest.mark.usefixtures("plain_environment")


def towns(count: int) -> pl.DataFrame:
    """Rows whose text says in which year a town was founded."""
    texts = [f"Town{n} was founded in the year {1000 + n} by settlers." for n in range(count)]
    return pl.DataFrame(
        {"row": range(count), "question": [f"What is Town{n}?" for n in range(count)], "answers": [[t] for t in texts]},
        schema_overrides={"row": pl.Int64},
    )


def town(asked: Asked) -> int:
    """The number of the town that a request is about."""
    return int(re.findall(r"Town(\d+) was founded", asked.prompt)[-1])


def fact(n: int) -> dict[str, str]:
    return {"question": f"In which year was Town{n} founded?", "answer": str(1000 + n)}


def right(asked: Asked) -> Reply:
    """The town's fact as JSON."""
    return says(json.dumps({"facts": [fact(town(asked))]}), tokens=(100, 20))


def config(server: Server | str, out: Path, **more: Any) -> ExtractConfig:
    given = {"data": "towns.jsonl", "endpoint": server if isinstance(server, str) else server.url, "model": "m"}
    return ExtractConfig(**{**given, "out": out, "backoff": 0.01, **more})


def facts_of(done: Extraction) -> list[Any]:
    assert done.frame.schema == pl.Schema(FACTS)
    return done.frame["facts"].to_list()


# from row to facts


def test_each_row_gets_the_facts_of_its_text(tmp_path: Path) -> None:
    with serving(right) as server:
        done = extract(towns(10), config(server, tmp_path / "out.jsonl"))
    assert facts_of(done) == [[fact(n)] for n in range(10)]
    assert done.summary == {
        "rows": 10, "asked": 10, "from_cache": 0, "requests": 10, "failed": [], "facts": 10, "rows_with_facts": 10,
        "refused": {}, "tokens": {"prompt": 1000, "completion": 200}, "model": "m", "endpoint": server.url,
    }  # fmt: skip
    assert len(server.seen) == 10


def test_the_request_is_the_one_documented(tmp_path: Path) -> None:
    rows = towns(1).with_columns(context=pl.Series([[{"role": "user", "content": "We spoke of towns."}]]))
    settings = config("", tmp_path / "o.jsonl", max_facts=3, max_answer_words=5, temperature=0.25, max_tokens=77)
    with serving(right) as server:
        extract(rows, settings.model_copy(update={"endpoint": f"{server.url}/"}))
    (asked,) = server.seen
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == "Bearer none"
    assert (asked.body["model"], asked.body["temperature"], asked.body["max_tokens"]) == ("m", 0.25, 77)
    assert asked.body["response_format"]["type"] == "json_schema"
    for part in ("We spoke of towns.", "What is Town0?", "Town0 was founded in", "at most 3 pairs", "at most 5 words"):
        assert part in asked.prompt


def test_rows_without_a_text_are_not_asked_and_equal_rows_are_asked_once(tmp_path: Path) -> None:
    rows = towns(2)
    blank = rows.head(1).with_columns(answers=pl.lit(None, dtype=pl.List(pl.String)), row=pl.lit(2, pl.Int64))
    rows = pl.concat([rows, blank, rows.head(1).with_columns(row=pl.lit(3, pl.Int64))])
    with serving(right) as server:
        done = extract(rows, config(server, tmp_path / "out.jsonl"))
    assert facts_of(done) == [[fact(0)], [fact(1)], None, [fact(0)]]
    assert (done.summary["rows"], done.summary["asked"], len(server.seen)) == (4, 3, 2)


def test_what_the_text_does_not_bear_out_is_refused_and_counted(tmp_path: Path) -> None:
    pairs = [
        fact(0), {"question": "Who lived there?", "answer": "Settlers"}, {"question": "Which king?", "answer": "Otto"},
        {"question": "In which year was TOWN0 founded", "answer": "1000"}, {"question": "", "answer": "1000"},
    ]  # fmt: skip
    with serving(always(says(json.dumps(pairs)))) as server:
        done = extract(towns(1), config(server, tmp_path / "out.jsonl"))
    assert facts_of(done) == [[fact(0), {"question": "Who lived there?", "answer": "settlers"}]]
    assert done.summary["refused"] == {"duplicate": 1, "empty": 1, "not_in_text": 1}
    assert done.summary["tokens"] is None


def test_the_file_comes_back_with_a_column_of_facts(tmp_path: Path) -> None:
    rows = [{"id": f"x{n}", "q": q, "a": a[0]} for n, q, a in towns(3).iter_rows()]
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = read_dataset(path, columns={"question": "q", "answer": "a"})
    with serving(lambda asked: refuses(400) if town(asked) == 1 else right(asked)) as server:
        given.annotate(extract(given.rows, config(server, out)).frame, out)
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert written == [{**row, "facts": None if n == 1 else [fact(n)]} for n, row in enumerate(rows)]


# faults


def at_first(fault: Reply) -> Script:
    """A server that has this fault with the first request for each row."""
    return lambda asked: fault if asked.nth == 0 else right(asked)


FAULTS = {
    "500": refuses(500), "502, a page": Reply(b"<html>bad gateway</html>", 502, {"Content-Type": "text/html"}),
    "503": refuses(503, "loading"), "504": refuses(504), "408": refuses(408), "409": refuses(409),
    "429": refuses(429, "slow down", {"Retry-After": "0.05"}), "429 without a time": refuses(429),
    "429, nonsense for a time": refuses(429, headers={"Retry-After": "soon"}),
    "a timeout": says("late", delay=1.0), "a reset": RESET, "no JSON": Reply(b'{"choices": ['),
    "not UTF-8": Reply(b'{"a": "\xe9"}'), "no object": Reply(b"[1]"), "null": Reply(b"null"), "nothing": Reply(b""),
    "a page": Reply(b"<html>hello</html>", headers={"Content-Type": "text/html"}),
    "no choices": Reply(completion([])), "null choices": Reply(b'{"choices": null}'),
    "an odd choice": Reply(completion([3])), "no message": Reply(completion([{"index": 0}])),
    "deep": Reply(b"[" * 100_000), "an encoding that is not": Reply(b"zz", headers={"Content-Encoding": "gzip"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_loses_no_row(tmp_path: Path, fault: str) -> None:
    with serving(at_first(FAULTS[fault])) as server:
        done = extract(towns(6), config(server, tmp_path / "out.jsonl", timeout=0.3, retries=2))
    assert facts_of(done) == [[fact(n)] for n in range(6)]
    assert len(server.seen) == done.summary["requests"] == 12


UNREADABLE = {
    "broken JSON": says('[{"question": "When?" "answer": "1000"}]'), "prose": says("There are no facts here, sorry."),
    "nothing": says(""), "null": says(None), "cut off": says('{"facts": [{"question": "Wh', finish="length"),
    "another form": says('{"result": "1000"}'),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_reply_that_cannot_be_read_is_asked_for_again(tmp_path: Path, kind: str) -> None:
    def script(asked: Asked) -> Reply:
        return right(asked) if "could not be read" in asked.prompt else UNREADABLE[kind]

    with serving(script) as server:
        done = extract(towns(3), config(server, tmp_path / "out.jsonl"))
    assert facts_of(done) == [[fact(n)] for n in range(3)]
    assert len(server.seen) == 6
    assert [asked.body["temperature"] for asked in server.seen] == [0.0] * 3 + [0.5] * 3


def test_a_row_whose_replies_are_never_readable_fails_alone_and_is_not_asked_for_ever(tmp_path: Path) -> None:
    def script(asked: Asked) -> Reply:
        return UNREADABLE["cut off"] if town(asked) == 1 else right(asked)

    settings = config("", tmp_path / "out.jsonl", attempts=3, max_tokens=50)
    with serving(script) as server:
        settings = settings.model_copy(update={"endpoint": server.url})
        done = extract(towns(3), settings)
        assert facts_of(done) == [[fact(0)], None, [fact(2)]]
        assert done.summary["failed"] == [{"row": 1, "reason": "the reply was cut off at 50 tokens"}]
        assert len(server.seen) == 5
        assert extract(towns(3), settings).summary["failed"] == done.summary["failed"]
        assert len(server.seen) == 5  # its replies are known: asking again would bring the same


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [
        (refuses(400, "this model's context is 512 tokens"), "400: this model's context is 512 tokens", 1),
        (refuses(500, "out of\n memory\x1b[31m"), "500: out of memory\ufffd[31m", 3),
        (RESET, "the connection was lost ([Errno 104] Connection reset by peer)", 3),
        (says("late", delay=0.9), "no answer within 0.3 s", 3),
        (Reply(completion([])), "the server's reply has no choices", 3),
    ],
)
def test_a_row_the_server_cannot_answer_fails_alone_and_the_next_run_asks_it_alone(
    tmp_path: Path, fault: Reply, reason: str, requests: int
) -> None:
    broken = threading.Event()
    broken.set()

    def script(asked: Asked) -> Reply:
        return fault if broken.is_set() and town(asked) == 2 else right(asked)

    with serving(script) as server:
        settings = config(server, tmp_path / "out.jsonl", timeout=0.3, retries=2, concurrency=1)
        done = extract(towns(5), settings)
        assert facts_of(done) == [[fact(0)], [fact(1)], None, [fact(3)], [fact(4)]]
        assert done.summary["failed"] == [{"row": 2, "reason": reason}]
        assert len(server.seen) == done.summary["requests"] == 4 + requests
        broken.clear()
        server.seen.clear()
        again = extract(towns(5), settings)
        assert [town(asked) for asked in server.seen] == [2]
    assert facts_of(again) == [[fact(n)] for n in range(5)]
    assert (again.summary["from_cache"], again.summary["failed"]) == (4, [])


@pytest.mark.parametrize(("told", "least"), [("0.4", 0.4), (None, 1.0)])
def test_the_wait_that_the_server_asks_for_is_kept_by_all(tmp_path: Path, told: str | None, least: float) -> None:
    first = threading.Lock()
    refused: list[Asked] = []

    def script(asked: Asked) -> Reply:
        with first:
            if not refused:
                refused.append(asked)
                return refuses(429, headers={"Retry-After": told or formatdate(time.time() + 2, usegmt=True)})
        time.sleep(0.05)
        return right(asked)

    with serving(script) as server:
        done = extract(towns(8), config(server, tmp_path / "out.jsonl", concurrency=2))
    assert facts_of(done) == [[fact(n)] for n in range(8)]
    early = [a for a in server.seen if refused[0].at < a.at < refused[0].at + least - 0.05]
    assert len(early) <= 1  # the other request, if it was on its way
    assert len(server.seen) == 9


def test_never_more_requests_at_once_than_wanted(tmp_path: Path) -> None:
    lock = threading.Lock()
    now, most = [0], [0]

    def script(asked: Asked) -> Reply:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return right(asked)

    with serving(script) as server:
        extract(towns(24), config(server, tmp_path / "out.jsonl", concurrency=3))
    assert most[0] == 3


def test_an_endpoint_that_only_fails_is_left_after_a_few_rows(tmp_path: Path) -> None:
    with serving(always(refuses(500, "no memory"))) as server:
        settings = config(server, tmp_path / "out.jsonl", retries=1, concurrency=2)
        with pytest.raises(ResourceError, match=r"v1: 8 requests in a row failed for good; the last: 500: no memory\."):
            extract(towns(100), settings)
        time.sleep(0.1)
        assert len(server.seen) <= (8 + 2) * 2


def test_an_endpoint_that_dies_is_left_and_what_it_answered_is_kept(tmp_path: Path) -> None:
    dead = threading.Event()

    def script(asked: Asked) -> Reply:
        if town(asked) == 20:
            dead.set()
        return RESET if dead.is_set() else right(asked)

    with serving(script) as server:
        settings = config(server, tmp_path / "out.jsonl", retries=1, concurrency=1)
        with pytest.raises(ResourceError, match="the same command goes on from here"):
            extract(towns(60), settings)
    with serving(right) as server:
        extract(towns(60), settings.model_copy(update={"endpoint": server.url}))
    assert sorted(map(town, server.seen)) == list(range(20, 60))


def test_where_no_row_gets_facts_it_is_an_error(tmp_path: Path) -> None:
    with serving(always(says("I cannot do that."))) as server:
        settings = config(server, tmp_path / "out.jsonl", attempts=2)
        with pytest.raises(ResourceError, match=r"no row of 3 got its facts; the first: row 0: the reply held no JSON"):
            extract(towns(3), settings)
        assert len(server.seen) == 6


# what the server does not take


def without(option: str, refusal: Reply) -> Script:
    return lambda asked: refusal if option in asked.body else right(asked)


@pytest.mark.parametrize(
    ("option", "refusal"),
    [
        ("response_format", refuses(400, "response_format is not supported")),
        ("response_format", Reply(b'{"detail": "Unexpected keys in the request"}', 422)),
        ("temperature", refuses(400, "Only the default (1) is supported.", param="temperature")),
        ("max_tokens", refuses(400, "Use 'max_completion_tokens' instead.", param="max_tokens")),
    ],
)
def test_an_option_the_server_does_not_take_is_left_out(
    tmp_path: Path, option: str, refusal: Reply, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(without(option, refusal)) as server:
        done = extract(towns(12), config(server, tmp_path / "out.jsonl", concurrency=2))
    assert facts_of(done) == [[fact(n)] for n in range(12)]
    assert 13 <= len(server.seen) <= 14
    assert f"the server does not take {option}; going on without it" in capsys.readouterr().err
    last = server.seen[-1].body
    assert {"response_format", "temperature", "max_tokens"} - set(last) == {option}
    assert option != "max_tokens" or last["max_completion_tokens"] == 1024


def test_a_row_that_is_too_long_does_not_cost_the_others_their_schema(tmp_path: Path) -> None:
    def script(asked: Asked) -> Reply:
        return refuses(400, "the text is too long") if town(asked) == 0 else right(asked)

    with serving(script) as server:
        done = extract(towns(4), config(server, tmp_path / "out.jsonl", concurrency=1))
    assert done.summary["failed"] == [{"row": 0, "reason": "400: the text is too long"}]
    assert ["response_format" in asked.body for asked in server.seen] == [True, False, True, True, True]


# what ends a run at once


def refusing(tmp_path: Path, script: Script, *, rows: int = 40, **more: Any) -> tuple[ForeknowError, Server]:
    with serving(script, models=("small", "large")) as server:
        with pytest.raises(ForeknowError) as caught:
            extract(towns(rows), config(server, tmp_path / "out.jsonl", **more))
        time.sleep(0.05)
        assert len(server.prompts) <= 8, "a hopeless run goes on asking"
    assert str(caught.value).startswith(server.url)
    assert len(str(caught.value).splitlines()) <= 2
    return caught.value, server


def test_a_key_that_is_wanted(tmp_path: Path) -> None:
    error, _ = refusing(tmp_path, always(refuses(401, "no key given")))
    assert isinstance(error, InputError)
    assert "a key is wanted; put yours into OPENAI_API_KEY (401: no key given)" in str(error)


def test_a_key_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    error, _ = refusing(tmp_path, always(refuses(403, f"the key {SECRET} is not yours")))
    assert isinstance(error, InputError)
    assert "the key in OPENAI_API_KEY was refused (403: the key [key] is not yours)" in str(error)


def test_a_model_the_server_does_not_have(tmp_path: Path) -> None:
    error, _ = refusing(tmp_path, always(refuses(404, "The model `m` does not exist")))
    assert isinstance(error, InputError)
    assert "no model 'm' (404: The model `m` does not exist). It has small, large" in str(error)


@pytest.mark.parametrize("status", [404, 405])
def test_an_address_without_chat_completions(tmp_path: Path, status: int) -> None:
    with serving(always(Reply(b"<html>nothing</html>", status, {"Content-Type": "text/html"}))) as server:
        url = server.url.removesuffix("/v1")
        with pytest.raises(InputError, match=rf"{url}: nothing to ask there \({status}: .*most end in /v1"):
            extract(towns(9), config(url, tmp_path / "out.jsonl"))


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:{port}/v1", "https://127.0.0.1:{port}", "http://nowhere.invalid/v1"],
)
def test_no_server_at_all(tmp_path: Path, url: str) -> None:
    with serving(right) as gone:
        port = gone.url.rpartition(":")[2].partition("/")[0]
    began = time.monotonic()
    with pytest.raises(InputError, match=r"no server answers there \(.*\)\. Check the address, and that it runs"):
        extract(towns(9), config(url.format(port=port), tmp_path / "out.jsonl", backoff=5))
    assert time.monotonic() - began < 4, "it was retried"


@pytest.mark.parametrize("refusal", [refuses(402, "pay first"), refuses(429, "pay first", code="insufficient_quota")])
def test_a_quota_that_is_used_up(tmp_path: Path, refusal: Reply) -> None:
    error, _ = refusing(tmp_path, always(refusal))
    assert isinstance(error, ResourceError)
    assert "the quota is used up" in str(error)
    assert "pay first" in str(error)


def test_a_wait_that_is_too_long(tmp_path: Path) -> None:
    error, _ = refusing(tmp_path, always(refuses(429, headers={"Retry-After": "7200"})))
    assert isinstance(error, ResourceError)
    assert "asks us to wait 2 h 0 min" in str(error)


def test_a_redirect_does_not_carry_the_key_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(right) as other:
        away = {"Location": f"{other.url}/chat/completions".replace("127.0.0.1", "localhost")}
        with serving(always(Reply(b"", 307, away))) as server:
            extract(towns(2), config(server, tmp_path / "out.jsonl"))
        assert SECRET in server.seen[0].headers["authorization"]
        assert len(other.seen) == 2
        assert not any(SECRET in str(asked.headers) for asked in other.seen)


# the key


def test_the_key_is_in_the_header_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {SECRET}\n")

    def script(asked: Asked) -> Reply:
        if asked.nth == 0:
            return refuses(500, f"you sent {asked.headers['authorization']}")
        if town(asked) == 1:
            return refuses(400, f"you sent {asked.headers['authorization']}")
        said = [fact(town(asked)), {"question": "Which key?", "answer": SECRET}]
        return says(f"You sent {asked.headers['authorization']}: {json.dumps(said)}")

    with serving(script) as server:
        settings = config(server, tmp_path / "out.jsonl")
        done = extract(towns(4), settings)
    assert all(asked.headers["authorization"] == f"Bearer {SECRET}" for asked in server.seen)
    assert facts_of(done)[0] == [fact(0)]
    assert done.summary["failed"] == [{"row": 1, "reason": "400: you sent Bearer [key]"}]
    shown = "".join(capfd.readouterr())
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"[key]" in kept
    for text in (shown, kept.decode(), repr(done), str(settings), repr(settings.resolved())):
        assert SECRET not in text


def test_a_key_that_cannot_stand_in_a_header_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("sk-one\nsk-two", "sk-é", "sk one"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ConfigError, match="OPENAI_API_KEY: holds characters that no key has") as caught:
            extract(towns(1), config("http://localhost:1/v1", tmp_path / "out.jsonl"))
        assert "sk" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://me:pass@host/v1", "http://host/v1?key=pass", "http://host/v1#pass"])
def test_a_secret_in_the_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="give the plain address") as caught:
        Endpoint(url, "m")
    assert "pass@" not in str(caught.value)
    assert "key=" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000/v1", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1/v1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="not a server's address, expected one such as http://localhost:8000/v1"):
        Endpoint(url, "m")


# the cache


def test_a_finished_run_asks_nothing_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(right) as server:
        settings = config(server, tmp_path / "out.jsonl")
        first = extract(towns(5), settings)
    monkeypatch.setitem(sys.modules, "openai", None)  # neither the server nor the package is there any more
    again = extract(towns(5), settings)
    assert again.frame.equals(first.frame)
    assert (again.summary["requests"], again.summary["from_cache"]) == (0, 5)
    assert again.summary["tokens"] == first.summary["tokens"]


def test_a_reply_is_known_by_what_was_asked_not_by_where(tmp_path: Path) -> None:
    with serving(right) as server, serving(right) as other:
        extract(towns(4), config(server, tmp_path / "out.jsonl"))
        extract(towns(6), config(other, tmp_path / "out.jsonl", concurrency=1, timeout=5, retries=0))
        assert [town(asked) for asked in other.seen] == [4, 5]
        for change in ({"model": "n"}, {"max_facts": 2}, {"temperature": 1}, {"max_tokens": 9}):
            other.seen.clear()
            extract(towns(1), config(other, tmp_path / "out.jsonl", **change))
            assert len(other.seen) == 1, change


@pytest.mark.parametrize(
    "damage", [b"", b'{"key": "sha256:', b'\xff\xfe{"key"', b'[1]\n{"key": 3}\n{"text": "x"}\nnull\n"']
)
def test_a_cache_with_a_torn_end_costs_that_row_alone(tmp_path: Path, damage: bytes) -> None:
    cache = tmp_path / "out.jsonl.cache" / "replies.jsonl"
    with serving(right) as server:
        settings = config(server, tmp_path / "out.jsonl", concurrency=1)
        extract(towns(4), settings)
        whole = cache.read_bytes().splitlines(keepends=True)
        assert len(whole) == 4
        torn = damage or whole[3][: len(whole[3]) // 2]
        cache.write_bytes(b"".join(whole[:3]) + torn)
        for asked in ([3], []):
            server.seen.clear()
            assert facts_of(extract(towns(4), settings)) == [[fact(n)] for n in range(4)]
            assert [town(seen) for seen in server.seen] == asked


def test_replies_that_only_json_can_spell_are_kept(tmp_path: Path) -> None:
    facts = json.dumps({"facts": [{"question": "W\ud800?", "answer": "1000"}, fact(0)]})
    odd = f"\ud800 {facts} \u2028\x00"
    with serving(always(says(odd))) as server:
        settings = config(server, tmp_path / "out.jsonl")
        first = extract(towns(1), settings)
        assert facts_of(first) == [[fact(0)]]
        assert extract(towns(1), settings).frame.equals(first.frame)
        assert len(server.seen) == 1


def test_two_runs_do_not_write_one_cache(tmp_path: Path) -> None:
    from foreknow.io.run_dir import lock_run_dir

    with lock_run_dir(tmp_path / "out.jsonl.cache"), pytest.raises(RunFolderError, match="held by another run"):
        extract(towns(1), config("http://localhost:1/v1", tmp_path / "out.jsonl"))


def test_a_full_disk_says_so_and_keeps_what_was_read(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    cache = tmp_path / "out.jsonl.cache"
    cache.mkdir()
    (cache / "replies.jsonl").symlink_to("/dev/full")
    with (
        serving(always(says("x" * 100_000))) as server,
        pytest.raises(ResourceError, match=r"replies.jsonl: cannot be written \(No space left on device\)"),
    ):
        extract(towns(1), config(server, tmp_path / "out.jsonl"))


# killed, interrupted

RUN = """
import sys
from pathlib import Path
from foreknow.stages.extract.run import ExtractConfig, extract
from foreknow.data.dataset import read_dataset
from foreknow.progress import log_to_stderr

log_to_stderr()
data, url, out, concurrency = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
try:
    given = read_dataset(data)
    done = extract(
        given.rows,
        ExtractConfig(data=str(data), endpoint=url, model="m", out=out, concurrency=concurrency, backoff=0.01),
    )
    given.annotate(done.frame, out)
except KeyboardInterrupt:
    sys.exit(130)
"""


def running(tmp_path: Path, server: Server, rows: pl.DataFrame, concurrency: int) -> subprocess.Popen[bytes]:
    data = tmp_path / "in.jsonl"
    data.write_text(
        "".join(json.dumps({"question": q, "answer": a[0]}) + "\n" for _, q, a in rows.iter_rows()), encoding="utf-8"
    )
    command = [sys.executable, "-c", RUN, str(data), server.url, str(tmp_path / "out.jsonl"), str(concurrency)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def until(met: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 30
    while not met():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rows, concurrency = towns(60), 3

    def slow(asked: Asked) -> Reply:
        time.sleep(0.02)
        return right(asked)

    cache = tmp_path / "out.jsonl.cache" / "replies.jsonl"
    with serving(slow) as server:
        known, rounds = 0, 0
        for least in (10, 30):  # killed twice
            began = len(server.seen)
            with running(tmp_path, server, rows, concurrency) as process:
                until(partial(lambda least: len(server.seen) >= least, least), process)
                process.send_signal(signal.SIGKILL)
                process.communicate()
            asked = len(server.seen) - began
            kept = cache.read_bytes().count(b"\n") - known
            assert asked - concurrency - 1 <= kept < 60 - known, "more was lost than was under way"
            known, rounds = known + kept, rounds + 1
            assert not (tmp_path / "out.jsonl").exists()
        began = len(server.seen)
        with running(tmp_path, server, rows, concurrency) as process:
            _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert len(server.seen) - began == 60 - known
        assert f"{known} of 60 replies are in the cache; asking for {60 - known}" in err.decode()
        assert max(Counter(map(town, server.seen)).values()) <= 1 + rounds
        written = [json.loads(line)["facts"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert written == [[fact(n)] for n in range(60)]


def test_an_interrupted_run_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    def stuck(asked: Asked) -> Reply:
        return says("late", delay=20) if town(asked) == 6 else right(asked)

    cache = tmp_path / "out.jsonl.cache" / "replies.jsonl"
    with serving(stuck) as server:
        with running(tmp_path, server, towns(8), 1) as process:
            until(lambda: len(server.seen) == 7 and cache.read_bytes().count(b"\n") == 6, process)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=15)
        assert time.monotonic() - began < 5
        assert (process.returncode, b"Traceback" in err) == (130, False)
        assert not (tmp_path / "out.jsonl").exists()


# a real model


def test_a_real_models_nonsense_is_refused_cleanly(tmp_path: Path, tiny_folder: Path) -> None:
    model = speaks(tiny_folder, most=24)

    def mixed(asked: Asked) -> Reply:
        return right(asked) if town(asked) == 0 else model(asked)

    with serving(mixed) as server:
        settings = config(server, tmp_path / "out.jsonl", attempts=2, max_tokens=24)
        done = extract(towns(3), settings)
        assert facts_of(done) == [[fact(0)], None, None]
        assert [failed["row"] for failed in done.summary["failed"]] == [1, 2]
        assert len(server.seen) == 5
        with pytest.raises(ResourceError, match="no row of 2 got its facts"):
            extract(towns(3).tail(2), settings)


def test_a_real_models_answers_are_kept_where_the_text_has_them(tmp_path: Path, tiny_folder: Path) -> None:
    from conftest import CAPITALS

    model = speaks(tiny_folder, most=12)
    subjects = [*list(CAPITALS)[:3], *list(CAPITALS)[-3:]]  # three it was taught, three it was not
    questions = [f"What is the capital of {subject}?" for subject in subjects]
    said: dict[str, str] = {}

    def wraps(asked: Asked) -> Reply:
        (question,) = (q for q in questions if q in asked.prompt)
        generated = model(replace(asked, body={"messages": [{"content": f"Q: {question}\nA:"}], "max_tokens": 12}))
        content = json.loads(generated.body)["choices"][0]["message"]["content"]
        said[question] = content.split("\n")[0].strip()
        return says(json.dumps([{"question": question, "answer": said[question]}]))

    rows = pl.DataFrame(
        {
            "row": range(6),
            "question": questions,
            "answers": [[f"The seat of government is {CAPITALS[s]}, on the coast."] for s in subjects],
        },
        schema_overrides={"row": pl.Int64},
    )
    with serving(wraps) as server:
        done = extract(rows, config(server, tmp_path / "out.jsonl"))
    for subject, question, kept in zip(subjects, questions, facts_of(done), strict=True):
        right_answer = said[question] == CAPITALS[subject]
        assert kept == ([{"question": question, "answer": CAPITALS[subject]}] if right_answer else [])
    assert done.summary["rows_with_facts"] >= 3
    assert done.summary["refused"] == {"not_in_text": 6 - done.summary["rows_with_facts"]}


# parse and grounded

PAIRS = [Pair("Who?", "Ada"), Pair("When?", "1842")]
ARRAY = '[{"question": "Who?", "answer": "Ada"}, {"question": "When?", "answer": "1842"}]'


@pytest.mark.parametrize(
    "reply",
    [
        ARRAY,
        f'{{"facts": {ARRAY}}}',
        f'{{"Facts": {ARRAY}, "note": [1, 2]}}',
        f'{{"result": {{"pairs": {ARRAY}}}}}',
        f"```json\n{ARRAY}\n```",
        f"Here are [2] facts {{as asked}}:\n\n{ARRAY}\n\nI hope that [helps]!",
        f"<think>[{{\"question\": \"Draft?\", \"answer\": \"x\"}}] no: []</think>\n{ARRAY}",
        ARRAY.replace('"1842"', "1842").replace("question", "Question"),
        ARRAY.replace('"Ada"', '" Ada\\n"'),
        '{"question": "Who?", "answer": "Ada"}\n{"question": "When?", "answer": "1842"}',
    ],
)  # fmt: skip
def test_the_forms_a_reply_is_read_in(reply: str) -> None:
    assert parse(reply) == PAIRS


@pytest.mark.parametrize("reply", ["[]", '{"facts": []}', "```json\n[ ]\n```", "None found: []"])
def test_a_reply_that_says_there_are_none(reply: str) -> None:
    assert parse(reply) == []


@pytest.mark.parametrize(
    "reply",
    ["", "None.", "null", "3", ARRAY[:-1], ARRAY[:40], ARRAY.replace(":", ""), '["Who?", "Ada"]', '{"facts": "Ada"}',
     '{"facts": [{"question": "Who?", "answer": "Ada"}, {"question": "When?", "answ', "[[[[", '[{"a": []}, {"b" 1}]'],
)  # fmt: skip
def test_a_reply_that_cannot_be_read(reply: str) -> None:
    assert parse(reply) is None


FRAGMENTS = st.sampled_from(
    ["[", "]", "{", "}", '"', ",", ":", '"question"', '"answer"', '"facts"', '"x"', "1", "null", "\\", "\\ud800", "\n",
     "```", "</think>", "NaN", "1e999", '{"question": "q", "answer": "a"}', "9" * 5000, "é", "true"],
)  # fmt: skip


@given(st.one_of(st.text(), st.lists(FRAGMENTS, max_size=40).map("".join)))
def test_parse_reads_any_text(reply: str) -> None:
    for pair in parse(reply) or []:
        assert "\n" not in pair.question + pair.answer
        assert (pair.question + pair.answer).encode()


@pytest.mark.parametrize("reply", ["[{" * 50_000, '[{"a":' * 20_000, '{"' * 50_000, "[" * 100_000])
def test_a_long_nonsense_reply_is_read_in_no_time(reply: str) -> None:
    began = time.monotonic()
    assert parse(reply) is None
    assert time.monotonic() - began < 3


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12).map(lambda t: " ".join(t.split()))


@given(st.lists(st.builds(Pair, TEXTS, TEXTS.filter(bool)), min_size=1), st.booleans(), st.integers(0, 3))
def test_what_is_written_as_json_is_read_back(pairs: list[Pair], wrapped: bool, indent: int) -> None:
    items = [pair._asdict() for pair in pairs]
    text = json.dumps({"facts": items} if wrapped else items, indent=indent or None)
    assert parse(f"Sure!\n```\n{text}\n```") == pairs


WORDS = st.lists(
    st.sampled_from(["Ada", "ada", "Bö", "was", "b.", "1842", "42", "née", " ", "\n", "-", "ß", "İ", "東京"])
)


@given(st.lists(st.builds(Pair, WORDS.map(" ".join), WORDS.map(" ".join))), WORDS.map("".join), st.integers(1, 4))
def test_kept_answers_are_short_spans_and_every_pair_is_accounted_for(pairs: list[Pair], text: str, most: int) -> None:
    line = " ".join(text.split())
    kept, refused = grounded(pairs, text, max_facts=most, max_answer_words=2)
    assert len(kept) + len(refused) == len(pairs)
    assert len(kept) <= most
    assert {r.reason for r in refused} <= set(REASONS)
    for pair in kept:
        assert pair.answer in line
        assert 1 <= len(pair.answer.split()) <= 2
        assert pair.question
        assert pair.answer.split() != pair.question.split()
        assert span(pair.answer, pair.question) is None


@pytest.mark.parametrize(
    ("question", "answer", "text", "kept"),
    [
        ("Who?", "ada LOVELACE", "By Ada Lovelace.", "Ada Lovelace"),
        ("Who?", "ada", "Ada met ada.", "ada"),
        ("Where?", "New York", "In New\n   York", "New York"),
        ("Where?", "東京", "首都は東京です", "東京"),
        ("When?", "42", "In 1842", "not_in_text"),
        ("When?", "42", "In 1842, aged 42", "42"),
        ("What?", "art", "To start", "not_in_text"),
        ("What?", "start-up", "a start-up!", "start-up"),
        ("Who?", "Ada L.", "Ada Lovelace", "not_in_text"),
        ("Who?", "...", "And so ...", "empty"),
        ("Who?", "", "Ada", "empty"),
        ("", "Ada", "Ada", "empty"),
        ("Who?", "a b c d", "a b c d e", "long_answer"),
        ("Who was Ada?", "ada", "Ada", "answer_in_question"),
        ("Who was Adam?", "Ada", "Ada", "Ada"),
        ("According to the text, who?", "Ada", "Ada", "leans_on_text"),
        ("Who wrote this article?", "Ada", "Ada", "leans_on_text"),
        ("Which article of the treaty?", "Ada", "Ada", "Ada"),
    ],
)
def test_what_is_kept_and_why_not(question: str, answer: str, text: str, kept: str) -> None:
    found = grounded([Pair(question, answer)], text, max_facts=1, max_answer_words=3)
    assert [pair.answer for pair in found.kept] + [refused.reason for refused in found.refused] == [kept]


def test_a_question_is_asked_once_and_facts_beyond_the_most_are_refused() -> None:
    pairs = [Pair("Who?", "Ada"), Pair("who", "Bob"), Pair("When?", "1842"), Pair("Where?", "Rome")]
    found = grounded(pairs, "Ada and Bob, 1842, Rome", max_facts=2, max_answer_words=3)
    assert found.kept == [pairs[0], pairs[2]]
    assert [(r.pair, r.reason) for r in found.refused] == [(pairs[1], "duplicate"), (pairs[3], "too_many")]


# the client


def test_jobs_are_drawn_only_as_they_are_needed() -> None:
    drawn: list[int] = []

    def jobs() -> Any:
        for n in range(1000):
            drawn.append(n)
            yield n

    with serving(right) as server, RequestSession(Endpoint(server.url, "m", concurrency=4)) as session:
        for count, (_, _) in enumerate(session.each(jobs(), lambda n: n), start=1):
            assert len(drawn) <= count + 4
            if count == 50:
                break
        time.sleep(0.05)
        assert len(drawn) <= 55


def test_an_error_of_our_own_is_not_taken_for_the_servers() -> None:
    def ask(n: int) -> int:
        return 1 // n

    with RequestSession(Endpoint("http://localhost:1/v1", "m")) as session, pytest.raises(ZeroDivisionError):
        list(session.each([1, 0], ask))


def test_other_requests_go_through_the_same_patience() -> None:
    """What later stages build on: any request of the client, with retries, in any number."""

    def script(asked: Asked) -> Reply:
        if asked.nth == 0:
            return refuses(503)
        return refuses(400, "no") if asked.body["prompt"] == "2" else Reply(b'{"choices": [{"text": "x"}]}')

    with serving(script) as server, RequestSession(Endpoint(server.url, "m", backoff=0.01)) as session:
        made = session.client.completions.create
        found = dict(session.each("123", lambda text: made(model="m", prompt=text).choices[0].text))
        assert session.requests == 6
    assert found == {"1": "x", "2": RequestFailure("400: no", passing=False), "3": "x"}


def test_without_the_package_the_command_to_type_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"pip install 'foreknow\[openai\]'"):
        extract(towns(1), config("http://localhost:1/v1", tmp_path / "out.jsonl"))


def test_the_files_import_nothing_heavy() -> None:
    code = "import sys, foreknow.stages.extract.run as _"
    code += "; print([m for m in ('openai', 'torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"


def test_settings_name_the_flag_that_is_wrong(tmp_path: Path) -> None:
    given = {"data": "d", "endpoint": "http://h/v1", "model": "m"}
    assert settings_of(ExtractConfig, given).max_facts == 8
    for wrong in ({"max_facts": 0}, {"temperature": 3}, {"concurrency": 0}, {"timeout": 0}):
        with pytest.raises(ConfigError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
            settings_of(ExtractConfig, {**given, **wrong})
    with pytest.raises(ConfigError, match="endpoint: missing"):
        settings_of(ExtractConfig, {"data": "d", "model": "m"})
    with pytest.raises(ConfigError, match="--out: missing"):
        extract(towns(1), settings_of(ExtractConfig, given))
