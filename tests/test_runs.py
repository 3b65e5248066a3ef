"""The run folder: files whole or absent, one run at a time, and never another run's results."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from foreknow.errors import InputError, ResourceError, RunFolderError
from foreknow.io.run_dir import (
    FORMAT,
    RunDir,
    differences,
    fingerprint,
    lock_run_dir,
    verify,
    with_checksum,
    write_frame,
    write_json,
    write_text,
    write_whole,
)

FULL = Path("/dev/full")
IDENTITY = {"data": "sha256:aa", "model": {"name": "m", "dtype": "float32"}, "shots": 4}
CONFIG = {"data": "facts.jsonl", "shots": 4, "note": "é"}
FRAME = pl.DataFrame({"row": [0, 1], "p": [0.25, None], "flags": [["a"], []]})


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# writing


@pytest.mark.parametrize("there", [False, True])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path, there: bool) -> None:
    file = tmp_path / "a.txt"
    if there:
        file.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(file, fail)
    assert names(tmp_path) == (["a.txt"] if there else [])
    assert not there or file.read_text() == "old"


def test_what_is_written_replaces_and_can_be_read_by_others(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    write_text(file, "new é\n")
    assert file.read_bytes() == "new é\n".encode()
    assert file.stat().st_mode & 0o777 == 0o644
    assert names(tmp_path) == ["a.txt"]


def test_the_writer_sees_the_suffix(tmp_path: Path) -> None:
    seen = []
    write_whole(tmp_path / "a.parquet", lambda part: (seen.append(part), part.write_text("x")))
    assert seen[0].suffix == ".parquet"
    assert seen[0].parent == tmp_path


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(tmp_path: Path, number: int) -> None:
    def fail(part: Path) -> None:
        raise OSError(number, os.strerror(number), str(part))

    with pytest.raises(ResourceError, match="the disk is full; finished chunks are kept, free some space and run"):
        write_whole(tmp_path / "a.txt", fail)
    assert names(tmp_path) == []


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("how", ["write_parquet", "write_csv", "write_ndjson"])
def test_a_full_disk_as_polars_tells_it(tmp_path: Path, how: str) -> None:
    large = pl.DataFrame({"a": np.random.default_rng(0).random(50_000)})
    with pytest.raises(ResourceError, match="the disk is full"):
        write_whole(tmp_path / "a", lambda _: getattr(large, how)(FULL))
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_cannot_be_written(tmp_path: Path, number: int) -> None:
    def fail(part: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(RunFolderError, match=f"a.txt: cannot be written: {os.strerror(number)}"):
        write_whole(tmp_path / "a.txt", fail)


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    def fail(error: Exception) -> Any:
        def writer(part: Path) -> None:
            raise error

        return writer

    for error in (OSError(errno.EIO, "I/O"), pl.exceptions.ComputeError("strange"), ValueError("no")):
        with pytest.raises(type(error)) as caught:
            write_whole(tmp_path / "a.txt", fail(error))
        assert caught.value is error
    assert names(tmp_path) == []


def test_json_is_readable_and_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": [1]})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n "b": "é",\n "a": [\n  1\n ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert "é" in (tmp_path / "a.json").read_text("utf-8")


def test_the_same_frame_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_frame(tmp_path / name, FRAME.clone())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pl.read_parquet(tmp_path / "a").equals(FRAME)


# holding


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder until it is told to stop."""
    code = (
        "import sys; from pathlib import Path; from foreknow.io.run_dir import lock_run_dir\n"
        "with lock_run_dir(Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_one_run_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with holder(out) as other:
        with pytest.raises(RunFolderError, match="held by another run; wait for it to end, or choose another --out"):
            lock_run_dir(out).__enter__()
        other.send_signal(signal.SIGKILL)
        other.wait(10)
        with lock_run_dir(out) as folder:
            assert folder.path == out
    with lock_run_dir(out), pytest.raises(RunFolderError, match="held by another run"):
        lock_run_dir(out).__enter__()
    with lock_run_dir(out):
        pass


def test_letting_go_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with lock_run_dir(tmp_path):
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    with lock_run_dir(tmp_path):
        pass


def test_out_that_is_or_goes_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="is a file, expected a folder"):
        lock_run_dir(tmp_path / "file").__enter__()
    with pytest.raises(RunFolderError, match="cannot be written: Not a directory"):
        lock_run_dir(tmp_path / "file" / "deeper").__enter__()


# beginning and ending


def test_a_new_run_then_the_same_again(tmp_path: Path) -> None:
    with lock_run_dir(tmp_path / "run") as folder:
        assert folder.manifest is None
        assert folder.open_run(IDENTITY, CONFIG) is False
        assert yaml.safe_load((folder.path / "config.yaml").read_text("utf-8")) == CONFIG
        folder.save_chunk(0, "probes", FRAME)
    with lock_run_dir(tmp_path / "run") as folder:
        assert folder.open_run(IDENTITY, CONFIG) is False, "stopped before its end: goes on"
        kept = folder.chunk(0, "probes")
        assert kept is not None
        assert kept.equals(FRAME)
        folder.finish({"identity": IDENTITY, "version": "1"})
    with lock_run_dir(tmp_path / "run") as folder:
        assert folder.open_run(IDENTITY, CONFIG) is True
        assert folder.manifest is not None
        assert folder.manifest.items() >= {"identity": IDENTITY, "version": "1", "files": {}}.items()


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused_with_what_differs(tmp_path: Path, finished: bool) -> None:
    with lock_run_dir(tmp_path) as folder:
        folder.open_run(IDENTITY, CONFIG)
        if finished:
            folder.finish({"identity": IDENTITY})
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        other = {**IDENTITY, "shots": 3, "model": {"name": "m", "dtype": "bfloat16"}, "limit": 10}
        with pytest.raises(RunFolderError) as caught:
            folder.open_run(other, {"data": "other"})
        assert str(caught.value) == (
            f'{tmp_path}: made by another run: limit: null -> 10; model.dtype: "float32" -> "bfloat16"; '
            "shots: 4 -> 3. Choose another --out, or delete the folder"
        )
        many = {**IDENTITY, **{f"key{i}": i for i in range(6)}}
        with pytest.raises(RunFolderError, match=r"key3: null -> 3; and 2 more\. Choose"):
            folder.open_run(many, CONFIG)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
        assert folder.open_run(IDENTITY, CONFIG) is finished


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with lock_run_dir(tmp_path) as folder, pytest.raises(RunFolderError, match="not empty and not a run of foreknow"):
        folder.open_run(IDENTITY, CONFIG)
    assert names(tmp_path) in ([".lock", "thesis.tex"], ["thesis.tex"])


def test_a_run_whose_disk_was_full_at_the_start_can_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: Any) -> None:
        raise ResourceError("the disk is full")

    with monkeypatch.context() as patch, lock_run_dir(tmp_path) as folder:
        patch.setattr("foreknow.io.run_dir.write_json", full)
        with pytest.raises(ResourceError):
            folder.open_run(IDENTITY, CONFIG)
    with lock_run_dir(tmp_path) as folder:
        assert folder.open_run(IDENTITY, CONFIG) is False


def test_a_run_killed_while_it_wrote_its_first_file_can_begin_again(tmp_path: Path) -> None:
    (tmp_path / "..run.json.abcd.json").write_text('{"iden')
    with lock_run_dir(tmp_path) as folder:
        assert folder.open_run(IDENTITY, CONFIG) is False


def test_chunks_that_are_missing_or_broken_are_not_finished(tmp_path: Path) -> None:
    with lock_run_dir(tmp_path) as folder:
        folder.open_run(IDENTITY, CONFIG)
        assert folder.chunk(3, "probes") is None
        folder.save_chunk(3, "probes", FRAME)
        folder.save_chunk(3, "answers", FRAME.head(1))
        (file,) = folder.chunks.glob("000003.*.probes.parquet")
        whole = file.read_bytes()
        flipped = bytes([*whole[:20], whole[20] ^ 1, *whole[21:]])
        for broken in (whole[: len(whole) // 2], b"", b"not parquet", flipped):
            file.write_bytes(broken)
            assert folder.chunk(3, "probes") is None
            assert not file.exists()
        answers = folder.chunk(3, "answers")
        assert answers is not None
        assert answers.height == 1


def test_chunks_are_gathered_in_their_order(tmp_path: Path) -> None:
    schema = dict(FRAME.schema)
    with lock_run_dir(tmp_path) as folder:
        folder.open_run(IDENTITY, CONFIG)
        assert folder.load_chunks("probes", schema).equals(FRAME.clear())
        folder.save_chunk(10, "probes", FRAME.tail(1))
        folder.save_chunk(2, "probes", FRAME.head(1))
        folder.save_chunk(2, "answers", FRAME)
        assert folder.load_chunks("probes", schema).equals(FRAME)


def test_a_chunk_that_was_kept_twice_counts_once(tmp_path: Path) -> None:
    with lock_run_dir(tmp_path) as folder:
        folder.open_run(IDENTITY, CONFIG)
        for frame in (FRAME.head(1), FRAME):
            folder.save_chunk(0, "cost", frame)
        assert folder.load_chunks("cost", dict(FRAME.schema)).equals(FRAME)
        assert len(list(folder.chunks.iterdir())) == 1


def test_a_chunk_damaged_after_it_was_found_whole_is_named_and_removed(tmp_path: Path) -> None:
    with lock_run_dir(tmp_path) as folder:
        folder.open_run(IDENTITY, CONFIG)
        folder.save_chunk(7, "probes", FRAME)
        (file,) = folder.chunks.iterdir()
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(RunFolderError, match=r"chunk 7 \(probes\) was damaged, and is removed; run the same"):
            folder.load_chunks("probes", dict(FRAME.schema))
        assert not file.exists()


# outputs held to their checksums


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A finished run with two outputs and a folder of them."""
    with lock_run_dir(tmp_path / "run") as folder:
        folder.open_run(IDENTITY, CONFIG)
        write_frame(folder.path / "rows.parquet", FRAME)
        (folder.path / "annotated").mkdir()
        write_text(folder.path / "annotated" / "a.jsonl", "{}\n")
        write_text(folder.path / "report.html", "<p>")
        folder.finish({"identity": IDENTITY}, ("rows.parquet", "annotated*", "never.parquet"))
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["rows.parquet", "annotated/a.jsonl"])
def test_a_changed_output_is_named(complete: Path, name: str) -> None:
    assert set(verify(complete)["files"]) == {"rows.parquet", "annotated/a.jsonl"}
    write_text(complete / "report.html", "<p>again")
    verify(complete)
    raw = (complete / name).read_bytes()
    (complete / name).write_bytes(bytes([*raw[:-1], raw[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{name}: damaged or edited: sha256 .*delete {complete} and run the same"):
        verify(complete)
    with lock_run_dir(complete) as folder, pytest.raises(InputError, match=f"{name}: damaged"):
        folder.open_run(IDENTITY, CONFIG)
    (complete / name).unlink()
    with pytest.raises(InputError, match=f"{name}: missing, though the run was finished"):
        verify(complete)


def test_a_run_with_other_columns_is_refused(complete: Path, tmp_path: Path) -> None:
    told = "made by another version of foreknow \\(format 1 of its columns, expected 2\\); delete {} and run the same"
    manifest = json.loads((complete / "manifest.json").read_text())
    assert manifest["format"] == FORMAT == 2
    older = {key: value for key, value in manifest.items() if key not in ("format", "seal")}
    write_json(complete / "manifest.json", with_checksum(older))
    with pytest.raises(RunFolderError, match=told.format(complete)):
        verify(complete)
    with lock_run_dir(complete) as folder, pytest.raises(RunFolderError, match=told.format(complete)):
        folder.open_run(IDENTITY, CONFIG)
    stopped = tmp_path / "stopped"
    with lock_run_dir(stopped) as folder:
        folder.open_run(IDENTITY, CONFIG)
        write_json(stopped / ".run.json", with_checksum({"identity": IDENTITY}))
        with pytest.raises(RunFolderError, match=told.format(stopped)):
            folder.open_run(IDENTITY, CONFIG)


def test_every_bit_of_a_manifest_counts(complete: Path) -> None:
    file = complete / "manifest.json"
    whole = file.read_bytes()
    told = json.loads(whole)
    for place in range(len(whole)):
        for bit in (0, 5):
            file.write_bytes(bytes([*whole[:place], whole[place] ^ 1 << bit, *whole[place + 1 :]]))
            with contextlib.suppress(InputError, RunFolderError):  # but not where a space is another space
                assert verify(complete) == {k: v for k, v in told.items() if k != "seal"}
    file.write_bytes(whole[:-3])
    with (
        lock_run_dir(complete) as folder,
        pytest.raises(RunFolderError, match=r"manifest.json: damaged, not a JSON object"),
    ):
        folder.open_run(IDENTITY, CONFIG)


def test_a_finished_run_keeps_no_chunks(tmp_path: Path) -> None:
    with lock_run_dir(tmp_path) as folder:
        folder.open_run(IDENTITY, CONFIG)
        folder.save_chunk(0, "probes", FRAME)
        folder.finish({"identity": IDENTITY})
        assert set(names(tmp_path)) - {".lock"} == {"config.yaml", "manifest.json"}


def test_a_manifest_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    for text in ("", "{", "[]", "\x00"):
        (tmp_path / "manifest.json").write_text(text)
        assert RunDir(tmp_path).manifest is None


# what is compared


def test_differences() -> None:
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"c": 2}, "a": 1}) == []
    assert differences({"b": {"c": 2, "d": 1}}, {"b": {"c": 3}}, "p") == ["p.b.c: 2 -> 3", "p.b.d: 1 -> null"]
    assert differences({"a": {"b": 1}}, {"a": None}) == ['a: {"b": 1} -> null']
    (long,) = differences({"a": "x" * 100}, {"a": "é"})
    assert long == f'a: "{"x" * 56}... -> "é"'


def test_fingerprints_are_of_content() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    assert fingerprint(FRAME) == fingerprint(FRAME.clone()) == fingerprint(FRAME.to_dicts())
    assert fingerprint(FRAME) != fingerprint(FRAME.reverse())
    assert fingerprint("\ud800").startswith("sha256:")
    assert len(fingerprint(json.loads("null"))) == len("sha256:") + 64


def test_what_a_killed_write_left_behind_is_cleared(tmp_path: Path) -> None:
    with lock_run_dir(tmp_path / "a") as folder:
        folder.open_run({"x": 1}, {})
        torn = [
            folder.path / ".rows.parquet.ab12cd_z.parquet",
            folder.chunks / ".000001.probes.parquet.abcdefgh.parquet",
        ]
        for path in torn:
            path.write_bytes(b"half")
        (folder.path / ".gitignore").write_text("*")
        folder.open_run({"x": 1}, {})
        assert not any(path.exists() for path in torn)
        assert (folder.path / ".gitignore").exists()
