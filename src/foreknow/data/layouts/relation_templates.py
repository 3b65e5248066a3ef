"""Relation templates: one question text per relation, with `[X]` where the subject goes.

A template file is JSON or YAML, a mapping such as `{"P17": "Which country is [X] located in?"}`, as
ENTITYQUESTIONS publishes it (paper, section 2).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from foreknow.errors import InputError
from foreknow.io.quoting import quoted
from foreknow.io.yaml_text import PlainLoader

SLOT = "[X]"
FEWEST = 20
"""Distinct questions a template is derived from: with fewer, what they share may be part of the subjects."""


def read_templates(path: Path) -> dict[str, str]:
    """Read and check a template file; every fault is an InputError that names the file and the key."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot read the template file ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start + 1} is not UTF-8. Save the template file as UTF-8.") from error
    return check_templates(_parse(text, path), str(path))


def check_templates(templates: object, where: str) -> dict[str, str]:
    """The templates as a dict, each a text with exactly one `[X]`; `where` opens the error messages."""
    if not isinstance(templates, Mapping) or not templates:
        raise InputError(
            f"{where}: found {_kind(templates)}, expected a mapping from relation to template, "
            f'such as {{"P17": "Which country is {SLOT} located in?"}}.'
        )
    for relation, template in templates.items():
        if not isinstance(relation, str) or not isinstance(template, str):
            raise InputError(
                f"{where}: relation {quoted(relation)}: found {_kind(relation)} -> {_kind(template)}, "
                "expected text -> text. Put both in quotes."
            )
        if any("\ud800" <= c <= "\udfff" for c in relation + template):
            raise InputError(
                f"{where}: relation {quoted(relation)}: the template {quoted(template)} holds half a surrogate pair, "
                "which no file can. Write the character itself."
            )
        if template.count(SLOT) != 1:
            raise InputError(
                f"{where}: relation {quoted(relation)}: the template {quoted(template)} has {template.count(SLOT)} "
                f"times {SLOT}, expected exactly once. Put {SLOT} where the subject goes."
            )
    return dict(templates)


def question(template: str, subject: str) -> str:
    """The template with the subject in its slot."""
    before, _, after = template.partition(SLOT)
    return f"{before}{subject}{after}"


def subject_of(template: str, question: str) -> str | None:
    """The subject that turns `template` into `question`; None if the question does not fit it."""
    before, _, after = template.partition(SLOT)
    fits = question.startswith(before) and question.endswith(after)
    subject = question[len(before) : len(question) - len(after)]
    return subject if fits and subject else None


def derive_template(questions: Iterable[str]) -> str | None:
    """The text that all questions share before and after their subject, with `[X]` for the subject.

    The shared text is cut back so that the subject begins after a blank and ends before a character that is
    neither letter nor digit: subjects that happen to begin or end alike lose nothing but whole words they
    all share. None with fewer than `FEWEST` distinct questions, where they share no word, or where one of
    them would be left without a subject.
    """
    distinct = set(questions)
    if len(distinct) < FEWEST:
        return None
    before = _common_start(distinct)
    before = before[: before.rfind(" ") + 1]
    after = _common_start({question[::-1] for question in distinct})[::-1]
    after = after[next((at for at, c in enumerate(after) if not c.isalnum()), len(after)) :]
    template = f"{before}{SLOT}{after}"
    shares_a_word = any(c.isalnum() for c in before + after)
    if not shares_a_word or template.partition(SLOT) != (before, SLOT, after) or SLOT in after:
        return None
    return template if all(subject_of(template, question) for question in distinct) else None


def _parse(text: str, path: Path) -> object:
    try:
        return json.loads(text) if path.suffix.lower() == ".json" else yaml.load(text, Loader=PlainLoader)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = (getattr(error, "problem", None) or str(error).split("\n", maxsplit=1)[0])[:200]
        raise InputError(
            f'{path}{line}: not valid YAML ({problem}). Put the template in quotes: P17: "...".'
        ) from error
    except (RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        # the last three are how PyYAML fails on a value that its explicit tag does not fit (`!!int ''`)
        raise InputError(f"{path}: nested too deeply, or not readable ({type(error).__name__}).") from error


def _kind(value: object) -> str:
    """What a value is, in the words of a user."""
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing", bool: "true/false"}
    return "an empty mapping" if value == {} else names.get(type(value), f"the {type(value).__name__} {quoted(value)}")


def _common_start(texts: set[str]) -> str:
    first, last = min(texts), max(texts)
    return first[: next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
