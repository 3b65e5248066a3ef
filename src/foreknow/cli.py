"""The verbs: parse, call, print. Nothing is computed here, and nothing heavy imported before a verb runs.

The flags of a stage are made from its settings model (`config/`, `flags.py`), so each setting is written once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Optional

from cyclopts import App, CycloptsError, Parameter, validators

from foreknow import next_command, signals
from foreknow.config import (
    AuditConfig,
    CheckConfig,
    EvaluateConfig,
    ExtractConfig,
    MixConfig,
    RemediesConfig,
    TuneConfig,
)
from foreknow.config.shared import DEFAULT_FACTS
from foreknow.console import plain, print_audit, print_estimate, print_scaled, print_table, print_written
from foreknow.distributed import process_group
from foreknow.errors import ConfigError, ForeknowError, GateCrossed
from foreknow.flags import HELP, HELP_ALL, PANELS, ConfigFile, epilogue, positional, whole, with_flags
from foreknow.io.remote import download
from foreknow.io.remote_paths import place
from foreknow.progress import log_to_stderr
from foreknow.quickstart import after_quickstart, can_ask, count_steps, quickstart_steps, walk
from foreknow.settings import Group, Settings, settings_of
from foreknow.settings_file import commented_yaml, json_schema
from foreknow.stages.study.settings import StudyConfig, study_settings
from foreknow.version import __version__


def audit(
    data: Annotated[Optional[str], positional(AuditConfig, "data")] = None,  # noqa: UP045
    /,
    *,
    config: ConfigFile = None,
    **given: Any,
) -> None:
    """Label each row of DATA by what the model knows, before any training."""
    settings = settings_of(AuditConfig, {**({} if data is None else {"data": data}), **given}, config)
    if settings.dry_run:
        from foreknow.stages.audit.estimate import estimate  # keeps rapidfuzz out

        found = estimate(settings)
        print_estimate(found)
        if settings.rows is not None and "tokens_a_row" in found:
            from foreknow.stages.audit.cost import read_model_size, scale_estimate  # keeps polars out

            print_scaled(scale_estimate(found, settings.rows, read_model_size(Path(found["folder"]))), settings.rows)
        return
    from foreknow.inference.server.model import address_of  # keeps polars out
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
    if address_of(settings.model) is None:  # a server's weights cannot be trained from here
        print(f"next: {next_command.after_audit(settings)}")


def check(
    *data: Annotated[
        str,
        Parameter(
            help="One data file or more; each of several files is a split with the name of the file.",
            group=PANELS[Group.DATA],
        ),
    ],
    strict: Annotated[
        bool,
        Parameter(
            help="Exit with status 3 if there is an error or a warning.",
            show_default=False,
            negative="",
            group=PANELS[Group.OUTPUT],
        ),
    ] = False,
    json: Annotated[
        Path | None, Parameter(help="Write all findings to this JSON file.", group=PANELS[Group.OUTPUT])
    ] = None,
    config: ConfigFile = None,
    **given: Any,
) -> None:
    """Tell what is wrong with DATA before any model runs: duplicates, contradictions, overlaps, floors."""
    from foreknow.data.validation import check_files  # keeps rapidfuzz out
    from foreknow.data.validation_result import finding_lines, groups_table  # keeps polars out
    from foreknow.io.run_dir import write_json  # keeps polars out

    settings = [settings_of(CheckConfig, {"data": one, **given}, config) for one in data]
    found = check_files(settings)
    print_table(groups_table(found), "rows by group")
    for line in finding_lines(found):
        print(line)
    if json is not None:
        write_json(place(json), found.summary)
        print(f"json: {place(json)}")
    if strict and found.fails:
        raise GateCrossed("--strict: errors or warnings were found")
    if len(settings) == 1:
        print(f"next: {next_command.after_check(settings[0])}")


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
        A file with a question template for each relation; without it the published questions give the templates.
    allow_different
        Continue even if counts differ from the paper's; the manifest lists the differences.
    """
    from foreknow.data.builtin.export import write_entityquestions  # keeps polars out

    print_written(write_entityquestions(source, place(out), templates=templates, check=not allow_different))


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


def facts(*, out: Path) -> None:
    """Write the packaged facts: train, dev, test.

    Parameters
    ----------
    out
        The folder to write.
    """
    from foreknow.data.builtin.export import write_facts  # keeps polars out

    print_written(write_facts(place(out)))


def extract(
    data: Annotated[str, positional(ExtractConfig, "data")],
    /,
    *,
    config: ConfigFile = None,
    **given: Any,
) -> None:
    """Ask a server for the short facts in the long answers of DATA, and write them beside each row."""
    from foreknow.stages.extract.run import write_facts  # keeps rapidfuzz out

    settings = settings_of(ExtractConfig, {"data": data, **given}, config)
    found = write_facts(settings)
    for key, value in found.items():
        print(f"{key.replace('_', ' ') + ':':<18}{plain(str(value))[:300]}")
    print(f"written: {settings.out}")


def mix(
    audit: Annotated[Path, positional(MixConfig, "audit")],
    /,
    *,
    config: ConfigFile = None,
    **given: Any,
) -> None:
    """Write a training set from an AUDIT: a share of Unknown rows, one category, Known only, weighted, masked."""
    from foreknow.stages.mix.run import write_mix  # keeps rapidfuzz out
    from foreknow.stages.mix.sampling import mix_table, size_table  # keeps polars out

    settings = settings_of(MixConfig, {"audit": audit, **given}, config)
    written = write_mix(settings)
    if settings.uses_spans:
        from foreknow.stages.mix.span_mix import span_mix_table  # keeps polars out

        print_table(span_mix_table(written.mix), "rows drawn")
    else:
        print_table(size_table(written.audited), "largest sets of each family")
        print_table(mix_table(written.mix), "rows drawn")
    for note in written.mix.notes:
        print(note)
    if settings.mask:
        from foreknow.stages.train.pretokenized import write_tokens  # keeps torch out

        for note in write_tokens(settings).notes:
            print(note)
    print(f"written: {written.path}")
    print(f"next: {next_command.after_mix(settings)}")


def tune(
    train: Annotated[Optional[str], positional(TuneConfig, "train")] = None,  # noqa: UP045
    /,
    *,
    config: ConfigFile = None,
    **given: Any,
) -> None:
    """Fine-tune a model on TRAIN, watching what it fits and forgets in each category."""
    settings = settings_of(TuneConfig, {**({} if train is None else {"train": train}), **given}, config)
    if settings.dry_run:
        from foreknow.stages.train.estimate import estimate  # keeps torch out

        print_estimate(estimate(settings))
        return
    from foreknow.stages.train.curves import format_point  # keeps polars out
    from foreknow.stages.train.run import run  # keeps altair out

    done = run(settings)
    for name, key in (("EARLY_STOP", "early_stop"), ("CONVERGENCE", "convergence")):
        print(f"{name:<12} {format_point(done.results[key]['metrics'])}")
    for key in ("early_stop", "convergence"):
        if folder := done.results[key]["folder"]:
            print(f"weights: {done.folder / folder}")
    print(f"report: {done.folder / 'report.html'}")
    if weights := done.results["early_stop"]["folder"] or done.results["convergence"]["folder"]:
        print(f"next: {next_command.after_tune(settings, weights)}")


def evaluate(
    model: Annotated[str, positional(EvaluateConfig, "model")],
    data: Annotated[str, positional(EvaluateConfig, "data")],
    /,
    *,
    config: ConfigFile = None,
    **given: Any,
) -> None:
    """Ask a tuned MODEL every question of DATA and count what it gets right, wrong, and newly wrong."""
    from foreknow.stages.evaluate.run import run  # keeps altair out
    from foreknow.stages.evaluate.tables import (  # keeps polars out
        collapse_table,
        em_table,
        moves_table,
        span_table,
        summary_lines,
        wrong_table,
    )

    done = run(settings_of(EvaluateConfig, {"model": model, "data": data, **given}, config))
    found = done.summary
    print_table(em_table(found), "exact match")
    for frame, title in (
        (moves_table(found), "against the base model's probe"),
        (span_table(found), "gold spans of long answers in the texts that the model writes"),
        (wrong_table(found), "most frequent wrong answers"),
        (collapse_table(found), "how often one answer is given"),
    ):
        if frame is not None and not frame.is_empty():
            print_table(frame, title)
    for line in summary_lines(found):
        print(line)
    print(f"report: {done.folder / 'report.html'}")


def study(
    which: Annotated[
        str,
        Parameter(
            name="study", help="A preset (quick, lab, lab-long, long, paper) or a YAML file.", group=PANELS[Group.DATA]
        ),
    ],
    /,
    **given: Any,
) -> None:
    """Do the paper's whole experiment on a model: audit, mix, tune every variant and seed, test every claim."""
    settings = study_settings(which, given)
    if settings.spans and settings.dry_run:
        from foreknow.stages.study.estimate import estimate_long  # keeps torch out

        print_estimate(estimate_long(settings))
        return
    if settings.spans:
        from foreknow.stages.study.long_claims import long_claims_table  # keeps polars out
        from foreknow.stages.study.long_run import run_long  # keeps altair out

        long = run_long(settings)
        print_table(long_claims_table(long.tables["claims"]), "what the paper claims, inside long answers")
        print(f"report: {long.folder / 'report.html'}")
        return
    if settings.dry_run:
        from foreknow.stages.study.estimate import estimate as estimate_study  # keeps torch out

        print_estimate(estimate_study(settings))
        from foreknow.stages.study.pilot import power_of, power_table  # keeps polars out

        if (found := power_of(settings)) is not None:
            print_table(power_table(found), f"what {settings.seeds} seeds could decide, in points of exact match")
        else:
            print("what it could decide: two seeds show it; run them, and repeat --dry-run with more --seeds")
        return
    from foreknow.stages.study.claims import claims_table as scorecard  # keeps polars out
    from foreknow.stages.study.run import run  # keeps altair out
    from foreknow.stages.study.tables import table  # keeps polars out
    from foreknow.stages.study.until_decided import run_until_decided  # keeps altair out

    done = run(settings) if settings.until is None else run_until_decided(settings)
    print_table(table(done.results), "exact match on test rows by Unknown share, mean over seeds")
    print_table(scorecard(done.tables["claims"]), "what the paper claims, on this model")
    print(f"report: {done.folder / 'report.html'}")


def remedies(
    data: Annotated[Optional[str], positional(RemediesConfig, "data")] = None,  # noqa: UP045
    /,
    *,
    config: ConfigFile = None,
    **given: Any,
) -> None:
    """Teach the new facts of DATA by several recipes and compare what each costs of what the model knew before."""
    settings = settings_of(RemediesConfig, {**({} if data is None else {"data": data}), **given}, config)
    if settings.dry_run:
        from foreknow.stages.remedies.estimate import estimate  # keeps torch out

        print_estimate(estimate(settings))
        return
    from foreknow.stages.remedies.run import run  # keeps altair out
    from foreknow.stages.remedies.text import advice_text, comparison_table  # keeps polars out

    done = run(settings)
    print_table(comparison_table(done.comparison), "known facts kept where so many of the new facts are learnt")
    for line in advice_text(done.comparison):
        print(line)
    print(f"report: {done.folder / 'report.html'}")


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
        The share of Unknown rows in the mix (default: the share in the audit).
    fitted
        The shares of the Known and of the Unknown rows that training will fit (default: the usual ones of the study).
    force
        Continue even if the study trained another model.
    """
    from foreknow.io.run_dir import with_checksum, write_json  # keeps polars out
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
    print(f"json: {audit / 'forecast.json'}; foreknow report {audit} shows it on the audit's page")


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


def build(
    *,
    out: Path | None = None,
    subjects: Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=1, lte=20_000))] = 160,
    contested: Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=0, lte=100))] = 0,
    hidden: Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=32, lte=1024))] = 128,
) -> None:
    """Train the lab's model and write it with its facts; minutes on two cores.

    Parameters
    ----------
    out
        The folder to write (default: the user's cache, where foreknow looks for the model 'lab').
    subjects
        How many subjects of each kind the world has; each subject has a fact in three relations. The model 'lab' has
        160. Name a model of another world by its folder, and its facts by facts.jsonl in that folder.
    contested
        Per cent of the facts told often, in relations whose subjects share answers, of which every second statement
        names another answer: such facts come out MaybeKnown or WeaklyKnown. The model 'lab' has none.
    hidden
        The width of the model, a multiple of 32; the model 'lab' has 128.
    """
    from foreknow.models.lab_model import LAB  # keeps torch out
    from foreknow.models.lab_model import build as build_lab  # keeps torch out

    if hidden % 32:
        raise ConfigError(f"--hidden {hidden}: expected a multiple of 32")
    world = replace(LAB.world, subjects=subjects, contested=contested)
    recipe = replace(LAB, world=world, hidden=hidden, intermediate=3 * hidden, heads=hidden // 32)
    print(f"built: {build_lab(None if out is None else place(out), recipe=recipe)}")


def models() -> None:
    """List the packaged models: size, licence, checksum, where they are kept."""
    from foreknow.models.packaged import packaged_table  # keeps polars out

    for line in packaged_table():
        print(f"{line['name']}{'  (default)' if line['default'] else ''}")
        for key in ("note", "download", "licence", "kept", "sha256"):
            print(f"  {key:<9} {line[key]}")
    print("lab: a small model that is trained here; see `foreknow lab build --help`.")
    print("Any folder saved by save_pretrained, .gguf file or hub id can stand in their place.")


def quickstart(
    data: str = DEFAULT_FACTS,
    /,
    *,
    model: str | None = None,
    out: Path = Path("runs/quickstart"),
    minutes: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 1.0,
    yes: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Walk through the first steps on DATA: check, audit, mix. Every command is shown before it runs.

    Parameters
    ----------
    data
        A data file, or 'facts' for the packaged facts.
    model
        The model, as audit takes it (default: a packaged one).
    out
        The folder for what the steps write.
    minutes
        How many minutes the audit may take.
    yes
        Run all steps without waiting for a key, as where there is no terminal.
    """
    if out.suffix and out.is_file():
        raise ConfigError(f"--out {out}: is a file, expected a folder")
    app, asks = command_line(), can_ask() and not yes

    def run(words: Sequence[str]) -> None:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")

    if walk(quickstart_steps(data, model, out, minutes), count_steps(data), run, ask=asks):
        print(f"\n{after_quickstart(data, model, out)}")


SETTINGS: Final[dict[str, type[Settings]]] = {
    "check": CheckConfig,
    "audit": AuditConfig,
    "extract": ExtractConfig,
    "mix": MixConfig,
    "tune": TuneConfig,
    "evaluate": EvaluateConfig,
    "study": StudyConfig,
    "remedies": RemediesConfig,
}
"""The verbs that have settings, in the order in which one uses them."""


def config(
    verb: Literal["check", "audit", "extract", "mix", "tune", "evaluate", "study", "remedies"],
    /,
    *,
    schema: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Print a settings file for VERB: every setting with its default and a comment.

    Parameters
    ----------
    verb
        The command whose settings to print.
    schema
        Print the JSON schema of the file, with which an editor checks and completes it.
    """
    own = {"study": "foreknow study FILE", "remedies": "foreknow study remedies --config FILE"}
    how = own.get(verb, f"foreknow {verb} --config FILE")
    model = SETTINGS[verb]
    print(json_schema(verb, model) if schema else commented_yaml(verb, model, how=how), end="\n" if schema else "")


def install_completion(*, shell: Literal["bash", "zsh", "fish"] | None = None, output: Path | None = None) -> None:
    """Install tab completion for your shell.

    Parameters
    ----------
    shell
        The shell to install it for (default: the one you are in).
    output
        The file to write (default: where that shell looks for completions).
    """
    from cyclopts.completion.detect import ShellDetectionError  # keeps the completion engine out of every start

    try:
        written = command_line().install_completion(shell=shell, output=output)
    except ShellDetectionError:
        raise ConfigError("--shell: found no shell above this command, expected --shell bash, zsh or fish") from None
    print(f"completion: {written}; open a new shell to use it")


def command_line(*, every_flag: bool = True) -> App:
    """The parser with all verbs. Unless `every_flag` is set, the help of a verb shows its common flags only."""
    app = App(
        name="foreknow",
        version=__version__,
        help="Know what your language model knows before you fine-tune it.",
        help_format="plaintext",
        help_flags=(*HELP, HELP_ALL),
        suppress_keyboard_interrupt=False,
    )
    app[HELP_ALL].help = "Show the help of a command; --help-all shows every flag that it has."
    data = App(name="data", help="Write data sets: the paper's, PopQA, the packaged facts.")
    data.command(entityquestions)
    data.command(popqa)
    data.command(facts)
    export = App(name="export", help="Write the rows of an audit as tasks of other evaluation tools.")
    export.command(lm_eval, name="lm-eval")
    lab = App(name="lab", help="Train a small model of which every exposure of every fact is counted.")
    lab.command(build)
    with_settings: list[Callable[..., None]] = [check, audit, extract, mix, tune, evaluate]
    for verb in with_settings:
        name, model = verb.__name__, SETTINGS[verb.__name__]
        app.command(with_flags(verb, model, every=every_flag), help_epilogue=epilogue(name, model, every=every_flag))
    app.command(_study_app(every_flag))
    others: list[Any] = [quickstart, forecast, compare, report, explore, card, export, data, lab, models, config]
    for command in others:
        app.command(command)
    verbs = [name for name in SETTINGS if name != "remedies"]
    rest = ("forecast", "compare", "report", "explore", "card", "export", "data", "lab", "models", "config")
    for at, name in enumerate(("quickstart", *verbs, *rest)):
        app[name].sort_key = at  # the order in which one uses them
    app.command(install_completion, name="--install-completion")
    return app


def _study_app(every_flag: bool) -> App:
    """The verb study, whose own command `remedies` has other settings."""
    app = App(
        name="study", help_flags=(*HELP, HELP_ALL), help_epilogue=epilogue("study", StudyConfig, every=every_flag)
    )
    for flag in (*HELP, HELP_ALL):
        app[flag].show = False  # the panel of commands has the command alone
    app.default(with_flags(study, StudyConfig, every=every_flag))
    app.command(
        with_flags(remedies, RemediesConfig, every=every_flag),
        help_flags=(*HELP, HELP_ALL),
        help_epilogue=epilogue("remedies", RemediesConfig, every=every_flag, command="study remedies"),
    )
    return app


NEXT_STEPS: Final = """\
foreknow labels every row of a fine-tuning file by what your model expresses already. Three things to do next:

  foreknow quickstart
      try it: labels packaged facts with a packaged model, and shows every command that it runs; two minutes
  foreknow check train.jsonl
      finds what is wrong with your own file, without a model
  foreknow audit train.jsonl --model MODEL --out runs/train --dry-run
      says what an audit of your file with your model would cost; without --dry-run it does it

All commands: foreknow --help. In Python: import foreknow; help(foreknow.audit)"""
"""What `foreknow` alone prints."""


def format_usage_error(error: CycloptsError) -> str:
    """Return a parser's error in one line or two; where words are left over, what to do with them."""
    left = getattr(error, "unused_tokens", None)
    if not left:
        return " ".join(str(error).split())
    verb = " ".join(error.command_chain or ())
    text = f"{verb}: found {plain(' '.join(map(str, left[:3])))}, more than it takes"
    if not any(str(word).startswith("-") for word in left):
        text += (
            "; expected one DATA: put several files into a folder and name that, and their names tell the splits"
            if verb in ("audit", "extract", "evaluate")
            else ""
        )
    return f"{text}\nAll that it takes: foreknow {verb} {HELP_ALL}"


def main(words: Sequence[str] | None = None) -> None:
    """The command line. Exit codes: 0 done, 1 failed, 2 wrong use, 3 a gate was crossed, 130 interrupted, 143 ended."""
    process_group.silence_ranks()
    log_to_stderr()
    if (
        words is None and not process_group.is_distributed()
    ):  # several processes that train together are ended by their launcher
        signals.install_sigterm()
    given = sys.argv[1:] if words is None else words
    if not given:
        print(NEXT_STEPS)
        return
    app = command_line(every_flag=not set(HELP).intersection(given))
    try:
        # the parser takes a lone "-" for an option without a name
        app(["stdin:" if word == "-" else word for word in given], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"foreknow: {format_usage_error(error)}", file=sys.stderr)
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
