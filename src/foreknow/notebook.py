"""Writes what a notebook shows of a result: a sentence, a bar of shares, a small table, a whole page.

The HTML has its styles inside, because a notebook has no style sheet of ours, and no text of a file gets in unescaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final

from foreknow.categories import CATEGORIES
from foreknow.errors import InputError
from foreknow.format.numbers import percent
from foreknow.format.text import display

COLOURS: Final = dict(zip(CATEGORIES, ("#0b3d6e", "#2b78b8", "#a9d0ee", "#e68a2e"), strict=True))
"""The colours of the categories, as on the pages."""
_TEXT: Final = dict(zip(CATEGORIES, ("#ffffff", "#ffffff", "#14202b", "#201404"), strict=True))
_NARROW: Final = 0.08
"""A part of the bar below this share has no number in it."""


def shares_text(shares: Mapping[str, float]) -> str:
    """The shares of the categories in one line: 25 % HighlyKnown, 50 % MaybeKnown, ..."""
    return ", ".join(f"{percent(shares[name])} {name}" for name in CATEGORIES if name in shares)


def card(title: str, sentence: str, *parts: str) -> str:
    """A result in a notebook: `title` in small, `sentence` in bold (both plain text), then `parts` (HTML)."""
    return (
        '<div style="font-family:Arial,Helvetica,sans-serif;max-width:46rem;line-height:1.4">'
        f'<div style="font-size:85%;opacity:0.75">{escape(title)}</div>'
        f'<div style="font-weight:600;margin:0.2rem 0 0.5rem">{escape(sentence)}</div>{"".join(parts)}</div>'
    )


def bar(shares: Mapping[str, float]) -> str:
    """A bar of the categories' shares (0 to 1), with a legend."""
    named = [(name, shares.get(name, 0.0)) for name in CATEGORIES]
    cells = "".join(
        f'<div title="{name}: {percent(share)}" style="width:{100 * share:.3f}%;background:{COLOURS[name]};'
        f'color:{_TEXT[name]};text-align:center;overflow:hidden">{percent(share) if share >= _NARROW else ""}</div>'
        for name, share in named
        if share > 0
    )
    square = "display:inline-block;width:0.8em;height:0.8em;margin-right:0.35em"
    legend = "".join(
        '<span style="margin-right:1rem;white-space:nowrap">'
        f'<span style="{square};background:{COLOURS[name]}"></span>{name} {percent(share)}</span>'
        for name, share in named
    )
    style = "display:flex;height:1.6rem;line-height:1.6rem;border-radius:3px;overflow:hidden"
    return (
        f'<div role="img" aria-label="{escape(shares_text(shares))}" style="{style}">{cells}</div>'
        f'<div style="font-size:85%;margin:0.35rem 0">{legend}</div>'
    )


def table(names: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A small table; its cells are shown as plain text, at most 80 characters of each."""
    style = "text-align:left;padding:0.15rem 0.9rem 0.15rem 0"
    head = "".join(f'<th style="{style}">{escape(name)}</th>' for name in names)
    body = "".join(
        "<tr>" + "".join(f'<td style="{style}">{escape(cell(each))}</td>' for each in line) + "</tr>" for line in lines
    )
    return (
        f'<table style="border-collapse:collapse;font-size:90%"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def note(text: str) -> str:
    """A line in small."""
    return f'<div style="font-size:85%;opacity:0.75;margin-top:0.35rem">{escape(text)}</div>'


def link(address: str) -> str:
    """A link that shows its address and opens beside the notebook."""
    return f'<a href="{escape(address)}" target="_blank" rel="noopener noreferrer">{escape(address)}</a>'


def text_block(title: str, text: str) -> str:
    """A text of several lines behind its title, closed at first."""
    return (
        f'<details style="margin-top:0.4rem"><summary>{escape(title)}</summary>'
        f'<pre style="white-space:pre-wrap;font-size:90%">{escape(text)}</pre></details>'
    )


def cell(value: object) -> str:
    """A value as the text of a cell."""
    return "" if value in (None, "") else f"{value:,.3f}" if isinstance(value, float) else display(str(value), 80)


@dataclass(frozen=True)
class ReportPage:
    """The page of a run, `report.html`. In a notebook it shows itself; elsewhere it is a path to open.

    `run`: the result that it belongs to, whose temporary folder lives as long as the page is in use.
    """

    path: Path
    run: Any = field(default=None, repr=False, compare=False)

    def __fspath__(self) -> str:
        """The path, for `open` and `webbrowser.open`."""
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        """The whole page in a frame of its own, whose scripts see nothing of the notebook."""
        page = escape(self.path.read_text(encoding="utf-8"))
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="{escape(self.path.name)}" '
            'style="width:100%;height:48rem;border:1px solid #8888"></iframe>'
        )


def report_page(folder: Path, run: Any) -> ReportPage:
    """The page of a run's folder. Raises InputError if it is not there."""
    path = folder / "report.html"
    if not path.is_file():
        raise InputError(f"{path}: is missing; foreknow.write_report({str(folder)!r}) writes it again")
    return ReportPage(path, run)
