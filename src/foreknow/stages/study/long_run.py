"""Run the paper's experiment on long answers: audit their spans, draw sets by their share of new spans, tune, compare.

    long_grid.py          the training sets: D of each share, and D with its new spans masked, cut or dropped
    long_measurements.py  what the runs measured of spans, in two frames
    long_claims.py        the claims that make sense here, and the comparison of the remedies

DIR/config.yaml claims.json data.jsonl audit/ variants/ runs/ results.parquet outcomes.parquet manifest.json (last);
from these tables/*.csv scorecard.json report.html

The same command resumes an interrupted study. With more seeds it does only the runs that are missing.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.config import MixConfig, TuneConfig
from foreknow.errors import InputError
from foreknow.io.run_dir import RunDir, fingerprint, write_frame, write_json, write_text, write_whole
from foreknow.io.writers import object_text
from foreknow.models.versions import library_versions
from foreknow.settings import settings_of
from foreknow.stages.audit.result import AuditResult
from foreknow.stages.mix.run import write_mix
from foreknow.stages.mix.sampling import manifest_path
from foreknow.stages.mix.span_sampling import SpanRow, draw_share
from foreknow.stages.study.data_split import SPLITS
from foreknow.stages.study.grid import Run
from foreknow.stages.study.local_executor import run_all
from foreknow.stages.study.long_claims import long_claims
from foreknow.stages.study.long_grid import long_mix_of, long_runs, without_new
from foreknow.stages.study.long_measurements import (
    SPAN_OUTCOMES,
    SPAN_RESULTS,
    span_outcomes_of,
    span_results_of,
)
from foreknow.stages.study.long_page import write_long_page
from foreknow.stages.study.long_result import STAGE, LongStudyResult
from foreknow.stages.study.one_run import drop_weights
from foreknow.stages.study.settings import StudyConfig
from foreknow.stages.study.setup import StudyKind, StudyStart, run_audit, run_study, tuned_seconds
from foreknow.stages.train.result import open_train
from foreknow.version import __version__

logger = logging.getLogger(__name__)

_NO_IDENTITY: Final = frozenset(
    {"data", "out", "workers", "keep_weights", "dry_run", "fixed_epochs", "p_true", "ray", "ray_address", "ray_workers"}
    | {"until", "most_seeds", "pilot", "seeds"}
)


def run_long(config: StudyConfig) -> LongStudyResult:
    """Run the study of long answers that `config` describes and return it; an interrupted study resumes.

    Raises the errors of `foreknow.errors`.
    """
    return run_study(config, long_kind())


def long_kind() -> StudyKind[LongStudyResult]:
    """Return what is its own in a study of long answers."""
    return StudyKind(
        LongStudyResult, write_long_page, _NO_IDENTITY, _grid, lambda _folder, _config: True, _compute, partial=False
    )


def _grid(config: StudyConfig) -> list[str]:
    return [one.name for one in long_runs(config)]


class _Plan(NamedTuple):
    """The runs to do: settings, number of rows to train on, and size of the set, by name."""

    runs: tuple[Run, ...]
    tunes: dict[str, TuneConfig]
    rows: dict[str, int]
    sizes: dict[str, int]


def _compute(folder: RunDir, start: StudyStart) -> None:
    """Audit the rows, draw and write the sets, do the missing runs, and gather what they measured."""
    config, rows, cluster = start.config, start.rows, start.cluster
    write_records(rows, folder.path / "data.jsonl")
    if cluster is not None:
        cluster.start()
    plan = _planned(config, run_audit(config, folder.path), folder.path)
    if folder.manifest is not None:
        folder.reopen(config.resolved())
    claims = [{"remedy": remedy, **asdict(claim)} for remedy, claim, _ in long_claims(config.remedies, config.margin)]
    write_json(folder.path / "claims.json", claims)
    run_all(plan.tunes, config.workers, config.keep_weights, plan.rows, cluster)
    _write(config, plan, folder, start.identity, time.monotonic() - start.began)


def write_records(rows: pl.DataFrame, file: Path) -> None:
    """Write the study's rows as JSONL, each with its own spans, if it has any."""
    write_text(file, "".join(_record(row) for row in rows.iter_rows(named=True)))


def _record(row: dict[str, Any]) -> str:
    """Return a row of the study as a line of JSON, with its own spans, if it has any, as it brought them."""
    own = row.pop("spans", None)
    return object_text(row if own is None else {**row, "spans": json.loads(own)}) + "\n"


def _planned(config: StudyConfig, audit: AuditResult, folder: Path) -> _Plan:
    """Draw and write every set. Raises InputError where there are no labelled spans, or too few rows for a set."""
    if audit.spans is None or not audit.spans["category"].count():
        raise InputError(
            f"{audit.folder}: found no labelled spans; a study of long answers needs rows with long answers "
            "(audit: {max_answer_tokens: N}), and names, numbers or dates in them"
        )
    home = folder / "variants"
    home.mkdir(exist_ok=True)
    watched = _write_sets(audit, home)
    size = _size(config, audit)
    with_new = frozenset(audit.rows.filter(pl.col("new_spans") > 0)["question"])
    grid, tunes, rows, sizes = long_runs(config), {}, {}, {}
    epochs = int(config.long_tune_settings.get("epochs", 1))
    for one in grid:
        mix = long_mix_of(one, audit.folder, home / f"seed-{one.seed}", size)
        count = _write_variant(one, mix, with_new)
        rows[one.name], sizes[one.name] = count * epochs, count
        given: dict[str, Any] = {
            "train": str(mix.out),
            "dev": str(watched["dev"]),
            "test": {"test": str(watched["test"])},
        }
        given |= {"seed": one.seed, "model": config.model, "base": config.base, "audit": audit.folder}
        given |= {"out": folder / "runs" / one.name}
        tunes[one.name] = settings_of(TuneConfig, {**config.long_tune_settings, **given})
    logger.info(
        f"{len(grid):,} runs on sets of {size:,} rows with long answers, "
        f"{', '.join(f'{share:.0%}' for share in config.unknown)} of whose labelled spans are new to the model"
    )
    return _Plan(tuple(grid), tunes, rows, sizes)


def _write_variant(run: Run, mix: MixConfig, with_new: frozenset[str]) -> int:
    """Write a run's set and return its number of rows. Raises InputError if a remedy leaves none."""
    files = write_mix(mix)
    if run.variant.kind != "drop":
        return files.mix.rows.height
    text = without_new(mix.out.read_text(encoding="utf-8"), with_new)
    if not text:
        raise InputError(
            f"{run.name}: no row of its D is without a new span; choose smaller shares (unknown), or leave out drop "
            "(remedies)"
        )
    write_text(mix.out, text)
    manifest_path(mix.out).unlink()  # it tells of the rows before any was dropped
    return len(text.splitlines())


def _write_sets(audit: AuditResult, folder: Path) -> dict[str, Path]:
    """Write the rows to watch: dev, and test. Raises InputError where none of them has a labelled span."""
    watched = {}
    for name in ("dev", "test"):
        part = audit.rows.filter((pl.col("split") == SPLITS[name]) & (pl.col("n_spans") > 0))
        if part.is_empty():
            raise InputError(f"no {name} row has a labelled span; mark rows by a column split, or bring more rows")
        watched[name] = folder / f"{name}.jsonl"
        write_whole(watched[name], part.select("question", "answer", "subject").write_ndjson)
    return watched


def _size(config: StudyConfig, audit: AuditResult) -> int:
    """Return the number of rows of every D: the most that all shares can have, or `size` if that is fewer.

    Raises InputError for a share or size that the rows cannot have.
    """
    train = audit.rows.filter((pl.col("split") == "train") & (pl.col("n_spans") > 0))
    columns = train.select("row", "n_spans", "new_spans").iter_rows()
    rows = [SpanRow(row, row, spans, new) for row, spans, new in columns]
    largest = {share: len(draw_share(rows, share, None)) for share in config.unknown}
    share, most = min(largest.items(), key=lambda pair: pair[1])
    if config.size is not None and config.size > most:
        raise InputError(f"--size {config.size}: found {most:,} rows for a share of {share:.0%} new spans, no more")
    return config.size or most


def _write(config: StudyConfig, plan: _Plan, folder: RunDir, identity: dict[str, Any], seconds: float) -> None:
    """Gather what the runs measured; write the manifest last."""
    results, outcomes = [pl.DataFrame(schema=SPAN_RESULTS)], [pl.DataFrame(schema=SPAN_OUTCOMES)]
    for one in plan.runs:
        tuned = open_train(folder.path / "runs" / one.name)
        results.append(span_results_of(one, plan.sizes[one.name], tuned.metrics, tuned.results["metric"]))
        outcomes.append(span_outcomes_of(one, tuned))
        if not config.keep_weights:
            drop_weights(tuned.folder)
    write_frame(folder.path / "results.parquet", pl.concat(results))
    write_frame(folder.path / "outcomes.parquet", pl.concat(outcomes))
    audit = AuditResult(folder.path / "audit")
    folder.finish(
        {
            "foreknow": __version__,
            "stage": STAGE,
            "identity": identity,
            "grid": [one.name for one in plan.runs],
            "data": Path(config.data).name,
            "model": {k: v for k, v in audit.summary["model"].items() if k != "folder"},
            "spans": audit.summary["spans"],
            "results": fingerprint(pl.concat(results)),
            "versions": library_versions(),
            "seconds": {
                "this_call": seconds,
                "runs": sum(tuned_seconds(folder.path / "runs" / one.name) for one in plan.runs),
            },
        },
        ("config.yaml", "claims.json", "data.jsonl", "results.parquet", "outcomes.parquet"),
    )
