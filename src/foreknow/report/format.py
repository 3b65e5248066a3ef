"""Texts and numbers as the page shows them: cut, made fit to stand in a line, escaped, said as a person would."""

from __future__ import annotations

import json
import re
from pathlib import PurePath

from markupsafe import Markup, escape

from foreknow.stats import Interval

LONGEST_TEXT = 400
"""Longer questions and answers are cut in the table; rows.parquet has them whole."""
UNSAFE_IN_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
"""Control characters, and marks that turn the direction of the text around them."""


def script_json(document: object) -> str:
    """JSON with every character escaped that could end a script element or a JavaScript line."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", text)


def clip(text: str | None, longest: int = LONGEST_TEXT) -> str | None:
    """The text, cut where it is too long for a table cell."""
    return text if text is None or len(text) <= longest else text[: longest - 1] + "…"


def display(text: str | None, longest: int = 90) -> str:
    """A name fit to stand in a line: never empty, no control characters, long ones cut in the middle."""
    clean = UNSAFE_IN_LINE.sub(" ", text or "").strip()
    if not clean:
        return "(no name)"
    return clean if len(clean) <= longest else f"{clean[: longest - 21]}…{clean[-20:]}"


def tight(text: str) -> Markup:
    """Escaped text in which "61 %", "1 in 16" and "(57–65)" are not broken over two lines."""
    safe = re.sub(r"\b1 in (?=[\da])", "1\u00a0in\u00a0", str(escape(text)).replace(" %", "\u00a0%"))
    return Markup(re.sub(r"\(\d+–\d+\)", lambda m: f'<span class="nb">{m[0]}</span>', safe))


def command(text: str) -> Markup:
    """Escaped commands whose flags are not broken over two lines."""
    return Markup(re.sub(r"--[\w-]+", lambda m: f'<span class="nb">{m[0]}</span>', str(escape(text))))


def inline(text: str | None) -> str:
    """A text that stands inside a line: its edges are kept, control characters are not."""
    return UNSAFE_IN_LINE.sub(" ", text or "")


def without_folders(text: str) -> str:
    """A text in which paths are cut down to their last part: folders of the machine are nobody's business."""
    return re.sub(r"(?:[^\s/\\]*[/\\])+([^\s/\\]+)", r"\1", text)


def suffix_of(name: object) -> str:
    """The suffix of a data file's name that tells its format; .jsonl where none does."""
    known = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
    suffixes = [suffix for suffix in PurePath(str(name or "")).suffixes if suffix in known]
    return suffixes[-1] if suffixes else ".jsonl"


def number(value: float | None) -> str:
    """A probability or rate in as many digits as it deserves."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def exact(share: float) -> str:
    """A share in per cent with one decimal: 36.7 %; what is less than all or more than none is not rounded to it."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"


def exact_interval(interval: Interval) -> str:
    """A share with the ends of its interval: 36.7 % (33–40)."""
    return f"{exact(interval.value)} ({100 * interval.low:.0f}–{100 * interval.high:.0f})"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
