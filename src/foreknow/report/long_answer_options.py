"""This module writes the next steps for a file whose answers are mostly long.

Its functions have no side effects. The study behind `audit_options.py` had one short fact per row, so nothing here
applies its figures to long answers: the page offers next steps and makes no forecast.
"""

from __future__ import annotations

from foreknow.format.numbers import count, percent
from foreknow.report.audit_options import Option
from foreknow.stages.audit.verdict.sentences import MUCH_UNKNOWN, LongMix


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
        f"{count(none, 'row')} {'has' if none == 1 else 'have'} no labelled fact, so only the wording can be judged "
        "there.",
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
