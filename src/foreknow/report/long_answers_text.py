"""This module writes the verdict and the next steps for a file whose answers are mostly long.

Its functions have no side effects. The study behind `audit_text.py` had one short fact per row, so nothing here
applies its figures to long answers: the page offers next steps and makes no forecast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from foreknow.report.audit_text import MIN_LABELLED, MUCH_UNKNOWN, AuditVerdict, Option, count, percent
from foreknow.report.long_answers import one_in

FEW_SHORT = 20
"""If a file of long answers has fewer labelled rows than this, the verdict does not state their shares."""


@dataclass(frozen=True)
class LongMix:
    """The numbers that the verdict is based on.

    `limit`: an answer with more tokens than this is long. `labelled`: rows with short answers; `unknown`: those of
    them that are Unknown. `logprob`, `alone`: means over the long answers, with and without the question (nats per
    token). `facts`: short facts with a category; `rows_with_facts`: rows that contain facts; `unknown_facts`: facts
    that are Unknown; `rolled`: the number of rows for each word of `short_facts.ROLL_UP`. `flagged`: whether the data
    has findings.
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
    rolled: Mapping[str, int] = field(default_factory=dict)
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
        meaning = "So nothing can be said yet about what these answers hold."
    else:
        meaning = (
            f"What can be said is how expected their wording is: after the question, the next token of such an answer "
            f"gets a chance of {one_in(mix.logprob)}; without the question, {one_in(mix.alone)}. Whether {mix.model} "
            "would state their facts cannot be told from that."
        )
    return AuditVerdict(headline, meaning, _short_rows(mix))


def _by_facts(mix: LongMix) -> AuditVerdict:
    known = mix.facts - mix.unknown_facts
    headline = (
        f"Of {count(mix.facts, 'short fact')} that {count(mix.rows_with_facts, 'row')} "
        f"{_s('bring', mix.rows_with_facts)}, {mix.model} expresses {known:,} ({percent(known / mix.facts)}) "
        f"under this protocol; {mix.unknown_facts:,} ({percent(mix.unknown_facts / mix.facts)}) "
        f"{'is' if mix.unknown_facts == 1 else 'are'} not expressed."
    )
    of = {word: mix.rolled.get(word, 0) for word in ("known", "mixed", "unknown", "none")}
    meaning = (
        f"Long answers get no category themselves. By their facts, {count(of['known'], 'row')} {_is(of['known'])} "
        f"Known throughout, {of['mixed']:,} in part, and {of['unknown']:,} not at all."
    )
    if of["none"]:
        meaning += f" The other {count(of['none'], 'row')} {_s('bring', of['none'])} no fact that could be labelled."
    cautions = []
    if mix.facts < MIN_LABELLED:
        cautions.append(
            f"Only {count(mix.facts, 'fact')} labelled: a first look. Label {MIN_LABELLED} or more before you act on a "
            "share."
        )
    cautions.append(
        "The shares are as good as the facts: one whose question cannot be understood by itself is Unknown to any "
        "model. Read some of the Unknown ones first."
    )
    return AuditVerdict(headline, meaning, (*cautions, *_short_rows(mix)))


def _short_rows(mix: LongMix) -> tuple[str, ...]:
    """The caution about the rows with short answers, if there are any."""
    if not mix.labelled:
        return ()
    rows = f"{count(mix.labelled, 'row')} with {'a short answer' if mix.labelled == 1 else 'short answers'}"
    if mix.labelled < FEW_SHORT:
        return (f"The {rows} {_has(mix.labelled)} a category, but {mix.labelled} cannot speak for the file.",)
    share = percent(mix.unknown / mix.labelled)
    return (f"Of the {rows}, {share} are Unknown; that is said of these rows alone.",)


def steps(mix: LongMix) -> tuple[Option, ...]:
    """The next steps, the recommended one first."""
    return _with_facts(mix) if mix.facts else _without_facts(mix)


def _without_facts(mix: LongMix) -> tuple[Option, ...]:
    split = _step(
        "split",
        "Split the answers into short facts",
        "A server of your choice, a local one if need be, writes each answer's facts as questions with short answers. "
        "Audited again, every fact gets a category, and every row what its facts come to.",
        command=_extract(mix),
        why="Only short facts can be matched, and so only they can tell what is Known and what is Unknown.",
    )
    read = _step(
        "read",
        "Read the least expected words",
        "Names, figures, typing errors and odd wording stand out there: rows to correct, and facts worth asking about.",
        how="They are listed under Long answers, and marked in every row.",
    )
    limit = _step(
        "limit",
        "Raise the limit, for answers just above it",
        "An answer that has only one wording, such as a title or an address, can be matched at any length. For others, "
        "the longer they are, the more Unknown only means “in other words”.",
        command=f"foreknow audit DATA --max-answer-tokens {mix.limit + mix.limit // 2} --model MODEL --out DIR",
    )
    scored = (read,) if mix.logprob is not None else ()
    return (split, *_check(mix), *scored, limit)


def _with_facts(mix: LongMix) -> tuple[Option, ...]:
    share, none, unknown = mix.unknown_facts / mix.facts, mix.rolled.get("none", 0), mix.rolled.get("unknown", 0)
    here = f"{percent(share)} of the facts are Unknown"
    keep = _step(
        "keep",
        "Train as they are, and stop early",
        "Keep the checkpoint with the best score on answers of a dev set, not the last one.",
        why=f"{here}: there is little to leave out." if share < MUCH_UNKNOWN else "",
    )
    drop = _step(
        "drop",
        "Leave out the rows whose facts are all Unknown",
        f"{unknown:,} of the {count(mix.rows_with_facts, 'row')} with facts {_is(unknown)} of that kind: not one fact "
        f"of {'its' if unknown == 1 else 'theirs'} is expressed.",
        how="In the annotated file of this audit, they have facts_category unknown.",
        why=f"{here}, and these rows hold no other." if share >= MUCH_UNKNOWN else "",
    )
    retrieve = _step(
        "retrieve",
        "Put the Unknown facts in retrieval",
        f"Look {count(mix.unknown_facts, 'fact')} up when asked for, and let the training teach the form of an answer.",
        how="They stand in facts.parquet of this audit, with category Unknown.",
        why=f"{here}, and stand in rows with Known ones." if share >= MUCH_UNKNOWN and not unknown else "",
    )
    more = _step(
        "split",
        "Bring facts for the other rows",
        f"{count(none, 'row')} {_has(none)} none, and only the wording can be judged there.",
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
    what = "Some rows are flagged below; the check counts the whole file and shows examples."
    step = _step("check", "Look at the data findings", what, command="foreknow check DATA")
    return (step,) if mix.flagged else ()


def _step(key: str, title: str, what: str, *, how: str = "", command: str = "", why: str = "") -> Option:
    return Option(key, title, what, "", "", how, command, why)


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _has(number: int) -> str:
    return "has" if number == 1 else "have"


def _s(verb: str, number: int) -> str:
    return f"{verb}s" if number == 1 else verb
