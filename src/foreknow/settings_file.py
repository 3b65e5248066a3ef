"""A settings file to fill in: every setting of a verb with its default and a comment, and a schema for editors."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from foreknow.settings import Group, Settings, group_of

WIDTH = 100


def commented_yaml(verb: str, model: type[Settings], *, how: str) -> str:
    """Every setting under its group, its description as a comment; a required one is commented out.

    `how` is the command that reads the file.
    """
    lines = [f"# Settings of foreknow {verb}. Use this file with: {how}", "# Flags overrule this file."]
    for group in Group:
        fields = {name: field for name, field in model.model_fields.items() if group_of(field) is group}
        if fields:
            lines += ["", f"# ---- {group.value} ----"]
        for name, field in fields.items():
            lines += ["", *_comment(field), _line(name, field)]
    return "\n".join(lines) + "\n"


def json_schema(verb: str, model: type[Settings]) -> str:
    """The JSON schema of the settings file. It requires no key, since a flag can give each of them."""
    schema = model.model_json_schema()
    schema.pop("required", None)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**head, **schema, "title": f"foreknow {verb}"}, indent=2)


def _comment(field: FieldInfo) -> list[str]:
    choices = list(_choices(field.annotation))
    text = str(field.description)
    text += f" One of: {', '.join(map(str, choices))}." if choices else ""
    text += " Required." if field.is_required() else ""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _line(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return f"# {name}:"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=WIDTH - len(name) - 20)
    text = text.strip().removesuffix("...").strip().replace("\n", "\n  ")  # PyYAML ends a lone scalar with dots
    return f"{name}: {text}"


def _choices(annotation: Any) -> Iterator[Any]:
    """The values of a `Literal`, also where the annotation is a union with one."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _choices(part)
