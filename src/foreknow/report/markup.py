"""This module escapes texts and data for a page, and marks what a browser must not break over two lines."""

from __future__ import annotations

import json
import re

from markupsafe import Markup, escape


def script_json(document: object) -> str:
    """JSON with every character escaped that could end a script element or a JavaScript line."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", text)


def tight(text: str) -> Markup:
    """Escape a text so that a browser does not break "61 %", "1 in 16" or "(57–65)" over two lines."""
    safe = re.sub(r"\b1 in (?=[\da])", "1\u00a0in\u00a0", str(escape(text)).replace(" %", "\u00a0%"))
    return Markup(re.sub(r"\(\d+–\d+\)", lambda m: f'<span class="nb">{m[0]}</span>', safe))


def command(text: str) -> Markup:
    """Escape commands so that a browser does not break a flag over two lines."""
    return Markup(re.sub(r"--[\w-]+", lambda m: f'<span class="nb">{m[0]}</span>', str(escape(text))))
