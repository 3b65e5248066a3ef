"""The verbs: parse, call, print. Nothing is computed here, and nothing heavy imported before a verb runs.

The flags of a stage are made from its settings model (`config.py`), so each setting is written once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

from cyclopts import App, CycloptsError, Parameter, Token, validators

from foreknow import signals
from foreknow.config import AuditConfig, CheckConfig, EvaluateConfig, ExtractConfig, MixConfig, TuneConfig
from foreknow.console import plain, print_audit, print_estimate, print_scaled, print_table, print_written
from foreknow.distributed import process_group
from foreknow.errors import ForeknowError, GateCrossed
from foreknow.io.remote import download
from foreknow.io.remote_paths import place
from foreknow.settings import Settings, settings_of
from foreknow.stages.study.settings import StudyConfig, study_settings
from foreknow.version import __version__

app = App(
    name="foreknow",
    version=__version__,
    help="Know what your language model knows before you fine-tune it.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


def _whole(_: type, tokens: Sequence[Token]) -> int:
    """A whole number: the parser's own reading rounds 2.5."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"found {tokens[0].value!r}, expected a whole number") from None


def _flags_of(model: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function that takes `**given` the fields of `model` as flags; only those given are passed on."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]
        named = {p.name for p in own}
        flags = []
        for name, field in model.model_fields.items():
            if name in named:
                continue
            default = "" if field.is_required() or not field.default else f" [default: {field.default}]"
            negative = None if field.default is True else ""
            read = _whole if field.annotation in (int, int | None) and name != "rows" else None
            about = Parameter(
                help=f"{field.description}{default}", show_default=False, negative=negative, converter=read
            )
            if field.annotation == dict[str, Any] or (name == "rows" and model is StudyConfig):
                continue  # settings of other stages: in the file only
            # 1e9 is a number of rows: the settings read it
            kind: Any = Optional[str] if name == "rows" else Optional[field.annotation]  # noqa: UP045
            if name in ("map", "weight", "test"):
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
        from foreknow.stages.audit.estimate import estimate  # keeps rapidfuzz out

        found = estimate(settings)
        print_estimate(found)
        if settings.rows is not None and "tokens_a_row" in found:
            from foreknow.stages.audit.cost import model_of, scaled  # keeps polars out

            print_scaled(scaled(found, settings.rows, model_of(Path(found["folder"]))), settings.rows)
        return
    from foreknow.stages.audit.result import AuditResult  # keeps polars out
    from foreknow.stages.audit.run import run  # keeps altair out

    crossed = None
    try:
        done = run(settings)
    except GateCrossed as gate:
        assert settings.out is not None
        done, crossed = AuditResult(settings.out), gate
    print_audit(done.summary)
    if settings.chance and done.chance is not None:
        from foreknow.stages.audit.chance_baseline import chance_table  # keeps polars out

        print_table(chance_table(done.chance), "Known rows, and what guessing would score, in %")
    print(f"report: {done.folder / 'report.html'}")
    if crossed is not None:
        raise crossed


@app.command
@_flags_of(CheckConfig)
def check(
    *data: Annotated[str, Parameter(help="One data file or more; several are taken for splits named as the files.")],
    strict: Annotated[bool, Parameter(help="Exit 3 if there is an error or a warning.", negative="")] = False,
    json: Annotated[Optional[Path], Parameter(help="Write all that was found to this file.")] = None,  # noqa: UP045
    config: Annotated[Optional[Path], Parameter(help="A YAML file with the same settings; flags win.")] = None,  # noqa: UP045
    **given: Any,
) -> None:
    """Tell what is wrong with DATA before any model runs: duplicates, contradictions, overlaps, floors."""
    from foreknow.data.validation import check_files  # keeps rapidfuzz out
    from foreknow.data.validation_result import finding_lines, groups_table  # keeps polars out
    from foreknow.io.run_dir import write_json  # keeps polars out

    found = check_files([settings_of(CheckConfig, {"data": one, **given}, config) for one in data])
    print_table(groups_table(found), "rows by group")
    for line in finding_lines(found):
        print(line)
    if json is not None:
        write_json(place(json), found.summary)
        print(f"json: {place(json)}")
    if strict and found.fails:
        raise GateCrossed("--strict: errors or warnings were found")


data = App(name="data", help="Write data sets: the paper's, PopQA, the packaged facts.", help_format="plaintext")
app.command(data)


@data.command
def entityquestions(
    *,
    source: Annotated[str, Parameter(name="--from")] = "hub",
    out: Path,
    templates: Path | None = None,
    allow_different: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write ENTITYQUESTIONS as the paper split it: train, dev, test, test_ood.

    Parameters
    ----------
    source
        The published folder or zip, or 'hub' to fetch it.
    out
        The folder to write.
    templates
        Question templates by relation, in place of those read off the questions.
    allow_different
        Go on where counts differ from the paper's; the differences stand in the manifest.
    """
    from foreknow.data.builtin.export import write_entityquestions  # keeps polars out

    print_written(write_entityquestions(source, place(out), templates=templates, check=not allow_different))


@data.command
def popqa(*, source: Annotated[str, Parameter(name="--from")] = "hub", out: Path) -> None:
    """Write PopQA as one file with subjects, relations and popularity.

    Parameters
    ----------
    source
        The published test.tsv, or 'hub' to fetch it.
    out
        The folder to write.
    """
    from foreknow.data.builtin.export import write_popqa  # keeps polars out

    print_written(write_popqa(source, place(out)))


@data.command
def facts(*, out: Path) -> None:
    """Write the packaged facts: train, dev, test.

    Parameters
    ----------
    out
        The folder to write.
    """
    from foreknow.data.builtin.export import write_facts  # keeps polars out

    print_written(write_facts(place(out)))


@app.command
@_flags_of(ExtractConfig)
def extract(
    data: Annotated[str, Parameter(help=str(ExtractConfig.model_fields["data"].description))],
    /,
    *,
    config: Annotated[Optional[Path], Parameter(help="A YAML file with the same settings; flags win.")] = None,  # noqa: UP045
    **given: Any,
) -> None:
    """Ask a server for the short facts in the long answers of DATA, and write them beside each row."""
    from foreknow.stages.extract.run import write_facts  # keeps rapidfuzz out

    settings = settings_of(ExtractConfig, {"data": data, **given}, config)
    found = write_facts(settings)
    for key, value in found.items():
        print(f"{key.replace('_', ' ') + ':':<18}{plain(str(value))[:300]}")
    print(f"written: {settings.out}")


@app.command
@_flags_of(MixConfig)
def mix(
    audit: Annotated[Path, Parameter(help="A finished audit's folder.")],
    /,
    *,
    config: Annotated[Optional[Path], Parameter(help="A YAML file with the same settings; flags win.")] = None,  # noqa: UP045
    **given: Any,
) -> None:
    """Write a training set from an AUDIT: a share of Unknown rows, one category, Known only, relabelled, weighted."""
    from foreknow.stages.mix.run import write_mix  # keeps rapidfuzz out
    from foreknow.stages.mix.sampling import mix_table, size_table  # keeps polars out

    written = write_mix(settings_of(MixConfig, {"audit": audit, **given}, config))
    print_table(size_table(written.audited), "largest sets of each family")
    print_table(mix_table(written.mix), "rows drawn")
    for note in written.mix.notes:
        print(note)
    print(f"written: {written.path}")


@app.command
@_flags_of(TuneConfig)
def tune(
    train: Annotated[Optional[str], Parameter(help=str(TuneConfig.model_fields["train"].description))] = None,  # noqa: UP045
    /,
    *,
    config: Annotated[Optional[Path], Parameter(help="A YAML file with the same settings; flags win.")] = None,  # noqa: UP045
    **given: Any,
) -> None:
    """Fine-tune a model on TRAIN, watching what it fits and forgets in each category."""
    settings = settings_of(TuneConfig, {**({} if train is None else {"train": train}), **given}, config)
    if settings.dry_run:
        from foreknow.stages.train.loop import estimate  # keeps torch out

        print_estimate(estimate(settings))
        return
    from foreknow.stages.train.curves import format_point  # keeps polars out
    from foreknow.stages.train.run import run  # keeps altair out

    done = run(settings)
    early = done.results["early_stop"]["metrics"]
    for name, line in (("EARLY_STOP", early), ("CONVERGENCE", done.results["convergence"]["metrics"])):
        print(f"{name:<12} {format_point(line, early)}")
    print(f"report: {done.folder / 'report.html'}")


@app.command
@_flags_of(EvaluateConfig)
def evaluate(
    model: Annotated[str, Parameter(help=str(EvaluateConfig.model_fields["model"].description))],
    data: Annotated[str, Parameter(help=str(EvaluateConfig.model_fields["data"].description))],
    /,
    *,
    config: Annotated[Optional[Path], Parameter(help="A YAML file with the same settings; flags win.")] = None,  # noqa: UP045
    **given: Any,
) -> None:
    """Ask a tuned MODEL every question of DATA and count what it gets right, wrong, and newly wrong."""
    from foreknow.stages.evaluate.run import run  # keeps altair out
    from foreknow.stages.evaluate.tables import (  # keeps polars out
        collapse_table,
        em_table,
        moves_table,
        summary_lines,
        wrong_table,
    )

    done = run(settings_of(EvaluateConfig, {"model": model, "data": data, **given}, config))
    found = done.summary
    print_table(em_table(found), "exact match")
    for frame, title in (
        (moves_table(found), "against the base model's probe"),
        (wrong_table(found), "most frequent wrong answers"),
        (collapse_table(found), "how often one answer is given"),
    ):
        if frame is not None and not frame.is_empty():
            print_table(frame, title)
    for line in summary_lines(found):
        print(line)
    print(f"report: {done.folder / 'report.html'}")


@app.command
@_flags_of(StudyConfig)
def study(
    which: Annotated[str, Parameter(name="study", help="A preset (quick, lab, paper), or a YAML file.")],
    /,
    **given: Any,
) -> None:
    """Do the paper's whole experiment on a model: audit, mix, tune every variant and seed, test every claim."""
    settings = study_settings(which, given)
    if settings.dry_run:
        from foreknow.stages.study.estimate import estimate as estimate_study  # keeps torch out

        print_estimate(estimate_study(settings))
        return
    from foreknow.stages.study.claims import claims_table as scorecard  # keeps polars out
    from foreknow.stages.study.run import run  # keeps altair out
    from foreknow.stages.study.tables import table  # keeps polars out

    done = run(settings)
    print_table(table(done.results), "exact match on test rows by Unknown share, mean over seeds")
    print_table(scorecard(done.tables["claims"]), "what the paper claims, on this model")
    print(f"report: {done.folder / 'report.html'}")


@app.command
def forecast(
    audit: Path,
    /,
    *,
    study: Path,
    unknown: float | None = None,
    fitted: Annotated[Optional[tuple[float, float]], Parameter(negative="")] = None,  # noqa: UP045
    force: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Tell what a mix of an AUDIT's rows would do to exact match, from a study of the same model.

    Parameters
    ----------
    audit
        A finished audit's folder.
    study
        A finished study's folder.
    unknown
        Share of Unknown rows in the mix (default: the audit's own).
    fitted
        Shares of the Known and of the Unknown rows that will be fitted (default: as was usual in the study).
    force
        Go on though the study is of another model.
    """
    from foreknow.io.run_dir import with_checksum, write_json  # keeps polars out
    from foreknow.stages.audit.page import write_page  # keeps altair out
    from foreknow.stages.audit.result import open_audit  # keeps polars out
    from foreknow.stages.study.forecast import forecast_audit, forecast_table  # keeps polars out
    from foreknow.stages.study.result import open_study  # keeps polars out

    audit, study = download(audit), download(study)
    found = forecast_audit(open_audit(audit), open_study(study), unknown=unknown, fitted=fitted or (), force=force)
    print_table(forecast_table(found), f"forecast for {found['unknown']:.1%} Unknown rows")
    for name, of in found["left_out"].items():
        if of["rmse"] is not None:
            within = "" if of["coverage"] is None else f", {of['coverage']:.0%} of them inside their 95 % interval"
            print(f"{name}: variants left out of the study were told to {100 * of['rmse']:.1f} points{within}")
    write_json(audit / "forecast.json", with_checksum(found))
    print(f"report: {write_page(open_audit(audit))}")


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
    from foreknow.stages.audit.compare import compare_audits, write_rows  # keeps polars out
    from foreknow.stages.audit.result import open_audit  # keeps polars out

    found = compare_audits(open_audit(download(first)), open_audit(download(second)))
    of = found.summary
    print(f"{found.first} -> {found.second}: {of['compared']:,} rows labelled in both")
    print(f"better known {of['better_known']:,}   same {of['same']:,}   less known {of['less_known']:,}\n")
    print_table(found.moves, "rows by category: first (down) to second (across)")
    if out is not None:
        write_rows(found, place(out))
        print(f"rows: {place(out)}")


@app.command
def report(folder: Path, /, *, rows: bool = True, control: Path | None = None) -> None:
    """Write the report of a finished run again: an audit's, a tune run's, an evaluation's, a study's.

    Parameters
    ----------
    folder
        The run's folder.
    rows
        With --no-rows no text of any row is in the page.
    control
        For a tune run: another one to hold it against, such as D_Known's.
    """
    from foreknow.pages import write_report  # keeps altair out

    control = None if control is None else download(control)
    print(f"report: {write_report(download(folder), show_rows=rows, control=control)}")


lab = App(name="lab", help="A small model trained here, every exposure of every fact counted.", help_format="plaintext")
app.command(lab)


@lab.command
def build(
    *,
    out: Path | None = None,
    subjects: Annotated[int, Parameter(converter=_whole, validator=validators.Number(gte=1, lte=20_000))] = 160,
) -> None:
    """Train the lab's model and write it with its facts; minutes on two cores.

    Parameters
    ----------
    out
        The folder to write (default: the user's cache, where the model 'lab' is looked for).
    subjects
        Subjects of each kind, of which each has a fact in three relations. The model 'lab' has 160; another world is
        named by its folder, its facts by facts.jsonl in there.
    """
    from foreknow.models.lab_model import LAB  # keeps torch out
    from foreknow.models.lab_model import build as build_lab  # keeps torch out

    recipe = replace(LAB, world=replace(LAB.world, subjects=subjects))
    print(f"built: {build_lab(None if out is None else place(out), recipe=recipe)}")


@app.command
def models() -> None:
    """List the packaged models: size, licence, checksum, where they are kept."""
    from foreknow.models.packaged import packaged_table  # keeps polars out

    for line in packaged_table():
        print(f"{line['name']}{'  (default)' if line['default'] else ''}")
        for key in ("note", "download", "licence", "kept", "sha256"):
            print(f"  {key:<9} {line[key]}")
    print("lab: a small model that is trained here; see `foreknow lab build --help`.")
    print("Any folder saved by save_pretrained, .gguf file or hub id can stand in their place.")


def main(words: Sequence[str] | None = None) -> None:
    """The command line. Exit codes: 0 done, 1 failed, 2 wrong use, 3 a gate was crossed, 130 interrupted, 143 ended."""
    process_group.silence_ranks()
    if (
        words is None and not process_group.is_distributed()
    ):  # several processes that train together are ended by their launcher
        signals.install_sigterm()
    given = sys.argv[1:] if words is None else words
    try:
        # the parser takes a lone "-" for an option without a name
        app(["stdin:" if word == "-" else word for word in given], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"foreknow: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except ForeknowError as error:
        print(f"foreknow: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt as stop:
        signals.cancel_repeat()
        print("\nforeknow: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(143 if isinstance(stop, signals.Terminated) else 130) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
