"""Runs a study of remedies: teaches the same new facts by several recipes and compares what each costs of the old ones.

    sets.py             which rows are taught, watched and replayed
    recipes.py          recipes, learning rates and seeds
    retrieval.py        the alternative: the fact in the prompt, nothing trained
    points.py           what the runs measured, in frames
    matching.py         each recipe at the same share of new facts learnt, with intervals
    firmness.py         what is kept by how surely it was known before
    recommendation.py   what to take, if the runs can tell

DIR/config.yaml audit/ sets/ runs/ points.parquet outcomes.parquet costs.parquet known.parquet retrieval.json
manifest.json (last); from these tables/*.csv comparison.json report.html

Every run is `foreknow tune` on its own folder, so that the same command resumes an interrupted study. A later command
may ask for more recipes, rates or seeds: it does only what is missing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.config import AuditConfig, RemediesConfig, TuneConfig
from foreknow.config.shared import RAY_SETTINGS
from foreknow.data.dataset import read_dataset
from foreknow.data.schema import USABLE
from foreknow.distributed import process_group
from foreknow.distributed.ray_cluster import Cluster, open_cluster
from foreknow.errors import ConfigError
from foreknow.io.run_dir import RunDir, fingerprint, write_frame, write_json, write_whole
from foreknow.models.memory_plan import parameters_of
from foreknow.models.resolve import resolve
from foreknow.models.versions import library_versions
from foreknow.prompts.prompt_template import read_template
from foreknow.settings import settings_of
from foreknow.stages.audit import run as audit_run
from foreknow.stages.audit.result import AuditResult
from foreknow.stages.remedies.page import write_page
from foreknow.stages.remedies.points import COSTS, OUTCOMES, POINTS, costs_of, known_rows, outcomes_of, points_of
from foreknow.stages.remedies.recipes import LATE, Training, recipes, trainings, tune_settings
from foreknow.stages.remedies.result import STAGE, RemediesResult
from foreknow.stages.remedies.sets import matching_wordings, study_sets
from foreknow.stages.skeleton import PreparedRun, Stage, required_out, run_stage
from foreknow.stages.study.local_executor import run_all
from foreknow.stages.train.defaults import plan_training
from foreknow.stages.train.inputs import check_method
from foreknow.stages.train.result import TrainResult
from foreknow.version import __version__

logger = logging.getLogger(__name__)

FRAMES: Final = ("points", "outcomes", "costs")
_GRID: Final = frozenset({"recipes", "rates", "seeds"})
_NO_IDENTITY: Final = frozenset(
    {"data", "model", "base", "out", "workers", "dry_run", "reworded", *RAY_SETTINGS, *_GRID}
)


def run(config: RemediesConfig) -> RemediesResult:
    """Run the study that `config` describes and return it. An interrupted study resumes where it stopped.

    Raises the errors of `foreknow.errors`.
    """
    out = required_out(config.out)
    if process_group.is_distributed():
        raise ConfigError("a study trains its models apart: start it without a launcher; see --workers and --ray")

    @contextmanager
    def prepare(_: RunDir) -> Iterator[PreparedRun]:
        with open_cluster(config) as cluster:
            yield _prepare(config, cluster)

    return run_stage(Stage("study", prepare, RemediesResult, write_page), out)


def _prepare(config: RemediesConfig, cluster: Cluster | None) -> PreparedRun:
    model = resolve(config.model, logger.info, bool(config.audit.get("trust_remote_code")), base=config.base)
    check_method(config.model, "full", model)
    rates = rates_of(config, parameters_of(model.folder))
    identity = identity_of(config, model.fingerprint)
    grid = grid_of(config, rates)

    def is_enough(folder: RunDir) -> bool:
        return set(grid) <= set((folder.manifest or {}).get("grid", ()))

    def work(folder: RunDir) -> None:
        _compute(config, rates, folder, identity, cluster)

    return PreparedRun(identity, config.resolved(), work, is_enough=is_enough, partial=True)


def identity_of(config: RemediesConfig, model: str) -> dict[str, Any]:
    """Return what makes two studies of remedies the same one. `model`: its fingerprint."""
    template = config.tune.get("prompt_template")
    prompt = read_template(Path(template)) if template else None
    return {
        "data": _digest(config.data),
        "reworded": _digest(config.reworded) if config.reworded else None,
        "model": model,
        **{key: value for key, value in config.resolved().items() if key not in _NO_IDENTITY},
        "tune": {**config.tune, "prompt_template": [prompt.instruction, prompt.target] if prompt else None},
    }


def _digest(data: str) -> str:
    """Return the hash of a data file's content; for a packaged fact set, its name."""
    return read_dataset(data).digest if Path(data).exists() else data


def rates_of(config: RemediesConfig, parameters: int) -> tuple[float, ...]:
    """Return the study's learning rates; by default tune's own for a model of `parameters` weights, twice, and half."""
    if config.rates:
        return config.rates
    rate = plan_training(config.facts, parameters).learning_rate
    return tuple(float(f"{factor * rate:.3g}") for factor in (2, 1, 0.5))


def grid_of(config: RemediesConfig, rates: tuple[float, ...]) -> list[str]:
    """Return the names of the curves of the study: recipe, rate and seed."""
    return [
        f"{one.name} rate {rate:g} seed {seed}"
        for seed in range(config.seeds)
        for rate in rates
        for one in recipes(config)
    ]


class Plan(NamedTuple):
    """The trainings, their settings and numbers of rows by name, and the sets."""

    trainings: tuple[Training, ...]
    tunes: dict[str, TuneConfig]
    rows: dict[str, int]
    sets: dict[str, pl.DataFrame]


def _compute(
    config: RemediesConfig,
    rates: tuple[float, ...],
    folder: RunDir,
    identity: dict[str, Any],
    cluster: Cluster | None,
) -> None:
    began = time.monotonic()
    if cluster is not None:
        cluster.start()  # one for the audit and the runs
    audit = audit_run.run(settings_of(AuditConfig, audit_settings(config, folder.path)))
    plan = plan_study(config, rates, audit, folder.path)
    earlier = dict((folder.manifest or {}).get("seconds", {}))
    if folder.manifest is not None:
        folder.reopen(config.resolved())
    for line in _notes(config, plan):
        logger.info(line)
    first = plan.tunes[plan.trainings[0].name]
    if not (folder.path / "retrieval.json").is_file():
        from foreknow.stages.remedies.retrieval import retrieval  # keeps torch out

        write_json(folder.path / "retrieval.json", retrieval(first, plan.sets["new"], plan.sets.get("reworded")))
    run_all(plan.tunes, config.workers, False, plan.rows, cluster)
    _write(config, plan, folder, identity, earlier.get("all", 0.0) + time.monotonic() - began)


def audit_settings(config: RemediesConfig, folder: Path) -> dict[str, Any]:
    """Return the settings of the audit that labels the study's rows."""
    own = {"data": config.data, "out": folder / "audit", "model": config.model, "base": config.base}
    return {**config.audit, **own, **{name: getattr(config, name) for name in RAY_SETTINGS}}


def plan_study(config: RemediesConfig, rates: tuple[float, ...], audit: AuditResult, folder: Path) -> Plan:
    """Draw and write the sets, and return every training. Raises InputError where there are not enough rows."""
    sets = study_sets(audit.rows, config.ood, config.facts, config.held_out)
    if config.reworded:
        rows = read_dataset(config.reworded).rows.filter(USABLE)
        sets["reworded"] = matching_wordings(rows, sets["new"], config.reworded)
    home = folder / "sets"
    home.mkdir(parents=True, exist_ok=True)
    files = {name: home / f"{name}.jsonl" for name in (*sets, "late")}
    late = pl.concat([sets["new"], sets["replay"].head(sets["new"].height)])
    for name, rows in {**sets, "late": late}.items():
        write_whole(files[name], rows.write_ndjson)
    watched = {name: str(files[name]) for name in ("known", "other") if name in sets}
    tunes, counts = {}, {}
    chosen = tuple(trainings(config, rates))
    for one in chosen:
        known_late = one.training == "known-late"
        given = {
            **tune_settings(one, config),
            "train": str(files["late" if known_late else "new"]),
            "dev": str(files["dev"]),
            "test": {"reworded": str(files["reworded"])} if "reworded" in sets else {},
            "watch_known": watched,
            "model": config.model,
            "base": config.base,
            "out": folder / "runs" / one.name,
        }
        if one.training in ("replay", "kl", "replay+kl"):
            given["replay_from"] = str(files["replay"])
        if one.training in ("kl-all", "kl-known-epoch"):
            given["replay_from"] = str(files["hold"])
        tunes[one.name] = settings_of(TuneConfig, given)
        count = late.height if known_late else sets["new"].height
        counts[one.name] = count * int(given["epochs"])
    return Plan(chosen, tunes, counts, sets)


def _notes(config: RemediesConfig, plan: Plan) -> list[str]:
    what = {
        "new": "new facts are taught (Unknown)",
        "reworded": "of them are also asked in other words",
        "known": "known ones of the same relations are watched (HighlyKnown)",
        "other": "known ones of other relations are watched",
        "replay": "known ones may be replayed",
        "hold": "rows of every category may hold the model",
    }
    counts = [f"{plan.sets[name].height:,} {text}" for name, text in what.items() if name in plan.sets]
    rates = sorted({one.rate for one in plan.trainings}, reverse=True)
    seeds = "seed" if config.seeds == 1 else "seeds"
    return [
        "; ".join(counts),
        f"{len(config.recipes)} recipes, {len(rates)} rates ({', '.join(f'{rate:g}' for rate in rates)}), "
        f"{config.seeds} {seeds}: {len(plan.trainings)} trainings",
    ]


def _write(
    config: RemediesConfig,
    plan: Plan,
    folder: RunDir,
    identity: dict[str, Any],
    seconds: float,
) -> None:
    """Gather what all finished runs measured, those of earlier calls too, and write the manifest last."""
    frames = _gather(config, folder.path, plan)
    for name, frame in frames.items():
        write_frame(folder.path / f"{name}.parquet", frame)
    done = frames["points"].select("recipe", "rate", "seed").unique(maintain_order=True)
    grid = [f"{name} rate {rate:g} seed {seed}" for name, rate, seed in done.iter_rows()]
    sets = {name: rows.height for name, rows in plan.sets.items()}
    training = TrainResult(folder.path / "runs" / plan.trainings[0].name)
    first, audit = training.results, AuditResult(folder.path / "audit")
    watched = pl.read_parquet(training.folder / "known-known.parquet")
    write_frame(folder.path / "known.parquet", known_rows(watched, audit.rows))
    summary = audit.summary
    folder.finish(
        {
            "foreknow": __version__,
            "stage": STAGE,
            "identity": identity,
            "grid": grid,
            "sets": sets,
            "model": {key: value for key, value in summary["model"].items() if key != "folder"},
            "protocol": summary["protocol"],
            "canaries": first.get("canaries"),
            "watched": first.get("watched_known"),
            "points": fingerprint(frames["points"]),
            "versions": library_versions(),
            "seconds": {"all": seconds, "audit": summary["seconds"]},
        },
        ("config.yaml", *(f"{name}.parquet" for name in (*FRAMES, "known")), "retrieval.json"),
    )


def _gather(config: RemediesConfig, folder: Path, plan: Plan) -> dict[str, pl.DataFrame]:
    """Return the frames of all finished runs (`points.py`): of this call's grid, and what earlier calls stored."""
    parts: dict[str, list[pl.DataFrame]] = {"points": [], "outcomes": [], "costs": []}
    for training in plan.trainings:
        result = TrainResult(folder / "runs" / training.name)
        known = pl.read_parquet(result.folder / "known-known.parquet")
        # known-late is another recipe before its known rows come in
        first = math.floor((1 - LATE) * config.known_late_epochs) + 1 if training.training == "known-late" else 0
        for one in recipes(config):
            if one.training != training.training:
                continue
            averaged = one.view == "average"
            outcomes = pl.read_parquet(result.folder / "average_outcomes.parquet") if averaged else result.outcomes
            parts["points"].append(points_of(one, training, result.results, result.metrics, first=float(first)))
            parts["outcomes"].append(outcomes_of(one, training, known, outcomes))
            parts["costs"].append(costs_of(one, training, result.results))
    schemas: Mapping[str, Mapping[str, Any]] = {"points": POINTS, "outcomes": OUTCOMES, "costs": COSTS}
    frames = {}
    for name, own in parts.items():
        new = pl.concat(own)
        path = folder / f"{name}.parquet"
        if path.is_file():
            key = ["recipe", "rate", "seed"]
            old = pl.read_parquet(path)
            if dict(old.schema) == dict(schemas[name]):
                new = pl.concat([old.join(new.select(key).unique(), on=key, how="anti"), new])
        frames[name] = new.sort("recipe", "rate", "seed", maintain_order=True)
    return frames
