"""Rows to train on and to watch: categories, weights, token ids, and what is wrong with them. Pure.

The training text is the prompt, the gold answer and the end-of-sequence token (design, section 8). Its ids are
those the tracker asks with: the prompt as the tokenizer has it, then what the answer adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from foreknow.data.facts import Facts, read_facts
from foreknow.data.rows import GOLD, ROWS, SAME_GOLD, SAME_QUESTION, USABLE, earlier_turns
from foreknow.errors import InputError, ModelError
from foreknow.mixes.mixing import manifest_path, read_manifest
from foreknow.protocol.prompts import Prompter, Template
from foreknow.protocol.slick import CATEGORIES

TRAINING: Final = Template(target="Answer the following question. {question}\n")
"""The paper's training format (section 3), zero-shot."""

SET: Final[dict[str, pl.DataType]] = {**ROWS, "category": pl.String(), "weight": pl.Float64()}
"""A set's usable rows; `category` is null where nobody knows it, `weight` is 1 where none is set."""


class Example(NamedTuple):
    """One row as token ids: `prompt`, then `answer` with the ending token, which alone are learnt."""

    row: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    weight: float = 1.0

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: all but the last token, which is only predicted."""
        return (*self.prompt, *self.answer[:-1])

    @property
    def length(self) -> int:
        """Tokens the model reads."""
        return len(self.prompt) + len(self.answer) - 1


class Named(NamedTuple):
    """A set of rows (`SET`) under its name: train, dev, or that of a test set. `left_out`: other rows, by reason."""

    name: str
    file: str
    rows: pl.DataFrame
    left_out: Mapping[str, int]
    digest: str
    categories: str


def read_set(name: str, file: str, audited: pl.DataFrame | None, audit_name: str = "", **reading: Any) -> Named:
    """Read a file's usable rows with their categories and weights. Raises InputError.

    A row's category is that of the audited row (`rows.parquet`) with the same question and gold behind the same
    earlier turns, else the file's own. `reading`: passed on to `read_facts`.
    """
    facts = read_facts(file, **reading)
    labels = _category_columns(facts)
    extra = extra_columns(facts, [*labels, "weight"], last=labels)
    rows = facts.rows.join(extra, on="row", how="left", maintain_order="left")
    found, reason = _categories(rows, _category_columns(facts), audited, audit_name)
    usable = rows.with_columns(found).filter(USABLE)
    usable = usable.with_columns(_weights(usable, file)).select(*SET)
    return Named(name, file, usable, facts.left_out, facts.digest, reason)


def extra_columns(facts: Facts, names: Sequence[str], *, last: Sequence[str] = ()) -> pl.DataFrame:
    """Columns of the input beside ours: row, and those of `names` that it has (`last`: see `Facts.extra`)."""
    present = [name for name in dict.fromkeys(names) if name in facts.columns]
    return facts.extra(present, last=last) if present else facts.rows.select("row")


def asked_key(rows: pl.DataFrame) -> pl.DataFrame:
    """What is asked of each row, to find the same row elsewhere: question, earlier_turns."""
    return rows.select(SAME_QUESTION, earlier_turns(rows))


def _category_columns(facts: Facts) -> list[str]:
    """Columns that may hold our labels; one written beside a column of that name stands first."""
    return sorted((c for c in facts.columns if c.removeprefix("foreknow_") == "category"), key=lambda c: (-len(c), c))


def _categories(
    rows: pl.DataFrame, columns: Sequence[str], audited: pl.DataFrame | None, audit_name: str
) -> tuple[pl.Series, str]:
    own, column = _own_categories(rows, columns)
    if audited is None:
        return own, column
    keys = ["question", "earlier_turns", "gold"]
    labels = (
        audited.filter(pl.col("category").is_not_null())
        .select(SAME_QUESTION, "earlier_turns", gold=SAME_GOLD, category="category")
        .unique(keys, keep="first", maintain_order=True)
    )
    asked = rows.select(SAME_QUESTION, earlier_turns(rows), gold=SAME_GOLD)
    found = asked.join(labels, on=keys, how="left", maintain_order="left", nulls_equal=True)["category"]
    count, more = found.count(), (own.is_not_null() & found.is_null()).sum()
    told = [f"{audit_name}, which knows {count:,} of its {rows.height:,} rows"] if count else []
    told += [f"{column} for {more:,}" if count else column] if more else []
    return found.fill_null(own), ", ".join(told)


def _own_categories(rows: pl.DataFrame, columns: Sequence[str]) -> tuple[pl.Series, str]:
    """The labels of the first column that holds any, and its name in words; nulls and "" where none does."""
    for column in columns:
        text = rows[column].cast(pl.String)
        known = text.is_in(CATEGORIES)
        if known.any():
            return pl.select(pl.when(known).then(text).alias("category")).to_series(), f"the column {column!r}"
    return pl.Series("category", [None] * rows.height, dtype=pl.String), ""


def _weights(rows: pl.DataFrame, file: str) -> pl.Series:
    if "weight" not in rows.columns:
        return pl.Series("weight", [1.0] * rows.height, dtype=pl.Float64)
    weight = rows["weight"].cast(pl.Float64, strict=False)
    bad = weight.is_null() | ~weight.is_finite().fill_null(False) | (weight < 0).fill_null(False)
    if bad.any():
        at = int(bad.arg_max() or 0)
        raise InputError(f"{file}: row {rows['row'][at]}: weight {rows['weight'][at]!r}, expected a number from 0 on")
    if not (weight > 0).any():
        raise InputError(f"{file}: every row's weight is 0; nothing would be learnt")
    return weight.alias("weight")


def examples(given: Named, prompter: Prompter, end: int) -> list[Example]:
    """The rows of a set as token ids, in their order; `end` is the token that ends every answer.

    Raises InputError for a gold that the tokenizer makes nothing of.
    """
    rows = given.rows
    questions, golds = rows["question"].to_list(), [gold.strip() for gold in rows.select(GOLD).to_series()]
    texts = [prompter.text((), *asked) for asked in rows.select("question", "context").iter_rows()]
    prompts = prompter.ids(texts)
    gap = "" if prompter.chat else prompter.template.gap
    whole = prompter.ids([text + gap + gold for text, gold in zip(texts, golds, strict=True)])
    found = []
    numbers, weights = rows["row"].to_list(), rows["weight"].to_list()
    for n, row in enumerate(numbers):
        prompt, ids = prompts[n], whole[n]
        if ids[: len(prompt)] == prompt and len(ids) > len(prompt):
            answer = tuple(ids[len(prompt) :])
        else:
            answer = prompter.answer_ids(texts[n], prompt, golds[n])
        if not answer:
            raise InputError(
                f"{given.file}: row {row}: the answer {golds[n]!r} is no token at all to this model's tokenizer; "
                "leave the row out, or choose another model"
            )
        if not prompt:
            raise InputError(f"{given.file}: row {row}: the question {questions[n]!r} gives no token to begin with")
        found.append(Example(row, tuple(prompt), (*answer, end), weights[n]))
    return found


def check_lengths(file: str, found: Sequence[Example], positions: int | None) -> None:
    """Raise InputError for a row that is longer than the model's positions."""
    if positions is None:
        return
    long = [e for e in found if len(e.prompt) + len(e.answer) > positions]
    if long:
        raise InputError(
            f"{file}: {len(long):,} rows are longer than the model's {positions:,} positions, first row {long[0].row} "
            f"with {len(long[0].prompt) + len(long[0].answer):,} tokens; leave them out, or shorten them"
        )


def check_overlap(train: Named, others: Sequence[Named], allowed: bool) -> str | None:
    """A line about questions to train on that stand in another set too; InputError unless `allowed`."""
    told, key = [], ["question", "earlier_turns"]
    mine = train.rows.with_columns(asked_key(train.rows))
    for other in others:
        asked = mine.join(asked_key(other.rows), on=key, how="semi", nulls_equal=True)
        if not asked.is_empty():
            row, question = asked.select("row", "question").row(0)
            count = asked.select(key).n_unique()
            told.append(f"{asked.height:,} ({count:,} questions) in {other.name}, first row {row}: {question!r}")
    if not told:
        return None
    text = f"{train.file}: rows to train on stand in other sets: {'; '.join(told)}"
    if not allowed:
        raise InputError(f"{text}.\nLeave them out of one of the files, or go on with --allow-overlap.")
    return text


def ceiling(rows: pl.DataFrame) -> tuple[float, int]:
    """The largest share of rows that can be fitted, and how many questions have more than one gold.

    The same question behind the same turns with different golds can be answered with one of them only (design,
    section 8).
    """
    counts = rows.group_by(asked=pl.struct(SAME_QUESTION, "context").hash(), gold=SAME_GOLD.str.strip_chars()).len()
    best = counts.group_by("asked").agg(most=pl.col("len").max(), golds=pl.len())
    return float(best["most"].sum()) / max(rows.height, 1), int((best["golds"] > 1).sum())


def check_same_model(
    file: Path | str, made_with: Mapping[str, Any] | None, fingerprint: str, forced: bool
) -> str | None:
    """Raise ModelError if an audit, or a mix, was made with another model; if `forced`, a line that says so."""
    known = made_with or {}
    if known.get("fingerprint") in (None, fingerprint):
        return None
    text = f"{file}: made with {known.get('name')} ({known['fingerprint'][:19]}...), not with the model to be tuned "
    text += f"({fingerprint[:19]}...): its categories are another model's"
    if forced:
        return text
    raise ModelError(f"{text}. Audit this model, or go on with --force.")


def mixed_with(file: str) -> dict[str, Any] | None:
    """The model that a file was mixed for, where `foreknow mix` wrote the file."""
    if not manifest_path(Path(file)).is_file():
        return None
    model = read_manifest(Path(file)).get("model")
    return model if isinstance(model, dict) else None


def check_turns(train: Named, turns: str) -> None:
    """Raise InputError where a mix of last answers is read with all answers: the others have no category."""
    path = Path(train.file)
    if turns == "last" or not manifest_path(path).is_file() or read_manifest(path).get("turns") != "last":
        return
    if train.rows["record"].n_unique() < train.rows.height:
        raise InputError(
            f"{train.file}: mixed from an audit with --turns last, but read with --turns all: the earlier answers of "
            "its chats were never labelled. Give --turns last, or audit and mix with --turns all"
        )


def order(seed: int, epoch: int, count: int) -> list[int]:
    """The order of the rows in an epoch: it depends on the seed and the epoch only."""
    shuffled: list[int] = np.random.default_rng([seed, epoch]).permutation(count).tolist()
    return shuffled


def step_rows(seed: int, step: int, count: int, batch: int) -> list[int]:
    """Places of the rows of optimizer step `step` (from 0, over all epochs); an epoch's last may have fewer."""
    epoch, within = divmod(step, math.ceil(count / batch))
    return order(seed, epoch, count)[within * batch : (within + 1) * batch]


def micro_batches(rows: Sequence[Example], tokens: int) -> list[list[Example]]:
    """A step's rows by length, cut into parts of at most about `tokens` tokens; a longer row stands alone."""
    parts: list[list[Example]] = []
    filled = 0
    for example in sorted(rows, key=lambda e: (e.length, e.row)):
        if not parts or filled + example.length > tokens:
            parts.append([])
            filled = 0
        parts[-1].append(example)
        filled += example.length
    return parts


def shares(rows: Sequence[Example], tokens: int, count: int) -> list[list[list[Example]]]:
    """A step's rows as micro-batches for each of `count` processes: every row in one of them, as many for each.

    Processes meet after every micro-batch. One that has fewer is given a row of weight 0, which teaches nothing.
    """
    ordered = sorted(rows, key=lambda e: (e.length, e.row))
    parts = [micro_batches(ordered[k::count], tokens) for k in range(count)]
    most = max(len(own) for own in parts)
    idle = [ordered[0]._replace(weight=0.0)]
    return [own + [idle] * (most - len(own)) for own in parts]


def alike(rows: Sequence[Example]) -> list[list[Example]]:
    """Rows by length cut into runs of like length: attention pads each run to its longest row."""
    found: list[list[Example]] = []
    shortest = 0
    for example in sorted(rows, key=lambda e: (e.length, e.row)):
        if not found or example.length > max(2 * shortest, shortest + 12):
            found.append([])
            shortest = example.length
        found[-1].append(example)
    return found
