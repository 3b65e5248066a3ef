"""Gets a study ready: reads its rows, resolves its model, audits. Studies of short and of long answers share this."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import polars as pl

from foreknow.config import AuditConfig
from foreknow.config.shared import RAY_SETTINGS, DataSettings
from foreknow.data.load import read_data
from foreknow.data.schema import USABLE, earlier_turns
from foreknow.distributed import process_group
from foreknow.distributed.ray_cluster import Cluster, open_cluster
from foreknow.errors import ConfigError
from foreknow.io.run_dir import RunDir, fingerprint
from foreknow.models.resolve import resolve
from foreknow.prompts.prompt_template import read_template
from foreknow.settings import settings_of
from foreknow.stages.audit import run as audit_run
from foreknow.stages.audit.result import AuditResult
from foreknow.stages.skeleton import PreparedRun, Stage, required_out, run_stage
from foreknow.stages.study.data_split import left_out_text, study_rows
from foreknow.stages.study.settings import StudyConfig
from foreknow.stages.train.inputs import check_method
from foreknow.stages.train.result import TrainResult

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class StudyStart(NamedTuple):
    """Holds what the work of a study begins with.

    `rows`: those it works on (`data_split.DATA`). `identity`: what makes two studies the same one. `grid`: the names of
    its runs. `cluster`: where they are done, or None for this machine. `began`: `time.monotonic` at its start.
    """

    config: StudyConfig
    rows: pl.DataFrame
    identity: dict[str, Any]
    grid: list[str]
    cluster: Cluster | None
    began: float


class StudyKind(NamedTuple, Generic[Result]):
    """Holds what studies of short and of long answers do in different ways.

    `no_identity`: settings that do not make it another study. `grid`: the names of all runs. `is_enough`: whether a
    finished folder with these runs has all that is asked for. `work`: does what is missing, and finishes the folder.
    `partial`: see `PreparedRun`.
    """

    result: Callable[[Path], Result]
    write_page: Callable[[Result], object]
    no_identity: Collection[str]
    grid: Callable[[StudyConfig], list[str]]
    is_enough: Callable[[RunDir, StudyConfig], bool]
    work: Callable[[RunDir, StudyStart], None]
    partial: bool


def run_study(config: StudyConfig, kind: StudyKind[Result]) -> Result:
    """Run a study, from where it stopped if it was interrupted. Raises the errors of `foreknow.errors`."""
    out = required_out(config.out)
    if process_group.is_distributed():
        raise ConfigError("a study trains its models apart: start it without a launcher; see --workers and --ray")
    rows = read_rows(config)

    def prepare(_: RunDir) -> AbstractContextManager[PreparedRun]:
        return _prepare(config, rows, kind)

    return run_stage(Stage("study", prepare, kind.result, kind.write_page), out)


def check_folder(config: StudyConfig, rows: pl.DataFrame, kind: StudyKind[Any]) -> None:
    """Raise RunFolderError if the folder of the study holds another one, as running it would. Writes nothing."""
    if config.out is None or not config.out.is_dir():
        return
    remote_code = bool(config.audit.get("trust_remote_code"))
    model = resolve(config.model, trust_remote_code=remote_code, base=config.base)
    RunDir(config.out).check_identity(identity_of(config, rows, model.fingerprint, kind.no_identity), config.resolved())


@contextmanager
def _prepare(config: StudyConfig, rows: pl.DataFrame, kind: StudyKind[Any]) -> Iterator[PreparedRun]:
    """Resolve the model, and connect to the cluster that the audit and the runs share."""
    began = time.monotonic()
    with open_cluster(config) as cluster:
        model = resolve(config.model, logger.info, bool(config.audit.get("trust_remote_code")), base=config.base)
        check_method(config.model, config.tune.get("method", "full"), model)
        identity = identity_of(config, rows, model.fingerprint, kind.no_identity)
        start = StudyStart(config, rows, identity, kind.grid(config), cluster, began)

        def is_enough(folder: RunDir) -> bool:
            return (folder.manifest or {}).get("grid") == start.grid and kind.is_enough(folder, config)

        def work(folder: RunDir) -> None:
            kind.work(folder, start)

        yield PreparedRun(identity, config.resolved(), work, is_enough=is_enough, partial=kind.partial)


def identity_of(config: StudyConfig, rows: pl.DataFrame, model: str, without: Collection[str]) -> dict[str, Any]:
    """Return what makes two studies the same one. `model`: its fingerprint. `without`: settings that do not count."""
    settings = {key: value for key, value in config.resolved().items() if key not in {*without, "model", "base"}}
    tune = {**config.tune, "prompt_template": prompt_texts(config)}
    return {"data": fingerprint(rows), "model": model, **settings, "tune": tune}


def prompt_texts(config: StudyConfig) -> list[str] | None:
    """Return the instruction and target of the training prompt, so that the path of its file does not count."""
    file = config.tune.get("prompt_template")
    found = read_template(Path(file)) if file else None
    return [found.instruction, found.target] if found else None


def read_rows(config: StudyConfig) -> pl.DataFrame:
    """Read the rows that the study works on (`data_split.DATA`)."""
    reading = {key: value for key, value in config.audit.items() if key in DataSettings.model_fields}
    facts = read_data(settings_of(DataSettings, {"data": config.data, **reading}))
    behind = earlier_turns(facts.rows).is_not_null()
    if later := facts.rows.filter(behind & facts.rows.select(USABLE).to_series()).height:
        logger.info(
            f"{later:,} rows are left out: they are asked behind earlier turns of a chat, which a study does not show"
        )
    alone = facts.rows.filter(~behind)
    used = study_rows(alone, config.ood, config.rows, seed=0)
    if reasons := left_out_text(alone, used.height):
        logger.info(reasons)
    return used


def audit_settings(config: StudyConfig, folder: Path) -> dict[str, Any]:
    """Return the settings to audit `folder`'s data.jsonl, which has our own layout whatever the input's was."""
    own = {"data": str(folder / "data.jsonl"), "out": folder / "audit", "model": config.model, "base": config.base}
    own |= {name: getattr(config, name) for name in RAY_SETTINGS}
    kept = {key: value for key, value in config.audit.items() if key not in ("layout", "map", "templates", "group_by")}
    return {**kept, **own}


def run_audit(config: StudyConfig, folder: Path) -> AuditResult:
    """Return the audit of the study's rows, and run it first if it is not finished."""
    return audit_run.run(settings_of(AuditConfig, audit_settings(config, folder)))


def tuned_seconds(folder: Path) -> float:
    """Return the seconds that a run took, from its own results."""
    found: Mapping[str, float] = TrainResult(folder).results["seconds"]
    return sum(found.values())
