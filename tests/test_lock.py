"""The locks: what constraints.txt pins, with a hash for every file, and refused when a file is another."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from closure import PLACES, installed, marker
from lock import EXTRAS, Entry, LockError, entries, faults, judged, pins, read, written

ROOT = Path(__file__).parents[1]

HASH = "a" * 64


def wheel(folder: Path, text: str) -> str:
    """A wheel of the package `thing`; its sha256."""
    folder.mkdir(exist_ok=True)
    path = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing.py", text)
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_locks_hold_what_is_needed_at_the_pinned_versions_with_hashes() -> None:
    versions = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert faults(read([*EXTRAS, "torch", "supply"]), versions, installed()) == []


def test_a_lock_that_lacks_a_package_or_a_hash_or_has_another_version_is_a_fault() -> None:
    versions = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    locks = read([*EXTRAS, "torch"])
    without = [e for e in locks["demo"] if e.name != "polars"]
    older = [e._replace(version="0.1") if e.name == "rich" else e for e in without]
    bare = [e._replace(hashes=frozenset()) if e.name == "numpy" else e for e in older]
    found = faults({**locks, "demo": [*bare, Entry("stray", "1.0", frozenset({HASH}))]}, versions, installed())
    assert found == [
        "demo.lock lacks polars",
        "demo.lock has stray, which is not needed",
        f"demo.lock has rich 0.1, constraints.txt {versions['rich']}",
        "demo.lock: numpy has no hash",
    ]


def test_a_lock_is_read_back_as_it_was_written() -> None:
    lock = [
        Entry("one", "1.0", frozenset({HASH, "b" * 64})),
        Entry("two", "2.0+cpu", frozenset({HASH}), 'python_version == "3.11"', ("one",)),
    ]
    back = entries(written(lock, "about"))
    assert [e._replace(via=()) for e in lock] == back


def test_no_lock_names_a_host_or_a_path() -> None:
    for name in (*EXTRAS, "torch", "supply"):
        text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
        assert not re.search(r"https?:|file:|--index|--find-links|/(tmp|opt|home|root|work)/", text)


def test_a_marker_holds_in_its_places_and_in_no_other() -> None:
    from packaging.markers import Marker

    linux = {place for place in PLACES if "linux" in place[1]}
    new = {place for place in PLACES if place[0] in ("3.13", "3.14")}
    for places in (linux, new, linux & new, linux | new):
        text = Marker(marker(places))
        assert {place for place, values in PLACES.items() if text.evaluate(values)} == places
    assert marker(set(PLACES)) == ""


def test_torch_is_taken_when_listed_or_a_build_of_the_users_own_and_refused_otherwise() -> None:
    listed = frozenset({HASH})
    for name in ("torch-2.13.0-cp311-cp311-linux.whl", "torch-2.13.0+cpu-cp311-cp311-linux.whl"):
        assert "sha256 as in" in judged(name, HASH, listed)
    assert "unchecked, sha256 bbbb" in judged("torch-2.13.0+xpu-cp311-cp311-linux.whl", "b" * 64, listed)
    with pytest.raises(LockError, match="is none of those"):
        judged("torch-2.13.0-cp311-cp311-linux.whl", "b" * 64, listed)


@pytest.mark.parametrize("altered", [False, True])
def test_pip_installs_from_a_lock_and_refuses_an_altered_file(tmp_path: Path, altered: bool) -> None:
    lock = tmp_path / "thing.lock"
    lock.write_text(written([Entry("thing", "1.0", frozenset({wheel(tmp_path / "w", "good = 1")}))], "about"))
    if altered:
        wheel(tmp_path / "w", "evil = 1")
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--find-links", str(tmp_path / "w")]
    done = subprocess.run(
        [*command, "--no-deps", "--require-hashes", "--target", str(target), "-r", str(lock)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is not altered
    assert (target / "thing.py").exists() is not altered
    assert ("DO NOT MATCH THE HASHES" in done.stderr) is altered
