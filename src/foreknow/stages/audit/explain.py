"""Explains the label of one audited row from the run folder alone: its prompts, the model's answers, the rule. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from foreknow import notebook
from foreknow.categories import HIGHLY_KNOWN, MAYBE_KNOWN
from foreknow.prompts.few_shot import Exemplar
from foreknow.prompts.prompt_template import Template


@dataclass(frozen=True, repr=False)
class Explanation:
    """Why a row has its label.

    `why`: the rule in one sentence, with the row's numbers. `prompts`: the prompt behind each exemplar set, in their
    order. `probes`: one line per set: whether the greedy answer is right, and the lower and upper bound of the
    probability that one sampled answer is right. `model_answer`: the greedy answer behind set 0. `notes`: what the
    prompts here lack against those that the model saw.
    """

    row: int
    question: str | None
    answers: tuple[str, ...]
    category: str | None
    model_answer: str | None
    why: str
    prompts: tuple[str, ...]
    probes: pl.DataFrame
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the explanation as text: the row, the rule, the sets, and the prompt of set 0."""
        lines = [
            f"row {self.row}: {self.question}",
            f"  accepted: {' | '.join(self.answers)}",
            f"  category: {self.category or 'none'}: {self.why}",
        ]
        if self.model_answer is not None:
            lines.append(f"  the model's greedy answer behind exemplar set 0: {self.model_answer!r}")
        lines += [
            f"  set {number}: greedy answer {'right' if right else 'wrong'}, a sample is right with probability "
            f"{between(low, high)}"
            for number, right, low, high in self.probes.iter_rows()
        ]
        if self.prompts:
            lines += ["  the prompt of set 0:", *(f"    {line}" for line in self.prompts[0].splitlines())]
        return "\n".join([*lines, *(f"  note: {text}" for text in self.notes)])

    def _repr_html_(self) -> str:
        lines = [
            (number, "right" if right else "wrong", between(low, high))
            for number, right, low, high in self.probes.iter_rows()
        ]
        parts = [
            notebook.table(
                ("accepted", "category", "greedy answer behind set 0"),
                [(" | ".join(self.answers), self.category or "none", self.model_answer)],
            )
        ]
        if lines:
            parts.append(notebook.table(("exemplar set", "greedy answer", "probability that a sample is right"), lines))
        if self.prompts:
            parts.append(notebook.text_block("the prompt of set 0", self.prompts[0]))
        parts += [notebook.note(text) for text in self.notes]
        return notebook.card(f"row {self.row}: {self.question}", self.why, *parts)


def between(low: float | None, high: float | None) -> str:
    """Return an interval of probabilities as text; one number where both ends look the same."""
    if low is None or high is None:
        return "not known"
    ends = f"{low:.3f}", f"{high:.3f}"
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def explain_row(
    line: Mapping[str, Any],
    probes: pl.DataFrame,
    exemplars: Mapping[str, Any],
    protocol: Mapping[str, Any],
    template: Template,
) -> Explanation:
    """Explain a line of `rows.parquet` (or `facts.parquet`).

    `probes`: the probes of the row, or of the whole audit. `exemplars`: `exemplars.json`. `protocol`: how rows are
    asked, from the summary.
    """
    own = probes.filter(pl.col("row") == line["row"]).sort("exemplar_set")
    lenient = protocol["match"] == "lenient"
    columns = ("greedy_lenient", "p_lenient", "p_lenient_upper") if lenient else (
        "greedy_correct", "p_correct", "p_correct_upper"
    )  # fmt: skip
    table = own.select("exemplar_set", *columns).rename(dict(zip(columns, PROBE_COLUMNS[1:], strict=True)))
    sets = exemplars.get(line["group"], []) if not own.is_empty() else []
    prompts = [
        _prompt(template, shots, replaced or (), str(line["question"]), chat=bool(protocol.get("chat_template")))
        for shots, replaced in zip(sets, own["replaced_shots"].to_list(), strict=True)
    ]
    notes = []
    if protocol.get("chat_template"):
        notes.append("the model saw these turns through its tokenizer's chat template")
    if protocol.get("bos_in_prompt"):
        notes.append("a beginning-of-sequence token stands before each prompt")
    if line.get("earlier_turns"):
        notes.append("the earlier turns of the row's chat stood before the question; the run folder does not hold them")
    return Explanation(
        row=line["row"],
        question=line["question"],
        answers=tuple(line["answers"] or ()),
        category=line["category"],
        model_answer=line["model_answer"],
        why=why(line, table, protocol),
        prompts=tuple(prompts),
        probes=table,
        notes=tuple(notes),
    )


PROBE_COLUMNS = ("exemplar_set", "greedy_correct", "p_correct", "p_correct_upper")
"""The columns of `Explanation.probes`."""


def why(line: Mapping[str, Any], probes: pl.DataFrame, protocol: Mapping[str, Any]) -> str:
    """Return the rule that gave the row its label, with the row's numbers (paper, section 2; `slick.py`)."""
    sets, flags = probes.height, line["flags"] or []
    if line["category"] is None:
        reason = f"its flags are {', '.join(flags)}" if flags else "it could not be asked"
        return f"The row has no category: {reason}."
    right = int(probes["greedy_correct"].sum())
    asked = f"{sets} greedy answers, one behind each exemplar set,"
    if line["category"] == HIGHLY_KNOWN:
        return f"All {asked} are right."
    if line["category"] == MAYBE_KNOWN:
        return f"{right} of {asked} {'is' if right == 1 else 'are'} right, the others are not."
    tries = sets * int(protocol["samples"])
    none = f"None of {asked} is right"
    if protocol["name"] == "sampled":
        return f"{none}; of {tries:,} sampled answers {'at least one' if line['p_hit'] else 'none'} is right."
    chance = line["p_hit_lenient"] if protocol["match"] == "lenient" else line["p_hit"]
    side = "0.5 or more" if chance >= 0.5 else "below 0.5"
    undecided = " The search left open on which side of 0.5 it is." if "undecided" in flags else ""
    return f"{none}; {tries:,} samples would contain a right answer with probability {chance:.2f}, {side}.{undecided}"


def _prompt(
    template: Template,
    shots: Sequence[Mapping[str, str]],
    replaced: Sequence[Mapping[str, Any]],
    question: str,
    *,
    chat: bool,
) -> str:
    """Return the prompt of a row behind an exemplar set: plain text, or turns where it goes through a chat template."""
    filled = shown_exemplars(shots, replaced)
    if not chat:
        return template.render(filled, question)
    turns = [f"system: {template.instruction}"] if template.instruction else []
    turns += [text for shot in filled for text in (f"user: {shot.question}", f"assistant: {shot.answer}")]
    return "\n".join([*turns, f"user: {question}", "assistant:"])


def shown_exemplars(shots: Sequence[Mapping[str, str]], replaced: Sequence[Mapping[str, Any]]) -> list[Exemplar]:
    """Return the exemplars that a row saw: `shots` of `exemplars.json`, with the replacements of `probes.parquet`."""
    filled = [Exemplar(shot["question"], shot["answer"], None) for shot in shots]
    for swap in replaced:
        filled[swap["slot"]] = Exemplar(swap["question"], swap["answer"], None)
    return filled
