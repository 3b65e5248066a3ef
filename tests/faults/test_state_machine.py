"""One audit's folder over any history: begun, stopped, damaged, asked for by other inputs and settings, gone on with.

Whatever happened before, a run is either refused with a message that names a file or a key that differs, or ends in
exactly the rows of an undisturbed run of the same input and settings. Real runs of a real model, in this process.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from conftest import fact_rows
from faults.harness import DAMAGES, count, files_of
from foreknow.config import AuditConfig
from foreknow.errors import UsageError
from foreknow.io.run_dir import RunDir
from foreknow.settings import settings_of
from foreknow.stages.audit import run as audit_run
from foreknow.stages.audit.result import open_audit

Asked = tuple[str, float]
"""Which input, and at which temperature: what makes two runs different."""
INPUTS = {"a": slice(0, 6), "b": slice(24, 30)}
BOTH = st.tuples(st.sampled_from(sorted(INPUTS)), st.sampled_from([0.5, 0.7]))
OUTPUTS = ("rows.parquet", "probes.parquet", "annotated.jsonl", "exemplars.json")


class Killed(BaseException):
    """Nothing catches it, so what runs stops where it is, as when it is killed."""


@contextmanager
def killed_at(write: int | None, after: bool) -> Iterator[None]:
    """Die at the `write`-th chunk to be kept, before or `after` it is on the disk; or else at the end."""
    keep, finish, left = RunDir.save_chunk, RunDir.finish, [write]

    def dying(real: object) -> object:
        def call(self: RunDir, *args: object) -> None:
            if left[0] is None:
                real(self, *args)  # type: ignore[operator]
                return
            left[0] -= 1
            if left[0] < 0 and not after:
                raise Killed
            real(self, *args)  # type: ignore[operator]
            if left[0] < 0:
                raise Killed

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "save_chunk", dying(keep))
        patch.setattr(RunDir, "finish", dying(finish))
        yield


class AuditFolder(RuleBasedStateMachine):
    """See the file's own text. `owner`: whose run the folder holds; `harmed`: names of files that were damaged."""

    model: ClassVar[Path]
    base: ClassVar[Path]
    reference: ClassVar[dict[Asked, dict[str, bytes]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(dir=self.base))
        self.folder = self.home / "run"
        self.owner: Asked | None = None
        self.harmed: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)

    def config(self, asked: Asked, out: Path) -> AuditConfig:
        name, temperature = asked
        return settings_of(AuditConfig, {
            "data": str(self.base / f"{name}.jsonl"), "out": out, "model": str(self.model), "shots": 1,
            "exemplar_sets": 1, "chunk_rows": 2, "temperature": temperature, "dtype": "float32", "device": "cpu",
        })  # fmt: skip

    def expected(self, asked: Asked) -> dict[str, bytes]:
        """What an undisturbed run writes."""
        if asked not in self.reference:
            out = self.base / f"calm-{asked[0]}-{asked[1]}"
            audit_run.run(self.config(asked, out))
            self.reference[asked] = {name: (out / name).read_bytes() for name in OUTPUTS}
        return self.reference[asked]

    def count(self, what: str, met: str) -> None:
        count(f"state machine: {what}", "audit", met)

    @rule(asked=BOTH, write=st.one_of(st.none(), st.none(), st.integers(0, 9)), after=st.booleans())
    def run(self, asked: Asked, write: int | None, after: bool) -> None:
        """Run, and perhaps be killed within."""
        expected = self.expected(asked)
        try:
            with killed_at(write, after):
                done = audit_run.run(self.config(asked, self.folder))
        except Killed:
            self.owner = asked
            self.count("run, killed", "(steps)")
        except UsageError as refusal:
            told = str(refusal)
            same = self.owner in (None, asked)
            assert self.harmed or not same, f"refused for nothing: {told}"
            names = {*self.harmed, str(self.folder)} if self.harmed else set()
            if self.owner is not None:
                keys = zip(("data: ", "temperature: "), self.owner, asked, strict=True)
                names |= {key for key, was, now in keys if was != now}
            assert any(name in told for name in names), f"{names} are not named: {told}"
            assert "delete" in told or "another --out" in told, told
            self.count("run", "named")
        else:
            assert {name: (done.folder / name).read_bytes() for name in OUTPUTS} == expected, "silently different"
            self.owner = asked
            self.harmed = {name for name in self.harmed if name == "report.html"}
            self.count("run", "continued")

    @precondition(lambda self: self.folder.is_dir())
    @rule(place=st.integers(0, 10**6), how=st.sampled_from(sorted(DAMAGES)), seed=st.integers(0, 10**6))
    def damage(self, place: int, how: str, seed: int) -> None:
        """Cut, flip, empty or remove a file of the folder."""
        files = files_of(self.folder)
        if not files:
            return
        path = files[place % len(files)]
        before = path.read_bytes()
        DAMAGES[how](path, random.Random(seed))
        if how == "remove" or path.read_bytes() != before:
            self.harmed |= {path.name, path.name.split(".")[0]}
            self.count(f"damage, {how}", "(steps)")

    @precondition(lambda self: self.folder.is_dir())
    @rule()
    def read(self) -> None:
        """Open what stands there, as mix, tune and report do."""
        try:
            rows = open_audit(self.folder).rows
        except UsageError as refusal:
            told = str(refusal)
        else:
            self.is_as_undisturbed(rows)
            return
        finished = (self.folder / "manifest.json").is_file()
        assert not finished or any(name in told for name in self.harmed), told
        self.count("read", "named" if finished else "not finished")

    def is_as_undisturbed(self, rows: pl.DataFrame) -> None:
        """What was read is what the folder's owner would have without any fault."""
        assert self.owner is not None
        calm = pl.read_parquet(self.base / f"calm-{self.owner[0]}-{self.owner[1]}" / "rows.parquet")
        assert rows.select(calm.columns).equals(calm), "silently different"
        self.count("read", "continued")

    @precondition(lambda self: self.harmed)
    @rule()
    def obey(self) -> None:
        """Do what a refusal says: delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.owner, self.harmed = None, set()
        self.count("delete the folder", "(steps)")

    @invariant()
    def the_manifest_stands_last(self) -> None:
        """A folder that nobody damaged and that has a manifest has all its outputs, and they are right."""
        if not self.harmed and self.owner is not None and (self.folder / "manifest.json").is_file():
            told = {name: (self.folder / name).read_bytes() for name in OUTPUTS}
            assert told == self.expected(self.owner)


@pytest.fixture
def machine(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[AuditFolder]:
    rows = fact_rows()
    for name, part in INPUTS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[part]))
    # pages take most of a run's time, and nothing reads them
    monkeypatch.setattr(audit_run, "write_page", lambda audit: audit.folder / "report.html")
    return type("Machine", (AuditFolder,), {"model": tiny_folder, "base": tmp_path, "reference": {}})


def _go(machine: type[AuditFolder], examples: int, steps: int) -> None:
    same = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=same)


def test_any_short_history_ends_in_the_same_rows_or_a_name(machine: type[AuditFolder]) -> None:
    _go(machine, 5, 10)


@pytest.mark.faults
def test_any_history_ends_in_the_same_rows_or_a_name(machine: type[AuditFolder]) -> None:
    _go(machine, int(os.environ.get("FAULTS_HISTORIES", "40")), 30)
