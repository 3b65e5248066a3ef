"""This module writes the next steps for a file of long answers whose spans have labels.

Its functions have no side effects. Long answers with and without their new spans were trained on in the lab alone
(docs/long-answers.md), so the page offers steps, with these figures, and makes no forecast.
"""

from __future__ import annotations

from foreknow.format.numbers import count, percent
from foreknow.report.audit_options import TO_TEACH_A_TASK, TO_TEACH_FACTS, Option, Purpose, advise
from foreknow.stages.audit.verdict.labelled_spans import LabelledSpans
from foreknow.stages.audit.verdict.sentences import LITTLE_UNKNOWN, MIN_LABELLED, MOSTLY_UNKNOWN, LongMix

KEPT = {"train": (80, 54), "mask": (90, 72), "cut": (91, 76), "drop": (88, 85)}
"""Per cent of the spans said before training that a small model of ours still said at its best epoch, and after 40
epochs; 60 % of the spans were new, three seeds (docs/long-answers.md; docs/studies/lab-long-40)."""
SOURCE = "A model of a million weights of ours, three seeds"
TITLES = {
    "train": "Train on the texts as they are",
    "mask": "Mask what is new",
    "cut": "Cut the sentences that are all new",
    "drop": "Leave out the rows that are mostly new",
    "retrieve": "Put what is new into retrieval",
    "check": "Look at the data findings",
}


def span_purposes(of: LabelledSpans) -> tuple[Purpose, ...]:
    """The advice for each thing that the rows may be for; empty with fewer than `MIN_LABELLED` labelled spans."""
    if of.all.spans < MIN_LABELLED:
        return ()
    new = of.new.value
    here = f"{percent(new)} of the labelled spans are new"
    if new < LITTLE_UNKNOWN:
        facts = ("train", f"{here}: the model expresses or recognises nearly all of these facts already.")
        task = ("train", f"{here}, so there is little to take out.")
    else:
        facts = (
            "train",
            f"{here}, and these are the facts to teach, so taking them out would defeat the purpose. Watch the known "
            "spans while it trains. Facts that must be right belong in retrieval.",
        )
        if new >= MOSTLY_UNKNOWN:
            facts = (
                "retrieve",
                f"{here}. With short facts, the study's model learnt few of such rows at its best epoch, and learning "
                "them all cost it facts that it knew; with long texts a small model of ours did the same.",
            )
        task = (
            "mask",
            f"{here}, and this takes out exactly these, while every text keeps its sense. With short facts, leaving "
            "out what is new did less harm than training on it; with long texts it did in a small model of ours too, "
            "and cutting or dropping kept as much or more of what it had said (see below).",
        )
    return Purpose(TO_TEACH_FACTS, *facts), Purpose(TO_TEACH_A_TASK, *task)


def span_steps(of: LabelledSpans, mix: LongMix) -> tuple[Option, ...]:
    """The next steps, those first that `span_purposes` advises."""
    new, suffix = of.all.counts[-1], mix.suffix
    train = _step(
        "train",
        "While it trains, foreknow tune counts how many known and how many new spans the model says, and keeps the "
        "epoch at which the loss on held-out texts is lowest.",
        command="foreknow tune TRAIN --model MODEL --audit AUDIT --out DIR",
    )
    mask = _step(
        "mask",
        f"The texts stay whole, and the {count(new, 'new span')} {'is' if new == 1 else 'are'} left out of the loss: "
        f"the model reads them and is not taught to say them. masked{suffix}.tokens.parquet holds the same as tokens, "
        "for TRL and transformers.Trainer.",
        command=f"foreknow mix AUDIT --mask new --out masked{suffix}\n"
        f"foreknow tune masked{suffix} --model MODEL --audit AUDIT --out DIR",
    )
    cut = _step(
        "cut",
        "A sentence goes if it has spans and all of them are new. Sentences around it may refer to it, so read some of "
        "the result.",
        command=f"foreknow mix AUDIT --cut new --out cut{suffix}\n"
        f"foreknow tune cut{suffix} --model MODEL --audit AUDIT --out DIR",
    )
    drop = _step(
        "drop",
        f"In {count(of.rows['only'], 'row')} every labelled span is new. The first command drops rows above a share"
        + ("." if of.share_to_draw is None else "; the second draws a set in which a share of all spans is new."),
        command=f"foreknow mix AUDIT --drop-new-above 0.5 --out fewer{suffix}"
        + (
            ""
            if of.share_to_draw is None
            else f"\nforeknow mix AUDIT --new-share {of.share_to_draw:g} --out drawn{suffix}"
        ),
    )
    retrieve = _step(
        "retrieve",
        f"Look up the {count(new, 'new span')} when a user asks, and use training for the form of an answer. The "
        "command writes each new span with its row and question, for an index.",
        command='python -c "import sys, foreknow; foreknow.open_audit(sys.argv[1]).new_spans.write_csv(sys.argv[2])" '
        "AUDIT new_spans.csv",
    )
    what = "This audit flagged some rows, which are listed below; foreknow check counts the flags in the whole file."
    check = _step("check", what, command="foreknow check DATA")
    steps = (train, *((mask, cut, drop, retrieve) if new else ()), *((check,) if mix.flagged else ()))
    return advise(steps, span_purposes(of))


def _step(key: str, what: str, *, command: str) -> Option:
    return Option(key, TITLES[key], what, _evidence(key), "", "", command, source=SOURCE if key in KEPT else "")


def _evidence(key: str) -> str:
    """What a small model kept that was trained so; "" for what trains nothing."""
    if key not in KEPT:
        return ""
    best, last = KEPT[key]
    text = f"With 60 % of the spans new, it kept {best} % of what it had said at its best epoch, and {last} % after 40"
    if key == "train":
        return f"{text}."
    plain = KEPT["train"]
    return f"{text}; trained on the texts as they are, {plain[0]} and {plain[1]} %."
