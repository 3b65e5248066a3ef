"""The Python calls: their signatures are the settings, their names are exported, what they refuse is said in a line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

import foreknow
from builders import write_jsonl
from conftest import Cli, fact_rows
from foreknow import api, cli
from foreknow.config import (
    AuditConfig,
    CheckConfig,
    EvaluateConfig,
    ExtractConfig,
    MixConfig,
    RemediesConfig,
    TuneConfig,
)
from foreknow.errors import ConfigError, ForeknowError, InputError, ModelError
from foreknow.settings import Settings
from foreknow.stages.audit.result import MAIN_COLUMNS
from foreknow.stages.study.settings import StudyConfig

COMMAND_LINE_ONLY = {"dry_run", "rows"}
"""Settings that print an estimate and write nothing."""
ONLY_IN_PYTHON = {
    "tune": {"tokenizer"},
    "evaluate": {"tokenizer"},
}
CALLS: Mapping[str, tuple[Callable[..., Any], type[Settings]]] = {
    "check": (foreknow.check, CheckConfig),
    "audit": (foreknow.audit, AuditConfig),
    "extract": (foreknow.extract, ExtractConfig),
    "mix": (foreknow.mix, MixConfig),
    "tune": (foreknow.tune, TuneConfig),
    "evaluate": (foreknow.evaluate, EvaluateConfig),
}


@pytest.mark.parametrize("verb", CALLS)
def test_a_signature_and_its_settings_say_the_same(verb: str) -> None:
    function, model = CALLS[verb]
    parameters = inspect.signature(function).parameters
    assert set(parameters) - ONLY_IN_PYTHON.get(verb, set()) == set(model.model_fields) - COMMAND_LINE_ONLY
    for name, field in model.model_fields.items():
        if name in COMMAND_LINE_ONLY or field.is_required() or (verb, name) == ("extract", "out"):
            continue
        default = parameters[name].default
        expected = None if field.default == {} else field.default
        assert default == expected, (verb, name)
        assert type(default) is type(expected), (verb, name)


def test_the_settings_of_a_study_are_those_of_its_call() -> None:
    assert set(api.StudySettings.__annotations__) == set(StudyConfig.model_fields) - {"dry_run", "pilot"}
    assert set(api.RemediesSettings.__annotations__) | {"data"} == set(RemediesConfig.model_fields) - {"dry_run"}


def test_a_forecast_takes_what_the_command_takes() -> None:
    ours, theirs = (set(inspect.signature(f).parameters) for f in (foreknow.forecast, cli.forecast))
    assert ours == theirs


@pytest.mark.parametrize("verb", [*CALLS, "study", "remedies", "compare", "forecast"])
def test_a_docstring_shows_a_call(verb: str) -> None:
    assert f"foreknow.{verb}(" in str(getattr(foreknow, verb).__doc__)


@pytest.mark.parametrize("verb", [*CALLS])
def test_every_argument_is_typed(verb: str) -> None:
    function, _ = CALLS[verb]
    assert all(p.annotation is not inspect.Parameter.empty for p in inspect.signature(function).parameters.values())
    assert "Any" not in {str(p.annotation) for p in inspect.signature(function).parameters.values()}


def test_a_misspelt_setting_is_no_argument() -> None:
    with pytest.raises(TypeError, match="modle"):
        foreknow.audit("facts.jsonl", modle="lab")  # type: ignore[call-arg]


def test_every_public_name_is_listed_and_there() -> None:
    assert set(foreknow.__all__) <= set(dir(foreknow))
    assert {"Template", "CheckConfig", "extract", "forecast", "write_report"} <= set(foreknow.__all__)
    code = "import foreknow; print([name for name in foreknow.__all__ if getattr(foreknow, name) is None])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_path_may_be_a_path_everywhere(tmp_path: Path, tiny_folder: Path, facts_file: Path) -> None:
    audit = foreknow.audit(facts_file, model=tiny_folder, out=tmp_path / "run", exemplar_sets=1, shots=1, limit=4)
    assert audit.folder == tmp_path / "run"
    assert AuditConfig(data=facts_file, model=tiny_folder).model == str(tiny_folder)  # type: ignore[arg-type]


def test_the_main_columns_stand_first_and_polars_prints_the_category(
    tmp_path: Path, tiny_folder: Path, facts_file: Path
) -> None:
    audit = foreknow.audit(facts_file, model=tiny_folder, out=tmp_path / "run", exemplar_sets=1, shots=1, limit=4)
    assert tuple(audit.rows.columns[: len(MAIN_COLUMNS)]) == MAIN_COLUMNS
    assert "category" in repr(audit.rows)


def refusal(call: Callable[[], object]) -> str:
    """What a call is refused with, in two lines at most."""
    with pytest.raises(ForeknowError) as caught:
        call()
    assert len(str(caught.value).splitlines()) <= 2
    assert len(str(caught.value)) < 400
    return str(caught.value)


def test_a_text_too_long_for_a_path_is_no_path() -> None:
    with pytest.raises(InputError, match=r"found a text of 5,000 characters .* expected a path"):
        foreknow.audit("x" * 5000)


@pytest.mark.parametrize(
    ("value", "words"),
    [(torch.nn.Linear(3, 3), "found a torch.nn.modules.linear.Linear"), (7, "found int 7"), (["a"], "found a list")],
)
def test_a_model_that_is_none_is_named_and_not_printed_whole(value: Any, words: str) -> None:
    said = refusal(lambda: foreknow.audit("facts", model=value))
    assert words in said
    assert "expected a name, a path, or a loaded PreTrainedModel" in said


def test_a_wrong_value_is_cut(tmp_path: Path) -> None:
    said = refusal(lambda: foreknow.audit("facts", out=tmp_path / "a", dtype="y" * 500))
    assert "yyy..., expected auto" in said
    said = refusal(lambda: foreknow.audit("facts", out=tmp_path / "a", limit=torch.nn.Linear(3, 3)))  # type: ignore[arg-type]
    assert "--limit: found a torch.nn.modules.linear.Linear" in said


def test_a_run_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="audit: found a dict, expected a finished run"):
        foreknow.mix({}, natural=True)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        foreknow.mix(tmp_path, natural=True)


def test_a_misspelt_packaged_model_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", no_hub)
    with pytest.raises(ModelError, match="did you mean smollm2-135m"):
        foreknow.audit("there-is-no-such-file.jsonl", model="smollm2-135", out="never")


def test_several_files_of_one_audit(run: Cli, tmp_path: Path) -> None:
    files = [write_jsonl(tmp_path / f"{name}.jsonl", fact_rows()[:2]) for name in ("a", "b")]
    code, _, err = run("audit", *files, "--out", tmp_path / "run")
    assert code == 2
    assert f"audit: found {files[1]}, more than it takes; expected one DATA: put several files into a folder" in err
    assert "Unused" not in err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (
            ("tune", "a.jsonl", "--epochs", "1", "--epochs", "2"),
            "tune: found --epochs more than once, expected it once\n",
        ),
        (("audit", "a.jsonl", "--rows", "1e9", "--out", "runs/a"), "--rows: found without --dry-run, which it belongs"),
        (("mixx", "runs/a"), 'Unknown command "mixx". Did you mean "mix"?'),
        (("mix", "runs/a", "--natural=maybe"), "--natural: found 'maybe', expected true or false\n"),
        (
            ("tune", "a.jsonl", "--watch-rows", "few"),
            "--watch-rows: found 'few', expected a whole number, auto or all\n",
        ),
        (("tune", "a.jsonl", "--learning-rate", "low"), "--learning-rate: found 'low', expected a number or auto\n"),
        (("tune", "a.jsonl", "--keep", "bets"), "--keep: found 'bets', expected"),
    ],
)
def test_flags_that_do_nothing_or_are_wrong_are_named(run: Cli, words: tuple[str, ...], found: str) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert err.startswith(f"foreknow: {found}")
    assert "more than it takes" not in err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("mix",), "mix: found no AUDIT, which it needs: the folder of a finished audit\n"),
        (("export", "lm-eval", "runs/a"), "export lm-eval: found no --out, which it needs\n"),
        (("explore", "runs/a", "--port"), "explore: found no value after --port, which it needs\n"),
    ],
)
def test_what_is_missing_is_named_with_a_command_that_shows_all(run: Cli, words: tuple[str, ...], found: str) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert f"foreknow: {found}" in err
    shown = err.splitlines()[-1].removeprefix("All that it takes: foreknow ").split()
    assert shown[-1] == "--help-all"
    assert run(*shown)[0] == 0


def test_no_verb_shows_three_things_to_do(run: Cli) -> None:
    code, out, _ = run()
    commands = [line.split()[1:] for line in out.splitlines() if line.startswith("  foreknow ")]
    assert code == 0
    assert [words[0] for words in commands] == ["quickstart", "check", "audit"]
    for words in commands[1:]:
        known = {f"--{name.replace('_', '-')}" for name in CALLS[words[0]][1].model_fields}
        assert {word for word in words if word.startswith("--")} <= known


def test_the_types_of_the_settings_are_those_of_the_models() -> None:
    """Literal values are written twice, in the signature and in the model."""
    for verb, (function, model) in CALLS.items():
        annotations = {name: str(p.annotation) for name, p in inspect.signature(function).parameters.items()}
        for name, annotation in get_type_hints(model).items():
            if name in annotations and str(annotation).startswith("typing.Literal"):
                values = annotations[name].removeprefix("Literal[").removesuffix("]").replace('"', "'").split(", ")
                assert values == str(annotation).removeprefix("typing.Literal[").removesuffix("]").split(", "), verb
