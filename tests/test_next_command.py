"""The command that a step shows for going on: it has the real paths, and the settings of its verb take it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from builders import write_jsonl
from conftest import Cli
from foreknow import next_command
from foreknow.config import AuditConfig, CheckConfig, EvaluateConfig, MixConfig, TuneConfig
from foreknow.settings import Settings, settings_of

VERBS: dict[str, type[Settings]] = {"audit": AuditConfig, "tune": TuneConfig, "evaluate": EvaluateConfig}
FIRST = {"audit": ("data",), "tune": ("train",), "evaluate": ("model", "data")}


def taken(line: str) -> Settings:
    """The settings that a command's words give its verb."""
    foreknow, verb, *words = shlex.split(line)
    assert foreknow == "foreknow"
    first = dict(zip(FIRST[verb], words, strict=False))
    flags = words[len(first) :]
    given: dict[str, Any] = {}
    while flags:
        name = flags.pop(0).removeprefix("--").replace("-", "_")
        given[name] = True if not flags or flags[0].startswith("--") else flags.pop(0)
    return settings_of(VERBS[verb], first | given)


def test_what_reads_the_file_goes_along_and_defaults_do_not(tmp_path: Path) -> None:
    columns = {"question": "q", "answer": "the answer"}
    checked = settings_of(CheckConfig, {"data": "my rows.csv", "map": columns})
    audit = taken(next_command.after_check(checked))
    assert isinstance(audit, AuditConfig)
    assert (audit.data, audit.map, str(audit.out)) == ("my rows.csv", columns, "my rows-audit")

    tune = taken(next_command.after_audit(audit.model_copy(update={"model": "m", "trust_remote_code": True})))
    assert isinstance(tune, TuneConfig)
    assert (tune.train, tune.map, tune.model, tune.trust_remote_code) == ("my rows.csv", columns, "m", True)
    assert (str(tune.audit), str(tune.out)) == ("my rows-audit", "my rows-audit-tuned")
    plain = settings_of(AuditConfig, {"data": "a.jsonl", "out": "a"})
    assert next_command.after_audit(plain) == "foreknow tune a.jsonl --audit a --out a-tuned"


def test_a_mix_is_trained_on_with_the_audits_model(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: rows.csv\nmodel: m\nmap: {question: q}\nbase: null\n", "utf-8")
    mix = settings_of(MixConfig, {"audit": tmp_path, "out": tmp_path / "mixed.csv", "natural": True})
    tune = taken(next_command.after_mix(mix))
    assert isinstance(tune, TuneConfig)
    assert (tune.train, tune.model, tune.map, str(tune.out)) == (f"{tmp_path}/mixed.csv", "m", {}, "mixed-tuned")
    assert (tune.bad_rows, taken(next_command.after_mix(mix, skip=True)).bad_rows) == ("refuse", "skip")


@pytest.mark.parametrize(
    ("given", "data"),
    [
        ({"dev": "dev.jsonl", "test": ["all=all.jsonl"]}, "all.jsonl"),
        ({"dev": "dev.jsonl"}, "dev.jsonl"),
        ({"dev": "0.2"}, "train.jsonl"),
        ({"audit": "AUDIT"}, "audited.jsonl"),
    ],
)
def test_a_tuned_model_is_asked_what_there_is(given: dict[str, Any], data: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: audited.jsonl\n", "utf-8")
    given = {name: str(tmp_path) if value == "AUDIT" else value for name, value in given.items()}
    tune = settings_of(TuneConfig, {"train": "train.jsonl", "out": "runs/t", **given})
    evaluate = taken(next_command.after_tune(tune, "early_stop"))
    assert isinstance(evaluate, EvaluateConfig)
    assert (evaluate.model, evaluate.data, str(evaluate.out)) == ("runs/t/early_stop", data, "runs/t-evaluation")


@pytest.mark.parametrize(("audited", "named"), [((), None), (("test",), "AUDIT"), (("train", "dev"), None)])
def test_an_audit_is_named_only_for_rows_that_it_knows(
    audited: tuple[str, ...], named: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("data: audited.jsonl\n", "utf-8")
    given = {"dev": "dev.jsonl", "test": ["test=test.jsonl"], "audit": str(tmp_path)}
    tune = settings_of(TuneConfig, {"train": "train.jsonl", "out": "runs/t", **given})
    evaluate = taken(next_command.after_tune(tune, "early_stop", audited))
    assert isinstance(evaluate, EvaluateConfig)
    assert (evaluate.data, evaluate.audit) == ("test.jsonl", named and tmp_path)


def test_the_terminal_shows_it(run: Cli, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"question": f"Who is {n}?", "answer": f"Ann {n}"} for n in range(3)])
    code, out, _ = run("check", file)
    assert code == 0
    assert out.splitlines()[-1] == f"next: foreknow audit {file} --out a-audit"
    code, out, _ = run("check", file, file)
    assert "next:" not in out
