"""Run the paper's whole experiment on one model: audit, mix, tune every variant with every seed, compare.

    stages/study/settings.py    settings, presets
    stages/study/setup.py       reads the rows, resolves the model, audits: the same for long answers
    stages/study/data_split.py      which rows, in which set; relations to learn from
    stages/study/grid.py      the grid of variants and seeds
    stages/study/local_executor.py      the runs, resumable, several at once
    stages/study/measurements.py   what the runs measured, in two frames
    stages/study/stored_runs.py   runs of which only these frames are left
    stages/study/tables.py    the paper's tables and figures from these frames
    linear_model.py cluster_robust.py paired.py contrasts.py claims.py score_sweep.py   the statistics

DIR/config.yaml claims.json data.jsonl audit/ variants/ runs/ results.parquet outcomes.parquet relations.csv
ptrue.parquet manifest.json (last); from these tables/*.csv scorecard.json linear_model.json report.html

A study keeps everything it measured under `runs/`; it keeps weights only on request. The same command resumes an
interrupted study. A later command may ask for more seeds, shares or workers: it does only what is missing.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.config import TuneConfig
from foreknow.config.shared import RAY_SETTINGS
from foreknow.errors import InputError
from foreknow.io.csv_escape import csv_of
from foreknow.io.run_dir import RunDir, fingerprint, write_frame, write_json, write_text, write_whole
from foreknow.models.versions import library_versions
from foreknow.settings import settings_of
from foreknow.stages.audit.result import AuditResult
from foreknow.stages.mix.run import write_mix
from foreknow.stages.mix.sampling import read_manifest
from foreknow.stages.mix.sizes import largest
from foreknow.stages.study.claims import CLAIMS
from foreknow.stages.study.data_split import SPLITS, learnable
from foreknow.stages.study.grid import Run, mix_of, runs, variants
from foreknow.stages.study.local_executor import run_all
from foreknow.stages.study.measurements import OUTCOMES, RESULTS, outcomes_of, results_of
from foreknow.stages.study.one_run import drop_weights
from foreknow.stages.study.page import write_page
from foreknow.stages.study.result import StudyResult
from foreknow.stages.study.settings import StudyConfig
from foreknow.stages.study.setup import StudyKind, StudyStart, run_audit, run_study, tuned_seconds
from foreknow.stages.study.stored_runs import measured, stored_runs, with_current_categories
from foreknow.stages.train.defaults import PAPER
from foreknow.stages.train.result import open_train
from foreknow.version import __version__

logger = logging.getLogger(__name__)

REFUSED: Final = "test_refused"
"""The set of test rows with the refusal as their gold: an answer is right where the model refuses."""
MEASURED: Final = ("results", "outcomes", "ptrue")
_GRID: Final = frozenset({"unknown", "known", "only", "natural", "idk", "seeds"})
_NO_IDENTITY: Final = frozenset(
    {
        "data",
        "out",
        "workers",
        "keep_weights",
        "dry_run",
        "fixed_epochs",
        "p_true",
        "until",
        "most_seeds",
        "pilot",
        *RAY_SETTINGS,
        *_GRID,
    }
)


def run(config: StudyConfig) -> StudyResult:
    """Run the study that `config` describes and return it. An interrupted study resumes where it stopped.

    Raises the errors of `foreknow.errors`.
    """
    return run_study(config, kind())


def kind() -> StudyKind[StudyResult]:
    """Return what is its own in a study of short answers."""
    return StudyKind(StudyResult, write_page, _NO_IDENTITY, _grid, _tells, _compute, partial=True)


def _grid(config: StudyConfig) -> list[str]:
    return [one.name for one in runs(config)]


def _compute(folder: RunDir, start: StudyStart) -> None:
    """Audit the rows, draw and write the sets, do the missing runs, and gather what they measured."""
    config, rows, cluster = start.config, start.rows, start.cluster
    write_whole(folder.path / "data.jsonl", rows.write_ndjson)
    if cluster is not None:
        cluster.start()  # one for the audit and the runs
    audit = run_audit(config, folder.path)
    plan = _planned(config, audit, folder.path)
    kept = stored_runs(folder.path)
    _check_sizes(folder.path, plan)
    if text := with_current_categories(kept, plan.watched).text:  # a run of hours must not find this out at its end
        logger.info(text)
    if folder.manifest is not None:  # an earlier check refused what cannot be added to a complete study
        folder.reopen(config.resolved())
    _write_claims(config, folder.path)
    for line in plan.told:
        logger.info(line)
    left = {name: tune for name, tune in plan.tunes.items() if name not in kept}
    rows_of, stored = {name: plan.rows[name] for name in left}, len(plan.tunes) - len(left)
    run_all(left, config.workers, config.keep_weights, rows_of, cluster, stored)
    _write(config, plan, folder, start.identity, start.grid, time.monotonic() - start.began)


def _tells(folder: RunDir, config: StudyConfig) -> bool:
    """Return whether a finished study has all that `config` asks for: measurements, P(True), tables at these epochs."""
    study, wanted = StudyResult(folder.path), MEASURED[: 3 if config.p_true else 2]
    there = all((study.folder / f"{name}.parquet").is_file() for name in wanted)
    return there and study.settings.get("fixed_epochs", []) == list(config.fixed_epochs)


class Plan(NamedTuple):
    """The runs to do: settings and number of train rows by name, |D| by name, relations, watched sets, messages.

    `watched` holds the rows that every run is tested on, by the name of their set.
    """

    runs: tuple[Run, ...]
    tunes: dict[str, TuneConfig]
    rows: dict[str, int]
    sizes: dict[str, int]
    relations: pl.DataFrame
    watched: dict[str, pl.DataFrame]
    told: tuple[str, ...]


def _planned(config: StudyConfig, audit: AuditResult, folder: Path) -> Plan:
    """Draw and write every set. Raises InputError where there are not enough rows for one."""
    relations, used = learnable(audit.rows, config.above_floor)
    audited = audit.rows.filter(pl.col("group").is_in(used))
    trainable = tuple(sorted(audited.filter(pl.col("split") == "train")["group"].unique()))
    if not trainable:
        raise InputError(f"above_floor {config.above_floor}: no relation with train rows is that far above its floor")
    sets = folder / "variants"
    sets.mkdir(exist_ok=True)
    watched = _write_sets(audited, config, sets)
    size = _size(config, audited)
    grid, tunes, rows, sizes = runs(config), {}, {}, {}
    for one in grid:
        home = sets / f"seed-{one.seed}"
        mix = mix_of(one, config, audit.folder, home, trainable, size)
        write_mix(mix)
        count = int(read_manifest(mix.out)["size"])
        rows[one.name] = count * int(config.tune_settings.get("epochs", PAPER["epochs"]))
        sizes[one.name] = size if one.variant.kind == "known" else count
        tests = {name: str(file) for name, file in watched.items() if name not in ("dev", REFUSED)}
        tests |= {REFUSED: str(watched[REFUSED])} if one.variant.kind == "idk" else {}
        given = {"train": str(mix.out), "dev": str(watched["dev"]), "test": tests, "seed": one.seed}
        given |= {"model": config.model, "base": config.base, "out": folder / "runs" / one.name}
        tunes[one.name] = settings_of(TuneConfig, {**config.tune_settings, **given})
    told = _told(config, relations, audited, size)
    read = {name: pl.read_ndjson(file) for name, file in watched.items()}
    return Plan(tuple(grid), tunes, rows, sizes, relations, read, told)


def _write_sets(audited: pl.DataFrame, config: StudyConfig, folder: Path) -> dict[str, Path]:
    """Write the rows to watch, with their categories: dev, test, ood, and test with the refusal as gold."""
    columns = ("question", "answers", "subject", "relation", "category")
    found = {}
    for name in ("dev", "test", "ood"):
        part = audited.filter((pl.col("split") == SPLITS[name]) & pl.col("category").is_not_null()).select(*columns)
        if part.height:
            found[name] = folder / f"{name}.jsonl"
            write_whole(found[name], part.write_ndjson)
        elif name != "ood":
            raise InputError(f"no labelled {name} row is left in the relations of this study")
    refused = pl.read_ndjson(found["test"]).with_columns(answers=pl.concat_list(pl.lit(config.idk_answer)))
    found[REFUSED] = folder / f"{REFUSED}.jsonl"
    write_whole(found[REFUSED], refused.write_ndjson)
    return found


def _size(config: StudyConfig, audited: pl.DataFrame) -> int:
    """Return |D|, which is the same for every variant. Raises InputError where there are not enough rows."""
    train = audited.filter(pl.col("split") == "train")
    family, among = config.family
    sizes = largest(train, family, among=among)
    if not sizes.total or (config.size or 0) > sizes.total:
        rarest = "; without sets of one category (only: []) it can be larger" if config.only else ""
        asked = f"--size {config.size}" if config.size else "no set has a row"
        raise InputError(f"{asked}: the largest size is {sizes.total:,}: {sizes.rule}{rarest}")
    return config.size or sizes.total


def _told(config: StudyConfig, relations: pl.DataFrame, audited: pl.DataFrame, size: int) -> tuple[str, ...]:
    left_out = relations.filter(~pl.col("used"))["relation"].to_list()
    counts = {name: audited.filter(pl.col("split") == SPLITS[name]) for name in ("test", "ood")}
    told = [
        f"{len(variants(config))} training sets of |D| = {size:,} rows, {config.seeds} "
        f"seed{'s' if config.seeds > 1 else ''}: {len(runs(config))} runs",
        *(
            f"{name}: {part.height:,} rows of {part['group'].n_unique()} relations, "
            f"{part.filter(pl.col('category') != 'Unknown').height:,} of them Known"
            for name, part in counts.items()
            if part.height
        ),
    ]
    if left_out:
        told.append(f"left out, not {config.above_floor:.0%} above the most frequent answer: {', '.join(left_out)}")
    return tuple(told)


def _write(
    config: StudyConfig, plan: Plan, folder: RunDir, identity: dict[str, Any], grid: list[str], seconds: float
) -> None:
    """Gather what the runs measured, write the tables, and write the manifest last."""
    results, outcomes = [pl.DataFrame(schema=RESULTS)], [pl.DataFrame(schema=OUTCOMES)]
    kept, moved, _ = with_current_categories(stored_runs(folder.path), plan.watched)
    for one in plan.runs:
        if one.name in kept:
            results.append(kept[one.name].results)
            outcomes.append(kept[one.name].outcomes)
            continue
        tuned = open_train(folder.path / "runs" / one.name)
        results.append(results_of(one, plan.sizes[one.name], tuned.metrics, tuned.results["metric"]))
        outcomes.append(outcomes_of(one, tuned))
        if not config.keep_weights:
            drop_weights(tuned.folder)
    write_frame(folder.path / "results.parquet", pl.concat(results))
    write_frame(folder.path / "outcomes.parquet", pl.concat(outcomes))
    write_text(folder.path / "relations.csv", csv_of(plan.relations))
    if config.p_true and not (folder.path / "ptrue.parquet").is_file():
        from foreknow.stages.audit.p_true import compute_p_true  # keeps torch out

        compute_p_true(AuditResult(folder.path / "audit"), folder.path / "ptrue.parquet")
    spent = [tuned_seconds(folder.path / "runs" / one.name) for one in plan.runs if one.name not in kept]
    folder.finish(
        {
            "foreknow": __version__,
            "stage": "study",
            "identity": identity,
            "grid": grid,
            "model": {k: v for k, v in AuditResult(folder.path / "audit").summary["model"].items() if k != "folder"},
            "results": fingerprint(pl.concat(results)),
            "rows_with_new_category": moved,
            "versions": library_versions(),
            "seconds": {"this_call": seconds, "runs": sum(spent)},
        },
        ("config.yaml", "claims.json", "data.jsonl", *(f"{name}.parquet" for name in MEASURED), "relations.csv"),
    )


def _write_claims(config: StudyConfig, folder: Path) -> None:
    """Write the claims that the study will test, before its first run."""
    asked = [{**asdict(claim), "margin": config.margin} for claim in CLAIMS]
    write_json(folder / "claims.json", asked)


def _check_sizes(folder: Path, plan: Plan) -> None:
    """Raise InputError where a finished run was trained on a set of another size than is now planned for it.

    Without a size in the settings, |D| is the largest size that all sets can have, so further sets can make it
    smaller.
    """
    results, _ = measured(folder)
    for variant, seed, size in results.select("variant", "seed", "size").unique(maintain_order=True).iter_rows():
        planned = plan.sizes.get(f"{variant}-seed{seed}", size)
        if planned != size:
            raise InputError(
                f"{folder}: {variant} was trained with |D| = {size:,}; with the sets asked for now it is {planned:,}. "
                "Choose another --out"
            )
