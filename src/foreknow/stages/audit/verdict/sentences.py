"""Writes the verdict on an audit: its result in a sentence, the meaning in another, and cautions. Pure.

The thresholds below decide, from the numbers, which sentence appears. The sentences never say "the model does not
know" for "Unknown", because models hold more than they express (arXiv 2503.15299); they say "not expressed under
this protocol".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from foreknow import paper
from foreknow.format.numbers import count, one_in, percent, percent_interval
from foreknow.stages.audit.verdict.labelled_spans import LabelledSpans
from foreknow.stats import Interval

LITTLE_UNKNOWN = 0.05
"""Below this Unknown share the file contains next to nothing that is new to the model."""
MUCH_UNKNOWN = 0.25
"""From this Unknown share on the page advises dropping the Unknown rows: in the study, long training on such files
cost 2.8 points and more."""
MOSTLY_UNKNOWN = 0.75
"""From this Unknown share on most of the file is new facts, and few Known rows would be left to train on."""
MIN_LABELLED = 100
"""With fewer labelled rows the interval is about 20 points wide or wider."""
MASTERED = 0.8
"""From this HighlyKnown share on most rows only repeat what the model always answers."""
EARLY, LONG = paper.complete_series("D", "early_stop"), paper.complete_series("D", "convergence")
"""The paper's test EM (%) for each Unknown share in `SHARES`: at the best epoch, and after long training."""
FEW_SHORT = 20
"""If a file of long answers has fewer labelled rows than this, the verdict does not state their shares."""


@dataclass(frozen=True)
class CategoryShares:
    """The numbers that the verdict is based on."""

    rows: int
    labelled: int
    known: Interval
    unknown: Interval
    highly_known: float
    alarmed: tuple[str, ...] = ()
    groups: int = 1
    model: str = "the model"
    suffix: str = ".jsonl"


@dataclass(frozen=True)
class AuditVerdict:
    """The result in one sentence, its meaning in another, and the cautions a reader should know before acting."""

    headline: str
    meaning: str
    cautions: tuple[str, ...]


def bracket(share: float) -> tuple[int, ...]:
    """Positions in `paper.SHARES` of the nearest Unknown shares below and above `share`; one position if equal."""
    at = bisect_left(paper.SHARES, 100 * share)
    exact = paper.SHARES[at] == round(100 * share, 6)
    return (at,) if exact else (at - 1, at)


def verdict(mix: CategoryShares) -> AuditVerdict:
    """Write the two sentences and the cautions for a mix."""
    if mix.labelled == 0:
        headline = f"None of the {count(mix.rows, 'row')} could be labelled."
        return AuditVerdict(headline, f"So this page cannot say yet how much of this file {mix.model} expresses.", ())
    reliably = f", {percent(mix.highly_known)} every time" if mix.known.value > 0 else ""
    headline = (
        f"Of {count(mix.labelled, 'fact')}, {mix.model} expresses {percent_interval(mix.known)} under this "
        f"protocol{reliably}; {percent_interval(mix.unknown)} "
        f"{'is' if round(100 * mix.unknown.value) == 1 else 'are'} not expressed."
    )
    if mix.labelled < MIN_LABELLED:
        meaning = f"Fewer than {MIN_LABELLED} labelled rows cannot say what training on this file would cost."
    else:
        meaning = _meaning(mix.unknown.value)
    return AuditVerdict(headline, meaning, _cautions(mix))


def _meaning(share: float) -> str:
    cost = points_range([EARLY[i] - LONG[i] for i in bracket(share)])
    if share < LITTLE_UNKNOWN:
        return (
            "Next to nothing in this file would be new to the model, so training on it can improve how the model "
            f"answers, at little risk: in the study, long training on such files cost {cost} of test accuracy."
        )
    if share < MUCH_UNKNOWN:
        return (
            "A small part of this file would be new to the model: in the study, that did no harm if "
            f"training stopped at its best epoch, and cost {cost} of test accuracy if it ran to the end."
        )
    if share < MOSTLY_UNKNOWN:
        return (
            "A large part of this file would be new to the model: in the study, training on such files to "
            f"the end, instead of stopping at the best epoch, cost {cost} of test accuracy."
        )
    return (
        "Most of this file would be new to the model: in the study, the model learnt such facts last, and "
        f"training until it had learnt them cost {cost} of test accuracy."
    )


def _cautions(mix: CategoryShares) -> tuple[str, ...]:
    notes = []
    if mix.labelled < MIN_LABELLED:
        notes.append(
            f"Only {count(mix.labelled, 'row')} {'is' if mix.labelled == 1 else 'are'} labelled, so the intervals are "
            "wide. "
            f"Label {MIN_LABELLED} or more before you act on a share."
        )
    for edge in (MUCH_UNKNOWN, MOSTLY_UNKNOWN) if mix.labelled >= MIN_LABELLED else ():
        if mix.unknown.crosses(edge):
            notes.append(
                f"The interval of the Unknown share includes {percent(edge)}, where the advice below changes: read it "
                "for both sides."
            )
    if mix.alarmed:
        notes.append(
            f"In {len(mix.alarmed)} of {mix.groups} relations almost every row is Unknown ({_some(mix.alarmed)}). A "
            "relation without Known rows did more harm than its share of the file suggests (arXiv 2511.02626); "
            "adding 5 to 20 % Known rows late in training repaired most of it."
        )
    if mix.highly_known >= MASTERED:
        notes.append(
            f"{percent(mix.highly_known)} of the rows are HighlyKnown, and such rows alone are not enough: in the "
            "study, training on HighlyKnown rows alone gave 40.5 % test accuracy, and training on MaybeKnown rows "
            "alone gave 43.6 %."
        )
    return tuple(notes)


def spans_besides(spans: LabelledSpans, model: str) -> str:
    """Say what is labelled inside the long answers of a file of mostly short ones."""
    has = "has a long answer and is" if spans.long == 1 else "have long answers and are"
    inside = f"{count(spans.all.spans, 'fact')} inside them (names, numbers, rare terms)"
    return (
        f"{count(spans.long, 'row')} {has} not in these shares: of {inside} {percent(spans.new.value)} are new to "
        f"{model}; spans.parquet has each."
    )


def points_range(values: Sequence[float]) -> str:
    """Numbers of points as text, from the lowest to the highest: 2.8 to 3.5 points."""
    low, high = round(min(values), 1), round(max(values), 1)
    return f"{low} points" if low == high else f"{low} to {high} points"


def _some(names: Sequence[str], limit: int = 4) -> str:
    names_text = ", ".join(f"“{name}”" for name in names[:limit])
    return names_text if len(names) <= limit else f"{names_text} and {len(names) - limit} more"


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


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _says(number: int) -> str:
    return "says" if number == 1 else "say"


def _has(number: int) -> str:
    return "has" if number == 1 else "have"


def span_verdict(of: LabelledSpans, model: str) -> AuditVerdict:
    """Write the two sentences and the cautions for a file of long answers whose spans have labels."""
    shares = of.all.shares
    headline = (
        f"{percent(of.new.value)} of the names, numbers and other facts in these texts are new to {model}: given the "
        "text before it, the model neither expresses the fact nor recognises it among others."
    )
    meaning = (
        f"Of {count(of.all.spans, 'labelled span')} in {count(of.rows_with_spans, 'long answer')}, "
        f"{percent(of.all.expressed)} are expressed in place, {percent(shares[-2])} are recognised only, and "
        f"{percent(shares[-1])} are neither. {count(of.rows_with_new, 'answer')} "
        f"({percent(of.rows_with_new / max(of.rows_with_spans, 1))}) {'has' if of.rows_with_new == 1 else 'have'} "
        "something new in them."
    )
    cautions = []
    if of.all.spans < MIN_LABELLED:
        cautions.append(
            f"Only {count(of.all.spans, 'span')} {'has' if of.all.spans == 1 else 'have'} a label, so treat this as a "
            f"first look. Label {MIN_LABELLED} or more before you act on a share."
        )
    if of.unlabelled:
        cautions.append(f"{count(of.unlabelled, 'more span')} could not be labelled, and count in no share.")
    return AuditVerdict(headline, meaning, tuple(cautions))
