"""This module renders the page of `foreknow explore`, and gives the style sheet and script served beside it."""

from __future__ import annotations

from foreknow.report import page
from foreknow.version import __version__

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy under which the page is served: no script and no style but its own two files."""


def render_explore(*, title: str, folder: str, token: str) -> str:
    """Render the page. `folder`: the name of the run's folder. `token`: what its two files are asked for with."""
    return page.render("explore.html.j2", warning=None, title=title, folder=folder, token=token, version=__version__)


def explore_style() -> str:
    """The style sheet: that of all pages, and what this one adds."""
    return page.asset("style.css") + page.asset("explore.css")


def explore_script() -> str:
    """The script."""
    return page.asset("explore.js")
