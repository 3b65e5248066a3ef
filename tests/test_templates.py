from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.data.layouts.relation_templates import SLOT, check_templates, question, read_templates, subject_of
from foreknow.errors import InputError

parts = st.text(max_size=12).filter(lambda text: SLOT not in text)


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_question_is_the_template_with_the_subject_in_its_slot() -> None:
    assert question("Which country is [X] in?", "Lyon") == "Which country is Lyon in?"
    assert subject_of("Which country is [X] in?", "Which country is Lyon in?") == "Lyon"


@pytest.mark.parametrize("text", ["Who is Lyon?", "Which country is  in", "Which country is in?", ""])
def test_a_question_of_another_template_has_no_subject(text: str) -> None:
    assert subject_of("Which country is [X] in?", text) is None


def test_overlapping_ends_do_not_make_a_subject() -> None:
    assert subject_of("ab[X]ba", "aba") is None
    assert subject_of("[X]", "whole") == "whole"


@given(parts, parts, st.text(min_size=1, max_size=12))
def test_subject_of_is_the_inverse_of_question(before: str, after: str, subject: str) -> None:
    template = f"{before}{SLOT}{after}"
    if template.count(SLOT) == 1 and template.index(SLOT) == len(before):
        assert subject_of(template, question(template, subject)) == subject


def test_a_subject_that_looks_like_the_slot_is_left_alone() -> None:
    assert question("Who made [X]?", "Generation [X]") == "Who made Generation [X]?"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.json", '{"P17": "Which country is [X] in?"}'),
        ("t.json", '\ufeff{"P17": "Which country is [X] in?"}'),
        ("t.yaml", 'P17: "Which country is [X] in?"\n'),
        ("t.yml", "P17: Which country is [X] in?\n"),
    ],
)
def test_json_and_yaml_are_read(tmp_path: Path, name: str, text: str) -> None:
    assert read_templates(written(tmp_path, name, text)) == {"P17": "Which country is [X] in?"}


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("t.json", '{"P17": "no slot"}', r"t\.json: relation 'P17'.*0 times \[X\], expected exactly once"),
        ("t.json", '{"P17": "[X] [X]"}', r"2 times \[X\], expected exactly once"),
        ("t.json", '{"P17": 3}', r"relation 'P17': found text -> the int 3, expected text -> text"),
        ("t.yaml", '17: "Is [X]?"', r"relation 17: found the int 17 -> text, expected text -> text"),
        ("t.json", "[]", r"found a list, expected a mapping"),
        ("t.json", "{}", r"found an empty mapping, expected a mapping"),
        ("t.yaml", "", r"found nothing, expected a mapping"),
        ("t.json", '{\n"P17": }', r"t\.json:2: not valid JSON"),
        ("t.yaml", "a: b\nP17: [X] is: where", r"t\.yaml:2: not valid YAML"),
        ("t.json", b'{"P17": "\xff"}', r"byte 10 is not UTF-8"),
        ("t.json", "[" * 100_000, r"nested too deeply"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, name: str, text: str | bytes, found: str) -> None:
    with pytest.raises(InputError, match=found):
        read_templates(written(tmp_path, name, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json: cannot read the template file \(No such file"):
        read_templates(tmp_path / "gone.json")


def test_templates_from_a_caller_are_checked_too() -> None:
    with pytest.raises(InputError, match="templates: relation 'born'"):
        check_templates({"born": "Where?"}, "templates")
