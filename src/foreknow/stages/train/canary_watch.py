"""Chooses the known facts that a run watches (`--canaries`, `--watch-known`), and asks them again and again.

They are stored in the run folder, so that a resumed run watches the same ones:

DIR/canaries.parquet     the rows that are watched, and whether each was right before training
DIR/known-NAME.parquet   the same for each file of `--watch-known`
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from foreknow.errors import InputError
from foreknow.io.run_dir import fingerprint, write_frame
from foreknow.stages.train import canaries, kl_loss
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.canaries import FEW
from foreknow.stages.train.canary_check import SHOTS, CanaryCheck
from foreknow.stages.train.curves import CANARIES
from foreknow.stages.train.dataset import LabelledSplit, read_set
from foreknow.stages.train.known_candidates import Candidates, file_candidates, without_questions
from foreknow.stages.train.known_sources import KnownSources
from foreknow.stages.train.replay_choice import uses_pool

logger = logging.getLogger(__name__)

FILE: Final = f"{CANARIES}.parquet"


@dataclass(frozen=True)
class CanaryWatch:
    """Measures the rows that are watched.

    `rows`: the frame `known_candidates.ROWS`. `check` asks the same rows. `before`: the predictions before training at
    their answers, by line of `check` (`CanaryCheck.predictions`).
    """

    rows: pl.DataFrame
    check: CanaryCheck
    before: Mapping[int, kl_loss.Teacher]

    def measure(self, asking: AskingModel) -> tuple[pl.DataFrame, dict[str, Any]]:
        """Return whether each answer begins rightly now (row, correct), and what a line of `metrics.jsonl` says."""
        replies = self.check.ask(asking, self.before)
        outcomes = self.rows.select("row", correct=pl.col("row").is_in(list(replies.right)))
        counts = canaries.summary(self.rows["before"].to_list(), outcomes["correct"].to_list())
        return outcomes, {**counts, "kl": replies.divergence}


def watch_canaries(sources: KnownSources, stored: Path, trained: int, measured: int) -> CanaryWatch | None:
    """Choose the rows of `--canaries`, or read them from the file `stored`; None where there are none to watch.

    As many are chosen as cost a third of an epoch at most. `trained` and `measured`: the tokens that an epoch trains
    on, and that it reads in all. The model must be as it was before training.
    """
    if sources.config.canaries == "none":
        return None
    if stored.is_file():
        return open_watch(sources, pl.read_parquet(stored))
    candidates, own_file = _candidates(sources), sources.config.canaries != "auto"
    if candidates.rows.is_empty():
        logger.info(_no_canaries(sources, own_file))
        return None
    check = sources.check(candidates.rows)
    rows = check.rows
    most = rows.height // 2 if uses_pool(sources.config) and not own_file else rows.height
    costs = rows.select("row").join(check.tokens(), on="row", how="left", maintain_order="left")
    count = canaries.affordable(costs, trained, measured, min(canaries.WATCHED, most))
    rows = _with_outcomes_before(sources, rows, count, own_file)
    if rows.is_empty():
        logger.info(_no_canaries(sources, own_file))
        return None
    fewer = min(canaries.WATCHED, most) - count
    logger.info(
        f"canaries: {rows.height:,} rows are watched ({candidates.source}), {int(rows['before'].sum()):,} of them "
        f"right before training{_behind(int(rows['shots'][0]))}"
        + (f"; {fewer:,} more would cost over a third of an epoch" if fewer > 0 else "")
    )
    write_frame(stored, rows)
    return open_watch(sources, rows)


def watch_file(sources: KnownSources, name: str, split: LabelledSplit, stored: Path) -> CanaryWatch:
    """Watch all rows of a file of `--watch-known` that stand in no other set. Raises InputError if none is left."""
    if stored.is_file():
        return open_watch(sources, pl.read_parquet(stored))
    rows = sources.check(without_questions(file_candidates(split).rows, sources.sets)).rows
    if rows.is_empty():
        raise InputError(
            f"--watch-known {name}={split.file}: none of its {split.rows.height:,} rows can be asked and stands in no "
            "row of train, dev or a test set"
        )
    rows = _with_outcomes_before(sources, rows, rows.height, own_file=True, fewer_behind_shots=False)
    logger.info(
        f"{name}: {rows.height:,} rows of {split.file} are watched, {int(rows['before'].sum()):,} of them right before "
        f"training{_behind(int(rows['shots'][0]))}"
    )
    write_frame(stored, rows)
    return open_watch(sources, rows)


def open_watch(sources: KnownSources, rows: pl.DataFrame) -> CanaryWatch:
    """Prepare the stored rows. The model must be as it was before training."""
    check, asking = sources.check(rows, int(rows["shots"][0])), sources.asking
    lines = {**check.first_spellings(), **check.spellings(asking)}
    before = check.predictions(lines, asking)
    return CanaryWatch(rows, check, before)


def known_file(name: str) -> str:
    """Return the file, in the run folder, of the rows of a set of `--watch-known`."""
    return f"known-{name}.parquet"


def _with_outcomes_before(
    sources: KnownSources, rows: pl.DataFrame, count: int, own_file: bool, *, fewer_behind_shots: bool = True
) -> pl.DataFrame:
    """Ask rows before training in the form in which they will be asked, and return those to watch, `count` at most.

    They are asked without exemplars, as the run trains. Where fewer than `FEW` (or half) are right so, a third of
    `count` is watched behind exemplars, which take three times as long. All rows of the user's own file are taken; of
    others, those that are right before training: so a loss is one of the fact and not of the form.
    """
    for shots, most in (
        (0, count),
        (SHOTS, count // (SHOTS + 1) if fewer_behind_shots else count),
    ):
        some = rows.head(most if own_file else 2 * most)
        right = list(sources.check(some, shots).spellings(sources.asking)) if most else []
        some = some.with_columns(before=pl.col("row").is_in(right), shots=pl.lit(shots, pl.Int64))
        if len(right) >= min(FEW, some.height / 2):
            break
    chosen = some if own_file else some.filter("before")
    return chosen.head(most)


def _candidates(sources: KnownSources) -> Candidates:
    """Return the rows to watch, in the order in which they are taken."""
    config = sources.config
    if config.canaries != "auto":
        own = file_candidates(read_set(CANARIES, config.canaries, None))
        return Candidates(without_questions(own.rows, sources.sets), own.source)
    packaged = sources.packaged()
    audited = sources.audited() if packaged.rows.height < FEW else None
    return audited if audited is not None and audited.rows.height > packaged.rows.height else packaged


def _behind(shots: int) -> str:
    if not shots:
        return " in the form in which the run trains"
    return f" behind {shots} examples, as after every epoch: without, the model gives too few"


def _no_canaries(sources: KnownSources, own_file: bool) -> str:
    if own_file:
        return f"canaries: none: every row of {sources.config.canaries} stands in train, dev or a test set"
    audit = "and none of --audit" if sources.config.audit else "and there is no --audit with HighlyKnown rows to watch"
    return (
        f"canaries: none: the model knows no packaged fact besides your rows {audit}; what training costs elsewhere is "
        "not measured (--canaries FILE watches rows of yours)"
    )


def watch_results(watch: CanaryWatch) -> dict[str, Any]:
    """Return what `results.json` says of rows that are watched."""
    return {
        "rows": watch.rows.height,
        "before": int(watch.rows["before"].sum()),
        "shots": int(watch.rows["shots"][0]),
        "source": watch.rows["source"][0],
        "fingerprint": fingerprint(watch.rows),
    }
