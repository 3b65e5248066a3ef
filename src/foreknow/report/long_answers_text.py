"""This module writes the verdict and the next steps for a file whose answers are mostly long.

Its functions have no side effects. The study behind `audit_text.py` had one short fact per row, so nothing here
applies its figures to long answers: the page offers next steps and makes no forecast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from foreknow.format.numbers import count, percent
from foreknow.report.audit_text import MIN_LABELLED, MUCH_UNKNOWN, AuditVerdict, Option
from foreknow.report.long_answers import one_in

FEW_SHORT = 20
"""If a file of long answers has fewer labelled rows than this, the verdict does not state their shares."""


@dataclass(frozen=True)
class LongMix:
    """The numbers that the verdict is based on.

    `limit`: an answer with more tokens than this is long. `labelled`: rows with short answers; `unknown`: those of
    them that are Unknown. `logprob`, `alone`: means over the long answers, with and without the question (nats per
    token). `facts`: short facts with a category; `rows_with_facts`: rows that contain facts; `unknown_facts`: facts
    that are Unknown; `rows_by_roll_up`: the number of rows for each word of `short_facts.ROLL_UP`. `flagged`: whether
    the data has findings.
    """

    rows: int
    long: int
    limit: int
    labelled: int = 0
    unknown: int = 0
    logprob: float | None = None
    alone: float | None = None
    facts: int = 0
    rows_with_facts: int = 0
    unknown_facts: int = 0
    rows_by_roll_up: Mapping[str, int] = field(default_factory=dict)
    flagged: bool = False
    model: str = "the model"
    suffix: str = ".jsonl"


def long_verdict(mix: LongMix) -> AuditVerdict:
    """Write the two sentences and the cautions for a file of mostly long answers."""
    return _by_facts(mix) if mix.facts else _by_wording(mix)


def _by_wording(mix: LongMix) -> AuditVerdict:
    if mix.rows == 1:
        headline = f"The one row could not be labelled: its answer has more than {mix.limit} tokens, and the"
    elif not mix.labelled:
        answers = "all" if mix.long == mix.rows else f"{mix.long:,}"
        headline = (
            f"None of the {mix.rows:,} rows could be labelled: {answers} answers have more than {mix.limit} tokens, "
        )
        headline += "and the"
    else:
        headline = (
            f"{mix.long:,} of the {mix.rows:,} answers have more than {mix.limit} tokens and get no category: the"
        )
    headline += " categories are made for short answers, which can be matched."
    if mix.logprob is None or mix.alone is None:
        meaning = "So this audit says nothing yet about the facts in these answers."
    else:
        meaning = (
            f"The audit measures only how expected their wording is: after the question, the next token of such an "
            f"answer gets a chance of {one_in(mix.logprob)}; without the question, {one_in(mix.alone)}. This does not "
            f"tell whether {mix.model} would state their facts."
        )
    return AuditVerdict(headline, meaning, _short_rows(mix))


def _by_facts(mix: LongMix) -> AuditVerdict:
    known = mix.facts - mix.unknown_facts
    headline = (
        f"Of {count(mix.facts, 'short fact')} in {count(mix.rows_with_facts, 'row')}, "
        f"{mix.model} expresses {known:,} ({percent(known / mix.facts)}) "
        f"under this protocol; {mix.unknown_facts:,} ({percent(mix.unknown_facts / mix.facts)}) "
        f"{'is' if mix.unknown_facts == 1 else 'are'} not expressed."
    )
    of = {word: mix.rows_by_roll_up.get(word, 0) for word in ("known", "mixed", "unknown", "none")}
    meaning = (
        f"Long answers get no category themselves. In {count(of['known'], 'row')} every labelled fact is Known, in "
        f"{of['mixed']:,} some are, and in {of['unknown']:,} none is."
    )
    if of["none"]:
        meaning += f" The other {count(of['none'], 'row')} {_has(of['none'])} no fact that could be labelled."
    cautions = []
    if mix.facts < MIN_LABELLED:
        cautions.append(
            f"Only {count(mix.facts, 'fact')} {_is(mix.facts)} labelled, so treat this as a first look. Label "
            f"{MIN_LABELLED} or more before you act on a share."
        )
    cautions.append(
        "The shares are only as good as the facts: a fact whose question cannot be understood by itself is Unknown to "
        "any model. Read some of the Unknown facts first."
    )
    return AuditVerdict(headline, meaning, (*cautions, *_short_rows(mix)))


def _short_rows(mix: LongMix) -> tuple[str, ...]:
    """The caution about the rows with short answers, if there are any."""
    if not mix.labelled:
        return ()
    rows = f"{count(mix.labelled, 'row')} with {'a short answer' if mix.labelled == 1 else 'short answers'}"
    if mix.labelled < FEW_SHORT:
        return (f"The {rows} {_has(mix.labelled)} a category, but {_says(mix.labelled)} little about the whole file.",)
    share = percent(mix.unknown / mix.labelled)
    return (f"Of the {rows}, {share} are Unknown; that share is for these rows only.",)


def steps(mix: LongMix) -> tuple[Option, ...]:
    """The next steps, the recommended one first."""
    return _with_facts(mix) if mix.facts else _without_facts(mix)


def _without_facts(mix: LongMix) -> tuple[Option, ...]:
    split = _step(
        "split",
        "Split the answers into short facts",
        "A model server of your choice, which may be local, writes the facts of each answer as questions with "
        "short answers. A second audit then gives every fact a category, and every row a summary of its facts.",
        command=_extract(mix),
        why="Only short facts can be matched, so only they show what is Known and what is Unknown.",
    )
    read = _step(
        "read",
        "Read the least expected words",
        "Names, figures, typing errors and odd wording stand out among them. They show which rows to correct, and "
        "which facts are worth asking about.",
        how="The section “Long answers” lists them, and the table of rows marks them.",
    )
    limit = _step(
        "limit",
        "Raise the limit for answers just above it",
        "An answer that has only one wording, such as a title or an address, can be matched at any length. For other "
        "answers, the longer they are, the more often Unknown only means that the model uses other words.",
        command=f"foreknow audit DATA --max-answer-tokens {mix.limit + mix.limit // 2} --model MODEL --out DIR",
    )
    scored = (read,) if mix.logprob is not None else ()
    return (split, *_check(mix), *scored, limit)


def _with_facts(mix: LongMix) -> tuple[Option, ...]:
    share = mix.unknown_facts / mix.facts
    none, unknown = (mix.rows_by_roll_up.get(word, 0) for word in ("none", "unknown"))
    here = f"{percent(share)} of the facts are Unknown"
    keep = _step(
        "keep",
        "Train on all rows, and stop early",
        "Keep the checkpoint with the best score on answers of a dev set, not the last one.",
        why=f"{here}, so there is little to leave out." if share < MUCH_UNKNOWN else "",
    )
    drop = _step(
        "drop",
        "Leave out the rows whose facts are all Unknown",
        f"In {unknown:,} of the {count(mix.rows_with_facts, 'row')} with facts, the model expresses none of the facts.",
        command=f"foreknow mix AUDIT --drop-facts-above 0.99 --out fewer{mix.suffix}",
        why=f"{here}, and these rows contain no others." if share >= MUCH_UNKNOWN else "",
    )
    retrieve = _step(
        "retrieve",
        "Put the Unknown facts in retrieval",
        f"Look up the {count(mix.unknown_facts, 'Unknown fact')} when a user asks for "
        f"{'it' if mix.unknown_facts == 1 else 'them'}, and use training to teach the form of an answer.",
        how="They are in facts.parquet of this audit, with category Unknown.",
        why=f"{here}, and they are in rows that also have Known facts."
        if share >= MUCH_UNKNOWN and not unknown
        else "",
    )
    more = _step(
        "split",
        "Add facts to the other rows",
        f"{count(none, 'row')} {_has(none)} no labelled fact, so only the wording can be judged there.",
        command=_extract(mix),
    )
    cards = [keep, *([drop] if unknown else []), *([retrieve] if mix.unknown_facts else []), *([more] if none else [])]
    return (*sorted(cards, key=lambda step: not step.why), *_check(mix))


def _extract(mix: LongMix) -> str:
    return (
        f"foreknow extract DATA --endpoint URL --model NAME --out facts{mix.suffix}\n"
        f"foreknow audit facts{mix.suffix} --model MODEL --out DIR"
    )


def _check(mix: LongMix) -> tuple[Option, ...]:
    what = (
        "This audit flagged some rows, which are listed below; foreknow check counts the flags in the whole file and "
        "shows examples."
    )
    step = _step("check", "Look at the data findings", what, command="foreknow check DATA")
    return (step,) if mix.flagged else ()


def _step(key: str, title: str, what: str, *, how: str = "", command: str = "", why: str = "") -> Option:
    return Option(key, title, what, "", "", how, command, why)


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _says(number: int) -> str:
    return "says" if number == 1 else "say"


def _has(number: int) -> str:
    return "has" if number == 1 else "have"
