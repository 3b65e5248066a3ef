"""Chooses the known rows of a run: those watched (`--canaries`) and those replayed (`--replay`, `--kl`).

No row is both. Both are stored in the run folder, so that a resumed run has the same ones:

DIR/canaries.parquet             the rows that are watched, and whether each was right before training
DIR/known-NAME.parquet           the same for each file of `--watch-known`
DIR/.replay/pool.parquet         the rows that are replayed, as token ids, until the run ends
DIR/.replay/teacher.safetensors  the model's predictions before training at their answers (`kl_loss.py`), likewise
DIR/.replay/known-epoch.parquet  the rows of the epoch that comes before the teacher's predictions (`known_epoch.py`)

Replayed are the HighlyKnown rows of `--audit` whose facts are in no set and not watched, in whatever words; for `--kl`
alone those of every category, whose answers are then not learnt. Where the audit has fewer than `FEW` of them, it is
the half of the packaged facts known that is not watched, if that is more; else questions and answers that the base
model makes up in the form of the file's own groups (`self_generated.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.categories import CATEGORIES, HIGHLY_KNOWN
from foreknow.config import TuneConfig
from foreknow.distributed import process_group
from foreknow.errors import InputError, RunFolderError
from foreknow.format.numbers import duration
from foreknow.io.run_dir import RunDir, fingerprint, write_frame
from foreknow.stages.audit.result import open_audit
from foreknow.stages.train import canaries, kl_loss
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.canaries import FEW, CanaryCheck, Candidates
from foreknow.stages.train.curves import CANARIES
from foreknow.stages.train.dataset import LabelledSplit, read_set
from foreknow.stages.train.kl_teacher import exemplars_for_teacher, paired_rows
from foreknow.stages.train.made_up import MadeUpCheck, is_cheap, made_up_questions
from foreknow.stages.train.replay import (
    FOLDER,
    ReplayPlan,
    ReplayPool,
    pool_of,
    read_pool,
    replay_count,
    write_pool,
)
from foreknow.stages.train.self_generated import generate_rows
from foreknow.stages.train.setup import training_plan
from foreknow.stages.train.text_loss import TextLoss
from foreknow.stages.train.training_examples import TrainingExample

logger = logging.getLogger(__name__)

FILE: Final = f"{CANARIES}.parquet"
POOL_FILE: Final = "pool.parquet"
KNOWN_EPOCH_FILE: Final = "known-epoch.parquet"
KNOWN_EPOCH: Final = "known-epoch"
"""The setting of `--kl-teacher` that trains an epoch on known rows first."""
MOST: Final = 512
"""The most rows of that epoch, unless there are more rows to train on: then as many as these."""
EQUAL: Final = 0.5
"""The share of a batch that known rows make up if `--kl` is given without `--replay`: one for each new row."""


@dataclass(frozen=True)
class CanaryWatch:
    """Measures the rows that are watched.

    `rows`: the frame `canaries.ROWS`. `check` asks the same rows. `before`: the predictions before training at their
    answers, by line of `check` (`CanaryCheck.predictions`).
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


class KnownRows(NamedTuple):
    """Holds the known rows of a run, and what `results.json` says of them.

    `canaries`: those of `--canaries`. `watched`: those of `--watch-known`, by name. `text`: the plain text whose loss
    is measured. `made_up`: the questions on made-up subjects; `asks_made_up_often`: they are asked after every epoch
    and not only before training and at its end. `known_epoch`: the rows to train an epoch on before anything else; `kl`
    is then None until `with_teacher`.
    """

    canaries: CanaryWatch | None = None
    watched: Mapping[str, CanaryWatch] = {}
    replay: ReplayPlan | None = None
    kl: kl_loss.KlTerm | None = None
    text: TextLoss | None = None
    made_up: MadeUpCheck | None = None
    asks_made_up_often: bool = False
    results: Mapping[str, Any] = {}
    known_epoch: tuple[TrainingExample, ...] = ()


def uses_pool(config: TuneConfig) -> bool:
    """Return whether known rows join the batches."""
    return config.replay > 0 or config.kl > 0


def has_known_epoch(config: TuneConfig) -> bool:
    """Return whether an epoch on known rows comes before the teacher's predictions (`--kl-teacher`)."""
    return config.kl > 0 and config.kl_teacher == KNOWN_EPOCH


def holds_all(config: TuneConfig) -> bool:
    """Return whether rows of every category hold the model (`--kl-rows`), and not only those that it knows."""
    return config.kl > 0 and not config.replay and config.kl_rows != "known"


def prepare(
    config: TuneConfig,
    sets: Mapping[str, pl.DataFrame],
    examples: list[TrainingExample],
    measured_tokens: int,
    asking: AskingModel,
    folder: RunDir,
) -> KnownRows:
    """Choose the known rows before the first step, or read those that a run under way has chosen.

    `sets`: the rows of train, dev and the test sets. `examples`: the rows to train on. `measured_tokens`: the tokens of
    the rows that are measured at each evaluation. The model must be as it was before training.

    Of several processes the first one chooses and asks; the others read which rows join the batches.

    Raises InputError if there is no row to replay, or for a file of canaries that cannot be read.
    """
    if process_group.sharded():
        if config.canaries != "none":
            logger.info("canaries: not watched, because each process has only a part of the weights")
        return KnownRows(results=_results(config, None, None, {}, None, None, False))
    if process_group.is_main_process():
        known = _choose(config, sets, examples, measured_tokens, asking, folder)
    process_group.barrier()
    if process_group.is_main_process():
        return known
    return _read_choice(config, len(examples), asking, folder.path / FOLDER) if uses_pool(config) else KnownRows()


def _choose(
    config: TuneConfig,
    sets: Mapping[str, pl.DataFrame],
    examples: list[TrainingExample],
    measured_tokens: int,
    asking: AskingModel,
    folder: RunDir,
) -> KnownRows:
    own_files = {name: read_set(name, file, None) for name, file in config.watch_known.items()}
    choice = _Choice(config, {**sets, **{name: split.rows for name, split in own_files.items()}}, asking)
    trained = sum(example.length for example in examples)
    watch = _watch(choice, folder.path / FILE, trained, trained + measured_tokens)
    watched = {
        name: _watch_known(_Choice(config, sets, asking), name, split, folder.path / known_file(name))
        for name, split in own_files.items()
    }
    plan = _plan(choice, watch, len(examples), examples, folder.path / FOLDER) if uses_pool(config) else None
    first = _known_epoch(choice, watch, len(examples), folder.path / FOLDER) if has_known_epoch(config) else ()
    kl = _kl(config, plan, asking, folder.path / FOLDER) if plan is not None and config.kl and not first else None
    outside = _outside(config, sets, asking, trained, trained + measured_tokens)
    results = _results(config, watch, plan, watched, *outside)
    if first:
        results["replay"] |= {"known_epoch_rows": len(first)}
    return KnownRows(watch, watched, plan, kl, *outside, results, first)


def with_teacher(
    config: TuneConfig, known: KnownRows, asking: AskingModel, folder: RunDir, *, is_resumed: bool
) -> KnownRows:
    """Return `known` with the predictions that the model gives now, after its epoch on known rows.

    `is_resumed`: the model is past its first step, so they can only be read. Raises RunFolderError if they are gone.
    """
    if known.replay is None:
        return known
    path = folder.path / FOLDER
    kl = None
    if process_group.is_main_process():
        kl = _kl(config, known.replay, asking, path, after=known.known_epoch, is_resumed=is_resumed)
    process_group.barrier()
    if kl is None:
        kl = _kl(config, known.replay, asking, path, after=known.known_epoch)
    return known._replace(kl=kl)


def watch_again(
    config: TuneConfig, sets: Mapping[str, pl.DataFrame], asking: AskingModel, folder: Path | None
) -> KnownRows:
    """Take up the canaries of a training that goes on in another trainer, if `folder` names any.

    The model is no longer as it was before training, so no divergence from it is measured, and no plain text.
    """
    stored = None if folder is None else folder / FILE
    watch = None
    if stored is not None and stored.is_file():
        rows = pl.read_parquet(stored)
        watch = CanaryWatch(rows, _Choice(config, sets, asking).check(rows, int(rows["shots"][0])), {})
    return KnownRows(canaries=watch, results=_results(config, watch, None, {}, None, None, False))


def _read_choice(config: TuneConfig, rows: int, asking: AskingModel, folder: Path) -> KnownRows:
    """Read the rows that the first process chose for the batches, and the predictions to which it holds them."""
    plan = _plan_of(config, read_pool(folder / POOL_FILE), rows)
    if has_known_epoch(config):
        return KnownRows(replay=plan, known_epoch=read_pool(folder / KNOWN_EPOCH_FILE).examples)
    return KnownRows(replay=plan, kl=_kl(config, plan, asking, folder) if config.kl else None)


def known_file(name: str) -> str:
    """Return the file, in the run folder, of the rows of a set of `--watch-known`."""
    return f"known-{name}.parquet"


def _outside(
    config: TuneConfig, sets: Mapping[str, pl.DataFrame], asking: AskingModel, trained: int, measured: int
) -> tuple[TextLoss | None, MadeUpCheck | None, bool]:
    """Return the plain text and the questions on made-up subjects, and whether these are asked after every epoch."""
    if config.canaries == "none":
        return None, None, False
    text = TextLoss(asking)
    if not config.made_up_subjects:
        return text, None, False
    texts = [value for frame in sets.values() for value in frame["question"]]
    texts += [answer for frame in sets.values() for answer in frame["answers"].explode().drop_nulls()]
    questions = made_up_questions(sets["train"], texts, config.made_up_subjects)
    made_up = MadeUpCheck(questions, sets["train"], asking)
    return text, made_up, is_cheap(made_up, trained, measured)


class _Choice:
    """Finds the rows of each source, when they are first asked for."""

    def __init__(self, config: TuneConfig, sets: Mapping[str, pl.DataFrame], asking: AskingModel):
        self.config, self.sets, self.asking = config, sets, asking
        self._packaged: pl.DataFrame | None = None

    def audited(self, categories: Sequence[str] = (HIGHLY_KNOWN,)) -> Candidates:
        """Return the rows of the audit with one of `categories` that stand in no set; none without an audit."""
        if self.config.audit is None:
            return Candidates(pl.DataFrame(schema=canaries.ROWS), "")
        which = "HighlyKnown rows" if tuple(categories) == (HIGHLY_KNOWN,) else "rows of every category"
        source = f"{which} of the audit {self.config.audit}"
        found = canaries.audit_candidates(open_audit(self.config.audit).rows, source, categories)
        return Candidates(self._besides_sets(found.rows), source)

    def replay_file(self, categories: Sequence[str] = ()) -> Candidates:
        """Return the rows of `--replay-from` that stand in no set: those of `categories`, where the file has any."""
        split = read_set("replay", str(self.config.replay_from), None)
        if categories and split.rows["category"].is_not_null().any():
            split = split._replace(rows=split.rows.filter(pl.col("category").is_in(list(categories))))
        found = canaries.file_candidates(split)
        return Candidates(self._besides_sets(found.rows), found.source)

    def _besides_sets(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Leave out the rows whose question stands in a set, and those that ask for a fact of a set in other words."""
        for frame in self.sets.values():
            rows = canaries.without_facts(rows, frame)
        return canaries.without_questions(rows, self.sets)

    def packaged(self) -> Candidates:
        """Return the packaged facts that the model knows and that no set names."""
        asking = self.asking
        if self._packaged is None:
            began = time.monotonic()
            known = canaries.known_packaged(
                canaries.packaged_candidates().rows,
                asking.fingerprint,
                [asking.prompter.choices, asking.dtype],
                lambda rows: self.check(rows, canaries.SHOTS),
                lambda check: check.spellings(asking),
            )
            spent = duration(time.monotonic() - began)
            asked = "asked before" if known.cached else f"asked once for this model, in {spent}"
            logger.info(f"canaries: the model knows {known.rows.height:,} of {known.asked:,} packaged facts ({asked})")
            self._packaged = known.rows
        rows = canaries.without_subjects(canaries.without_questions(self._packaged, self.sets), self.sets)
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


def _watch(choice: _Choice, stored: Path, trained: int, measured: int) -> CanaryWatch | None:
    if choice.config.canaries == "none":
        return None
    if stored.is_file():
        return _open_watch(choice, pl.read_parquet(stored))
    candidates, own_file = _candidates(choice), choice.config.canaries != "auto"
    if candidates.rows.is_empty():
        logger.info(_no_canaries(choice, own_file))
        return None
    check = choice.check(candidates.rows)
    rows = check.rows
    most = rows.height // 2 if uses_pool(choice.config) and not own_file else rows.height
    costs = rows.select("row").join(check.tokens(), on="row", how="left", maintain_order="left")
    count = canaries.affordable(costs, trained, measured, min(canaries.WATCHED, most))
    rows = _with_outcomes_before(choice, rows, count, own_file)
    if rows.is_empty():
        logger.info(_no_canaries(choice, own_file))
        return None
    fewer = min(canaries.WATCHED, most) - count
    logger.info(
        f"canaries: {rows.height:,} rows are watched ({candidates.source}), {int(rows['before'].sum()):,} of them "
        f"right before training{_behind(int(rows['shots'][0]))}"
        + (f"; {fewer:,} more would cost over a third of an epoch" if fewer > 0 else "")
    )
    write_frame(stored, rows)
    return _open_watch(choice, rows)


def _behind(shots: int) -> str:
    if not shots:
        return " in the form in which the run trains"
    return f" behind {shots} examples, as after every epoch: without, the model gives too few"


def _watch_known(choice: _Choice, name: str, split: LabelledSplit, stored: Path) -> CanaryWatch:
    """Watch all rows of a file of `--watch-known` that stand in no other set. Raises InputError if none is left."""
    if stored.is_file():
        return _open_watch(choice, pl.read_parquet(stored))
    rows = choice.check(canaries.without_questions(canaries.file_candidates(split).rows, choice.sets)).rows
    if rows.is_empty():
        raise InputError(
            f"--watch-known {name}={split.file}: none of its {split.rows.height:,} rows can be asked and stands in no "
            "row of train, dev or a test set"
        )
    rows = _with_outcomes_before(choice, rows, rows.height, own_file=True, fewer_behind_shots=False)
    logger.info(
        f"{name}: {rows.height:,} rows of {split.file} are watched, {int(rows['before'].sum()):,} of them right before "
        f"training{_behind(int(rows['shots'][0]))}"
    )
    write_frame(stored, rows)
    return _open_watch(choice, rows)


def _open_watch(choice: _Choice, rows: pl.DataFrame) -> CanaryWatch:
    """Prepare the stored rows. The model must be as it was before training."""
    check, asking = choice.check(rows, int(rows["shots"][0])), choice.asking
    lines = {**check.first_spellings(), **check.spellings(asking)}
    before = check.predictions(lines, asking)
    return CanaryWatch(rows, check, before)


def _with_outcomes_before(
    choice: _Choice, rows: pl.DataFrame, count: int, own_file: bool, *, fewer_behind_shots: bool = True
) -> pl.DataFrame:
    """Ask rows before training in the form in which they will be asked, and return those to watch, `count` at most.

    They are asked without exemplars, as the run trains. Where fewer than `FEW` (or half) are right so, a third of
    `count` is watched behind exemplars, which take three times as long. All rows of the user's own file are taken; of
    others, those that are right before training: so a loss is one of the fact and not of the form.
    """
    for shots, most in ((0, count), (canaries.SHOTS, count // (canaries.SHOTS + 1) if fewer_behind_shots else count)):
        some = rows.head(most if own_file else 2 * most)
        right = list(choice.check(some, shots).spellings(choice.asking)) if most else []
        some = some.with_columns(before=pl.col("row").is_in(right), shots=pl.lit(shots, pl.Int64))
        if len(right) >= min(FEW, some.height / 2):
            break
    chosen = some if own_file else some.filter("before")
    return chosen.head(most)


def _candidates(choice: _Choice) -> Candidates:
    """Return the rows to watch, in the order in which they are taken."""
    config = choice.config
    if config.canaries != "auto":
        own = canaries.file_candidates(read_set(CANARIES, config.canaries, None))
        return Candidates(canaries.without_questions(own.rows, choice.sets), own.source)
    packaged = choice.packaged()
    audited = choice.audited() if packaged.rows.height < FEW else None
    return audited if audited is not None and audited.rows.height > packaged.rows.height else packaged


def _no_canaries(choice: _Choice, own_file: bool) -> str:
    if own_file:
        return f"canaries: none: every row of {choice.config.canaries} stands in train, dev or a test set"
    audit = "and none of --audit" if choice.config.audit else "and there is no --audit with HighlyKnown rows to watch"
    return (
        f"canaries: none: the model knows no packaged fact besides your rows {audit}; what training costs elsewhere is "
        "not measured (--canaries FILE watches rows of yours)"
    )


def _plan(
    choice: _Choice, watch: CanaryWatch | None, rows: int, examples: list[TrainingExample], folder: Path
) -> ReplayPlan:
    config, plan = choice.config, training_plan(choice.config)
    stored = folder / POOL_FILE
    if stored.is_file():
        pool = read_pool(stored)
    else:
        new = min(plan.batch_size, rows)
        most = plan.epochs * -(-rows // plan.batch_size) * replay_count(config.replay or EQUAL, new)
        pool = _pool(choice, watch, most, examples)
        folder.mkdir(exist_ok=True)
        write_pool(stored, pool)
    if not pool.examples:
        raise InputError(
            "--replay, --kl: no known row to replay: no HighlyKnown row of --audit, no packaged fact that the model "
            "knows, and it makes up no question. Audit the model on other rows and name it with --audit"
        )
    teacher = "model after its epoch on known rows" if has_known_epoch(config) else "base model"
    held, added = f"are held to the {teacher}, one for each new row", f"make up {config.replay:.0%} of each batch"
    what = added if config.replay else held
    logger.info(f"{'replay' if config.replay else 'kl'}: {len(pool.examples):,} rows {what} ({pool.source})")
    return _plan_of(config, pool, rows)


def _plan_of(config: TuneConfig, pool: ReplayPool, rows: int) -> ReplayPlan:
    batch_size = training_plan(config).batch_size
    return ReplayPlan(pool, config.replay or EQUAL, config.seed, rows, batch_size, learns=config.replay > 0)


def _pool(choice: _Choice, watch: CanaryWatch | None, most: int, examples: list[TrainingExample]) -> ReplayPool:
    found = _pool_rows(choice, watch.rows if watch is not None else pl.DataFrame(schema=canaries.ROWS))
    rows = found.rows.head(most)
    if rows.height:
        golds = choice.check(rows).golds()
        shots = choice.teacher_shots(rows) if choice.config.kl and not has_known_epoch(choice.config) else 0
        if shots:
            held, prompts = paired_rows(golds, choice.check(rows, shots).golds())
            return pool_of(held, found.source, prompts)
        return pool_of([golds[row] for row in rows["row"] if row in golds], found.source)
    if choice.config.replay_from:
        raise InputError(
            f"--replay-from {choice.config.replay_from}: every row stands in train, dev, a test set or a watched set"
        )
    asking = choice.asking
    made = generate_rows(asking, choice.sets, min(most, len(examples)), choice.config.seed)
    return pool_of(made, "questions and answers that the base model made up")


def _known_epoch(choice: _Choice, watch: CanaryWatch | None, rows: int, folder: Path) -> tuple[TrainingExample, ...]:
    """Return the rows of the epoch on known rows, in the form in which the run trains (`known_epoch.py`).

    They are the HighlyKnown rows of the source of `--kl`, or all of it where no row has a category; `rows` of them at
    most, or `MOST` if that is more. `rows`: the number of rows to train on. Raises InputError where there is none.
    """
    stored = folder / KNOWN_EPOCH_FILE
    if stored.is_file():
        return read_pool(stored).examples
    watched = watch.rows if watch is not None else pl.DataFrame(schema=canaries.ROWS)
    found = _pool_rows(choice, watched, (HIGHLY_KNOWN,)).rows.head(max(rows, MOST))
    golds = choice.check(found).golds() if found.height else {}
    examples = [golds[row] for row in found["row"] if row in golds]
    if not examples:
        raise InputError(
            "--kl-teacher known-epoch: no HighlyKnown row to train an epoch on that is in no set and not watched; name "
            "an audit with known rows with --audit, or hold the base model with --kl-teacher base"
        )
    pool = pool_of(examples, "known rows")
    write_pool(stored, pool)
    return pool.examples


def _pool_rows(choice: _Choice, watched: pl.DataFrame, categories: Sequence[str] = ()) -> Candidates:
    """Return the rows of the pool: of the file asked for; else of the audit, or packaged ones where those are more.

    A few rows that fill half of every batch again and again teach themselves and keep nothing else, so an audit with
    fewer than `FEW` is not enough if the model knows more packaged facts. `categories`: those of the rows, in place of
    those that `--kl-rows` asks for.
    """
    wanted = categories or (CATEGORIES if holds_all(choice.config) else (HIGHLY_KNOWN,))
    found = choice.replay_file(categories) if choice.config.replay_from else choice.audited(wanted)
    found = _besides_watched(found, watched)
    if choice.config.replay_from or found.rows.height >= FEW:
        return found
    packaged = _besides_watched(choice.packaged(), watched)
    return packaged if packaged.rows.height > found.rows.height else found


def _besides_watched(found: Candidates, watched: pl.DataFrame) -> Candidates:
    rows = canaries.without_facts(found.rows, watched)
    return Candidates(canaries.without_questions(rows, {CANARIES: watched}), found.source)


def _kl(
    config: TuneConfig,
    plan: ReplayPlan,
    asking: AskingModel,
    folder: Path,
    *,
    after: Sequence[TrainingExample] = (),
    is_resumed: bool = False,
) -> kl_loss.KlTerm:
    """Return the term of `--kl`. `after`: the rows of the epoch that the model was trained before it is the teacher."""
    path, k = folder / "teacher.safetensors", kl_loss.TOP_K
    key = kl_loss.teacher_key(asking.fingerprint, plan.pool.fingerprint, k, asking.dtype)
    if after:
        key = fingerprint([key, pool_of(after, "").fingerprint])
    teacher = kl_loss.read_teacher(path, key)
    if teacher is None and is_resumed:
        raise RunFolderError(
            f"{path}: missing or damaged, and the model is past the weights that it was computed from; delete the "
            "run folder and start again"
        )
    if teacher is None:
        began = time.monotonic()
        teacher = kl_loss.teacher_of(asking, plan.pool.taught, k)
        kl_loss.write_teacher(path, teacher, key)
        logger.info(
            f"kl: the {'model' if after else 'base model'}'s {k} likeliest tokens at {len(teacher.tokens):,} positions "
            f"computed in {duration(time.monotonic() - began)}"
        )
    return kl_loss.KlTerm(config.kl, teacher, skips_end=plan.pool.teacher_prompts is not None)


def _results(
    config: TuneConfig,
    watch: CanaryWatch | None,
    plan: ReplayPlan | None,
    watched: Mapping[str, CanaryWatch],
    text: TextLoss | None,
    made_up: MadeUpCheck | None,
    often: bool,
) -> dict[str, Any]:
    results: dict[str, Any] = {CANARIES: _watch_results(watch) if watch is not None else None, "replay": None}
    results["watched_known"] = {name: _watch_results(own) for name, own in watched.items()}
    results["plain_text"] = (
        {"tokens": sum(len(e.answer) for e in text.examples), "before": text.before} if text else None
    )
    results["made_up"] = {"before": made_up.count(made_up.replies), "every_epoch": often} if made_up else None
    if plan is not None:
        results["replay"] = {
            "rows": len(plan.pool.examples),
            "source": plan.pool.source,
            "share": plan.share,
            "learns": plan.learns,
            "kl": config.kl or None,
            "kl_top_k": kl_loss.TOP_K if config.kl else None,
            "kl_exemplars": canaries.SHOTS if plan.pool.teacher_prompts is not None else 0,
            "fingerprint": plan.pool.fingerprint,
        }
    return results


def _watch_results(watch: CanaryWatch) -> dict[str, Any]:
    return {
        "rows": watch.rows.height,
        "before": int(watch.rows["before"].sum()),
        "shots": int(watch.rows["shots"][0]),
        "source": watch.rows["source"][0],
        "fingerprint": fingerprint(watch.rows),
    }
