"""The verbs: parse, call, print. Nothing is computed here, and nothing heavy imported before a verb runs.

The flags of a stage are made from its settings model (`config.py`), so each setting is written once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

from cyclopts import App, CycloptsError, Parameter

from foreknow import __version__
from foreknow.config import AuditConfig, Settings, settings_of
from foreknow.errors import ForeknowError

if TYPE_CHECKING:
    import polars as pl

app = App(
    name="foreknow",
    version=__version__,
    help="Know what your language model knows before you fine-tune it.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


def _flags_of(model: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function that takes `**given` the fields of `model` as flags; only those given are passed on."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]
        named = {p.name for p in own}
        flags = []
        for name, field in model.model_fields.items():
            if name in named:
                continue
            default = "" if field.default in (None, False) or field.default == {} else f" [default: {field.default}]"
            about = Parameter(help=f"{field.description}{default}", show_default=False, negative="")
            kind: Any = Optional[field.annotation]  # noqa: UP045
            if name == "map":
                kind = Optional[list[str]]  # noqa: UP045
            flags.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, about])
            )

        def call(*args: Any, **given: Any) -> None:
            mine = {k: v for k, v in given.items() if k in named}
            function(*args, **mine, **{k: v for k, v in given.items() if k not in named and v is not None})

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        call.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        return call

    return decorate


@app.command
@_flags_of(AuditConfig)
def audit(
    data: Annotated[Optional[str], Parameter(help=str(AuditConfig.model_fields["data"].description))] = None,  # noqa: UP045
    /,
    *,
    config: Annotated[Optional[Path], Parameter(help="A YAML file with the same settings; flags win.")] = None,  # noqa: UP045
    **given: Any,
) -> None:
    """Label each row of DATA by what the model knows, before any training."""
    settings = settings_of(AuditConfig, {**({} if data is None else {"data": data}), **given}, config)
    if settings.dry_run:
        from foreknow.auditing import estimate

        for key, value in estimate(settings).items():
            print(f"{key.replace('_', ' ') + ':':<18}{f'{value:,}' if isinstance(value, int) else value}")
        return
    from foreknow.auditing import Audit, run
    from foreknow.errors import GateCrossed

    crossed = None
    try:
        done = run(settings)
    except GateCrossed as gate:
        done, crossed = Audit(Path(str(settings.out))), gate
    _print_audit(done.summary)
    print(f"report: {done.folder / 'report.html'}")
    if crossed is not None:
        raise crossed


@app.command
def compare(first: Path, second: Path, /, *, out: Path | None = None) -> None:
    """Show how categories move, row by row, from audit FIRST to audit SECOND.

    Parameters
    ----------
    first
        A finished audit's folder.
    second
        Another one, of the same rows under the same protocol.
    out
        Write every row with both categories to this file (.parquet, .csv or .jsonl).
    """
    from foreknow.auditing import open_audit
    from foreknow.comparing import compare_audits, write_rows

    found = compare_audits(open_audit(first), open_audit(second))
    of = found.summary
    print(f"{found.first} -> {found.second}: {of['compared']:,} rows labelled in both")
    print(f"better known {of['better_known']:,}   same {of['same']:,}   less known {of['less_known']:,}\n")
    _print_table(found.moves, "rows by category: first (down) to second (across)")
    if out is not None:
        write_rows(found, out)
        print(f"rows: {out}")


@app.command
def report(folder: Path, /, *, rows: bool = True) -> None:
    """Write the report of a finished audit again.

    Parameters
    ----------
    folder
        The audit's folder.
    rows
        With --no-rows no text of any row is in the page.
    """
    from foreknow.auditing import open_audit

    print(f"report: {open_audit(folder).report(show_rows=rows)}")


@app.command
def models() -> None:
    """List the packaged models: size, licence, checksum, where they are kept."""
    from foreknow.packaged import table

    for line in table():
        print(f"{line['name']}{'  (default)' if line['default'] else ''}")
        for key in ("note", "download", "licence", "kept", "sha256"):
            print(f"  {key:<9} {line[key]}")
    print("Any folder saved by save_pretrained, .gguf file or hub id can stand in their place.")


def _print_audit(summary: dict[str, Any]) -> None:
    """The result in a dozen lines: category shares overall and by group."""
    import polars as pl

    by_group = summary["categories"]["by_relation"]
    floors = summary["majority_floor"]
    shown = sorted(by_group, key=lambda g: -by_group[g]["Unknown"])[:24]
    lines = [
        ("all", summary["categories"]["overall"], None),
        *((g, by_group[g], floors.get(g)) for g in shown),
    ]
    table = pl.DataFrame(
        [
            {
                "group": name,
                **{category: f"{share:.1%}" for category, share in shares.items()},
                "majority floor": "" if floor is None else f"{floor['floor']:.1%}",
            }
            for name, shares, floor in lines
        ]
    )
    print(
        f"{summary['labelled']:,} of {summary['rows']:,} rows labelled with {summary['model']['name']}, "
        f"{summary['rows_per_second']:.2g} rows/s"
    )
    _print_table(table, "share of rows by category")
    if len(by_group) > len(shown):
        print(f"and {len(by_group) - len(shown)} more groups: see the report")
    flags = ", ".join(f"{name} {count:,}" for name, count in summary["flags"].items())
    if flags:
        print(f"flags: {flags}")
    long = summary["flags"].get("long_answer", 0)
    if long:
        print(
            f"{long:,} rows have answers longer than {summary['protocol']['max_answer_tokens']} tokens and get no "
            "category: split them into short facts, or raise --max-answer-tokens"
        )


def _print_table(frame: pl.DataFrame, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for at, name in enumerate(frame.columns):
        table.add_column(name, justify="left" if at == 0 else "right", no_wrap=at > 0)
    for line in frame.iter_rows():
        table.add_row(*(_plain(value) for value in line))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)


def _plain(value: Any) -> str:
    """A cell without control characters: data must not steer a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(value))


def main(words: Sequence[str] | None = None) -> None:
    """The command line. Exit codes: 0 done, 1 failed, 2 wrong use, 3 a gate was crossed, 130 interrupted."""
    try:
        app(sys.argv[1:] if words is None else words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"foreknow: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except ForeknowError as error:
        print(f"foreknow: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("\nforeknow: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
