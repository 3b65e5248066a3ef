"""Finds the known rows that stand in no set: in the audit, in a file of the user's, among the packaged facts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import polars as pl

from foreknow.categories import HIGHLY_KNOWN
from foreknow.config import TuneConfig
from foreknow.format.numbers import duration
from foreknow.stages.audit.result import open_audit
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.canary_check import SHOTS, CanaryCheck
from foreknow.stages.train.dataset import read_set
from foreknow.stages.train.kl_teacher import exemplars_for_teacher
from foreknow.stages.train.known_candidates import (
    ROWS,
    Candidates,
    audit_candidates,
    file_candidates,
    without_facts,
    without_questions,
    without_subjects,
)
from foreknow.stages.train.known_default_facts import known_packaged, packaged_candidates

logger = logging.getLogger(__name__)


class KnownSources:
    """Finds the rows of each source, when they are first asked for. `sets`: the rows of train, dev and test sets."""

    def __init__(self, config: TuneConfig, sets: Mapping[str, pl.DataFrame], asking: AskingModel):
        self.config, self.sets, self.asking = config, sets, asking
        self._packaged: pl.DataFrame | None = None

    def audited(self, categories: Sequence[str] = (HIGHLY_KNOWN,)) -> Candidates:
        """Return the rows of the audit with one of `categories` that stand in no set; none without an audit."""
        if self.config.audit is None:
            return Candidates(pl.DataFrame(schema=ROWS), "")
        which = "HighlyKnown rows" if tuple(categories) == (HIGHLY_KNOWN,) else "rows of every category"
        source = f"{which} of the audit {self.config.audit}"
        found = audit_candidates(open_audit(self.config.audit).rows, source, categories)
        return Candidates(self._besides_sets(found.rows), source)

    def replay_file(self, categories: Sequence[str] = ()) -> Candidates:
        """Return the rows of `--replay-from` that stand in no set: those of `categories`, where the file has any."""
        split = read_set("replay", str(self.config.replay_from), None)
        if categories and split.rows["category"].is_not_null().any():
            split = split._replace(rows=split.rows.filter(pl.col("category").is_in(list(categories))))
        found = file_candidates(split)
        return Candidates(self._besides_sets(found.rows), found.source)

    def _besides_sets(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Leave out the rows whose question stands in a set, and those that ask for a fact of a set in other words."""
        for frame in self.sets.values():
            rows = without_facts(rows, frame)
        return without_questions(rows, self.sets)

    def packaged(self) -> Candidates:
        """Return the packaged facts that the model knows and that no set names."""
        asking = self.asking
        if self._packaged is None:
            began = time.monotonic()
            known = known_packaged(
                packaged_candidates().rows,
                asking.fingerprint,
                [asking.prompter.choices, asking.dtype],
                lambda rows: self.check(rows, SHOTS),
                lambda check: check.spellings(asking),
            )
            spent = duration(time.monotonic() - began)
            asked = "asked before" if known.cached else f"asked once for this model, in {spent}"
            logger.info(f"canaries: the model knows {known.rows.height:,} of {known.asked:,} packaged facts ({asked})")
            self._packaged = known.rows
        rows = without_subjects(without_questions(self._packaged, self.sets), self.sets)
        return Candidates(rows, "packaged facts")

    def teacher_shots(self, rows: pl.DataFrame) -> int:
        """Return behind how many exemplars the teacher of `--kl` reads these rows."""
        shots, line = exemplars_for_teacher(
            self.config.kl_exemplars, rows, self.check, lambda check: set(check.spellings(self.asking))
        )
        if line:
            logger.info(line)
        return shots

    def check(self, rows: pl.DataFrame, shots: int = 0) -> CanaryCheck:
        """Prepare these rows to be asked, behind `shots` exemplars."""
        return CanaryCheck(rows, self.asking, shots=shots)
