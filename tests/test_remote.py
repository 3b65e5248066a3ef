"""Run folders and data in object stores: on a real S3 server of our own, and on fsspec's memory for the many cases."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import foreknow
from conftest import fact_rows
from foreknow import cli
from foreknow.config import AuditConfig, MixConfig
from foreknow.errors import ConfigError, ForeknowError, InputError, MissingExtra, ResourceError, RunFolderError
from foreknow.io import remote, remote_lock, remote_sync
from foreknow.io.remote import download
from foreknow.io.remote_paths import MirrorPath, mirrors, place, url_of
from foreknow.io.run_dir import RunDir, lock_run_dir, write_folder, write_text
from foreknow.io.sources import source_of
from foreknow.settings import settings_of
from foreknow.stages.train.checkpoints import complete

Machine = Callable[[str], Path]
RUN = Path("memory://store/run")
IDENTITY = {"data": "sha256:aa"}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """From here on this process has the cache of another machine."""

    def be(name: str) -> Path:
        monkeypatch.setenv("FOREKNOW_CACHE", str(tmp_path / name))
        return tmp_path / name

    be("first")
    return be


@pytest.fixture
def memory(machine: Machine) -> Iterator[Any]:
    """An empty store in memory."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def contents(store: Any, base: str) -> dict[str, bytes]:
    """What a store has below `base`, locks aside."""
    names = [str(name) for name in store.find(base)]
    return {n.split(f"{base}/", 1)[1]: store.cat_file(n) for n in names if not n.rpartition("/")[2].startswith(".lock")}


def here(root: Path) -> dict[str, bytes]:
    """What a local folder has, its lock aside."""
    return {
        p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"
    }


def die(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a run ends as if killed: nothing more is put, its lock stays."""
    monkeypatch.setattr(remote._Session, "end", lambda session, **_: session.lease.stop())


def begun(path: Path = RUN) -> None:
    with lock_run_dir(path) as folder:
        folder.open_run(IDENTITY, {})


# names


@given(
    st.lists(st.text(st.characters(exclude_characters="/\\\0@:", exclude_categories=["Cs"]), min_size=1), min_size=1)
)
def test_a_name_leads_to_a_path_and_back(parts: list[str]) -> None:
    url = "s3://" + "/".join(parts)
    if {".", ".."} & set(parts) or url.endswith("/"):
        return
    path = place(url)
    assert path.is_relative_to(mirrors())
    assert url_of(path) == f"{path}" == url
    assert place(f"{url}/") == path
    assert str(path) != url, "what opens files gets the local path"
    assert f"{path / 'x.json'}" == f"{url}/x.json"
    assert place(path) is path


def test_a_path_that_lost_a_slash_on_its_way_is_understood() -> None:
    assert place(Path("s3://b/run")) == place("s3://b/run") == Path(place("s3://b") / "run")


@pytest.mark.parametrize("name", ["run", "./a/b.jsonl", "/tmp/x", "~/x", "hub:owner/name", "a:b", "s3", "-", "C:x"])
def test_local_names_stay_as_they_are(name: str) -> None:
    assert place(name) == Path(name)
    assert type(place(Path(name))) is type(Path())
    assert url_of(Path(name)) is None
    assert download(name) == Path(name)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("az://box/run", "unknown scheme az://, expected s3:// or gs://"),
        ("https://host/x.jsonl", "unknown scheme https://"),
        ("s3://me:hunter2@bucket/run", "s3://bucket/run: found a user or password in the URL"),
        ("s3://", "expected s3://BUCKET/NAME"),
        ("s3://b//run", "without empty, '.' or '..' parts"),
        ("s3://b/../run", "without empty, '.' or '..' parts"),
    ],
)
def test_urls_that_are_refused(url: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place(url)
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings_keep_urls_and_name_no_folder_of_this_machine(memory: Any) -> None:
    config = settings_of(AuditConfig, {"data": "memory://store/a.jsonl", "out": "memory://store/run"})
    assert isinstance(config.out, MirrorPath)
    assert config.resolved()["out"] == "memory://store/run"
    assert AuditConfig(**config.resolved()) == config
    with pytest.raises(InputError, match="memory://store/none: no such file or folder in the store"):
        settings_of(MixConfig, {"audit": "memory://store/none", "out": "memory://store/x.jsonl", "natural": True})


# reading


def test_data_is_read_from_a_store_in_every_form(memory: Any, tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in fact_rows()).encode()
    memory.pipe_file("/store/data/a.jsonl", text)
    memory.pipe_file("/store/data/deep/b.jsonl.gz", gzip.compress(text))
    memory.pipe_file("/store/data/README.md", b"not fetched")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("c.jsonl", text)
    memory.pipe_file("/store/all.zip", (tmp_path / "all.zip").read_bytes())
    for url, names in (
        ("memory://store/data/a.jsonl", ["a.jsonl"]),
        ("memory://store/data/deep/b.jsonl.gz", ["b.jsonl.gz"]),
        ("memory://store/data", ["a.jsonl", "deep/b.jsonl.gz"]),
        ("memory://store/all.zip", ["c.jsonl"]),
    ):
        source = source_of(url)
        assert [part.name for part in source.parts] == names
        for part in source.parts:
            assert part.where.startswith("memory://store/")
            with part.open() as stream:
                assert stream.read() == text
    assert not (mirrors() / "memory/store/data/README.md").exists()


def test_what_was_fetched_is_fetched_again_only_when_it_has_changed(memory: Any) -> None:
    memory.pipe_file("/store/a.jsonl", b"old")
    path = download("memory://store/a.jsonl")
    first = path.stat().st_mtime_ns
    assert download("memory://store/a.jsonl").stat().st_mtime_ns == first
    memory.pipe_file("/store/a.jsonl", b"new")
    assert download("memory://store/a.jsonl").read_bytes() == b"new"
    path.write_bytes(b"mangled here")
    assert download("memory://store/a.jsonl").read_bytes() == b"new"
    memory.rm_file("/store/a.jsonl")
    with pytest.raises(InputError, match="no such file"):
        download("memory://store/a.jsonl")


def test_a_folder_follows_its_store(memory: Any) -> None:
    for name in ("config.json", "deep/weights.bin"):
        memory.pipe_file(f"/store/model/{name}", name.encode())
    memory.pipe_file("/store/models-of-others/x", b"a neighbour whose name begins alike")
    folder = download("memory://store/model")
    assert here(folder) == {"config.json": b"config.json", "deep/weights.bin": b"deep/weights.bin"}
    memory.rm_file("/store/model/deep/weights.bin")
    assert here(download("memory://store/model")) == {"config.json": b"config.json"}


def test_a_file_brings_its_manifest_and_loses_it_with_it(memory: Any) -> None:
    file = place("memory://store/deep/mix.jsonl")
    write_text(file, "rows")
    write_text(file.with_name("mix.jsonl.manifest.json"), "{}")
    assert contents(memory, "/store") == {"deep/mix.jsonl": b"rows", "deep/mix.jsonl.manifest.json": b"{}"}
    shutil.rmtree(mirrors())
    assert download("memory://store/deep/mix.jsonl").with_name("mix.jsonl.manifest.json").read_text() == "{}"
    file.with_name("mix.jsonl.manifest.json").unlink()
    write_text(file, "other rows")
    assert contents(memory, "/store") == {"deep/mix.jsonl": b"other rows"}


def test_a_folder_written_whole_takes_the_place_of_what_the_store_had(memory: Any) -> None:
    def write(part: Path, *names: str) -> None:
        for name in names:
            write_text(part / name, name)

    write_folder(place("memory://store/sets"), lambda part: write(part, "a", "b"))
    write_folder(place("memory://store/sets"), lambda part: write(part, "b", "c"))
    assert contents(memory, "/store") == {"sets/b": b"b", "sets/c": b"c"}


def test_a_store_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    fsspec.filesystem("memory")
    with pytest.raises(MissingExtra, match=r"gs:// needs gcsfs .*; pip install 'foreknow\[gcs\]'"):
        download("gs://bucket/a.jsonl")


# run folders


def test_a_run_is_in_the_store_as_it_is_written_and_at_its_end(memory: Any, machine: Machine) -> None:
    with lock_run_dir(RUN) as folder:
        folder.open_run(IDENTITY, {"a": 1})
        write_text(folder.path / "x.txt", "one")
        assert set(contents(memory, "/store/run")) == {".run.json", "config.yaml", "x.txt"}
        (folder.path / "log.txt").write_text("not written whole")
        (folder.path / "x.txt").unlink()
        (folder.path / ".y.txt.abcd_123.txt").write_text("torn")
        folder.finish({"identity": IDENTITY})
    assert set(contents(memory, "/store/run")) == {"config.yaml", "manifest.json", "log.txt"}
    machine("second")
    with lock_run_dir(RUN) as folder:
        assert folder.open_run(IDENTITY, {"a": 1}) is True
        with pytest.raises(RunFolderError, match=r"^memory://store/run: made by another run: data"):
            folder.open_run({"data": "other"}, {})


def test_a_folder_deleted_in_the_store_is_new(memory: Any) -> None:
    with lock_run_dir(RUN) as folder:
        folder.open_run(IDENTITY, {})
        folder.finish({"identity": IDENTITY})
    memory.rm("/store/run", recursive=True)
    with lock_run_dir(RUN) as folder:
        assert folder.open_run({"data": "other"}, {}) is False


def test_folders_held_inside_one_that_is_held_leave_the_store_to_it(memory: Any) -> None:
    with lock_run_dir(RUN) as folder:
        folder.open_run(IDENTITY, {})
        with lock_run_dir(folder.path / "inner") as inner:
            inner.open_run(IDENTITY, {})
            write_text(inner.path / "x", "x")
            assert "inner/x" in contents(memory, "/store/run")
    assert [n for n in memory.find("/store/run") if ".lock" in n] == ["/store/run/.lock-1"]


def test_a_living_run_elsewhere_is_refused_and_a_dead_one_followed(
    memory: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_run_dir(RUN) as folder:
        folder.open_run(IDENTITY, {})
        machine("second")
        with pytest.raises(RunFolderError, match=r"memory://store/run: held by another run \(process \d+ on .*, last"):
            lock_run_dir(RUN).__enter__()
        monkeypatch.setattr(remote_lock, "STALE", 0.0)
        with lock_run_dir(RUN) as other:
            assert other.open_run(IDENTITY, {}) is False
            assert "taking over from a run that gave no sign of life" in capsys.readouterr().err
            machine("first")
            with pytest.raises(RunFolderError, match="another run has taken the folder over"):
                write_text(folder.path / "x", "written by a run that was taken for dead")
            machine("second")
    assert "x" not in contents(memory, "/store/run")


def test_a_run_that_gives_signs_of_life_is_not_taken_for_dead(
    memory: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_lock, "BEAT", 0.02)
    monkeypatch.setattr(remote_lock, "STALE", 1.0)
    with lock_run_dir(RUN):
        before = memory.modified("/store/run/.lock-1")
        for _ in range(200):
            time.sleep(0.02)
            if memory.modified("/store/run/.lock-1") > before:
                break
        assert memory.modified("/store/run/.lock-1") > before
    assert json.loads(memory.cat_file("/store/run/.lock-1"))["held"] is False


def test_two_that_want_a_folder_at_once_are_one_too_many(memory: Any, machine: Machine) -> None:
    """Both have seen that nobody holds it; the store gives the next number to one."""
    first = remote_lock.Lease(remote_sync.RemoteFolder(place(RUN)))
    machine("second")
    second = remote_lock.Lease(remote_sync.RemoteFolder(place(RUN)))
    second._last_number = lambda: 0  # type: ignore[method-assign]
    first.take()
    with pytest.raises(RunFolderError, match="held by another run, which was a moment earlier"):
        second.take()
    first.release()


def test_where_the_store_lets_both_in_one_of_them_stops(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock_run_dir(RUN) as folder:
        folder.open_run(IDENTITY, {})
        memory.pipe_file("/store/run/.lock-1", b'{"held": true, "token": "of another"}')
        monkeypatch.setattr(remote_lock, "STALE", 0.0)
        with pytest.raises(RunFolderError, match="another run has taken the folder over"):
            write_text(folder.path / "x", "x")
    assert b"of another" in memory.cat_file("/store/run/.lock-1")


def test_the_same_machine_follows_its_own_dead_run_at_once(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        die(patch)
        begun()
    with lock_run_dir(RUN) as folder:
        assert folder.open_run(IDENTITY, {}) is False


def test_a_store_lost_in_the_middle(memory: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished stays here, and the same command goes on from it; elsewhere it goes on from the store."""

    def lost(*_: object, **__: object) -> None:
        raise ConnectionError("no route to http://me:hunter2@host")

    def until_it_is_lost(patch: pytest.MonkeyPatch) -> None:
        with lock_run_dir(RUN) as folder:
            folder.open_run(IDENTITY, {})
            patch.setattr(type(memory), "put_file", lost)
            write_text(folder.path / "x", "x")

    with monkeypatch.context() as patch, pytest.raises(ResourceError) as caught:
        until_it_is_lost(patch)
    assert str(caught.value) == (
        "memory://store/run: the store cannot be reached (no route to http://host); what is finished is kept in "
        f"{mirrors() / 'memory' / 'store' / 'run'}, the same command goes on from there"
    )
    assert "x" not in contents(memory, "/store/run")
    with lock_run_dir(RUN) as folder:
        assert (folder.path / "x").read_text() == "x"
        write_text(folder.path / "y", "y")
    assert {"x", "y"} <= set(contents(memory, "/store/run"))


def test_a_failure_of_the_run_is_told_before_one_of_the_store(
    memory: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    def failing(patch: pytest.MonkeyPatch) -> None:
        with lock_run_dir(RUN) as folder:
            (folder.path / "x").write_text("x")
            patch.setattr(type(memory), "put_file", lost)
            raise ValueError("of the run")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="of the run"):
        failing(patch)
    assert "the store cannot be reached (gone); what is finished is kept in" in capsys.readouterr().err


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from("abc"), st.binary(max_size=3)),
        st.tuples(st.just("loose"), st.sampled_from(["a", "deep/d", "deep/e"]), st.binary(max_size=3)),
        st.tuples(st.just("delete"), st.sampled_from(["a", "b", "deep/d"]), st.none()),
        st.tuples(st.just("move"), st.just("deep"), st.sampled_from(["moved", "other"])),
        st.tuples(st.sampled_from(["end", "kill", "lose", "away"]), st.none(), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(STEPS)
def test_whatever_is_done_the_next_machine_finds_what_was_last_written(steps: list[Any]) -> None:
    """Against a plain copy of the folder: after each whole write the store is what the folder was then."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    shutil.rmtree(mirrors(), ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_lock, "STALE", 0.0)
        patch.setattr(remote_lock, "BEAT", 1e9)
        home = os.environ["FOREKNOW_CACHE"]
        number = 0
        expected: dict[str, bytes] = {}
        left = list(steps)
        while True:
            killed = False
            with patch.context() as life, lock_run_dir(RUN) as folder:
                assert here(folder.path) == expected, "what the last life left in the store"
                while left:
                    what, name, value = left.pop(0)
                    path = folder.path / (name or "")
                    if what == "write":
                        write_text(path, value.decode("latin1"))
                        expected = here(folder.path)
                        assert contents(store, "/store/run") == expected
                    elif what == "loose":
                        path.parent.mkdir(exist_ok=True)
                        path.write_bytes(value)
                        os.utime(path, ns=(time.time_ns(), time.time_ns()))
                    elif what == "delete":
                        path.unlink(missing_ok=True)
                    elif what == "move" and path.is_dir() and not (folder.path / value).exists():
                        path.rename(folder.path / value)
                    elif what in ("kill", "lose", "away"):
                        killed = what == "kill"
                        if killed:
                            die(life)
                        number += what != "end"
                        break
                if not killed:
                    expected = here(folder.path)
            patch.setenv("FOREKNOW_CACHE", f"{home}/{number}")
            if not left:
                break
        with lock_run_dir(RUN) as folder:
            assert here(folder.path) == expected
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("most", range(13))
def test_a_mark_never_stands_in_the_store_before_what_it_marks(most: int) -> None:
    """The store is lost after `most` puts, while a checkpoint and a manifest are written."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    shutil.rmtree(mirrors(), ignore_errors=True)
    puts = 0
    real = type(store).put_file

    def put(self: Any, *args: Any, **more: Any) -> None:
        nonlocal puts
        puts += 1
        if puts > most:
            raise ConnectionError("lost")
        real(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store), "put_file", put)
        try:
            with lock_run_dir(RUN) as folder:
                folder.open_run(IDENTITY, {})
                checkpoint = folder.path / "checkpoint-1"
                checkpoint.mkdir()
                for name in ("z.bin", "a.bin", "optimizer.bin"):
                    (checkpoint / name).write_bytes(name.encode())
                complete(checkpoint, 1, {})
                checkpoint.rename(folder.path / "done")
                folder.finish({"identity": IDENTITY})
        except ResourceError:
            pass
    found = contents(store, "/store/run")
    for mark in ("checkpoint-1/complete.json", "done/complete.json"):
        if mark in found:
            home = mark.partition("/")[0]
            assert all(found.get(f"{home}/{n}") == n.encode() for n in ("z.bin", "a.bin", "optimizer.bin"))
    if "manifest.json" in found:
        assert "done/complete.json" in found


# a real server


class Server:
    """moto's S3 server on loopback; what it holds outlives a stop."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self.served = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.served.start()

    def stop(self) -> None:
        self.served.stop()
        self.served._server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("moto", reason="needs moto[s3]")
    pytest.importorskip("s3fs", reason="needs s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    found = Server()
    yield found
    found.stop()


@pytest.fixture
def s3(server: Server, machine: Machine, monkeypatch: pytest.MonkeyPatch, facts_file: Path) -> Iterator[Any]:
    """An empty bucket with the facts in it."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-the-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fresh()
    store = fsspec.filesystem("s3", use_listings_cache=False)
    if store.exists("bucket"):
        store.rm("bucket", recursive=True)
    store.mkdir("bucket")
    store.pipe_file("bucket/facts.jsonl", facts_file.read_bytes())
    yield store
    fresh()


def fresh() -> None:
    """Forget the connections to stores, which know the environment of before."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def words(model: Path, out: str, data: object = "s3://bucket/facts.jsonl") -> list[str]:
    return [*map(str, ("audit", data, "--model", model, "--out", out, "--dtype", "float32", "--chunk-rows", 4)), *SMALL]


SMALL = ["--shots", "2", "--exemplar-sets", "3"]
SAME = ("rows.parquet", "probes.parquet", "annotated.jsonl", "exemplars.json")


def foreknown(capsys: pytest.CaptureFixture[str], *given: object) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main([*map(str, given)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def local(tiny_folder: Path, facts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audit as it is without any store."""
    out = tmp_path_factory.mktemp("local") / "run"
    foreknow.audit(
        str(facts_file), model=str(tiny_folder), out=str(out), dtype="float32", chunk_rows=4, shots=2, exemplar_sets=3
    )
    return out


def assert_same(store: Any, base: str, local: Path) -> None:
    for name in SAME:
        assert store.cat_file(f"{base}/{name}") == (local / name).read_bytes(), name
    ours, theirs = (
        json.loads(raw) for raw in (store.cat_file(f"{base}/manifest.json"), (local / "manifest.json").read_bytes())
    )
    for told in (ours, theirs):  # other files hold times and places, and the seal holds their sha256
        del told["seal"]
        told["files"] = {name: told["files"][name] for name in SAME}
    assert ours == theirs
    own = {p.name for p in local.iterdir() if p.name != ".lock"}
    assert {n for n in contents(store, base) if "/" not in n} == own


def test_an_audit_on_s3_and_all_that_reads_it(
    s3: Any, machine: Machine, tiny_folder: Path, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = "s3://bucket/runs/first"
    code, out, err = foreknown(capsys, *words(tiny_folder, run))
    assert code == 0, err
    assert f"\nreport: {run}/report.html\nnext: foreknow tune " in out
    assert out.endswith(f"--audit {run} --out {run}-tuned\n")
    assert_same(s3, "bucket/runs/first", local)
    told = b"".join(contents(s3, "bucket/runs/first").values()).decode("latin1") + out + err
    assert "hunter2" not in told
    assert "AKIDFORTESTS" not in told
    assert str(mirrors()) not in s3.cat_file("bucket/runs/first/config.yaml").decode()
    code, _, err = foreknown(capsys, *words(tiny_folder, run))
    assert code == 0
    assert err.startswith(f"{run}: this audit is complete; nothing to do\n")

    machine("second")
    s3.rm_file("bucket/runs/first/report.html")
    assert foreknown(capsys, "report", run)[:2] == (0, f"report: {run}/report.html\n")
    assert b"<html" in s3.cat_file("bucket/runs/first/report.html")
    assert foreknown(capsys, "compare", run, local, "--out", "s3://bucket/moved.csv")[0] == 0
    assert s3.exists("bucket/moved.csv")
    assert foreknown(capsys, "check", "s3://bucket/facts.jsonl", "--json", "s3://bucket/check/found.json")[0] == 0
    assert json.loads(s3.cat_file("bucket/check/found.json"))
    code, out, err = foreknown(capsys, "mix", run, "--natural", "--out", "s3://bucket/mix.jsonl")
    assert code == 0, err
    assert "written: s3://bucket/mix.jsonl" in out
    local_mix = local.parent / "mix.jsonl"
    assert foreknown(capsys, "mix", local, "--natural", "--out", local_mix)[0] == 0
    assert s3.cat_file("bucket/mix.jsonl") == local_mix.read_bytes()
    machine("third")
    assert foreknown(capsys, "mix", run, "--natural", "--out", "s3://bucket/mix.jsonl")[0] == 0, "the same again"
    code, _, err = foreknown(capsys, "mix", run, "--drop", "unknown", "--out", "s3://bucket/mix.jsonl")
    assert code == 2, "another mix is not written over"
    assert "s3://bucket/mix.jsonl" in err


def test_tuning_on_s3(s3: Any, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = foreknown(
        capsys, "tune", "s3://bucket/facts.jsonl", "--dev", "s3://bucket/facts.jsonl", "--allow-overlap",
        "--model", tiny_folder, "--epochs", 1, "--batch-size", 24, "--out", "s3://bucket/tuned",
    )  # fmt: skip
    assert code == 0, err
    assert "report: s3://bucket/tuned/report.html" in out
    found = set(contents(s3, "bucket/tuned"))
    assert {"manifest.json", "metrics.jsonl", "early_stop/model.safetensors", "early_stop/foreknow.json"} <= found
    assert not any(name.startswith((".checkpoints", ".best", ".chunks")) for name in found)
    shutil.rmtree(mirrors())
    from foreknow.models import loading

    assert loading.load_model(str(download("s3://bucket/tuned/early_stop")), dtype="float32").fingerprint


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["check", "s3://bucket/none.jsonl"], "s3://bucket/none.jsonl: no such file or folder in the store"),
        (["check", "s3://no-such-bucket/x.jsonl"], "s3://no-such-bucket/x.jsonl: not found (The specified bucket does"),
        (["report", "s3://bucket/nothing"], "s3://bucket/nothing: no such file or folder in the store"),
        (["check", "s3://bucket/facts.jsonl", "--config", "s3://bucket/none.yaml"], "s3://bucket/none.yaml: no such"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(
    s3: Any, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    code, out, err = foreknown(capsys, *given)
    assert (code, out) == (2, "")
    assert err.startswith(f"foreknow: {told}")
    assert err.count("\n") == 1


def test_run_folders_that_cannot_be_are_told_in_one_line(s3: Any) -> None:
    for url, told in (
        ("s3://no-such-bucket/run", "not found (The specified bucket does not exist); check bucket and name"),
        ("s3://bucket/facts.jsonl", r"is a file, expected a folder (--out)"),
    ):
        with pytest.raises(RunFolderError) as caught:
            lock_run_dir(Path(url)).__enter__()
        assert str(caught.value) == f"{url}: {told}"


def test_without_credentials(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fresh()
    with pytest.raises(
        InputError, match=r"s3://bucket/facts\.jsonl: no credentials \(Unable to locate credentials\); set"
    ):
        download("s3://bucket/facts.jsonl")


def child(given: list[str], cache: Path) -> subprocess.Popen[str]:
    code = "import sys; from foreknow.cli import main; main(sys.argv[1:])"
    env = {**os.environ, "FOREKNOW_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, "-c", code, *given], env=env, stderr=subprocess.PIPE, text=True)


def wait_for(store: Any, pattern: str, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        store.invalidate_cache()
        if store.glob(pattern):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError(f"{pattern} did not come")


def test_killed_on_one_machine_and_finished_on_another(
    s3: Any, machine: Machine, tiny_folder: Path, local: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    given = words(tiny_folder, "s3://bucket/run")
    process = child(given, machine("first"))
    wait_for(s3, "bucket/run/.chunks/000001.*.cost.parquet", process)
    machine("second")
    code, _, err = foreknown(capsys, *given)
    assert code == 2, "refused while it lives"
    assert f"s3://bucket/run: held by another run (process {process.pid} on {socket.gethostname()}" in err
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not s3.exists("bucket/run/manifest.json")
    machine("third")
    monkeypatch.setattr(remote_lock, "STALE", 0.0)
    code, _, err = foreknown(capsys, *given)
    assert code == 0, err
    assert "taking over from a run that gave no sign of life" in err
    assert "chunks are finished; going on" in err
    assert_same(s3, "bucket/run", local)


def test_the_server_goes_away_in_the_middle_and_comes_back(
    s3: Any, server: Server, tiny_folder: Path, local: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = words(tiny_folder, "s3://bucket/run")
    keep = RunDir.save_chunk

    def keep_until_it_is_gone(folder: RunDir, number: int, part: str, frame: pl.DataFrame) -> None:
        if (number, part) == (2, "answers"):
            server.stop()
        keep(folder, number, part, frame)

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "save_chunk", keep_until_it_is_gone)
        code, _, err = foreknown(capfd, *given)
    server.start()
    assert code == 1, err
    told = [line for line in err.splitlines() if line.startswith("foreknow: ")]
    assert told == err.splitlines()[-1:], err
    assert told[0].startswith("foreknow: s3://bucket/run: the store cannot be reached (")
    assert told[0].endswith(
        f"; what is finished is kept in {mirrors() / 's3/bucket/run'}, the same command goes on from there"
    )
    assert "Traceback" not in err, err
    s3.invalidate_cache()
    assert s3.glob("bucket/run/.chunks/000001.*.answers.parquet")
    assert not s3.glob("bucket/run/.chunks/000002.*.answers.parquet")
    code, _, err = foreknown(capfd, *given)
    assert code == 0, err
    assert "2 of 12 chunks are finished; going on" in err
    assert_same(s3, "bucket/run", local)


def test_a_run_folder_and_data_on_google_storage(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gcsfs", reason="needs gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
    served = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    served.start()
    try:
        with lock_run_dir(Path("gs://bucket/run")) as folder:
            folder.open_run(IDENTITY, {})
            write_text(folder.path / "deep.txt", "x")
            machine("second")
            with pytest.raises(RunFolderError, match="gs://bucket/run: held by another run"):
                lock_run_dir(Path("gs://bucket/run")).__enter__()
            machine("first")
            (folder.path / "deep.txt").rename(folder.path / "moved.txt")
            folder.finish({"identity": IDENTITY})
        machine("second")
        assert set(here(download("gs://bucket/run"))) == {"config.yaml", "manifest.json", "moved.txt"}
        with pytest.raises(InputError, match=r"gs://bucket/none\.jsonl: no such file or folder"):
            download("gs://bucket/none.jsonl")
        with pytest.raises(ForeknowError, match="gs://no-bucket/x: not found"):
            download("gs://no-bucket/x")
    finally:
        served.stop()
