"""Work on what a stage wrote: compare, report, explore, card, export."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from foreknow import signals
from foreknow.console import print_table
from foreknow.errors import ConfigError
from foreknow.flags import whole
from foreknow.io.remote import download
from foreknow.io.remote_paths import place


def compare(*runs: Path, page: Path | None = None, out: Path | None = None) -> None:
    """Hold finished runs of one kind beside each other: what each has right, and whether that is more than chance.

    Parameters
    ----------
    runs
        The folders of two or more audits, evaluations or tune runs; the others are compared with the first one. Of two
        audits it also shows how categories move, row by row.
    page
        Write the comparison as a page to this file (.html).
    out
        Write every row of two audits with both categories to this file (.parquet, .csv or .jsonl).
    """
    from foreknow.report.comparison import comparison_verdict  # keeps altair out
    from foreknow.stages.compare.run import compare_folders, write_page  # keeps altair out
    from foreknow.stages.compare.text import differences_table, settings_lines  # keeps polars out

    folders = [download(run) for run in runs]
    compared = compare_folders(folders)
    of_audits = compared.stage == "audit" and len(folders) == 2
    if out is not None and not of_audits:
        raise ConfigError(f"--out {out}: rows with both categories are written for two audits, found {len(runs)} runs")
    print(comparison_verdict(compared).headline)
    for of in compared.sets:
        print_table(differences_table(compared, of), f"on {of.name}" if of.name else "all rows")
    if of_audits:
        _print_moves(folders, out)
    for line in (*settings_lines(compared), *compared.cautions):
        print(line)
    if page is not None:
        print(f"page: {write_page(compared, place(page))}")


def _print_moves(folders: Sequence[Path], out: Path | None) -> None:
    """Print how the categories of rows move from one audit to another."""
    from foreknow.stages.audit.compare import compare_audits, write_rows  # keeps polars out
    from foreknow.stages.audit.result import open_audit  # keeps polars out

    found = compare_audits(*map(open_audit, folders))
    of = found.summary
    print(f"{found.first} -> {found.second}: {of['compared']:,} rows labelled in both")
    print(f"better known {of['better_known']:,}   same {of['same']:,}   less known {of['less_known']:,}\n")
    print_table(found.moves, "rows by category: first (down) to second (across)")
    if out is not None:
        write_rows(found, place(out))
        print(f"rows: {place(out)}")


def report(folder: Path, /, *, rows: bool = True, control: Path | None = None) -> None:
    """Write the report of a finished run again: an audit's, a tune run's, an evaluation's, a study's.

    Parameters
    ----------
    folder
        The run's folder.
    rows
        With --no-rows the page holds no text of any row.
    control
        The folder of another tune run that the page compares this one with, such as the one trained on D_Known.
    """
    from foreknow.pages import write_report  # keeps altair out

    control = None if control is None else download(control)
    print(f"report: {write_report(download(folder), show_rows=rows, control=control)}")


def explore(
    folder: Path,
    /,
    *,
    port: Annotated[int, Parameter(converter=whole)] = 0,
    browser: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Read, search and sort the rows of a finished run in a browser: an audit's, an evaluation's, a tune run's.

    The page is served on this machine alone, until Ctrl-C ends it.

    Parameters
    ----------
    folder
        The run's folder.
    port
        The port to serve on (default: a free one).
    browser
        Open the page in the browser of this machine.
    """
    from foreknow.stages.explore.server import explore as serve  # keeps polars out

    with serve(folder, port=port) as explorer:
        print(f"explore: {explorer.url}", flush=True)
        print("Ctrl-C ends it", flush=True)
        if browser:
            import webbrowser  # keeps it out of every start

            webbrowser.open(explorer.url)
        try:
            explorer.wait()
        except KeyboardInterrupt as stop:
            if isinstance(stop, signals.Terminated):
                raise
            print("\nforeknow: explore has ended", file=sys.stderr)


def card(folder: Path, /, *, evaluation: Path | None = None, out: Path | None = None) -> None:
    """Write a model card's section on a finished tune run: what was trained, what was new, what was lost.

    Parameters
    ----------
    folder
        The folder of a tune run.
    evaluation
        The folder of an evaluation of its model, which says what became of other rows.
    out
        The Markdown file to write (default: print it).
    """
    from foreknow.io.run_dir import write_text  # keeps polars out
    from foreknow.pages import card_text  # keeps altair out

    text = card_text(download(folder), None if evaluation is None else download(evaluation))
    if out is None:
        print(text, end="")
    else:
        write_text(place(out), text)
        print(f"written: {place(out)}")


def lm_eval(
    audit: Path,
    /,
    *,
    out: Path,
    form: Literal["few-shot", "tune"] = "few-shot",
    exemplar_set: Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=0))] = 0,
    prompt_template: Path | None = None,
    name: str | None = None,
) -> None:
    """Write the rows of an AUDIT as tasks of EleutherAI's lm-evaluation-harness: a task for each category.

    Parameters
    ----------
    audit
        A finished audit's folder.
    out
        The folder to write, which lm_eval takes as --include_path.
    form
        few-shot asks as the audit did, behind one of its exemplar sets; tune asks without exemplars, as tune trains.
    exemplar_set
        The number of the audit's exemplar set, from 0 on.
    prompt_template
        With --form tune: YAML file with the prompt, as tune takes it.
    name
        The name of the tasks (default: that of the data file).
    """
    from foreknow.stages.audit.result import open_audit  # keeps polars out
    from foreknow.stages.export.run import export_lm_eval  # keeps polars out

    written = export_lm_eval(
        open_audit(download(audit)),
        place(out),
        form=form,
        exemplar_set=exemplar_set,
        prompt_template=prompt_template,
        name=name,
    )
    for task in written.tasks:
        print(f"{task.name}: {len(task.lines):,} rows")
    for reason, count in written.left_out.items():
        print(f"left out: {count:,} rows {reason}")
    print(f"written: {written.folder}")
    print(f"next: {written.command}")
