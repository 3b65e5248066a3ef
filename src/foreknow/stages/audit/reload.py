"""Load a finished audit's model, prompts and exemplars again from its folder alone, to ask the model more."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import polars as pl

from foreknow.config import AuditConfig
from foreknow.errors import InputError, ModelError, RunFolderError
from foreknow.inference.engine import Engine, Sampling
from foreknow.inference.engine_choice import open_engine
from foreknow.io.run_dir import RunDir, lock_run_dir
from foreknow.models import loading
from foreknow.models.in_memory import ModelInMemory
from foreknow.prompts.few_shot import Exemplar, Exemplars, GroupExemplars
from foreknow.prompts.prompt_template import Prompter, Template
from foreknow.settings import settings_of
from foreknow.stages.audit.result import AuditResult

logger = logging.getLogger(__name__)

COLUMNS = ("row", "group", "question", "answers", "subject", "category", "flags")


@dataclass(frozen=True)
class ReloadedAudit:
    """A reloaded audit. `engine` builds an engine for any sampling; the model stays attached until the context ends.

    `exemplars` have no subjects and no reserve; the audit's `probes` say which exemplars replaced a row's own fact.
    """

    config: AuditConfig
    loaded: loading.Loaded
    prompter: Prompter
    exemplars: Exemplars
    engine: Callable[[Sampling], Engine]


def audit_config(audit: AuditResult) -> AuditConfig:
    """Read the settings of an audit."""
    return settings_of(AuditConfig, {}, audit.folder / "config.yaml")


def probed_rows(audit: AuditResult) -> pl.DataFrame:
    """Return every labelled row of an audit and every labelled short fact, sorted by row number (`COLUMNS`)."""
    parts = [audit.rows.select(COLUMNS), *([] if audit.facts is None else [audit.facts.select(COLUMNS)])]
    return pl.concat(parts).filter(pl.col("category").is_not_null()).sort("row")


@contextmanager
def reload_audit(audit: AuditResult, memory: ModelInMemory | None = None) -> Iterator[ReloadedAudit]:
    """Load the audit's model in its dtype. `memory`: the model, if it lies in memory.

    Raises ModelError if it is not the model that was audited.
    """
    config = audit_config(audit)
    config = config if memory is None else config.model_copy(update={"model": memory})
    identity = json.loads((audit.folder / "manifest.json").read_text(encoding="utf-8"))["identity"]
    loaded = loading.load_from_settings(config, dtype=identity["dtype"])
    if loaded.fingerprint != identity["model"]:
        raise ModelError(
            f"--model {config.model}: is not the model that {audit.folder} audited (found {loaded.fingerprint[:19]}, "
            f"expected {identity['model'][:19]}); audit again with --out another folder"
        )
    if loaded.device.partition(":")[0] != identity["device"]:
        logger.info(f"audited on {identity['device']}, now computing on {loaded.device}: the last digits may differ")
    prompter = Prompter(loaded.tokenizer, Template(*identity["prompt_template"]), config.uses_chat_template, config.bos)
    with open_engine(loaded.model, prompter, int(config.batch_tokens or 2048)) as choice:
        yield ReloadedAudit(config, loaded, prompter, read_exemplars(audit), choice.engine)


def read_exemplars(audit: AuditResult) -> Exemplars:
    """Read the exemplar sets of `exemplars.json`. Raises InputError if the file is missing or incomplete."""
    path = audit.folder / "exemplars.json"
    try:
        sets_by_group: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        groups = {
            group: GroupExemplars(tuple(tuple(Exemplar(e["question"], e["answer"], None) for e in s) for s in sets), ())
            for group, sets in sets_by_group.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: cannot be read as exemplar sets; run the audit again in another folder") from None
    return Exemplars(groups, "those of the audit")


def swapped_sets(probes: pl.DataFrame) -> dict[int, list[list[dict[str, Any]]]]:
    """Return, for each row whose own fact is among the exemplars, the exemplars shown in its place, for each set."""
    some = probes.filter((pl.col("replaced_shots").list.len() > 0).any().over("row")).sort("row", "exemplar_set")
    replacements: dict[int, list[list[dict[str, Any]]]] = {}
    for row, replaced in some.select("row", "replaced_shots").iter_rows():
        replacements.setdefault(row, []).append(replaced)
    return replacements


def own_sets(group: GroupExemplars, replaced_shots: list[list[dict[str, Any]]]) -> GroupExemplars:
    """Return the exemplar sets as a row saw them.

    `replaced_shots` (`probes.parquet`): for each set, the exemplars in place of the row's own fact.
    """
    sets = []
    for exemplars, swapped in zip(group.sets, replaced_shots, strict=True):
        filled = list(exemplars)
        for s in swapped:
            filled[s["slot"]] = Exemplar(s["question"], s["answer"], None)
        sets.append(tuple(filled))
    return GroupExemplars(tuple(sets), (), group.borrowed)


@contextmanager
def work_folder(audit: AuditResult, name: str, identity: dict[str, Any]) -> Iterator[RunDir]:
    """Open DIR/.NAME, which stores finished parts while the audit's folder is locked; `drop` removes it.

    Parts of a run with other settings are deleted, since no result was written from them.
    """
    with lock_run_dir(audit.folder), lock_run_dir(audit.folder / f".{name}") as folder:
        try:
            folder.open_run(identity, identity)
        except RunFolderError:
            logger.info(f"{name}: an unfinished run had other settings; starting again")
            for path in folder.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != ".lock":
                    path.unlink()
            folder.open_run(identity, identity)
        yield folder


def drop(folder: RunDir) -> None:
    """Remove a work folder whose results are written."""
    shutil.rmtree(folder.path, ignore_errors=True)
