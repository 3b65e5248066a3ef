"""A hook of MkDocs: docs/settings.md names the settings models, and each becomes a table of its fields.

mkdocstrings reads the source without running it, so it shows neither inherited fields nor descriptions that are
put together from several texts. The models themselves know both.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, Final

from pydantic.fields import FieldInfo

MARK: Final = re.compile(r"^\{\{ settings ([\w.]+) \}\}$", re.M)
"""A line of the page that a table takes the place of: the model's whole name in double braces."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the Markdown of each page."""
    return MARK.sub(lambda mark: settings_table(mark[1]), markdown)


def settings_table(name: str) -> str:
    """The fields of the model of this name as a Markdown table, the model's docstring above it."""
    module, _, model = name.rpartition(".")
    settings = getattr(import_module(module), model)
    rows = [f"| `{field}` | {_default(info)} | {_cell(info.description or '')} |" for field, info in _fields(settings)]
    about = " ".join((settings.__doc__ or "").split())
    return "\n".join([about, "", "| setting | default | meaning |", "|---|---|---|", *rows])


def _fields(settings: Any) -> list[tuple[str, FieldInfo]]:
    """A model's own fields first, then what it has in common with other stages."""
    own = settings.__annotations__
    return sorted(settings.model_fields.items(), key=lambda field: field[0] not in own)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    return "" if value is None or value in ({}, (), []) else f"`{value}`"


def _cell(text: str) -> str:
    """A text as a table's cell: no column separators, no HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
