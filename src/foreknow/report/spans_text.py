"""This module writes the verdict and the next steps for a file of long answers whose spans have labels.

Its functions have no side effects. No study has trained on long answers with and without their new spans, so the page
offers steps and makes no forecast.
"""

from __future__ import annotations

from foreknow.report.audit_text import LITTLE_UNKNOWN, MIN_LABELLED, AuditVerdict, Option, count, percent
from foreknow.report.long_answers_text import LongMix
from foreknow.report.spans import LabelledSpans


def span_verdict(of: LabelledSpans, model: str) -> AuditVerdict:
    """Write the two sentences and the cautions."""
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


def span_steps(of: LabelledSpans, mix: LongMix) -> tuple[Option, ...]:
    """The next steps, the recommended one first."""
    new, suffix = of.all.counts[-1], mix.suffix
    share = percent(of.new.value)
    little = of.new.value < LITTLE_UNKNOWN
    train = _step(
        "train",
        "Train on the texts as they are",
        "While it trains, foreknow tune counts how many known and how many new spans the model says, and keeps the "
        "epoch at which the loss on held-out texts is lowest.",
        command="foreknow tune TRAIN --model MODEL --audit AUDIT --out DIR",
        why=f"Only {share} of the spans are new, so there is little to take out." if little else "",
    )
    mask = _step(
        "mask",
        "Mask what is new",
        f"The texts stay whole, and the {count(new, 'new span')} {'is' if new == 1 else 'are'} left out of the loss: "
        f"the model reads them and is not taught to say them. masked{suffix}.tokens.parquet holds the same as tokens, "
        "for TRL and transformers.Trainer.",
        command=f"foreknow mix AUDIT --mask new --out masked{suffix}\n"
        f"foreknow tune masked{suffix} --model MODEL --audit AUDIT --out DIR",
        why=""
        if little
        else f"{share} of the spans are new, and this takes out exactly these, while every text keeps its sense. With "
        "short facts, leaving out what is new did less harm than training on it; with long texts this is untested.",
    )
    cut = _step(
        "cut",
        "Cut the sentences that are all new",
        "A sentence goes if it has spans and all of them are new. Sentences around it may refer to it, so read some of "
        "the result.",
        command=f"foreknow mix AUDIT --cut new --out cut{suffix}\n"
        f"foreknow tune cut{suffix} --model MODEL --audit AUDIT --out DIR",
    )
    drop = _step(
        "drop",
        "Leave out the rows that are mostly new",
        f"In {count(of.rows['only'], 'row')} every labelled span is new. The first command drops rows above a share; "
        "the second draws a set in which a share of all spans is new.",
        command=f"foreknow mix AUDIT --drop-new-above 0.5 --out fewer{suffix}\n"
        f"foreknow mix AUDIT --new-share {max(of.lowest, min(0.1, of.new.value / 2)):.2g} --out drawn{suffix}",
    )
    retrieve = _step(
        "retrieve",
        "Put what is new into retrieval",
        f"Look up the {count(new, 'new span')} when a user asks, and use training for the form of an answer. The "
        "command writes each new span with its row and question, for an index.",
        command='python -c "import sys, foreknow; foreknow.open_audit(sys.argv[1]).new_spans.write_csv(sys.argv[2])" '
        "AUDIT new_spans.csv",
    )
    what = "This audit flagged some rows, which are listed below; foreknow check counts the flags in the whole file."
    check = _step("check", "Look at the data findings", what, command="foreknow check DATA")
    steps = (train, *((mask, cut, drop, retrieve) if new else ()), *((check,) if mix.flagged else ()))
    return tuple(sorted(steps, key=lambda step: not step.why))


def _step(key: str, title: str, what: str, *, command: str = "", why: str = "") -> Option:
    return Option(key, title, what, "", "", "", command, why)
