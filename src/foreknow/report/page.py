"""This module renders the templates of all pages, and turns the sections of a summary into labels and values.

Jinja's autoescape escapes all text. The content security policy allows exactly our own style sheet and script, by
hash, and no network request. Every page extends `shell.html.j2`; `macros.html.j2` has the macros that sections share.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache, partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from foreknow.format.numbers import exact, exact_interval, factor, number, one_in, percent, percent_interval
from foreknow.format.text import UNSAFE_IN_LINE, display, inline
from foreknow.report import charts
from foreknow.report.markup import command, tight

LABELS = {
    "name": "name",
    "note": "note",
    "fingerprint": "fingerprint",
    "layout": "layout read",
    "shots": "exemplars per prompt",
    "exemplar_sets": "exemplar sets",
    "samples": "samples per exemplar set",
    "temperature": "sampling temperature",
    "top_k": "sampling top-k",
    "match": "answer matching",
    "bos": "BOS token",
    "chat_template": "chat template",
    "prompt": "prompt",
    "dtype": "number format",
    "device": "device",
}
PRIVATE_KEYS = frozenset({"folder", "path", "file", "cache"})
"""Keys whose values are paths of the machine; a page never shows them."""

Fact = tuple[str, str, bool]
"""A label, its value, and whether the value has several lines."""


def render(template: str, *scripts: str, warning: str | None, **variables: Any) -> str:
    """Render a page from its template, which extends the shell, with these variables.

    `scripts`: the assets that may run in the page; they stand in one script element. `warning`: a text that the page
    shows first, if any.
    """
    style, code = asset("style.css"), "\n".join(map(asset, scripts))
    page_template = _environment().get_template(template)
    shell = {"csp": _policy(style, code), "style": Markup(style), "script": Markup(code), "warning": warning}
    shell["today"] = date_of_writing()
    return page_template.render(**shell, **variables)


def date_of_writing() -> str:
    """Today's date (UTC), or that of SOURCE_DATE_EPOCH where a build has to give the same bytes again."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)
    return f"{now.day} {now:%B %Y}"


def facts(mapping: Mapping[str, Any], labels: Mapping[str, str] = LABELS) -> list[Fact]:
    """The values of a summary's section with their labels, without nulls and paths; keys of `labels` come first."""
    keys = [k for k in labels if k in mapping] + [k for k in mapping if k not in labels]
    items = [(k, mapping[k]) for k in keys if k not in PRIVATE_KEYS and mapping[k] is not None]
    return [(labels.get(k, k.replace("_", " ")), (t := plain(v)), "\n" in t) for k, v in items]


def model_facts(model: Mapping[str, Any]) -> list[Fact]:
    """The facts of a summary's `model` section, with a line on whether it writes language (`Fluency.summary`)."""
    fluency = model.get("fluency") or {}
    line = None
    if (gain := fluency.get("nats_per_token_gained")) is not None:
        line = f"{gain:.2f} nats a token likelier than the same tokens shuffled (in {fluency.get('language')})"
    elif fluency.get("not_checked"):
        line = f"not checked: {fluency['not_checked']}"
    return facts({**{k: v for k, v in model.items() if k != "fluency"}, "plain sentences": line})


def warning_of(model: Mapping[str, Any]) -> str | None:
    """The warning for the top of the page if the fluency check doubts that the model writes language; else None."""
    warning: str | None = (model.get("fluency") or {}).get("warning")
    return warning


def plain(value: object) -> str:
    """A setting as text, without control characters except line breaks."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return "\n".join(UNSAFE_IN_LINE.sub(" ", line) for line in text.split("\n"))


def both(draw: Callable[..., str], *data: Any) -> tuple[Markup, Markup]:
    """Draw a chart twice: for wide and for narrow screens."""
    return Markup(draw(*data, charts.WIDE)), Markup(draw(*data, charts.NARROW))


def asset(name: str) -> str:
    """Read a template, a style sheet or a script of the pages."""
    return files("foreknow.report").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy that allows only this style sheet and this script."""

    def sha(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src 'sha256-{sha(style)}'; script-src 'sha256-{sha(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "interval": percent_interval,
        "exact": exact,
        "exact_interval": exact_interval,
        "display": display,
        "long": partial(display, longest=400),
        "number": number,
        "tight": tight,
        "command": command,
        "inline": inline,
        "one_in": one_in,
        "factor": factor,
    }
    return environment
