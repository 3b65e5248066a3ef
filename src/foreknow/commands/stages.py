"""Run a stage: read its settings, run it, and print what it found and the next command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

from cyclopts import Parameter

from foreknow import next_command
from foreknow.config import (
    AuditConfig,
    CheckConfig,
    EvaluateConfig,
    ExtractConfig,
    MixConfig,
    RemediesConfig,
    TuneConfig,
)
from foreknow.console import plain, print_audit, print_estimate, print_scaled, print_table
from foreknow.errors import ConfigError, GateCrossed
from foreknow.flags import PANELS, ConfigFile, positional
from foreknow.io.remote_paths import place
from foreknow.settings import Group, settings_of
from foreknow.stages.study.settings import study_settings


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
    from foreknow.data.validation_result import COLUMNS, finding_lines, groups_table  # keeps polars out
    from foreknow.io.run_dir import write_json  # keeps polars out

    settings = [settings_of(CheckConfig, {"data": one, **given}, config) for one in data]
    found = check_files(settings)
    print_table(groups_table(found), "rows by group")
    print(COLUMNS)
    for line in finding_lines(found):
        print(line)
    if json is not None:
        write_json(place(json), found.summary)
        print(f"json: {place(json)}")
    if strict and found.fails:
        raise GateCrossed("--strict: errors or warnings were found")
    if len(settings) == 1:
        print(f"next: {next_command.after_check(settings[0])}")


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
    if settings.rows is not None:
        raise ConfigError("--rows: found without --dry-run, which it belongs to; --limit N audits only N rows")
    from foreknow.inference.server.model import address_of  # keeps polars out
    from foreknow.stages.audit.result import AuditResult  # keeps polars out
    from foreknow.stages.audit.run import run  # keeps altair out
    from foreknow.stages.audit.verdict.sentences import MIN_LABELLED  # keeps polars out

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
    if 0 < (done.summary["labelled"] or 0) < MIN_LABELLED:
        print(f"fewer than {MIN_LABELLED} rows are labelled: the page recommends nothing yet")
    print(f"report: {done.folder / 'report.html'}")
    if crossed is not None:
        raise crossed
    if address_of(settings.model) is None:  # a server's weights cannot be trained from here
        print(f"next: {next_command.after_audit(settings)}")


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
    if settings.draws_long_answers:
        from foreknow.stages.mix.span_mix import span_mix_table  # keeps polars out

        print_table(span_mix_table(written.mix), "rows drawn")
    else:
        print_table(size_table(written.audited), "largest sets of each family")
        print_table(mix_table(written.mix), "rows drawn")
    for note in written.mix.notes:
        print(note)
    left_out = 0
    if settings.mask:
        from foreknow.stages.train.pretokenized import write_tokens  # keeps torch out

        tokens = write_tokens(settings)
        left_out = tokens.left_out
        for note in tokens.notes:
            print(note)
    print(f"written: {written.path}")
    print(f"next: {next_command.after_mix(settings, skip=left_out > 0)}")


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
    average = done.results["average"]
    folders = [own["folder"] for own in (average, done.results["early_stop"], done.results["convergence"]) if own]
    weights = [folder for folder in folders if folder]
    for folder in weights:
        of = f" (alpha {average['alpha']:g})" if average and folder == average["folder"] else ""
        print(f"weights: {done.folder / folder}{of}")
    print(f"report: {done.folder / 'report.html'}")
    if weights:
        sets = done.results["data"].items()
        audited = [name for name, own in sets if str(own["categories"]).startswith("the audit")]
        print(f"next: {next_command.after_tune(settings, weights[0], audited)}")


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
        from foreknow.stages.study.pilot import power_of, power_table  # keeps polars out

        found = power_of(settings)  # a wrong --pilot is found before anything is measured
        print_estimate(estimate_study(settings))
        if found is not None:
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
    for line in advice_text(done.comparison, done.folder, settings.model):
        print(line)
    print(f"report: {done.folder / 'report.html'}")
