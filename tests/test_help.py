"""Help, settings files and shell completion: all are made from the settings models, and none leaves a setting out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from foreknow.cli import SETTINGS, main
from foreknow.settings import COMMON, FILE_ONLY, Group, group_of, settings_of
from foreknow.settings_file import commented_yaml
from foreknow.stages.study.settings import study_settings

VERBS = list(SETTINGS)
POSITIONAL = {
    **dict.fromkeys(("check", "audit", "extract"), ("data",)),
    "mix": ("audit",),
    "tune": ("train",),
    "evaluate": ("model", "data"),
    "study": (),
    "remedies": ("data",),
}
REQUIRED: dict[str, dict[str, Any]] = {
    "check": {"data": "facts"},
    "audit": {"data": "facts"},
    "extract": {"data": "facts", "endpoint": "http://localhost:1/v1", "model": "name"},
    "mix": {"audit": "run", "out": "mixed.jsonl"},
    "tune": {"train": "facts"},
    "evaluate": {"model": "run/early_stop", "data": "facts"},
    "study": {"data": "facts"},
    "remedies": {"data": "facts"},
}
WORDS = {"remedies": ["study", "remedies"]}
"""What is typed for settings that are not those of a verb of the same name."""
CHOSEN: dict[str, dict[str, Any]] = {"mix": {"natural": True}}
"""A choice that has no default: which rows a mix draws."""


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert not caught.value.code
    return capsys.readouterr().out


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def flags_in(text: str) -> set[str]:
    """The flags that stand in the first column of the panels."""
    labels = re.findall(r"^│ {1,4}(?:\*  )?((?:--[a-z][a-z-]* ?)+)", text, re.M)
    return {word for label in labels for word in label.split()}


@pytest.fixture(autouse=True)
def _screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("verb", VERBS)
def test_the_short_help_fits_a_screen_and_says_how_to_see_the_rest(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed([*WORDS.get(verb, [verb]), "--help"], capsys)
    assert len(text.splitlines()) <= 40
    assert (
        f"Show all {len(SETTINGS[verb].model_fields)} settings: foreknow {' '.join(WORDS.get(verb, [verb]))} --help-all"
        in text
    )
    assert f"foreknow config {verb}" in text
    shown = {flag(n) for n, f in SETTINGS[verb].model_fields.items() if COMMON in f.metadata}
    hidden = {flag(n) for n, f in SETTINGS[verb].model_fields.items() if COMMON not in f.metadata}
    assert shown - {flag(name) for name in POSITIONAL[verb]} <= flags_in(text)
    assert not hidden & flags_in(text)


@pytest.mark.parametrize("verb", VERBS)
def test_help_all_shows_every_setting_with_its_whole_description(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    text = printed([*WORDS.get(verb, [verb]), "--help-all"], capsys)
    assert "--help-all" not in text
    for name, field in SETTINGS[verb].model_fields.items():
        if FILE_ONLY in field.metadata:
            continue
        label = name.upper() if name in POSITIONAL[verb] else flag(name)
        assert re.search(rf"^│[ *]*{re.escape(label)}[ ,]", text, re.M), name
        assert (verb, name) == ("check", "data") or str(field.description) in text, name


@pytest.mark.parametrize("verb", VERBS)
def test_the_panels_stand_in_the_order_of_the_groups_and_hold_their_settings(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    panels = re.findall(
        r"^╭─ (.+?) ─+╮\n(.*?)^╰", printed([*WORDS.get(verb, [verb]), "--help-all"], capsys), re.M | re.S
    )
    fields = SETTINGS[verb].model_fields
    used = {group_of(f) for n, f in fields.items() if FILE_ONLY not in f.metadata} | {Group.OUTPUT}  # --config
    panels = [(title, text) for title, text in panels if title != "Commands"]
    assert [title for title, _ in panels] == [group.value for group in Group if group in used]
    for title, text in panels:
        names = {n for n, f in fields.items() if flag(n) in flags_in(text) and n not in POSITIONAL[verb]}
        assert {group_of(fields[name]).value for name in names} <= {title}


@pytest.mark.parametrize("words", [["--help"], ["data", "--help"], ["lab", "build", "--help"], ["forecast", "-h"]])
def test_the_other_commands_fit_a_screen_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(printed(words, capsys).splitlines()) <= 40


def test_the_commands_are_listed_in_the_order_in_which_one_uses_them(capsys: pytest.CaptureFixture[str]) -> None:
    listed = re.findall(r"^│ ([a-z]+) ", printed(["--help"], capsys), re.M)
    verbs = [verb for verb in VERBS if verb not in WORDS]
    assert listed[: len(verbs) + 1] == ["quickstart", *verbs]


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_is_described_in_sentences(verb: str) -> None:
    for name, field in SETTINGS[verb].model_fields.items():
        text = str(field.description)
        assert text.endswith("."), name
        assert text[0].isupper() or text.split(maxsplit=1)[0] in str(field.annotation), name
        assert len(text.split()) > 3, name


@pytest.mark.parametrize("verb", VERBS)
def test_a_printed_settings_file_gives_the_defaults(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(["config", verb], capsys)
    for name in SETTINGS[verb].model_fields:
        assert len(re.findall(rf"^(?:# )?{name}:", text, re.M)) == 1, name
    for name, value in REQUIRED[verb].items():
        assert f"\n# {name}:\n" in text
        text = text.replace(f"\n# {name}:\n", f"\n{name}: {value}\n")
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    chosen = CHOSEN.get(verb, {})
    read = study_settings(str(file), chosen) if verb == "study" else settings_of(SETTINGS[verb], chosen, file)
    assert read == SETTINGS[verb](**REQUIRED[verb], **chosen)


@pytest.mark.parametrize("verb", VERBS)
def test_a_settings_file_explains_each_setting_above_it(verb: str) -> None:
    text = commented_yaml(verb, SETTINGS[verb], how="")
    for name, field in SETTINGS[verb].model_fields.items():
        comment = re.search(rf"\n\n((?:# .*\n)+)(?:# )?{name}:", text)
        assert comment is not None, name
        assert str(field.description) in " ".join(line.removeprefix("# ") for line in comment[1].splitlines()), name
    assert max(map(len, text.splitlines())) <= 100
    titles = re.findall(r"^# ---- (.*) ----$", text, re.M)
    assert titles == [g.value for g in Group if any(group_of(f) is g for f in SETTINGS[verb].model_fields.values())]


def test_a_check_reads_a_printed_settings_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, rows = tmp_path / "check.yaml", tmp_path / "rows.jsonl"
    file.write_text(printed(["config", "check"], capsys), encoding="utf-8")
    rows.write_text('{"question": "Capital of Peru?", "answer": "Lima"}\n')
    assert "1 record: 1 row read" in printed(["check", str(rows), "--config", str(file)], capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_the_schema_lets_flags_give_any_setting(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads(printed(["config", verb, "--schema"], capsys))
    assert set(schema["properties"]) == set(SETTINGS[verb].model_fields)
    assert schema["additionalProperties"] is False
    assert "required" not in schema
    assert schema["$schema"].startswith("https://json-schema.org/")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_verb_and_flag(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "script"
    assert str(file) in printed(["--install-completion", "--shell", shell, "--output", str(file)], capsys)
    script = file.read_text()
    for verb, model in SETTINGS.items():
        assert verb in script
        for name, field in model.model_fields.items():
            if FILE_ONLY not in field.metadata and name not in POSITIONAL[verb]:
                assert name.replace("_", "-") in script, (verb, name)
