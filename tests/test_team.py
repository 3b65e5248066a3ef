"""What a team takes from here: the GitHub action, the pre-commit hooks, and the example repository."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import write_jsonl
from conftest import Cli, fact_rows
from foreknow.version import __version__

ROOT = Path(__file__).parents[1]
TEAM = ROOT / "examples" / "team"
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
HOOKS: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def team(tmp_path: Path) -> Path:
    """A copy of the example repository."""
    return Path(shutil.copytree(TEAM, tmp_path / "team"))


@pytest.fixture
def act(tmp_path: Path) -> Any:
    """Runs the action's steps in a folder as a runner would: conditions, environment and scripts as written."""
    shim = tmp_path / "bin" / "foreknow"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m foreknow "$@"\n')
    shim.chmod(0o755)

    def call(folder: Path, **inputs: str) -> tuple[int, str, dict[str, str]]:
        values = {name: str(of.get("default", "")) for name, of in ACTION["inputs"].items()}
        values |= {"install": "none", **{name.replace("_", "-"): text for name, text in inputs.items()}}
        output, text = tmp_path / "output", ""
        output.write_text("")
        for step in ACTION["runs"]["steps"]:
            if "run" not in step or not holds(step["if"], values):
                continue
            own = {name: fill(value, values) for name, value in step["env"].items()}
            path = f"{shim.parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                check=False,
                cwd=folder,
                env={**os.environ, **own, "PATH": path, "GITHUB_OUTPUT": str(output)},
                capture_output=True,
                text=True,
            )
            text += done.stdout + done.stderr
            if done.returncode:
                break
        return done.returncode, text, dict(line.split("=", 1) for line in output.read_text().splitlines())

    return call


def fill(value: str, inputs: dict[str, str]) -> str:
    """The value of an environment variable, with the action's inputs put in."""
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: inputs[m.group(1)], value)


def holds(condition: str, inputs: dict[str, str]) -> bool:
    """Whether a step's condition holds: comparisons of inputs with texts, joined by &&."""
    return all(inputs[name] != text for name, text in re.findall(r"inputs\.([\w-]+) != '([^']*)'", condition))


def test_the_action_gates_with_check(act: Any, team: Path) -> None:
    code, text, _ = act(team, check="data/train.jsonl\n  data/te*.jsonl\n\n")
    assert code == 0, text
    assert json.loads((team / "foreknow-runs" / "findings.json").read_text())["splits"] == {"train": 24, "test": 8}
    leaked = (team / "data" / "train.jsonl").read_text().splitlines()[0]
    with (team / "data" / "test.jsonl").open("a") as file:
        file.write(leaked + "\n")
    code, text, _ = act(team, check="data/*.jsonl")
    assert code == 3, text
    assert "--strict" in text
    assert act(team, check="data/*.jsonl", strict="false")[0] == 0
    code, text, _ = act(team, check="data/none*.jsonl")
    assert (code, "no file is data/none*.jsonl" in text) == (2, True)


def test_the_action_gates_with_an_audit_and_names_the_page(act: Any, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other team"
    folder.mkdir()
    write_jsonl(folder / "my data.jsonl", [{**row, "answer": "nothing that it says"} for row in fact_rows()])
    flags = "--limit=6\n--exemplar-sets=1\n--shots=1"
    words: dict[str, str] = {"audit": "my data.jsonl", "model": str(tiny_folder), "audit_flags": flags}
    code, text, outputs = act(folder, **words, max_unknown="1.0")
    assert code == 0, text
    assert (folder / outputs["report"]).is_file()
    code, text, outputs = act(folder, **words, max_unknown="0.5")
    assert (code, "--max-unknown" in text) == (3, True)
    assert (folder / outputs["report"]).is_file()


def test_inputs_reach_the_scripts_through_the_environment_alone() -> None:
    """An input inside a script would be run by the shell."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert step.get("shell", "bash") == "bash"
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text(encoding="utf-8")))
    assert used == set(ACTION["inputs"])


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_passes_good_files_and_stops_bad_ones(
    hook: dict[str, Any], run: Cli, team: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pre-commit runs it: the entry, the arguments, then all files of the commit that `files` matches."""
    monkeypatch.chdir(team)
    commit = sorted(str(path.relative_to(team)) for path in team.rglob("*") if path.is_file())
    names = [name for name in commit if re.search(hook["files"], name)]
    assert names == ["data/test.jsonl", "data/train.jsonl"]
    program, *words = shlex.split(hook["entry"])
    assert program == "foreknow"
    assert hook["require_serial"], "else the files of one commit are checked apart"
    assert run(*words, *names)[0] == 0
    train = team / "data" / "train.jsonl"
    train.write_text(train.read_text() + train.read_text().splitlines()[0] + "\n")
    code, out, err = run(*words, *names)
    assert (code, "duplicate" in out) == (3, True), err
    train.write_text("{broken\n")
    assert run(*words, *names)[0] == 2


def test_the_example_names_what_there_is(team: Path) -> None:
    hooks = yaml.safe_load((team / ".pre-commit-config.yaml").read_text())["repos"]
    workflow = yaml.safe_load((team / ".github" / "workflows" / "data.yml").read_text())
    steps = workflow["jobs"]["foreknow"]["steps"]
    gate = next(step for step in steps if step.get("id") == "gate")
    assert set(gate["with"]) <= set(ACTION["inputs"])
    assert gate["uses"].split("@")[1] == hooks[0]["rev"] == f"v{__version__}"
    assert {hook["id"] for hook in hooks[0]["hooks"]} <= {hook["id"] for hook in HOOKS}
    files = [*gate["with"]["check"].split(), gate["with"]["audit"], *hooks[0]["hooks"][0]["args"]]
    assert all((team / file).is_file() for file in files)
    upload = next(step for step in steps if "upload" in step["uses"])
    assert upload["with"]["path"] == ACTION["inputs"]["out"]["default"]
